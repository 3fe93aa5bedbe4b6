"""Reading the configuration file: values, defaults, and golden texts for every mistake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foreshard.proxy.config import (
    Config,
    EmbeddedConfig,
    LimitsConfig,
    PlacementConfig,
    PoolConfig,
    ProfilePrior,
    QueryNodeConfig,
    RebalanceConfig,
    ShardConfig,
    TableConfig,
    TriggerConfig,
    WorkersConfig,
    load_config,
    qualified,
)
from foreshard.proxy.config.sections import (
    CAPACITY,
    EMBEDDED,
    LIMITS,
    PLACEMENT,
    POOL,
    PRIOR,
    REBALANCE,
    SHARD,
    TABLE,
    TOP,
    TRIGGER,
    WORKERS,
)
from foreshard.proxy.errors import ConfigError

EXAMPLE = Path(__file__).resolve().parents[3] / "config" / "foreshard.yaml"
SECTIONS = [SHARD, EMBEDDED, TABLE, PRIOR, TRIGGER, CAPACITY, PLACEMENT, POOL, LIMITS, WORKERS, REBALANCE, TOP]


def load(folder: Path, text: str, **environ: str) -> Config:
    file = folder / "f.yaml"
    file.write_text(text)
    return load_config(file, environ)


def mistakes(folder: Path, text: str, **environ: str) -> list[str]:
    """What is wrong with the text, without the folder's name."""
    with pytest.raises(ConfigError) as raised:
        load(folder, text, **environ)
    return [problem.replace(f"{folder}/", "") for problem in raised.value.problems]


FULL = """
listen: 127.0.0.1:6432
shards:
  - {name: s0, dsn: "postgresql://app:${PASSWORD}@10.0.0.1:5432/app"}
  - {name: s1, dsn: "postgresql://app:${PASSWORD}@10.0.0.2:5432/app", weight: 2}
control: "postgresql://app@10.0.0.1:5432/app"
tables:
  document: {key: id}
  symbol:   {key: id, parent: document, via: document_id}
  language: {reference: true}
triggers:
  index_document:
    table: document
    on: [insert, update]
    columns: [body]
    function: "demo_functions:index_document"
    timeout: 30s
    profile: {cpu: 5ms, memory: 64MB * 2s, io: 1.5kB}
placement: {policy: bounded, bound: 1.05}
"""


def test_a_whole_configuration_is_read(tmp_path: Path) -> None:
    assert load(tmp_path, FULL, PASSWORD="secret") == Config(
        path=tmp_path / "f.yaml",
        shards=(
            ShardConfig(name="s0", dsn="postgresql://app:secret@10.0.0.1:5432/app"),
            ShardConfig(name="s1", dsn="postgresql://app:secret@10.0.0.2:5432/app", weight=2.0),
        ),
        control="postgresql://app@10.0.0.1:5432/app",
        run_directory=tmp_path / "run",
        functions_path=tmp_path,
        tables=(
            TableConfig(name="document", key="id"),
            TableConfig(name="symbol", key="id", parent="document", via="document_id"),
            TableConfig(name="language", reference=True),
        ),
        triggers=(
            TriggerConfig(
                name="index_document",
                table="document",
                on=("insert", "update"),
                columns=("body",),
                function="demo_functions:index_document",
                timeout_s=30.0,
                profile=ProfilePrior(cpu_s=0.005, memory_byte_s=128e6, io_bytes=1500.0),
            ),
        ),
    )


def test_the_example_holds_the_defaults() -> None:
    config = load_config(EXAMPLE, {})
    folder = EXAMPLE.parent
    assert config == Config(
        path=EXAMPLE,
        embedded=EmbeddedConfig(data=folder / EmbeddedConfig().data),
        run_directory=folder / Config(path=EXAMPLE).run_directory,
        functions_path=folder,
    )
    for name in ("placement", "pool", "limits", "workers"):
        assert getattr(config, name) == getattr(Config(path=EXAMPLE), name)


def uncommented(text: str) -> str:
    """The example with its commented examples made real; `shards` takes the place of `embedded`."""
    lines = []
    for line in text.splitlines():
        lines.append(re.sub(r"^# ?(?=  +(\w+:|- )|shards:|control:|schema:|functions_path:)", "", line))
    text = "\n".join(lines).replace("tables: {}", "tables:").replace("triggers: {}", "triggers:")
    return re.sub(r"^embedded:\n  shards: 3\n  data: \./data\n", "", text, flags=re.M)


