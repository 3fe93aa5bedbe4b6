"""The proxy as the demo runs it: a configuration written for it, `foreshard apply`, `foreshard serve` as a child."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import yaml

from foreshard.proxy.children import describe_end, end_with_parent
from foreshard.proxy.config import Config, load_config
from foreshard.proxy.embedded import resolve_shards
from foreshard.proxy.errors import ForeshardError

READY_S = 120.0  # a busy machine that initialises three databases first
LOG_TAIL_LINES = 15


def find_template() -> Path:
    """config/demo/demo.yaml of the source tree that this module is part of."""
    path = Path(__file__).resolve().parents[2] / "config" / "demo" / "demo.yaml"
    if not path.exists():
        raise ForeshardError(f"{path} is missing: run the demo from a source tree, or name its file with --config")
    return path


def write_config(template: Path, data: Path, listen: str | None) -> Path:
    """Write DATA/demo.yaml: the template with its paths made absolute and everything it makes below DATA."""
    config = load_config(template)
    if config.embedded is None or config.schema is None:
        raise ForeshardError(f"{template}: the demo needs `embedded` and `schema`")
    changes: dict[str, Any] = {
        "listen": listen or free_listen(config.listen_host, config.listen_port),
        "embedded": {"shards": config.embedded.shards, "data": str(data / "shards")},
        "run_directory": str(data / "run"),
        "schema": str(config.schema),
        "functions_path": str(config.functions_path),
    }
    kept = drop_sections(template.read_text(), set(changes))
    path = data / "demo.yaml"
    data.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# Written by `foreshard demo` from {template}.\n{yaml.safe_dump(changes)}\n{kept}")
    return path


def drop_sections(text: str, names: set[str]) -> str:
    """A YAML file's text without some top-level keys; comments and the spelling of the rest stay."""
    kept = []
    dropping = False
    for line in text.splitlines(keepends=True):
        if line[:1] not in (" ", "#", "\n"):
            dropping = line.partition(":")[0] in names
        if not dropping:
            kept.append(line)
    return "".join(kept)


def free_listen(host: str, port: int) -> str:
    """The wanted address; another port when somebody else listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


class Service:
    """`foreshard serve` as a child process. Started and stopped by the demo; ends with it in any case."""

    def __init__(self, path: Path, log: Path) -> None:
        self.path = path
        self.log = log
        self._process: asyncio.subprocess.Process | None = None

    async def apply(self) -> None:
        """Run `foreshard apply`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "foreshard.proxy",
            "apply",
            "-c",
            str(self.path),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode != 0:
            raise ForeshardError(f"foreshard apply failed:\n{output.decode(errors='replace').strip()}")

    async def start(self) -> str:
        """Start the proxy; its ready line."""
        parent = os.getpid()
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "foreshard.proxy",
                "serve",
                "-c",
                str(self.path),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: end_with_parent(parent, signal.SIGTERM),
            )
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), READY_S)
        except TimeoutError:
            await self.stop()
            raise ForeshardError(f"the proxy was not ready within {READY_S:.0f} s; see {self.log}") from None
        if not line:
            raise ForeshardError(await self.wait())
        return line.decode().strip()

    def config(self) -> Config:
        """The configuration with the ports of the embedded shards."""
        return resolve_shards(load_config(self.path))

    async def wait(self) -> str:
        """Wait until the proxy ends by itself; how it did, with the end of its log."""
        assert self._process is not None
        how = describe_end(await self._process.wait())
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
        return f"the proxy {how}:\n{tail}".strip()

    async def stop(self) -> None:
        """Stop it in order and wait."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            await self._process.wait()
