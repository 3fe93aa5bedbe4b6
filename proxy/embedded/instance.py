"""One PostgreSQL instance of ours: its folder, settings, process.

The process outlives whoever started it: after a kill -9 of the supervisor the next one finds it by `postmaster.pid`
and adopts it. Ready means that line 8 of that file says so, which PostgreSQL writes for this purpose (miscadmin.h).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from foreshard.proxy.embedded.binaries import Account, Binaries
from foreshard.proxy.errors import ForeshardError

USER = "app"
DATABASE = "app"
START_TIMEOUT_S = 120.0  # crash recovery included
STOP_TIMEOUT_S = 30.0
POLL_S = 0.01
LOG_TAIL_LINES = 5
ANSWER_TIMEOUT_S = 2.0
PORT_TIMEOUT_S = 2.0
PORTS = (10240, 32000)  # below Linux's ports for outgoing connections (net.ipv4.ip_local_port_range)
PORT_DRAWS_MAX = 100
SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")

CONNECTIONS_MAX = "200"
# Chosen for several instances on one machine, not measured. Every connection may have a transaction prepared.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": CONNECTIONS_MAX,
    "max_prepared_transactions": CONNECTIONS_MAX,
    "shared_buffers": "32MB",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "timezone": "UTC",
    "lc_messages": "C",
    "jit": "off",
}
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "wal_init_zero": "off"}


@dataclass(frozen=True)
class PostmasterFile:
    """What postmaster.pid says: lines 1, 4 and 8."""

    pid: int
    port: int
    status: str


class Instance:
    """One instance below the cluster's folder. Made by EmbeddedCluster; its process ends by `stop`."""

    def __init__(self, name: str, folder: Path, log: Path, binaries: Binaries, account: Account) -> None:
        self.name = name
        self.folder = folder
        self.log = log
        self.port = 0
        self._binaries = binaries
        self._account = account
        self._child = 0  # pid of the process when we launched it, until it has been reaped

    @property
    def dsn(self) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{DATABASE}"

    def read_postmaster(self) -> PostmasterFile | None:
        """The running process's file; None when nothing runs here (a stale file counts as nothing)."""
        try:
            lines = (self.folder / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not lines or not lines[0].strip().isdigit():
            return None
        pid = int(lines[0])
        port = int(lines[3]) if len(lines) > 3 and lines[3].strip().isdigit() else 0
        status = lines[7].strip() if len(lines) > 7 else "starting"
        return PostmasterFile(pid, port, status) if self._is_ours(pid) else None

    def adopt(self) -> bool:
        """Take over an instance that already runs here; wait until it is ready or, when it is stopping, gone."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            found = self.read_postmaster()
            if found is None:
                return False
            if found.status == "ready" and answers(found.port):  # a process that was just killed does not answer
                self.port = found.port
                return True
            time.sleep(POLL_S)
        raise ForeshardError(f"embedded shard {self.name} neither starts nor stops; see {self.log}")

    def clear_remains(self) -> None:
        """After a kill -9 of the postmaster: let its children end, and forget a pid that is only a zombie.

        PostgreSQL takes a zombie for a running postmaster, and refuses to start beside children of the old one. A
        child that was just forked holds the port, too.
        """
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while processes_in(self.folder) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        lock = self.folder / "postmaster.pid"
        if lock.exists() and self.read_postmaster() is None and not processes_in(self.folder):
            lock.unlink()

    def launch(self, port: int, durable: bool) -> None:
        """Start the process on the port, after `clear_remains`; `wait_ready` waits for it."""
        self.port = port
        self._write_settings(durable)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [self._binaries.folder / "postgres", "-D", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(),
                cwd="/",
                start_new_session=True,  # Ctrl-C in the starter's terminal must not reach it
                user=self._account.uid if self._account.is_other else None,
                group=self._account.gid if self._account.is_other else None,
                extra_groups=[] if self._account.is_other else None,
            )
        self._child = process.pid
        process.returncode = 0  # it may outlive us: Popen need not warn of that

    def wait_ready(self) -> bool:
        """Whether the launched process accepts connections; False when it ended instead."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            self._reap()
            if not self._child:
                return False
            found = self.read_postmaster()
            if found is not None and found.pid == self._child and found.status == "ready":
                return True
            time.sleep(POLL_S)
        raise ForeshardError(f"embedded shard {self.name} is not ready after {START_TIMEOUT_S:.0f} s; see {self.log}")

    def log_tail(self) -> str:
        """The last lines of the log, on one line."""
        try:
            return " / ".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
        except FileNotFoundError:
            return "no log"

    def signal_stop(self, how: signal.Signals = signal.SIGINT) -> int | None:
        """Ask for a fast (SIGINT) or immediate (SIGQUIT) shutdown; the pid asked, None when nothing runs."""
        found = self.read_postmaster()
        if found is None:
            self._reap()
            return None
        with contextlib.suppress(ProcessLookupError):
            os.kill(found.pid, how)
        return found.pid

    def wait_stopped(self) -> None:
        """Wait for the end of the process; after the timeout it is stopped at once (and recovers at the next start)."""
        for how in (signal.SIGQUIT, signal.SIGKILL, None):
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while time.monotonic() < deadline:
                self._reap()
                if self.read_postmaster() is None:
                    return
                time.sleep(POLL_S)
            if how is not None:
                self.signal_stop(how)
        raise ForeshardError(f"embedded shard {self.name} does not stop; see {self.log}")

    def _reap(self) -> None:
        """Take the end of a process that we launched, so that it does not stay as a zombie."""
        if self._child:
            try:
                ended = os.waitpid(self._child, os.WNOHANG)[0]
            except ChildProcessError:
                ended = self._child
            if ended:
                self._child = 0

    def _is_ours(self, pid: int) -> bool:
        """Whether the pid is alive and a postmaster of this folder, which its command line names."""
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        if not Path("/proc/self").exists():
            return True
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return False
        return str(self.folder).encode() in words  # empty for a zombie

    def _write_settings(self, durable: bool) -> None:
        settings = SETTINGS | {"port": str(self.port)} | ({} if durable else NOT_DURABLE)
        text = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        path = self.folder / "foreshard.conf"
        path.write_text(f"# Written at each start; put your own settings in postgresql.conf below the include.\n{text}")
        self._give(path)

    def _give(self, path: Path) -> None:
        if self._account.is_other:
            os.chown(path, self._account.uid, self._account.gid)


def make_template(folder: Path, binaries: Binaries, account: Account, log: Path) -> None:
    """initdb with user and database `app`, in a folder that does not exist yet."""
    draft = folder.with_name(folder.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    if account.is_other:
        os.chown(draft, account.uid, account.gid)
    locale = ["--locale=C", "--encoding=UTF8"]
    if binaries.version >= 17:
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", *locale]
    initdb = [binaries.folder / "initdb", "-D", draft, "-U", USER, "--auth=trust", "--no-sync", "--no-instructions"]
    _run([*map(str, initdb), *locale], account, log)
    _run(
        [str(binaries.folder / "postgres"), "--single", "-D", str(draft), "-c", "fsync=off", "template1"],
        account,
        log,
        f"CREATE DATABASE {DATABASE} OWNER {USER};\n",
    )
    with (draft / "postgresql.conf").open("a") as conf:
        conf.write("\ninclude 'foreshard.conf'\n")
    draft.rename(folder)


def copy_template(template: Path, folder: Path, binaries: Binaries, account: Account, log: Path, durable: bool) -> None:
    """A new instance's folder from the template; complete or absent, whenever we are killed."""
    draft = folder.with_name(folder.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(template, draft, symlinks=True)
    if account.is_other:
        for path in (draft, *draft.rglob("*")):
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
    if durable:
        _run([str(binaries.folder / "initdb"), "--sync-only", "-D", str(draft)], account, log)
    draft.rename(folder)


def processes_in(folder: Path) -> list[int]:
    """Processes whose working directory is the folder, as PostgreSQL's is its data directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.joinpath("cwd").readlink() == folder:
                found.append(int(process.name))
    return found


def answers(port: int) -> bool:
    """Whether a PostgreSQL server on the port answers an SSLRequest."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT_S) as connection:
            connection.sendall(SSL_REQUEST)
            return connection.recv(1) in {b"S", b"N"}
    except OSError:
        return False


def is_free(port: int) -> bool:
    """Whether a server could listen on the port of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_free(port: int) -> bool:
    """Whether a server could listen on the port; a dying process is given time to let go of it."""
    deadline = time.monotonic() + PORT_TIMEOUT_S
    while not is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def choose_port() -> int:
    """A port of the loopback address that was free a moment ago.

    From below those that the kernel gives to outgoing connections, so that a shard finds it free when it starts again.
    """
    for _ in range(PORT_DRAWS_MAX):
        port = random.randint(*PORTS)
        if is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def child_environment() -> dict[str, str]:
    """Our environment without PostgreSQL's own variables, which would change what initdb and postgres do."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C", "HOME": "/"}


def _run(command: list[str], account: Account, log: Path, text: str = "") -> None:
    """Run a PostgreSQL program as the account; its output goes to the log, its failure is an error."""
    answer = subprocess.run(
        command,
        input=text.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        env=child_environment(),
        cwd="/",
        user=account.uid if account.is_other else None,
        group=account.gid if account.is_other else None,
        extra_groups=[] if account.is_other else None,
    )
    with log.open("ab") as file:
        file.write(answer.stdout)
    if answer.returncode != 0:
        last = answer.stdout.decode(errors="replace").strip().splitlines()[-1:]
        raise ForeshardError(f"{Path(command[0]).name} failed: {' '.join(last)}; see {log}")
