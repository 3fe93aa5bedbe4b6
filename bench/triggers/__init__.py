"""What trigger functions cost besides themselves: events per second, CPU per event, the writer's latency, the wait.

One embedded shard that syncs its WAL, real workers. Drain: a backlog is captured first, then handled; CPU is that of
the worker's processes and of its backend, so it holds on a busy machine where events per second do not. Write: the time
of one autocommitted INSERT by one client, without capture and with functions registered that nobody runs, interleaved.
Wait: from the return of a commit to the start of its call, the worker being woken by a datagram.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncpg

from bench import Options
from bench.report import table
from bench.triggers.world import World, cpu_s

FUNCTIONS = {
    "empty": "def f(event):\n    pass\n",
    "empty, async": "async def f(event):\n    pass\n",
    "one statement": "def f(event):\n    event.execute('INSERT INTO effect (key) VALUES ($1)', event.key)\n",
}
WORKERS = (1, 2)
ROW_BYTES = (200, 20_000)
FUNCTION_COUNTS = (0, 1, 3)


def run(options: Options) -> dict[str, Any]:
    """Measure, print, answer the figures."""
    with tempfile.TemporaryDirectory(prefix="foreshard-bench-") as folder:
        return asyncio.run(_run(options, Path(folder)))


async def _run(options: Options, folder: Path) -> dict[str, Any]:
    events, writes, waits = (400, 40, 10) if options.small else (20_000, 2_000, 500)
    with World(folder) as world:
        drained = [
            {"function": name, "workers": workers, **await _drain(world, source, workers, events)}
            for name, source in FUNCTIONS.items()
            for workers in WORKERS
        ]
        written = await _write(world, writes)
        waited = await _wait(world, waits)
    print(
        table(
            ["function", "workers", "events/s", "worker CPU, us", "backend CPU, us"],
            [list(d.values()) for d in drained],
        )
    )
    print()
    print(table(["row, bytes", "functions", "INSERT, us p50", "ratio"], [list(w.values()) for w in written]))
    print(f"\ncommit to call: p50 {waited['p50_us']:.0f} us, p99 {waited['p99_us']:.0f} us")
    return {"events": events, "drain": drained, "write": written, "wait": waited}


async def _drain(world: World, source: str, workers: int, events: int) -> dict[str, float]:
    """Handle a backlog of single-row changes; figures per event."""
    await world.reset(source, functions=1)
    connection = await world.connect()
    text = "lorem ipsum " * 16
    try:
        await connection.execute(
            "INSERT INTO document SELECT n, $1 FROM generate_series(1, $2::int) AS n", text, events
        )
        async with world.workers(workers) as running:
            backends = await world.worker_backends(workers)
            pids = [pid for worker in running for pid in worker.pids()]
            before, before_backend = sum(map(cpu_s, pids)), sum(map(cpu_s, backends))
            left = await connection.fetchval("SELECT count(*) FROM foreshard.outbox")
            started = time.perf_counter()
            while await connection.fetchval("SELECT EXISTS (SELECT FROM foreshard.outbox)"):
                await asyncio.sleep(0.02)
            elapsed = time.perf_counter() - started
            used, used_backend = sum(map(cpu_s, pids)) - before, sum(map(cpu_s, backends)) - before_backend
    finally:
        await connection.close()
    left = max(left, 1)  # what was handled before the clock started does not count
    return {
        "events_per_s": left / elapsed,
        "worker_cpu_us": used / left * 1e6,
        "backend_cpu_us": used_backend / left * 1e6,
    }


async def _write(world: World, writes: int) -> list[dict[str, float]]:
    """Median time of an INSERT for each size and number of functions."""
    found = []
    for size in ROW_BYTES:
        times: dict[int, list[float]] = {count: [] for count in FUNCTION_COUNTS}
        text = ("lorem ipsum dolor sit amet " * (size // 27 + 1))[:size]
        key = 0
        for _ in range(4):
            for count in FUNCTION_COUNTS:
                await world.reset("", functions=count)
                connection = await world.connect()
                statement = await connection.prepare("INSERT INTO document VALUES ($1, $2)")
                for _ in range(writes // 4):
                    key += 1
                    started = time.perf_counter()
                    await statement.fetch(key, text)
                    times[count].append(time.perf_counter() - started)
                await connection.close()
        plain = statistics.median(times[0])
        found += [
            {"row_bytes": size, "functions": count, "p50_us": middle * 1e6, "ratio": middle / plain}
            for count in FUNCTION_COUNTS
            if (middle := statistics.median(times[count]))
        ]
    return found


async def _wait(world: World, waits: int) -> dict[str, float]:
    """Time from a commit's return to the start of the call, one event at a time."""
    source = "import time\ndef f(event):\n    event.execute('INSERT INTO effect (at) VALUES ($1)', time.time())\n"
    await world.reset(source, functions=1)
    connection = await world.connect()
    times = []
    async with world.workers(1) as running:
        await world.worker_backends(1)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as router:
            router.connect(str(running[0].wake_path))
            for key in range(waits):
                await connection.execute("INSERT INTO document VALUES ($1, 'x')", key)
                committed = time.time()
                router.send(b"\0")
                times.append(await _take_effect(connection) - committed)
    await connection.close()
    times.sort()
    return {"p50_us": statistics.median(times) * 1e6, "p99_us": times[int(len(times) * 0.99)] * 1e6}


async def _take_effect(connection: asyncpg.Connection[Any]) -> float:
    while True:
        at: float | None = await connection.fetchval("DELETE FROM effect RETURNING at")
        if at is not None:
            return at
        await asyncio.sleep(0.002)
