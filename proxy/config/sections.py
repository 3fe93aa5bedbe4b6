"""The sections of the file as tables: for each key its attribute in the struct and the kind of its value.

The struct's own default holds for a key that is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from foreshard.proxy.config import kinds, model
from foreshard.proxy.config.document import Item, did_you_mean, listed

POLICIES = ("bounded", "key-hash", "cost-hash", "two-choices", "least-loaded")
OPERATIONS = ("insert", "update", "delete")


@dataclass(frozen=True)
class Field:
    """One key: the attribute it fills, and what its value (or each element of its list) is."""

    attribute: str
    kind: kinds.Kind
    many: bool = False
    required: bool = False
    is_one_or_many: bool = False  # a list of several, or a single value as it is


@dataclass(frozen=True)
class Section:
    """One mapping of the file: the struct it makes, its keys, and mappings nested in it."""

    struct: type[msgspec.Struct]
    fields: dict[str, Field]
    nested: dict[str, tuple[str, Section]] = field(default_factory=dict)  # key -> (attribute, "" to merge), section

    @property
    def keys(self) -> list[str]:
        return [*self.fields, *self.nested]


SHARD = Section(
    model.ShardConfig,
    {
        "name": Field("name", kinds.identifier, required=True),
        "dsn": Field("dsn", kinds.dsn, required=True),
        "weight": Field("weight", kinds.number(0.001, 1000)),
    },
)
EMBEDDED = Section(
    model.EmbeddedConfig,
    {"shards": Field("shards", kinds.integer(1, 64)), "data": Field("data", kinds.path)},
)
TABLE = Section(
    model.TableConfig,
    {
        "key": Field("key", kinds.identifier, is_one_or_many=True),
        "parent": Field("parent", kinds.table_name),
        "via": Field("via", kinds.identifier, is_one_or_many=True),
        "reference": Field("reference", kinds.boolean),
        "unique": Field("unique", kinds.columns, many=True),
        "placement": Field("placement", kinds.choice("home", "cost")),
    },
)
PRIOR = Section(
    model.ProfilePrior,
    {
        "cpu": Field("cpu_s", kinds.duration),
        "memory": Field("memory_byte_s", kinds.byte_seconds),
        "io": Field("io_bytes", kinds.size),
        "network": Field("network_bytes", kinds.size),
    },
)
TRIGGER = Section(
    model.TriggerConfig,
    {
        "table": Field("table", kinds.table_name, required=True),
        "on": Field("on", kinds.choice(*OPERATIONS), many=True, required=True),
        "columns": Field("columns", kinds.identifier, many=True),
        "function": Field("function", kinds.function_name, required=True),
        "timeout": Field("timeout_s", kinds.positive_duration),
        "memory_max": Field("memory_bytes_max", kinds.positive_size),
        "attempts_max": Field("attempts_max", kinds.integer(1, 1000)),
        "backoff": Field("backoff_s", kinds.duration),
    },
    {"profile": ("profile", PRIOR)},
)
CAPACITY = Section(
    model.PlacementConfig,
    {
        "cpu": Field("cpu_s_per_s", kinds.number(0.001, 100_000)),
        "memory": Field("memory_bytes", kinds.positive_size),
        "io": Field("io_bytes_per_s", kinds.rate),
        "network": Field("network_bytes_per_s", kinds.rate),
    },
)
PLACEMENT = Section(
    model.PlacementConfig,
    {"policy": Field("policy", kinds.choice(*POLICIES)), "bound": Field("bound", kinds.number(1, 10))},
    {"capacity": ("", CAPACITY)},
)
POOL = Section(
    model.PoolConfig,
    {
        "size": Field("size", kinds.integer(1, 10_000)),
        "wait_timeout": Field("wait_timeout_s", kinds.positive_duration),
        "idle_timeout": Field("idle_timeout_s", kinds.positive_duration),
        "connect_timeout": Field("connect_timeout_s", kinds.positive_duration),
    },
)
LIMITS = Section(
    model.LimitsConfig,
    {
        "clients_max": Field("clients_max", kinds.integer(1, 1_000_000)),
        "startup_size_max": Field("startup_bytes_max", kinds.size_in(64, 10**6)),
        "message_size_max": Field("message_bytes_max", kinds.size_in(1024, 2**30)),
        "shadow_size_max": Field("shadow_bytes_max", kinds.positive_size),
        "startup_timeout": Field("startup_timeout_s", kinds.positive_duration),
        "commit_timeout": Field("commit_timeout_s", kinds.positive_duration),
        "statement_cache_entries_max": Field("statement_cache_entries_max", kinds.integer(1, 10_000_000)),
    },
)
WORKERS = Section(
    model.WorkersConfig,
    {
        "per_shard": Field("per_shard", kinds.integer(0, 256)),
        "batch_events_max": Field("batch_events_max", kinds.integer(1, 10_000)),
        "poll_interval": Field("poll_interval_s", kinds.positive_duration),
        "preload": Field("preload", kinds.module_name, many=True),
    },
)
REBALANCE = Section(
    model.RebalanceConfig,
    {
        "automatic": Field("automatic", kinds.boolean),
        "start": Field("start", kinds.number(1, 100)),
        "goal": Field("goal", kinds.number(1, 100)),
        "rows_per_minute": Field("rows_per_minute", kinds.number(0.0001, 1)),
        "cooldown": Field("cooldown_s", kinds.duration),
        "bytes_per_second": Field("bytes_per_s", kinds.rate),
    },
)
QUERY_NODE = Section(
    model.QueryNodeConfig,
    {"database": Field("database", kinds.database_name), "dsn": Field("dsn", kinds.dsn)},
)
TOP = Section(
    model.Config,
    {
        "control": Field("control", kinds.dsn),
        "run_directory": Field("run_directory", kinds.path),
        "schema": Field("schema", kinds.path),
        "functions_path": Field("functions_path", kinds.path),
    },
    {
        "embedded": ("embedded", EMBEDDED),
        "placement": ("placement", PLACEMENT),
        "pool": ("pool", POOL),
        "limits": ("limits", LIMITS),
        "workers": ("workers", WORKERS),
        "rebalance": ("rebalance", REBALANCE),
    },
)


def read_values(section: Section, item: Item, others: tuple[str, ...] = ()) -> dict[str, Any] | None:
    """Attributes of the section's struct as the file gives them; problems are reported where they stand.

    None when something required is missing or the item is no mapping. `others` are keys the caller reads itself.
    """
    entries = item.entries()
    if entries is None:
        return None
    allowed = [*others, *section.keys]
    values: dict[str, Any] = {}
    complete = True
    for name, value in entries.items():
        if name in section.fields:
            _read_field(section.fields[name], value, values)
        elif name in section.nested:
            attribute, inner = section.nested[name]
            found = read_values(inner, value)
            if found is not None:
                values.update(found if not attribute else {attribute: inner.struct(**found)})
        elif name not in others:
            value.problem(f"is not a known key{did_you_mean(name, allowed)} (allowed: {listed(allowed)})")
    for name, wanted in section.fields.items():
        if wanted.required and name not in entries:
            item.problem(f"lacks `{name}` (required: {listed(n for n, f in section.fields.items() if f.required)})")
        complete = complete and (not wanted.required or wanted.attribute in values)
    return values if complete else None


def _read_field(wanted: Field, item: Item, values: dict[str, Any]) -> None:
    if item.kind == "nothing":
        item.problem("has no value; leave the key out to have the default")
    elif wanted.many or (wanted.is_one_or_many and item.kind == "list"):
        elements = item.items()
        if elements is not None:
            found = tuple(
                value for value in (read_scalar(wanted.kind, element) for element in elements) if value is not None
            )
            is_single = wanted.is_one_or_many and len(found) == 1
            values[wanted.attribute] = found[0] if is_single else found
    else:
        value = read_scalar(wanted.kind, item)
        if value is not None:
            values[wanted.attribute] = value


def read_scalar(kind: kinds.Kind, item: Item) -> object:
    """The value of a scalar; None, and a problem, when it is not of the kind."""
    text = item.text()
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError as error:
        item.problem(str(error))
        return None
