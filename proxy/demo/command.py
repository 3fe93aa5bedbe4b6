"""`foreshard demo`: three embedded shards, the proxy and its workers, and the Python standard library through them.

Real sources are inserted by ordinary clients, changed in a zipfian stream, worked on by three trigger functions, and
then every row is looked for: through the proxy by its key, and on the shards themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import psycopg

from foreshard.proxy.admin.command_explain import login_of
from foreshard.proxy.config import Config
from foreshard.proxy.demo.corpus import read_corpus
from foreshard.proxy.demo.display import Display, complain
from foreshard.proxy.demo.report import Report
from foreshard.proxy.demo.run import Run
from foreshard.proxy.demo.service import Service, find_template, write_config
from foreshard.proxy.embedded import find_binaries
from foreshard.proxy.errors import ForeshardError

T = TypeVar("T")


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `foreshard demo`."""
    parser.add_argument("--once", action="store_true", help="stop when done; exit code 0 only when all is well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="where all data goes (./data)")
    parser.add_argument("--rows", type=positive, metavar="N", help="at most this many documents (all)")
    parser.add_argument(
        "--updates", type=int, metavar="N", help="updates (half the documents; a tenth if all are there)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the order of documents and updates (1)")
    parser.add_argument("--listen", metavar="HOST:PORT", help="the proxy's address (127.0.0.1:6432, or a free port)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="another file than config/demo/demo.yaml")


def positive(text: str) -> int:
    """An argument that is a whole number above 0."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 when everything that it checks holds."""
    try:
        return asyncio.run(run_demo(arguments))
    except (asyncpg.PostgresError, psycopg.Error) as error:
        raise ForeshardError(f"a statement of the demo failed: {error}") from error


async def run_demo(arguments: argparse.Namespace) -> int:
    """Start the proxy, run the workload beside it, stop the proxy whatever happens."""
    display = Display()
    data = arguments.data.resolve()
    service = Service(write_config(arguments.config or find_template(), data, arguments.listen), data / "serve.log")
    began_s = time.monotonic()
    await service.apply()
    interrupted = watch_signals()
    try:
        display.say(f"{await service.start()} (started in {time.monotonic() - began_s:.1f} s)")
        config = service.config()
        report = await first_of(run_workload(arguments, display, config, data), service, interrupted)
        if report is None:
            return 130
        return await finish(arguments, display, config, service, report, interrupted)
    finally:
        await service.stop()
        if interrupted.is_set():
            display.say(goodbye(data))


def goodbye(data: Path) -> str:
    """The last line after Ctrl-C."""
    return f"Stopped: proxy, workers and shards. The data stays in {data}; the next demo goes on with it."


async def run_workload(arguments: argparse.Namespace, display: Display, config: Config, data: Path) -> Report:
    """Everything between the start of the proxy and its figures."""
    corpus = read_corpus(arguments.rows, arguments.seed)
    display.say(
        f"{len(corpus.documents):,} texts of the Python standard library, {corpus.size_bytes / 1e6:.1f} MB; left out: "
        f"{corpus.not_utf8} that are not UTF-8, {corpus.with_nul} with NUL"
    )
    return await Run(config, corpus, display, data, arguments.seed, arguments.updates).run()


def watch_signals() -> asyncio.Event:
    """An event that Ctrl-C and SIGTERM set."""
    event = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event


async def first_of(work: Coroutine[Any, Any, T], service: Service, interrupted: asyncio.Event) -> T | None:
    """The result of the work; None when interrupted first; ForeshardError when the proxy ended first."""
    working = asyncio.ensure_future(work)
    ending = asyncio.ensure_future(service.wait())
    interruption = asyncio.ensure_future(interrupted.wait())
    await asyncio.wait({working, ending, interruption}, return_when=asyncio.FIRST_COMPLETED)
    for task in (working, ending, interruption):
        if not task.done():
            task.cancel()
    await asyncio.gather(working, ending, interruption, return_exceptions=True)
    if interrupted.is_set():
        return None
    if not ending.cancelled():
        raise ForeshardError(ending.result())
    return working.result()


async def finish(
    arguments: argparse.Namespace,
    display: Display,
    config: Config,
    service: Service,
    report: Report,
    interrupted: asyncio.Event,
) -> int:
    """Show and write the figures; stay up until interrupted unless asked not to."""
    report.show(display)
    if arguments.json is not None:
        report.write(arguments.json)
    failures = report.failures()
    for failure in failures:
        complain(failure)
    if not arguments.once:
        show_invitation(display, config)
        await first_of(interrupted.wait(), service, interrupted)
    return 1 if failures else 0


def show_invitation(display: Display, config: Config) -> None:
    """The psql lines to type next; Ctrl-C ends."""
    psql = "psql" if shutil.which("psql") else find_binaries().folder / "psql"
    user, database = login_of(config)
    address = f"postgresql://{user}@{config.listen_host}:{config.listen_port}"
    display.say("")
    display.say("The proxy stays up until Ctrl-C. The rows, and the console:")
    display.say(f"  {psql} {address}/{database}")
    display.say(f"  {psql} {address}/foreshard -c 'SHOW HELP'")