def test_the_commented_examples_are_right(tmp_path: Path) -> None:
    (tmp_path / "schema.sql").touch()
    (tmp_path / "functions").mkdir()
    config = load(tmp_path, uncommented(EXAMPLE.read_text()), APP_PASSWORD="x")
    assert [table.name for table in config.tables] == ["document", "symbol", "language"]
    assert config.triggers[0].memory_bytes_max == 10**9
    default = TriggerConfig(name="", table="", on=(), function="")
    for name in ("timeout_s", "attempts_max", "backoff_s"):
        assert getattr(config.triggers[0], name) == getattr(default, name)
    assert config.schema == tmp_path / "schema.sql"


@pytest.mark.parametrize("file", sorted(EXAMPLE.parent.rglob("*.yaml")), ids=lambda file: file.name)
def test_every_example_is_right(file: Path) -> None:
    assert load_config(file, {}).path == file


def test_the_example_names_every_option(tmp_path: Path) -> None:
    words = set(re.findall(r"(\w+):", EXAMPLE.read_text()))
    assert {key for section in SECTIONS for key in section.keys} <= words


def test_every_attribute_of_every_struct_can_be_configured() -> None:
    for struct in (ShardConfig, EmbeddedConfig, TableConfig, ProfilePrior, TriggerConfig, PlacementConfig, PoolConfig,
                   LimitsConfig, RebalanceConfig, WorkersConfig):  # fmt: skip
        own = [section for section in SECTIONS if section.struct is struct]
        filled = {field.attribute for section in own for field in section.fields.values()}
        filled |= {attribute for section in own for attribute, _ in section.nested.values()}
        said_elsewhere = {"name", "is_draining"}  # by the place in the file; by `foreshard shards`
        assert set(struct.__struct_fields__) - said_elsewhere <= filled, struct


SHARDS = "shards: [{name: s0, dsn: 'postgresql://h/d'}]\n"

