"""Embedded shards: PostgreSQL instances s0, s1, ... below one data directory.

What lies there:
    cluster.json     the port of each instance, remembered from start to start
    lock             held while instances are started or stopped
    users            share-locked by every process that has started or adopted the instances
    NAME.log         what instance NAME said
    instances/NAME   its data directory; `instances` is a link to a folder below /var/lib when root's PostgreSQL
                     account could not enter the data directory (`make clean` follows it)

Invariants
1. A folder instances/NAME is complete: it is made under another name and renamed.
2. At most one starter acts on a data directory at a time (the lock); instances that run already are adopted.
3. An instance keeps its port while any process uses it: a proxy that found someone else's PostgreSQL there would
   write into it. With nobody using it, one whose port was taken meanwhile gets another.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from foreshard.proxy.config import Config, EmbeddedConfig, ShardConfig
from foreshard.proxy.embedded.binaries import Account, choose_account, find_binaries, is_reachable, public_folder
from foreshard.proxy.embedded.instance import (
    DATABASE,
    USER,
    Instance,
    choose_port,
    copy_template,
    make_template,
    wait_free,
)
from foreshard.proxy.errors import ConfigError, ForeshardError

LAUNCH_ATTEMPTS_MAX = 3  # another process may take the chosen port first


class EmbeddedCluster:
    """The instances below one data directory. `start` starts or adopts, `stop` stops all, whoever started them."""

    def __init__(self, data: Path, shards: int, *, durable: bool = True) -> None:
        self.data = data.absolute()
        self.durable = durable
        self.started: list[str] = []  # names that the last `start` had to launch; the others were adopted
        self._names = [f"s{index}" for index in range(shards)]
        self._instances: list[Instance] = []
        self._users: IO[str] | None = None

    def start(self) -> tuple[ShardConfig, ...]:
        """Make, start or adopt every instance; returns when all accept connections."""
        self.data.mkdir(parents=True, exist_ok=True)
        with self._lock():
            self._open()
            self._make_folders()
            ports = self._read_ports()
            adopted = {instance.name for instance in self._instances if instance.adopt()}
            waiting = [instance for instance in self._instances if instance.name not in adopted]
            self.started = [instance.name for instance in waiting]
            try:
                self._launch(waiting, ports)
            except BaseException:
                for instance in waiting:
                    if instance.signal_stop() is not None:
                        instance.wait_stopped()
                raise
            self._write_ports()
            if self._users is None:
                self._users = (self.data / "users").open("w")
                fcntl.flock(self._users, fcntl.LOCK_SH)
        return tuple(ShardConfig(name=instance.name, dsn=instance.dsn) for instance in self._instances)

    def stop(self, names: list[str] | None = None, *, immediate: bool = False) -> None:
        """Stop the named instances, or all of them; connected clients are disconnected.

        An immediate stop leaves the work of a checkpoint to the next start.
        """
        if not self.data.is_dir():
            return
        with self._lock():
            self._release()
            if not self._instances:
                self._open()
            chosen = [instance for instance in self._instances if names is None or instance.name in names]
            for instance in chosen:
                instance.signal_stop(signal.SIGQUIT if immediate else signal.SIGINT)
            for instance in chosen:
                instance.wait_stopped()

    def stop_started(self) -> None:
        """Stop what `start` had to launch, unless another process has adopted the instances since."""
        if self._users is not None:
            try:
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._release()
                return
        self.stop(self.started)

    def forget(self, name: str) -> None:
        """Remember no port for this instance."""
        with self._lock():
            ports = self._read_ports()
            ports.pop(name, None)
            self._keep_ports(ports)

    def pids(self) -> dict[str, int]:
        """Postmaster's pid by name, of the instances that run."""
        found = {instance.name: instance.read_postmaster() for instance in self._instances}
        return {name: file.pid for name, file in found.items() if file is not None}

    def _release(self) -> None:
        if self._users is not None:
            self._users.close()
            self._users = None

    def _open(self) -> None:
        binaries, account = find_binaries(), choose_account()
        folder = self._instances_folder(account)
        self._instances = [
            Instance(name, folder / name, self.data / f"{name}.log", binaries, account) for name in self._names
        ]
        self._binaries, self._account, self._folder = binaries, account, folder

    def _instances_folder(self, account: Account) -> Path:
        """Where instances lie, made when missing; behind a link when the account cannot reach the data directory."""
        link = self.data / "instances"
        if link.is_symlink() or not link.exists():
            target = link
            if account.is_other and not is_reachable(self.data):
                digest = hashlib.sha256(str(self.data.resolve()).encode()).hexdigest()[:16]
                target = public_folder("lib") / digest
                if not link.is_symlink():
                    link.symlink_to(target)
            target.mkdir(mode=0o755, exist_ok=True)
        return link.resolve()

    def _make_folders(self) -> None:
        missing = [instance for instance in self._instances if not instance.folder.exists()]
        if not missing:
            return
        template = self._folder / "template"
        log = self.data / "initdb.log"
        if not template.exists():
            make_template(template, self._binaries, self._account, log)
        for instance in missing:
            copy_template(template, instance.folder, self._binaries, self._account, log, self.durable)
        shutil.rmtree(template)

    def _launch(self, waiting: list[Instance], ports: dict[str, int]) -> None:
        """Start all at once, then wait for each; who loses a port just chosen to someone else gets another."""
        for instance in waiting:
            instance.clear_remains()
        kept = {instance.name: self._keep_port(instance.name, ports) for instance in waiting}
        for _ in range(LAUNCH_ATTEMPTS_MAX):
            for instance in waiting:
                instance.launch(kept[instance.name] or choose_port(), self.durable)
            waiting = [instance for instance in waiting if not instance.wait_ready()]
        for instance in waiting:
            raise ForeshardError(f"embedded shard {instance.name} did not start: {instance.log_tail()}")

    def _keep_port(self, name: str, ports: dict[str, int]) -> int:
        """The instance's remembered port; 0 when it has none, or has lost it while nobody knew it by that address."""
        port = ports.get(name, 0)
        if not port or wait_free(port):
            return port
        if not self._is_used():
            return 0
        raise ForeshardError(
            f"port {port} of embedded shard {name} is taken by another program, and running proxies or workers know "
            f"the shard by it: end that program, or stop all that use {self.data} to have another port chosen"
        )

    def _is_used(self) -> bool:
        """Whether a process has started or adopted the instances and lives, this one included."""
        with (self.data / "users").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.data / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _read_ports(self) -> dict[str, int]:
        return read_ports(self.data) or {}

    def _write_ports(self) -> None:
        self._keep_ports(self._read_ports() | {instance.name: instance.port for instance in self._instances})

    def _keep_ports(self, known: dict[str, int]) -> None:
        draft = self.data / "cluster.json.draft"
        draft.write_text(json.dumps({"ports": known}, indent=1) + "\n")
        draft.rename(self.data / "cluster.json")


