"""What a controller finds on real shards: its tables, and measurements as workers would write them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import msgspec

from foreshard.proxy.config import Config, TableConfig, TriggerConfig
from foreshard.proxy.control import apply
from foreshard.proxy.control.controller import Controller
from foreshard.proxy.placement import SharedState
from foreshard.proxy.profiles import profile_keys
from tests.support.postgres import Shards

DEADLINE_S = 20.0
SCHEMA_SQL = """
CREATE TABLE document (id bigserial PRIMARY KEY, body text);
CREATE TABLE word (id bigserial PRIMARY KEY, document_id bigint NOT NULL REFERENCES document, word text);
"""


async def prepare(shards: Shards, path: Path) -> Config:
    """Tables and applied schema; answers the configuration: a root table, a child, and two functions."""
    shards.execute(SCHEMA_SQL)
    config = Config(
        path=path / "foreshard.yaml",
        run_directory=path / "run",
        shards=shards.shards,
        tables=(
            TableConfig(name="document", key="id"),
            TableConfig(name="word", key="id", parent="document", via="document_id"),
        ),
        triggers=(
            TriggerConfig(name="index", table="document", on=("insert", "update"), function="functions:index"),
            TriggerConfig(name="zip", table="document", on=("insert",), function="functions:zip"),
        ),
    )
    await apply(config)
    return config


def new_state(config: Config) -> SharedState:
    """Shared state of this process alone, with the default capacities."""
    state = SharedState.private(len(config.shards), len(profile_keys(config)))
    state.set_capacities((1.0, 1e9, 200e6, 100e6))
    return state


def measure(shards: Shards, *, on: int = 0, calls: int = 1, function: str = "index", first_key: int = 1) -> None:
    """Write measurements of `calls` inserts: 1 ms and 1 us per byte of CPU, sizes 1000, 2000 ... 10000."""
    shards.execute(
        f"""INSERT INTO foreshard.measurement (function, operation, table_name, row_key, size, complexity, volume,
              cpu_s, memory_byte_s, io_bytes, network_bytes, wall_s, queue_s, attempt)
            SELECT '{function}', 'insert', 'public.document', ({first_key} + n)::text, 1000 * (1 + n % 10), 4, 1,
              0.001 + 0.001 * (1 + n % 10), 100, 4096, NULL, 0.02, 0.01, 1
            FROM generate_series(0, {calls - 1}) AS n""",
        on=on,
    )


@contextlib.asynccontextmanager
async def controller(config: Config, state: SharedState) -> AsyncIterator[Controller]:
    """A controller that runs for as long as the block does, and ends cleanly."""
    made = Controller(config, state)
    stopping = asyncio.Event()
    running = asyncio.create_task(made.run(stopping))
    try:
        yield made
    finally:
        stopping.set()
        await asyncio.wait_for(running, DEADLINE_S)


async def until(holds: Callable[[], object]) -> None:
    """Wait for a condition; fails at the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not holds():
            await asyncio.sleep(0.01)


class Gate:
    """A port in front of a server that can be shut: connections are cut and refused until it opens again."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._parts = parts
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._port = 0

    @property
    def dsn(self) -> str:
        """The server's DSN through the gate, known once it has been open."""
        user = f"{self._parts.username}@" if self._parts.username else ""
        return urlunsplit(self._parts._replace(netloc=f"{user}127.0.0.1:{self._port}"))

    async def open(self) -> None:
        """Let connections through."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Cut what is connected and refuse what comes."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await until(lambda: not self._writers)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()
            self._writers.discard(writer)


def with_dsns(config: Config, dsns: dict[int, str], control: str | None = None) -> Config:
    """The configuration with some shards, or the control database, reached another way."""
    shards = tuple(
        msgspec.structs.replace(shard, dsn=dsns.get(index, shard.dsn)) for index, shard in enumerate(config.shards)
    )
    return msgspec.structs.replace(config, shards=shards, control=control or config.shards[0].dsn)
