"""Embedded shards: started, adopted, recovered, stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest

from foreshard.proxy.config import Config, EmbeddedConfig
from foreshard.proxy.embedded import EmbeddedCluster, find_binaries, resolve_shards, running_shards
from foreshard.proxy.embedded.binaries import choose_account
from foreshard.proxy.embedded.instance import copy_template, make_template
from foreshard.proxy.errors import ForeshardError
from tests.support.postgres import Shards, open_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the PostgreSQL account can enter, unlike pytest's own temporary folders."""
    with open_folder("embedded") as made:
        yield made


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """What initdb makes, once for this module: the slow part of a first start."""
    with open_folder("template") as made:
        make_template(made / "template", find_binaries(), choose_account(), made / "log")
        yield made / "template"


@pytest.fixture
def cluster(folder: Path, template: Path) -> Iterator[EmbeddedCluster]:
    cluster = EmbeddedCluster(folder / "data", 2, durable=False)
    instances = cluster.data / "instances"
    instances.mkdir(parents=True)
    copy_template(template, instances / "template", find_binaries(), choose_account(), folder / "log", False)
    yield cluster
    cluster.stop(immediate=True)


def scalar(dsn: str, sql: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(sql).fetchone()
        assert row is not None
        return row[0]


def test_instances_start_with_the_settings_that_foreshard_needs(cluster: EmbeddedCluster) -> None:
    shards = cluster.start()
    assert [shard.name for shard in shards] == ["s0", "s1"]
    for shard in shards:
        assert scalar(shard.dsn, "SELECT current_user || '@' || current_database()") == "app@app"
        assert int(str(scalar(shard.dsn, "SHOW max_prepared_transactions"))) > 0
        assert scalar(shard.dsn, "SHOW listen_addresses") == "127.0.0.1"
        assert scalar(shard.dsn, "SHOW unix_socket_directories") == ""
        assert scalar(shard.dsn, "SHOW server_encoding") == "UTF8"


def test_shards_are_durable_unless_told_otherwise(folder: Path) -> None:
    cluster = EmbeddedCluster(folder / "data", 1)
    try:
        dsn = cluster.start()[0].dsn
        assert [scalar(dsn, f"SHOW {name}") for name in ("fsync", "synchronous_commit")] == ["on", "on"]
    finally:
        cluster.stop()


def test_running_instances_are_adopted_by_another_starter(cluster: EmbeddedCluster) -> None:
    first = cluster.start()
    other = EmbeddedCluster(cluster.data, 2, durable=False)
    assert other.start() == first
    assert other.started == []
    assert other.pids() == cluster.pids()
    other.stop()
    assert cluster.pids() == {}


def test_data_and_ports_survive_a_restart(cluster: EmbeddedCluster) -> None:
    first = cluster.start()
    with psycopg.connect(first[1].dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS value")
    cluster.stop()
    assert cluster.start() == first
    assert scalar(first[1].dsn, "SELECT value FROM kept") == 42


def test_an_instance_that_was_killed_recovers(cluster: EmbeddedCluster) -> None:
    first = cluster.start()
    os.kill(cluster.pids()["s0"], signal.SIGKILL)
    assert cluster.start() == first
    assert cluster.started == ["s0"]
    assert scalar(first[0].dsn, "SELECT 1") == 1


def test_a_stale_pid_file_that_names_another_process_is_not_adopted(cluster: EmbeddedCluster) -> None:
    cluster.start()
    cluster.stop()
    instance = (cluster.data / "instances").resolve() / "s0"
    (instance / "postmaster.pid").write_text(f"{os.getpid()}\n{instance}\n0\n1\n\n127.0.0.1\n0\nready\n")
    cluster.start()
    assert "s0" in cluster.started


def test_a_port_taken_by_someone_else_is_replaced(cluster: EmbeddedCluster, three_shards: Shards) -> None:
    taken = psycopg.conninfo.conninfo_to_dict(three_shards.dsns[0])["port"]
    cluster.start()
    cluster.stop()
    remembered = cluster.data / "cluster.json"
    ports = json.loads(remembered.read_text())["ports"]
    remembered.write_text(json.dumps({"ports": ports | {"s1": int(str(taken))}}))
    shards = cluster.start()
    assert f":{taken}/" not in shards[1].dsn
    assert f":{ports['s0']}/" in shards[0].dsn


def test_a_port_taken_by_someone_else_is_not_replaced_while_others_know_it(cluster: EmbeddedCluster) -> None:
    first = cluster.start()
    other = EmbeddedCluster(cluster.data, 2)
    other.start()
    cluster.stop()
    port = int(str(psycopg.conninfo.conninfo_to_dict(first[1].dsn)["port"]))
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(ForeshardError, match=f"port {port} of embedded shard s1 is taken by another program"):
            cluster.start()
        assert cluster.pids() == {}
    assert cluster.start() == first
    other.stop()


def test_a_port_that_a_child_of_the_killed_process_holds_is_waited_for(cluster: EmbeddedCluster) -> None:
    first = cluster.start()
    cluster.stop()
    port = int(str(psycopg.conninfo.conninfo_to_dict(first[1].dsn)["port"]))
    holder = f"import socket; held = socket.create_server(('127.0.0.1', {port})); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holder],
        cwd=(cluster.data / "instances").resolve() / "s1",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        threading.Timer(0.5, child.stdin.close).start()
        assert cluster.start() == first


def test_a_data_directory_below_a_private_one_works(folder: Path) -> None:
    private = folder / "private"
    private.mkdir(mode=0o700)
    cluster = EmbeddedCluster(private / "data", 1, durable=False)
    try:
        assert scalar(cluster.start()[0].dsn, "SELECT 1") == 1
        assert private.stat().st_mode & 0o777 == 0o700
    finally:
        cluster.stop()
        instances = private / "data" / "instances"
        if instances.is_symlink():
            target = instances.resolve()
            assert target.is_dir()
            _remove(target)


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()


def test_resolving_shards_starts_nothing(folder: Path, cluster: EmbeddedCluster) -> None:
    config = Config(path=folder / "f.yaml", embedded=EmbeddedConfig(shards=2, data=cluster.data))
    with pytest.raises(ForeshardError, match="never been started"):
        resolve_shards(config)
    shards = cluster.start()
    cluster.stop()
    assert resolve_shards(config).shards == shards
    assert cluster.pids() == {}


def test_running_shards_stops_only_what_it_started(folder: Path, cluster: EmbeddedCluster) -> None:
    config = Config(path=folder / "f.yaml", embedded=EmbeddedConfig(shards=2, data=cluster.data))
    cluster.start()
    with running_shards(config) as resolved:
        assert len(resolved.shards) == 2
    assert len(cluster.pids()) == 2
    cluster.stop()
    with running_shards(config) as resolved:
        assert scalar(resolved.shards[0].dsn, "SELECT 1") == 1
    assert cluster.pids() == {}


def test_running_shards_leaves_what_another_process_uses_by_then(folder: Path, cluster: EmbeddedCluster) -> None:
    config = Config(path=folder / "f.yaml", embedded=EmbeddedConfig(shards=2, data=cluster.data))
    with running_shards(config):
        cluster.start()
        assert cluster.started == []
    assert len(cluster.pids()) == 2


def test_a_configuration_with_its_own_shards_is_left_alone(folder: Path, one_shard: Shards) -> None:
    config = Config(path=folder / "f.yaml", shards=one_shard.shards)
    with running_shards(config) as resolved:
        assert resolved == config
    assert msgspec.structs.asdict(resolve_shards(config)) == msgspec.structs.asdict(config)


def test_the_variable_for_binaries_must_name_a_complete_folder(folder: Path) -> None:
    with pytest.raises(ForeshardError, match="FORESHARD_POSTGRES_BIN"):
        find_binaries({"FORESHARD_POSTGRES_BIN": str(folder)})