GOLDEN = {
    "a goal of the rebalancer above its start": (
        SHARDS + "rebalance: {start: 1.1, goal: 1.2}\n",
        ["f.yaml:2: rebalance: `goal` must be below `start`, which is 1.1"],
    ),
    "an unknown key": (
        SHARDS + "tabels: {}\n",
        ["f.yaml:2: tabels: is not a known key; did you mean `tables`? (allowed: listen, shards, tables, triggers,"
         " query_node, control, run_directory, schema, functions_path, embedded, placement, pool, limits, workers,"
         " rebalance)"],
    ),
    "an unknown nested key": (
        SHARDS + "pool:\n  sise: 3\n",
        ["f.yaml:3: pool.sise: is not a known key; did you mean `size`?"
         " (allowed: size, wait_timeout, idle_timeout, connect_timeout)"],
    ),
    "a query node that is neither off nor a place": (
        SHARDS + "query_node: on\n",
        ["f.yaml:2: query_node: must be `off`, or a mapping such as {database: app_query}"],
    ),
    "a query node in two places": (
        SHARDS + "query_node: {database: q, dsn: 'postgresql://h/q'}\n",
        ["f.yaml:2: query_node: has both `database` and `dsn`: the DSN names its database already"],
    ),
    "an unknown key of the query node": (
        SHARDS + "query_node: {databse: q}\n",
        ["f.yaml:2: query_node.databse: is not a known key; did you mean `database`? (allowed: database, dsn)"],
    ),
    "no shards": ("listen: h:1\n", ["f.yaml:1: lacks `shards`, or `embedded` for shards that Foreshard starts itself"]),
    "both kinds of shards": (
        SHARDS + "embedded: {}\n", ["f.yaml:2: embedded: cannot stand beside `shards`: use one of them"]
    ),
    "an empty list of shards": ("shards: []\n", ["f.yaml:1: shards: is empty; at least one shard is needed"]),
    "a shard without a dsn": (
        "shards:\n  - {name: s0}\n", ["f.yaml:2: shards[0]: lacks `dsn` (required: name, dsn)"]
    ),
    "a dsn of another database": (
        "shards: [{name: s0, dsn: 'mysql://u:hidden@h/d'}]",
        ["f.yaml:1: shards[0].dsn: must be postgresql://USER@HOST:PORT/DATABASE"],
    ),
    "a dsn without a database": (
        "shards: [{name: s0, dsn: 'postgresql://u:hidden@h:5432/'}]",
        ["f.yaml:1: shards[0].dsn: names no database; must be postgresql://USER@HOST:PORT/DATABASE"],
    ),
    "a dsn with a port out of range": (
        "shards: [{name: s0, dsn: 'postgresql://u:hidden@h:65536/d'}]",
        ["f.yaml:1: shards[0].dsn: has a host or port that cannot be read;"
         " must be postgresql://USER@HOST:PORT/DATABASE"],
    ),
    "one shard twice": (
        SHARDS.replace("]", ", {name: s0, dsn: 'postgresql://h/d'}]"),
        ["f.yaml:1: shards[1]: the name `s0` is used twice",
         "f.yaml:1: shards[1]: has the same database as shard `s0`"],
    ),
    "an unset variable": (
        "shards: [{name: s0, dsn: 'postgresql://${NOT_THERE}@h/d'}]",
        ["f.yaml:1: shards[0].dsn: the environment has no variable NOT_THERE"],
    ),
    "a variable that is none": (
        SHARDS + "control: 'postgresql://${1x}@h/d'",
        ["f.yaml:2: control: `${1x}` is no variable: write ${NAME}, or $${ for a plain ${"],
    ),
    "a duration without a unit": (
        SHARDS + "pool: {wait_timeout: 30}",
        ["f.yaml:2: pool.wait_timeout: `30` has no unit; write it such as 30s or 5ms (units: us, ms, s, min, h, d)"],
    ),
    "a duration of an unknown unit": (
        SHARDS + "pool: {wait_timeout: 30 sec}",
        ["f.yaml:2: pool.wait_timeout: `30 sec` has the unknown unit `sec`; write it such as 30s or 5ms"
         " (units: us, ms, s, min, h, d)"],
    ),
    "a size that is none": (
        SHARDS + "limits: {message_size_max: big}",
        ["f.yaml:2: limits.message_size_max: `big` must be a number with a unit, such as 64MB"
         " (units: B, kB, MB, GB, KiB, MiB, GiB)"],
    ),
    "a size out of range": (
        SHARDS + "limits: {message_size_max: 1B}",
        ["f.yaml:2: limits.message_size_max: `1B` is out of range: allowed is 1024B to 1073741824B"],
    ),
    "a number out of range": (
        SHARDS + "pool: {size: 0}", ["f.yaml:2: pool.size: `0` must be a whole number from 1 to 10000"]
    ),
    "a bound below one": (
        SHARDS + "placement: {bound: 0.9}", ["f.yaml:2: placement.bound: `0.9` must be a number from 1 to 10"]
    ),
    "an unknown policy": (
        SHARDS + "placement: {policy: bouned}",
        ["f.yaml:2: placement.policy: `bouned` is not known; did you mean `bounded`?"
         " (allowed: bounded, key-hash, cost-hash, two-choices, least-loaded)"],
    ),
    "an address without a port": (
        SHARDS + "listen: localhost",
        ["f.yaml:2: listen: `localhost` must be HOST:PORT, such as 127.0.0.1:6432 or [::1]:6432"],
    ),
    "a key without a value": (
        SHARDS + "pool: {size: }", ["f.yaml:2: pool.size: has no value; leave the key out to have the default"]
    ),
    "a key written twice": (
        SHARDS + "pool: {size: 1}\npool: {size: 2}", ["f.yaml:3: pool: is written twice (first on line 2)"]
    ),
    "a list where a value must be": (
        SHARDS + "pool: {size: [1]}", ["f.yaml:2: pool.size: must be a single value, not a list"]
    ),
    "a value where a mapping must be": (
        SHARDS + "pool: 3", ["f.yaml:2: pool: must be a mapping, such as {name: value}"]
    ),
    "a value where a list must be": ("shards: s0", ["f.yaml:1: shards: must be a list, such as [a, b]"]),
    "a missing schema file": (SHARDS + "schema: none.sql", ["f.yaml:2: schema: there is no file none.sql"]),
    "a missing folder of functions": (
        SHARDS + "functions_path: none", ["f.yaml:2: functions_path: there is no folder none"]
    ),
    "a table without a key": (
        SHARDS + "tables: {document: {}}",
        ["f.yaml:2: tables.document: lacks `key`, the primary key column, or `reference: true`"],
    ),
    "a table with a name that needs quotes": (
        SHARDS + "tables: {'my table': {key: id}}",
        ["f.yaml:2: tables.my table: `my table` must be a name of letters, digits and _, at most 63 bytes"],
    ),
    "one table under two names": (
        SHARDS + "tables:\n  document: {key: id}\n  public.document: {key: id}",
        ["f.yaml:4: tables.public.document: is declared twice, also as `document`"],
    ),
    "a reference table with a key": (
        SHARDS + "tables: {language: {reference: true, key: id}}",
        ["f.yaml:2: tables.language: a reference table takes no `key`: its rows are the same on every shard"],
    ),
    "an unknown parent": (
        SHARDS + "tables:\n  document: {key: id}\n  symbol: {key: id, parent: docment, via: d}",
        ["f.yaml:4: tables.symbol.parent: `docment` is not a declared table; did you mean `document`?"
         " (declared: document)"],
    ),
    "a reference table as parent": (
        SHARDS + "tables:\n  language: {reference: true}\n  symbol: {key: id, parent: language, via: l}",
        ["f.yaml:4: tables.symbol.parent: `language` is a reference table; a parent must have a `key`"],
    ),
    "a table that is its own parent": (
        SHARDS + "tables: {a: {key: id, parent: a, via: a_id}}", ["f.yaml:2: tables.a.parent: is a cycle: a -> a"]
    ),
    "a cycle of parents": (
        SHARDS + "tables:\n  a: {key: id, parent: b}\n  b: {key: id, parent: a}",
        ["f.yaml:3: tables.a.parent: is a cycle: a -> b -> a", "f.yaml:4: tables.b.parent: is a cycle: b -> a -> b"],
    ),
    "a via that is the key": (
        SHARDS + "tables:\n  a: {key: id}\n  b: {key: id, parent: a, via: id}",
        ["f.yaml:4: tables.b.via: `id` is the table's own key; it must be the column with the parent's"],
    ),
    "a trigger of an unknown table": (
        SHARDS + "tables: {document: {key: id}}\ntriggers: {t: {table: documents, on: [insert], function: 'm:f'}}",
        ["f.yaml:3: triggers.t.table: `documents` is not a declared table; did you mean `document`?"
         " (declared: document)"],
    ),
    "a trigger of a reference table": (
        SHARDS + "tables: {l: {reference: true}}\ntriggers: {t: {table: l, on: [insert], function: 'm:f'}}",
        ["f.yaml:3: triggers.t.table: `l` is a reference table; trigger functions need a `key`"],
    ),
    "a trigger without a function": (
        SHARDS + "tables: {d: {key: id}}\ntriggers: {t: {table: d, on: [insert]}}",
        ["f.yaml:3: triggers.t: lacks `function` (required: table, on, function)"],
    ),
    "a function that is none": (
        SHARDS + "tables: {d: {key: id}}\ntriggers: {t: {table: d, on: [insert], function: m.f}}",
        ["f.yaml:3: triggers.t.function: `m.f` must be MODULE:CALLABLE, such as demo_functions:index_document"],
    ),
    "an unknown operation": (
        SHARDS + "tables: {d: {key: id}}\ntriggers: {t: {table: d, on: [insrt], function: 'm:f'}}",
        ["f.yaml:3: triggers.t.on[0]: `insrt` is not known; did you mean `insert`? (allowed: insert, update, delete)"],
    ),
    "an operation twice": (
        SHARDS + "tables: {d: {key: id}}\ntriggers: {t: {table: d, on: [insert, insert], function: 'm:f'}}",
        ["f.yaml:3: triggers.t.on: `insert` is listed twice"],
    ),
    "no operation": (
        SHARDS + "tables: {d: {key: id}}\ntriggers: {t: {table: d, on: [], function: 'm:f'}}",
        ["f.yaml:3: triggers.t.on: is empty"],
    ),
    "columns without update": (
        SHARDS + "tables: {d: {key: id}}\ntriggers: {t: {table: d, on: [insert], columns: [a], function: 'm:f'}}",
        ["f.yaml:3: triggers.t.columns: only says something for `update`, which `on` does not list"],
    ),
    "a prior that is no product": (
        SHARDS + "tables: {d: {key: id}}\n"
        "triggers: {t: {table: d, on: [insert], function: 'm:f', profile: {memory: 64MB}}}",
        ["f.yaml:3: triggers.t.profile.memory: `64MB` must be a size times a duration, such as 64MB * 2s"],
    ),
    "a boolean that is none": (
        SHARDS + "tables: {l: {reference: yes}}",
        ["f.yaml:2: tables.l.reference: `yes` must be true or false",
         "f.yaml:2: tables.l: lacks `key`, the primary key column, or `reference: true`"],
    ),
    "text that is not YAML": ("a: [", ["f.yaml:1: is not YAML: expected the node content, but found '<stream end>'"]),
    "an empty file": ("", ["f.yaml: is empty; it needs at least `shards` or `embedded`"]),
    "a list at the top": ("- a", ["f.yaml:1: must be a mapping, such as `listen: 127.0.0.1:6432`"]),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    text, expected = GOLDEN[name]
    assert [problem.replace(f"{tmp_path}/", "") for problem in mistakes(tmp_path, text)] == expected


def test_every_mistake_is_reported_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    text = SHARDS + "pool: {size: none}\ntables:\n  a: {key: id, parent: zzz}\nlimits: {clients_max: -1}\nx: 1\n"
    assert [problem.split(" ")[0] for problem in mistakes(tmp_path, text)] == [
        "f.yaml:2:", "f.yaml:4:", "f.yaml:5:", "f.yaml:6:"
    ]  # fmt: skip


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file or directory$"):
        load_config(tmp_path / "none.yaml", {})


def test_messages_never_repeat_a_password(tmp_path: Path) -> None:
    text = "shards: [{name: s0, dsn: 'pg://u:${P}@h/d'}, {name: s1, dsn: 'postgresql://u:${P}@h:x/d'}]\ncontrol: '${P}'"
    assert "hidden" not in " ".join(mistakes(tmp_path, text, P="hidden"))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", None),
        ("query_node: off\n", QueryNodeConfig(is_on=False)),
        ("query_node: 'off'\n", QueryNodeConfig(is_on=False)),
        ("query_node: {database: app_query}\n", QueryNodeConfig(database="app_query")),
        ("query_node: {dsn: 'postgresql://${WHO}@h:5/q'}\n", QueryNodeConfig(dsn="postgresql://app@h:5/q")),
    ],
)
def test_a_query_node_is_off_or_a_place(tmp_path: Path, written: str, expected: QueryNodeConfig | None) -> None:
    assert load(tmp_path, SHARDS + written, WHO="app").query_node == expected


