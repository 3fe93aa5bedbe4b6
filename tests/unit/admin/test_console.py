"""The console's answers, compared as text, and their wire bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from foreshard._core.shared import SharedState
from foreshard.proxy import __version__
from foreshard.proxy.admin.console import COMMANDS, Console, refuse_extended, split_commands
from foreshard.proxy.admin.results import ResultSet, encode_results, make_result, show_value
from foreshard.proxy.admin.sources import ClientRow, PoolRow, ServerRow, ShardAnswer
from foreshard.proxy.admin.views import redact
from foreshard.proxy.admin.views_state import PROFILE_SUMMARY
from foreshard.proxy.catalog import Catalog, Function, Table, TableKind
from foreshard.proxy.config import Config, ShardConfig, TriggerConfig
from foreshard.proxy.errors import SqlError

CONFIG = Config(
    path=Path("/etc/foreshard.yaml"),
    shards=(
        ShardConfig(name="s0", dsn="postgresql://app:secret@10.0.0.1:5433/app"),
        ShardConfig(name="s1", dsn="postgresql://app@10.0.0.2/app", weight=3.0),
    ),
    triggers=(
        TriggerConfig(
            name="index_document",
            table="document",
            on=("insert", "update"),
            columns=("body",),
            function="demo_functions:index_document",
        ),
    ),
)
FUNCTION = Function(name="index_document", operations=("insert",), columns=None, profile_indexes={"insert": 0})
CATALOG = Catalog(
    tables={
        "public.document": Table(
            schema="public", name="document", kind=TableKind.ROOT, key="id", key_type="bigint", functions=(FUNCTION,)
        ),
        "public.symbol": Table(
            schema="public",
            name="symbol",
            kind=TableKind.CHILD,
            key="id",
            key_type="bigint",
            parent="public.document",
            via="document_id",
        ),
        "public.language": Table(schema="public", name="language", kind=TableKind.REFERENCE, key="", key_type=""),
    }
)

MOVED: tuple[object, ...] = (
    *(1, 7, 0, 1, "done", "small", 12, 840, 3, 0, 21.5, 1, 0.2, "cpu", None),
    *("2026-11-22 10:00:00+00", "2026-11-22 10:00:00+00", "2026-11-22 10:00:01+00"),
)
KEPT: dict[str, tuple[tuple[object, ...], ...]] = {
    "foreshard.move": (MOVED,),
    "foreshard.load": (("here:6432", "live", 0.5, 5.5, 40, 2.0, -1.0),),
    "foreshard.rebalance_decision": (("2026-11-22 10:00:00+00", "moving", "cpu", 1.5, 1.05, 3, 120, ""),),
}


class Sources:
    """A router's state, fixed."""

    def __init__(self) -> None:
        self.config = CONFIG
        self.catalog = CATALOG
        self.state = SharedState.private(2, 2)
        self.state.set_bucket_map([int(bucket % 4 == 0) for bucket in range(4096)], 7)
        self.state.set_weight(1, 3.0)
        self.state.add_measured(0, 2.0, 0.0)
        self.state.set_ledger("bounded", [2.0, 6.0])
        self.state.set_ledger("key-hash", [4.0, 4.0])
        self.answers = [ShardAnswer("s0", (("index_document", 3, 1, 0.5, 0),)), ShardAnswer("s1", error="refused")]

    def pools(self) -> list[PoolRow]:
        row: PoolRow = {"database": "app", "user": "app", "shard": "s0", "cl_active": 2, "sv_active": 2, "sv_idle": 1}
        return [
            {"database": "app", "user": "app", "shard": "s1"},
            {"database": "app", "user": "zoe", "shard": "s0"},
            row,
        ]

    def clients(self) -> list[ClientRow]:
        return [{"user": "app", "state": "active", "addr": "127.0.0.1", "port": 50000, "pinned": "SET search_path"}]

    def servers(self) -> list[ServerRow]:
        return [
            {"shard": "s1", "state": "idle", "remote_pid": 4243},
            {"shard": "s0", "state": "idle", "remote_pid": 4242},
        ]

    def placements(self) -> dict[str, int]:
        return {"candidate-0": 90, "heavy-lightest": 5}

    async def ask_shards(self, sql: str) -> list[ShardAnswer]:
        return self.answers

    async def ask_control(self, sql: str) -> ShardAnswer:
        return ShardAnswer("control", next((rows for table, rows in KEPT.items() if table in sql), ()))


async def show(name: str) -> ResultSet:
    return (await Console(Sources()).execute(f"SHOW {name}"))[0]


async def show_rows(name: str) -> list[dict[str, object]]:
    result = await show(name)
    return [dict(zip([column.name for column in result.columns], row, strict=True)) for row in result.rows]


