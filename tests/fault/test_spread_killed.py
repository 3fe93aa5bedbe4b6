"""`foreshard apply` killed while it spreads filled tables: all or nothing, and the next one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from foreshard.proxy.triggers.points import SPREAD_NAMES
from tests.support.messages import query
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.raw import error_of, kinds
from tests.support.two_proxies import hurt
from tests.support.verified import assert_verified
from tests.support.waiting import process_state, wait_until

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0
SHARD_COUNT = 3
FILLED = """
CREATE TABLE country (code text PRIMARY KEY, name text);
CREATE TABLE customer (id bigserial PRIMARY KEY, country text REFERENCES country, name text);
CREATE TABLE invoice (id bigserial PRIMARY KEY, customer_id bigint NOT NULL REFERENCES customer, total int);
INSERT INTO country SELECT 'c' || n, 'n' FROM generate_series(0, 9) AS n;
INSERT INTO customer (country, name) SELECT 'c' || n % 10, 'n' || n FROM generate_series(1, 100) AS n;
INSERT INTO invoice (customer_id, total) SELECT 1 + n % 100, n FROM generate_series(1, 300) AS n;
"""
TABLES = {
    "country": {"reference": True},
    "customer": {"key": "id"},
    "invoice": {"key": "id", "parent": "customer", "via": "customer_id"},
}
SUM = "SELECT count(*), coalesce(sum(total), 0) FROM invoice"


def write_configuration(shards: Shards, folder: Path, *names: str) -> Path:
    file = folder / "foreshard.yaml"
    content = {
        "listen": "127.0.0.1:1",
        "run_directory": str(folder / "run"),
        "shards": [{"name": f"s{index}", "dsn": dsn} for index, dsn in enumerate(shards.dsns)],
        "tables": {name: TABLES[name] for name in names},
        "limits": {"commit_timeout": "100ms"},
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def run_apply(file: Path, crash_at: str = "") -> int:
    command = [sys.executable, "-m", "foreshard.proxy", "apply", "-c", str(file)]
    environment = {**os.environ, "FORESHARD_CRASH_AT": crash_at}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stdout + done.stderr
    return done.returncode


def rows(shards: Shards, table: str) -> list[int]:
    """How many rows each shard has; -1 where there is no such table."""
    found = []
    for index in range(SHARD_COUNT):
        if shards.query(f"SELECT to_regclass('{table}') IS NULL", on=index) == [(True,)]:
            found.append(-1)
        else:
            found.append(int(str(shards.query(f"SELECT count(*) FROM {table}", on=index)[0][0])))
    return found


@pytest.mark.parametrize("point", SPREAD_NAMES)
def test_apply_killed_while_it_spreads_tables_goes_on(
    test_instances: TestInstances, tmp_path: Path, point: str
) -> None:
    shards = test_instances.create(SHARD_COUNT)
    shards.execute(FILLED, on=0)
    assert run_apply(write_configuration(shards, tmp_path, "country")) == 0
    assert rows(shards, "country") == [10, 10, 10]
    file = write_configuration(shards, tmp_path, *TABLES)
    assert run_apply(file, point) == -signal.SIGKILL
    is_decided = point in ("spread-decided", "spread-finished")
    assert (rows(shards, "invoice")[0] < 300) == is_decided
    assert rows(shards, "invoice")[2] == -1
    assert run_apply(file) == 0
    assert min(rows(shards, "invoice")) > 0
    assert sum(rows(shards, "invoice")) == 300
    assert sum(int(str(shards.query(SUM, on=index)[0][1])) for index in range(SHARD_COUNT)) == 300 * 301 // 2
    outcomes = [row[0] for row in shards.query("SELECT outcome FROM foreshard.decision ORDER BY 1")]
    assert outcomes == (["abort"] if point == "spread-prepared" else []) + ["commit", "commit"]
    for index in range(SHARD_COUNT):
        assert shards.query("SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()", on=index) == [
            (0,)
        ]
    assert_verified(file)
    test_instances.drop(shards)


@pytest.mark.parametrize("point", ["spread-prepared", "spread-decided"])
def test_ddl_through_a_proxy_beside_an_apply_that_dies_while_it_spreads(
    test_instances: TestInstances, tmp_path: Path, point: str
) -> None:
    """And beside controllers that are killed: the DDL waits or is told to come again, and nothing is half done."""
    shards = test_instances.create(SHARD_COUNT)
    shards.execute(FILLED, on=0)
    assert run_apply(write_configuration(shards, tmp_path, "country")) == 0
    file = write_configuration(shards, tmp_path, *TABLES)
    sections = {"limits": {"commit_timeout": "100ms"}, "workers": {"per_shard": 0}}
    with Proxy(shards.dsns, tmp_path / "proxy", tables=TABLES, apply=False, **sections) as proxy:
        command = [sys.executable, "-m", "foreshard.proxy", "apply", "-c", str(file)]
        with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "FORESHARD_STOP_AT": point}) as applying:
            wait_until(lambda: process_state(applying.pid) == "T")
            with proxy.server.connect() as client:
                client.send(query("ALTER TABLE country ADD area int DEFAULT 7"))
                hurt(proxy, "controller", signal.SIGKILL)
                applying.kill()
                answer = client.read_until()
                if "E" in kinds(answer):
                    assert error_of(answer)["C"] in ("40001", "55P03")
                    client.rows("ALTER TABLE country ADD area int DEFAULT 7")
        assert run_apply(file) == 0
        with proxy.server.connect() as client:
            assert client.value("SELECT sum(area) FROM country") == "70"
            wait_until(lambda: "E" not in kinds(client.query("SELECT count(*) FROM invoice")))
            assert client.value("SELECT count(*) FROM invoice") == "300"
        assert min(rows(shards, "invoice")) > 0
        areas = "SELECT count(area) FROM country"
        assert [shards.query(areas, on=index) for index in range(SHARD_COUNT)] == [[(10,)]] * SHARD_COUNT
        assert_verified(file)
    test_instances.drop(shards)