def test_a_dollar_can_be_written(tmp_path: Path) -> None:
    config = load(tmp_path, "shards: [{name: s0, dsn: 'postgresql://u:$${x}$1@h/d'}]", x="no")
    assert config.shards[0].dsn == "postgresql://u:${x}$1@h/d"


def test_a_parent_may_be_left_to_the_foreign_key(tmp_path: Path) -> None:
    config = load(tmp_path, SHARDS + "tables: {a: {key: id}, b: {key: id, via: a_id}}")
    assert config.tables[1] == TableConfig(name="b", key="id", via="a_id")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1us", 1e-6), ("5ms", 0.005), ("1.5s", 1.5), ("2 min", 120.0), ("1h", 3600.0), ("1d", 86400.0)],
)
def test_durations_take_units(tmp_path: Path, text: str, seconds: float) -> None:
    assert load(tmp_path, SHARDS + f"pool: {{wait_timeout: {text}}}").pool.wait_timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "size"), [("1024B", 1024), ("64MB", 64 * 10**6), ("1GiB", 2**30)])
def test_sizes_take_units(tmp_path: Path, text: str, size: int) -> None:
    assert load(tmp_path, SHARDS + f"limits: {{message_size_max: {text}}}").limits.message_bytes_max == size


def test_an_address_may_be_ipv6(tmp_path: Path) -> None:
    config = load(tmp_path, SHARDS + "listen: '[::1]:0'")
    assert (config.listen_host, config.listen_port) == ("::1", 0)


def test_names_are_qualified_with_public() -> None:
    assert [qualified("a"), qualified("b.a")] == ["public.a", "b.a"]


def test_configurations_are_values(tmp_path: Path) -> None:
    config: Any = load(tmp_path, FULL, PASSWORD="x")
    with pytest.raises(AttributeError):
        config.listen_port = 1
    assert msgspec.structs.replace(config, listen_port=1) != config