@pytest.mark.parametrize("name", [*COMMANDS, "HELP"])
async def test_every_command_gives_rows_as_wide_as_its_columns(name: str) -> None:
    result = await show(name)
    assert result.rows
    assert all(len(row) == len(result.columns) for row in result.rows)
    assert len({column.name for column in result.columns}) == len(result.columns)
    assert encode_results([result]).endswith(b"C\0\0\0\x09SHOW\0")


async def test_help_lists_every_command() -> None:
    assert {row[0] for row in (await show("HELP")).rows} == {"SHOW HELP", *(f"SHOW {name}" for name in COMMANDS)}


@pytest.mark.parametrize("sql", ["show version", "SHOW VERSION;", "  Show\n Version ; ", "-- hello\nSHOW version"])
async def test_case_semicolons_and_white_space_do_not_matter(sql: str) -> None:
    (result,) = await Console(Sources()).execute(sql)
    assert result.rows == ((f"Foreshard {__version__}",),)


async def test_two_commands_in_one_string_give_two_results_in_order() -> None:
    results = await Console(Sources()).execute("SHOW VERSION; SHOW POOLS")
    assert [result.columns[0].name for result in results] == ["version", "database"]


async def test_an_empty_string_gives_no_result() -> None:
    assert await Console(Sources()).execute(" ; ") == []


@pytest.mark.parametrize(
    ("sql", "sqlstate"),
    [
        ("SHOW NOTHING", "42704"),
        ("SHOW", "42601"),
        ("SHOW POOLS NOW", "42601"),
        ("SELECT 1", "0A000"),
        ("BEGIN", "0A000"),
    ],
)
async def test_what_is_no_command_is_refused_with_a_hint(sql: str, sqlstate: str) -> None:
    with pytest.raises(SqlError) as caught:
        await Console(Sources()).execute(sql)
    assert caught.value.sqlstate == sqlstate
    assert "SHOW HELP" in caught.value.hint


def test_the_extended_protocol_is_refused_with_a_hint() -> None:
    error = refuse_extended()
    assert error.sqlstate == "0A000"
    assert "simple" in error.hint


async def test_a_figure_the_router_does_not_give_is_null() -> None:
    row, *_ = await show_rows("POOLS")
    assert row["cl_active"] == 2
    assert row["cl_waiting"] is None


async def test_clients_show_why_they_are_pinned() -> None:
    (row,) = await show_rows("CLIENTS")
    assert row["type"] == "C"
    assert row["pinned"] == "SET search_path"


async def test_shards_show_buckets_weights_and_loads() -> None:
    first, second = await show_rows("SHARDS")
    assert (first["shard"], first["host"], first["port"], first["database"]) == ("s0", "10.0.0.1", 5433, "app")
    assert (first["buckets"], second["buckets"]) == (3072, 1024)
    assert (first["load_s"], first["sv_active"], first["sv_idle"]) == (2.0, 2, 1)
    assert (second["weight"], second["port"], second["sv_active"]) == (3.0, 5432, 0)


async def test_shards_show_what_other_proxies_add_to_their_loads() -> None:
    sources = Sources()
    sources.state.set_others(1, 6.0, -1.0, 40.0, 0.0, 0.0)
    sources.state.set_proxies(2, 1.0)
    result = (await Console(sources).execute("SHOW SHARDS"))[0]
    names = [column.name for column in result.columns]
    second = dict(zip(names, result.rows[1], strict=True))
    assert (second["load_s"], second["measured_s"], second["others_s"]) == (6.0, 0.0, 5.0)
    told = {row[0]: row[1] for row in (await Console(sources).execute("SHOW PLACEMENT"))[0].rows}
    assert (told["proxies"], told["others_load_total_s"]) == ("2", "5")


async def test_pools_and_servers_are_sorted_by_shard_database_and_user() -> None:
    assert [(row["shard"], row["user"]) for row in await show_rows("POOLS")] == [
        ("s0", "app"),
        ("s0", "zoe"),
        ("s1", "app"),
    ]
    assert [row["shard"] for row in await show_rows("SERVERS")] == ["s0", "s1"]


async def test_buckets_are_counted_by_shard() -> None:
    assert [row.rows for row in [await show("BUCKETS")]] == [(("s0", 3072, 0.75, 7), ("s1", 1024, 0.25, 7))]


async def test_all_buckets_name_the_range_of_their_placed_keys() -> None:
    rows = await show_rows("BUCKETS ALL")
    assert len(rows) == 4096
    first_key = 2**52 + (4 << 40)
    expected = {"bucket": 4, "shard": "s1", "first_key": first_key, "last_key": first_key + 2**40 - 1, "epoch": 7}
    assert rows[4] == expected
    assert rows[-1]["last_key"] == 2**53 - 1


async def test_balance_begins_with_what_was_measured() -> None:
    row, *shadows = await show_rows("BALANCE")
    assert (row["policy"], row["source"], row["max_over_mean"]) == ("bounded", "measured", 4.0)
    assert (row["s0_s"], row["s1_s"]) == (2.0, 0.0)
    assert {shadow["source"] for shadow in shadows} == {"shadow"}


