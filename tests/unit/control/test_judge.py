"""What `foreshard check` makes of a database's answers: each limit below, at and above."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foreshard.proxy.config import Config, PoolConfig, ShardConfig, WorkersConfig
from foreshard.proxy.control.command_check import finding_lines
from foreshard.proxy.control.inspect import Finding, Inspection, judge

CONFIG = Config(path=Path("f.yaml"), pool=PoolConfig(size=20), workers=WorkersConfig(per_shard=1))
GOOD: dict[str, Any] = {
    "version": 180006, "version_text": "18.6", "prepared_max": 200, "connections_max": 100, "wal_level": "replica",
    "synchronous_commit": "on", "fsync": "on", "full_page_writes": "on", "isolation": "read committed",
    "read_only": "off", "deferrable": "off", "replication_role": "origin", "encoding": "UTF8", "time_zone": "UTC",
    "transaction_timeout": "0", "idle_timeout": "0", "is_standby": False, "user_name": "app", "may_create": True,
    "is_superuser": True, "user_connections": -1, "database_connections": -1, "collation": "C", "prepared_others": 0,
    "prepared_in_doubt": 0, "may_set_replica": True, "isolations": [],
}  # fmt: skip


def inspection(
    name: str = "shard s0",
    tables: dict[str, bool | None] | None = None,
    references: dict[str, str] | None = None,
    skew_s: float = 0.0,
    error_s: float = 0.0,
    **facts: Any,
) -> Inspection:
    return Inspection(
        name=name,
        facts=GOOD | facts,
        tables=tables or {},
        references=references or {},
        clock_skew_s=skew_s,
        clock_error_s=error_s,
    )


def shortfalls(*inspections: Inspection) -> list[tuple[str, str]]:
    """(level, subject) of everything that is not ok."""
    return [(found.level, found.subject) for found in judge(CONFIG, list(inspections)) if found.level != "ok"]


def test_a_good_server_has_no_shortfall() -> None:
    assert shortfalls(inspection(tables={"public.a": True}), inspection("shard s1")) == []


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"version": 130009}, [("fail", "version")]),
        ({"version": 140000}, []),
        ({"version": 189999}, []),
        ({"version": 190000}, [("warn", "version")]),
        ({"is_standby": True}, [("fail", "role of the server")]),
        ({"encoding": "LATIN1"}, [("warn", "server_encoding")]),
        ({"fsync": "off"}, [("warn", "fsync")]),
        ({"full_page_writes": "off"}, [("warn", "full_page_writes")]),
        ({"synchronous_commit": "off"}, [("warn", "synchronous_commit")]),
        ({"synchronous_commit": "local"}, []),
        ({"wal_level": "minimal"}, [("warn", "wal_level")]),
        ({"wal_level": "logical"}, []),
        ({"isolation": "serializable"}, [("warn", "default_transaction_isolation")]),
        ({"read_only": "on"}, [("fail", "default_transaction_read_only")]),
        ({"replication_role": "replica"}, [("fail", "session_replication_role")]),
        ({"transaction_timeout": "5s"}, [("warn", "transaction_timeout")]),
        ({"transaction_timeout": None}, []),
        ({"prepared_max": 0}, [("warn", "max_prepared_transactions")]),
        ({"prepared_max": 19}, [("warn", "max_prepared_transactions")]),
        ({"prepared_max": 20}, []),
        ({"connections_max": 19}, [("fail", "connections allowed")]),
        ({"connections_max": 20}, [("warn", "connections allowed")]),
        ({"connections_max": 31}, [("warn", "connections allowed")]),
        ({"connections_max": 32}, []),
        ({"user_connections": 5}, [("fail", "connections allowed")]),
        ({"database_connections": 31}, [("warn", "connections allowed")]),
        ({"may_create": False}, [("fail", "privilege to create schema foreshard")]),
        ({"prepared_others": 2}, [("warn", "prepared transactions of others")]),
        ({"prepared_in_doubt": 1}, [("warn", "prepared transactions in doubt")]),
    ],
)
def test_each_shortfall_has_its_level(facts: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert shortfalls(inspection(**facts)) == expected


@pytest.mark.parametrize(("owned", "expected"), [(True, []), (False, ["fail"]), (None, ["warn"])])
def test_tables_must_be_owned(owned: bool | None, expected: list[str]) -> None:
    assert [level for level, _ in shortfalls(inspection(tables={"public.a": owned}))] == expected


@pytest.mark.parametrize(
    ("facts", "subject"),
    [({"collation": "de_DE"}, "collation"), ({"time_zone": "Asia/Tokyo"}, "time_zone")],
)
def test_shards_must_agree(facts: dict[str, Any], subject: str) -> None:
    assert shortfalls(inspection(), inspection("shard s1", **facts)) == [("warn", subject)]


@pytest.mark.parametrize(
    ("skew_s", "error_s", "is_apart"),
    [(0.1, 0.0, False), (0.11, 0.0, True), (-0.11, 0.0, True), (0.15, 0.03, False), (0.15, 0.02, True)],
)
def test_clocks_are_apart_only_beyond_what_the_round_trip_hides(skew_s: float, error_s: float, is_apart: bool) -> None:
    found = shortfalls(inspection(), inspection("shard s1", skew_s=skew_s, error_s=error_s))
    assert found == ([("warn", "clocks apart")] if is_apart else [])


def test_reference_tables_must_have_the_same_rows() -> None:
    same, other = {"public.r": "2 rows, hash 1"}, {"public.r": "3 rows, hash 2"}
    assert shortfalls(inspection(references=same), inspection("shard s1", references=same)) == []
    for differing in (other, {}):
        found = shortfalls(inspection(references=same), inspection("shard s1", references=differing))
        assert found == [("fail", "reference table public.r")]


def test_every_shortfall_says_what_it_costs() -> None:
    bad = inspection(
        **{"fsync": "off", "prepared_max": 0, "connections_max": 1, "may_create": False}, tables={"a": False, "b": None}
    )
    for found in judge(CONFIG, [bad, inspection("shard s1", collation="x", skew_s=9)]):
        assert bool(found.cost) == (found.level != "ok"), found


def test_findings_are_printed_in_columns() -> None:
    findings = [
        Finding(place="shard s0", subject="version", level="ok", value="18.6"),
        Finding(place="all shards", subject="fsync", level="warn", value="off", cost="for tests only"),
    ]
    assert finding_lines(findings) == [
        "ok    shard s0    version  18.6",
        "warn  all shards  fsync    off",
        "                  for tests only",
    ]


def test_a_shard_that_cannot_prepare_says_that_writes_are_refused() -> None:
    (found,) = [f for f in judge(CONFIG, [inspection(prepared_max=0)]) if f.subject == "max_prepared_transactions"]
    assert found.cost.startswith("transactions that write here and on other shards are refused")


SEVERAL = Config(path=Path("f.yaml"), shards=(ShardConfig(name="s0", dsn=""), ShardConfig(name="s1", dsn="")))


@pytest.mark.parametrize(
    ("version", "advice"),
    [(140000, "ALTER ROLE app SUPERUSER"), (150000, "GRANT SET ON PARAMETER session_replication_role TO app")],
)
def test_what_moves_need_is_asked_for_where_there_are_several_shards(version: int, advice: str) -> None:
    poor = inspection(may_set_replica=False, version=version, isolations=["ROLE bo serializable"])
    assert shortfalls(poor) == []
    found = [each for each in judge(SEVERAL, [poor]) if each.level != "ok" and "connections" not in each.subject]
    assert [(each.level, each.subject) for each in found] == [
        ("warn", "privilege to set session_replication_role"),
        ("warn", "default_transaction_isolation"),
    ]
    assert advice in found[0].cost
    assert "ALTER ROLE bo RESET" in found[1].cost
