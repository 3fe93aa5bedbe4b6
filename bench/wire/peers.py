"""The ways to a database that are compared: none (direct), PgBouncer, Foreshard."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.proxy import Proxy, cpu_seconds, free_port
from tests.support.raw import Closed
from tests.support.servers import Server
from tests.support.waiting import wait_until

PGBOUNCER_PLACES = ("pgbouncer", "/usr/sbin/pgbouncer", "/usr/local/sbin/pgbouncer")
# Before this version a protocol-level prepared statement stays on the backend that parsed it.
PGBOUNCER_PREPARED_SINCE = (1, 21)


@dataclass(frozen=True)
class Peer:
    """One way to the database; `pids` are the processes whose CPU counts."""

    name: str
    server: Server
    pids: Callable[[], list[int]]

    def cpu_s(self) -> float:
        return sum(cpu_seconds(pid) for pid in self.pids())


def direct_peer(server: Server) -> Peer:
    return Peer("direct", server, list)


def foreshard_peer(proxy: Proxy) -> Peer:
    return Peer("foreshard", proxy.server, proxy.router_pids)


def find_pgbouncer() -> Path | None:
    """The installed PgBouncer."""
    return next((Path(found) for place in PGBOUNCER_PLACES if (found := shutil.which(place))), None)


def pgbouncer_version(binary: Path) -> tuple[int, ...]:
    answer = subprocess.run([binary, "-V"], capture_output=True, text=True, check=True)
    match = re.search(r"PgBouncer (\d+)\.(\d+)\.(\d+)", answer.stdout)
    return tuple(int(part) for part in match.groups()) if match else (0, 0, 0)


@contextlib.contextmanager
def running_pgbouncer(
    binary: Path, target: Server, directory: Path, pool_size: int, *, session: bool = False
) -> Iterator[Peer]:
    """PgBouncer in front of `target`, as an ordinary user (it refuses root)."""
    name = "pgbouncer-session" if session else "pgbouncer"
    server = target._replace(host="127.0.0.1", port=free_port())
    settings = {
        "listen_addr": server.host,
        "listen_port": server.port,
        "unix_socket_dir": "",
        "auth_type": "trust",
        "auth_file": directory / f"{name}.users",
        "pool_mode": "session" if session else "transaction",
        "default_pool_size": pool_size,
        "max_client_conn": 1000,
        "logfile": directory / f"{name}.log",
        "log_connections": 0,
        "log_disconnections": 0,
        "ignore_startup_parameters": "extra_float_digits,options",
    }
    if pgbouncer_version(binary) >= PGBOUNCER_PREPARED_SINCE:
        settings["max_prepared_statements"] = 200
    database = f"{target.database} = host={target.host} port={target.port} user={target.user}"
    lines = "\n".join(f"{key} = {value}" for key, value in settings.items())
    configuration = directory / f"{name}.ini"
    configuration.write_text(f"[databases]\n{database}\n[pgbouncer]\n{lines}\n")
    (directory / f"{name}.users").write_text(f'"{target.user}" ""\n')
    with (directory / f"{name}.out").open("wb") as output:
        process = subprocess.Popen(
            [binary, configuration], stdout=output, stderr=output, cwd="/", **_ordinary_user(directory)
        )
    try:
        wait_until(lambda: process.poll() is not None or _answers(server))
        assert process.poll() is None, (directory / f"{name}.out").read_text()
        yield Peer("pgbouncer", server, lambda: [process.pid])
    finally:
        process.terminate()
        process.wait()


def _ordinary_user(directory: Path) -> dict[str, object]:
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam("nobody")
    os.chown(directory, entry.pw_uid, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _answers(server: Server) -> bool:
    try:
        with server.connect() as connection:
            return connection.value("select 1") == "1"
    except (OSError, Closed, AssertionError):
        return False