async def test_balance_weighs_shards() -> None:
    rows = {row["policy"]: row for row in await show_rows("BALANCE")}
    assert rows["bounded"]["max_over_mean"] == 1.0
    assert (rows["key-hash"]["max_over_mean"], rows["key-hash"]["s0_s"]) == (2.0, 4.0)
    assert rows["cost-hash"]["max_over_mean"] is None


async def test_placement_counts_the_reasons() -> None:
    rows = {row["name"]: row for row in await show_rows("PLACEMENT")}
    assert rows["placed_candidate-0"]["value"] == "90"
    assert "first candidate is below its cap" in str(rows["placed_candidate-0"]["meaning"])


async def test_profiles_show_their_models_when_all_is_asked_for() -> None:
    few, every = await show("PROFILES"), await show("PROFILES ALL")
    names = [column.name for column in every.columns]
    assert [column.name for column in few.columns] == [name for name in names if name in PROFILE_SUMMARY]
    assert len(few.columns) == len(PROFILE_SUMMARY) < len(names)


async def test_tables_show_their_group() -> None:
    rows = {row["table"]: row for row in await show_rows("TABLES")}
    assert rows["public.symbol"]["group"] == "public.document"
    assert rows["public.document"]["functions"] == "index_document"
    assert rows["public.language"]["group"] is None


async def test_outbox_shows_a_shard_that_does_not_answer() -> None:
    first, second = await show_rows("OUTBOX")
    assert (first["function"], first["waiting"], first["dead_letters"]) == ("index_document", 3, 0)
    assert (second["shard"], second["waiting"], second["error"]) == ("s1", None, "refused")


async def test_config_hides_passwords() -> None:
    rows = {row["key"]: row["value"] for row in await show_rows("CONFIG")}
    assert rows["shards[0].dsn"] == "postgresql://app:***@10.0.0.1:5433/app"
    assert rows["placement.bound"] == "1.05"
    assert rows["path"] == "/etc/foreshard.yaml"
    assert rows["placement.memory_bytes"] == "1000000000"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1e9, "1000000000"),
        (1234567.89, "1234568"),
        (999999.7, "1000000"),
        (-2e6, "-2000000"),
        (1.05, "1.05"),
        (2.0, "2"),
        (1 / 3, "0.333333"),
        (1e300, "1e+300"),
        (True, "t"),
        (12, "12"),
        ("x", "x"),
    ],
)
def test_values_are_shown_alike_everywhere(value: object, shown: str) -> None:
    assert show_value(value) == shown


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://u:p:w@h/d", "postgresql://u:***@h/d"),
        ("host=h password=secret user=u", "host=h password=*** user=u"),
        ("host=h password='s e' user=u", "host=h password=*** user=u"),
        ("postgresql://u@h/d?password=x&sslmode=require", "postgresql://u@h/d?password=***&sslmode=require"),
    ],
)
def test_passwords_are_hidden_in_every_spelling(dsn: str, shown: str) -> None:
    assert redact(dsn) == shown


def test_result_sets_are_encoded_as_the_protocol_says() -> None:
    data = encode_results([make_result("name n:bigint x:float b:bool", [("é", 1, 0.5, True), (None, -2, 1e-9, False)])])
    assert data[:1] == b"T"
    size = struct.unpack("!I", data[1:5])[0]
    assert data[5:7] == b"\0\x04"
    first_column = b"name\0" + struct.pack("!IHIhiH", 0, 0, 25, -1, -1, 0)
    assert data[7 : 7 + len(first_column)] == first_column
    rows = data[1 + size :]
    body = b"\0\x04" + b"\0\0\0\x02" + "é".encode() + b"\0\0\0\x011" + b"\0\0\0\x030.5" + b"\0\0\0\x01t"
    assert rows.startswith(b"D" + struct.pack("!I", len(body) + 4) + body)
    assert b"\xff\xff\xff\xff\0\0\0\x02-2\0\0\0\x051e-09\0\0\0\x01f" in rows


def test_comments_and_empty_commands_are_dropped() -> None:
    assert split_commands("SHOW A;;-- SHOW B\n SHOW C") == [["SHOW", "A"], ["SHOW", "C"]]


async def test_moves_name_their_shards() -> None:
    (row,) = await show_rows("MOVES")
    assert (row["bucket"], row["source"], row["target"], row["state"], row["pause_ms"]) == (7, "s0", "s1", "done", 21.5)


async def test_decisions_tell_what_was_expected_of_them() -> None:
    (row,) = await show_rows("REBALANCE")
    assert (row["verdict"], row["fullest"], row["expected"], row["moves"]) == ("moving", 1.5, 1.05, 3)