def read_ports(data: Path) -> dict[str, int] | None:
    """The remembered ports of a data directory; None before its first start."""
    try:
        ports = json.loads((data / "cluster.json").read_text())["ports"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return {str(name): int(port) for name, port in ports.items()}


def shard_names(embedded: EmbeddedConfig) -> list[str]:
    """The names of a configuration's embedded shards, and of those that were added since, in order."""
    ports = read_ports(embedded.data) or {}
    count = embedded.shards
    while f"s{count}" in ports:
        count += 1
    return [f"s{index}" for index in range(count)]


def grown_shards(config: Config, name: str) -> Config:
    """The configuration with an embedded shard of this name, which is the next or there already."""
    assert config.embedded is not None
    names = shard_names(config.embedded)
    if name not in (*names, f"s{len(names)}"):
        raise ConfigError([f"shards add {name}: embedded shards are called s0, s1, ...: the next is s{len(names)}"])
    count = max(len(names), int(name[1:]) + 1)
    return msgspec.structs.replace(config, embedded=msgspec.structs.replace(config.embedded, shards=count))


def forget_instance(embedded: EmbeddedConfig, name: str) -> None:
    """Stop an embedded shard that is none of the deployment any more; its data stays where it is."""
    cluster = EmbeddedCluster(embedded.data, len(shard_names(embedded)))
    cluster.stop([name])
    cluster.forget(name)


def is_made(embedded: EmbeddedConfig) -> bool:
    """Whether the shards have been started once, so that their ports are known."""
    ports = read_ports(embedded.data) or {}
    return all(name in ports for name in shard_names(embedded))


def never_started(embedded: EmbeddedConfig) -> str:
    """What to say where embedded shards are asked for that do not exist yet."""
    return (
        f"the embedded shards below {embedded.data} have never been started: "
        "run `foreshard apply`, then `foreshard serve`"
    )


def resolve_shards(config: Config) -> Config:
    """The configuration with `shards` filled from the remembered ports; starts nothing."""
    if config.embedded is None or config.shards:
        return config
    if not is_made(config.embedded):
        raise ForeshardError(never_started(config.embedded))
    ports = read_ports(config.embedded.data) or {}
    shards = tuple(
        ShardConfig(name=name, dsn=f"postgresql://{USER}@127.0.0.1:{ports[name]}/{DATABASE}")
        for name in shard_names(config.embedded)
    )
    return msgspec.structs.replace(config, shards=shards)


@contextlib.contextmanager
def running_shards(config: Config, *, stop_adopted: bool = False, may_make: bool = True) -> Iterator[Config]:
    """The configuration with its shards running.

    Embedded ones that did not run are started, and stopped at the end unless another process uses them by then. With
    `stop_adopted` all are stopped, also those that ran before: the caller is the one whose instances they are.
    Without `may_make`, ForeshardError for those that do not exist yet.
    """
    if config.embedded is None:
        yield config
        return
    if not may_make and not is_made(config.embedded):
        raise ForeshardError(never_started(config.embedded))
    cluster = EmbeddedCluster(config.embedded.data, len(shard_names(config.embedded)))
    shards = cluster.start()
    try:
        yield msgspec.structs.replace(config, shards=shards)
    finally:
        if stop_adopted:
            cluster.stop()
            EmbeddedCluster(config.embedded.data, len(shard_names(config.embedded))).stop()  # those added since
        else:
            cluster.stop_started()
