"""What the console shows from the configuration, the catalog, the router's connections and the shards' own tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from foreshard.proxy import __version__
from foreshard.proxy.admin.results import Cell, Column, ResultSet, cells, make_columns, make_result, show_value
from foreshard.proxy.admin.sources import ConsoleSources
from foreshard.proxy.catalog import Catalog, Table

POOL_COLUMNS = (
    "database user shard cl_active:bigint cl_waiting:bigint sv_active:bigint sv_idle:bigint sv_pinned:bigint "
    "sv_login:bigint maxwait_us:bigint pool_mode parameters"
)
CLIENT_COLUMNS = (
    "type user database state addr port:bigint connect_time request_time wait_us:bigint link remote_pid:bigint "
    "application_name prepared_statements:bigint pinned"
)
SERVER_COLUMNS = (
    "type user database shard state addr port:bigint connect_time request_time link remote_pid:bigint "
    "prepared_statements:bigint bucket:bigint"
)
OUTBOX_SQL = """
SELECT coalesce(o.function, d.function), coalesce(o.waiting, 0), coalesce(o.retried, 0),
       coalesce(o.oldest_s, 0)::float8, coalesce(d.dead, 0)
  FROM (SELECT function, count(*) AS waiting, count(*) FILTER (WHERE attempt > 0) AS retried,
               extract(epoch FROM clock_timestamp() - min(captured_at)) AS oldest_s
          FROM foreshard.outbox GROUP BY function) o
  FULL JOIN (SELECT function, count(*) AS dead FROM foreshard.dead_letter GROUP BY function) d USING (function)
 ORDER BY 1"""


async def show_pools(sources: ConsoleSources) -> ResultSet:
    """Backends and waiting clients per shard, database and user."""
    return _from_rows(POOL_COLUMNS, _by_shard(sources, sources.pools()))


async def show_clients(sources: ConsoleSources) -> ResultSet:
    """Client connections."""
    return _from_rows(CLIENT_COLUMNS, [{"type": "C", **row} for row in sources.clients()])


async def show_servers(sources: ConsoleSources) -> ResultSet:
    """Backend connections."""
    return _from_rows(SERVER_COLUMNS, [{"type": "S", **row} for row in _by_shard(sources, sources.servers())])


async def show_tables(sources: ConsoleSources) -> ResultSet:
    """Declared tables; a root with its descendants is one group."""
    catalog = sources.catalog
    rows = [
        (
            table.qualified,
            table.kind.value,
            ", ".join(table.key_columns) or None,
            table.key_type or None,
            table.parent,
            ", ".join(table.via_columns) or None,
            group_of(catalog, table),
            ", ".join(function.name for function in table.functions) or None,
        )
        for table in catalog.tables.values()
    ]
    return make_result("table kind key key_type parent via group functions", rows)


def group_of(catalog: Catalog, table: Table) -> str | None:
    """The root whose bucket the table's rows share; None for reference tables."""
    if not table.key_columns:
        return None
    while table.parent is not None and table.parent in catalog.tables:
        table = catalog.tables[table.parent]
    return table.qualified


async def show_triggers(sources: ConsoleSources) -> ResultSet:
    """Registered trigger functions as configured."""
    rows = [
        (
            trigger.name,
            trigger.table,
            ", ".join(trigger.on),
            ", ".join(trigger.columns) if trigger.columns else None,
            trigger.function,
            trigger.timeout_s,
            trigger.memory_bytes_max,
            trigger.attempts_max,
            trigger.backoff_s,
        )
        for trigger in sources.config.triggers
    ]
    return make_result(
        "name table operations columns function timeout_s:float memory_bytes_max:bigint attempts_max:bigint "
        "backoff_s:float",
        rows,
    )


async def show_outbox(sources: ConsoleSources) -> ResultSet:
    """Events not handled yet, asked of every shard now; a shard that does not answer has its reason in `error`."""
    rows: list[tuple[Cell, ...]] = []
    for answer in await sources.ask_shards(OUTBOX_SQL):
        if answer.error is not None:
            rows.append((answer.shard, None, None, None, None, None, answer.error))
        elif not answer.rows:
            rows.append((answer.shard, None, 0, 0, 0.0, 0, None))
        for row in answer.rows:
            rows.append((answer.shard, *cells(row), None))
    return make_result("shard function waiting:bigint retried:bigint oldest_s:float dead_letters:bigint error", rows)


async def show_config(sources: ConsoleSources) -> ResultSet:
    """Every option with its value, lists by index, passwords of DSNs replaced."""
    return make_result("key value", flatten(msgspec.to_builtins(sources.config, enc_hook=str)))


def flatten(value: Any, path: str = "") -> list[tuple[str, str | None]]:
    """(dotted path, text) for every leaf of nested dictionaries and lists."""
    if isinstance(value, Mapping):
        return [leaf for name, item in value.items() for leaf in flatten(item, f"{path}.{name}" if path else str(name))]
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return [leaf for index, item in enumerate(value) for leaf in flatten(item, f"{path}[{index}]")]
    if isinstance(value, list | tuple):
        return [(path, ", ".join(show_value(item) for item in value))]
    return [(path, None if value is None else redact(show_value(value)))]


def redact(text: str) -> str:
    """The text with the password of any connection string replaced by ***."""
    text = re.sub(r"(\w+://[^:/@\s]*):[^@\s]*@", r"\1:***@", text)
    return re.sub(r"(password=)('(?:[^'\\]|\\.)*'|[^\s&]+)", r"\1***", text)


async def show_version(sources: ConsoleSources) -> ResultSet:
    """The version of Foreshard."""
    return make_result("version", [(f"Foreshard {__version__}",)])


def _by_shard(sources: ConsoleSources, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows in the order of shards, then of database and user; of equals the older first, as they came."""
    order = {shard.name: index for index, shard in enumerate(sources.config.shards)}
    return sorted(
        rows, key=lambda row: (order.get(row.get("shard", ""), -1), row.get("database", ""), row.get("user", ""))
    )


def _from_rows(specification: str, rows: Iterable[Mapping[str, Any]]) -> ResultSet:
    """A result set of dictionaries; a key that a row lacks is NULL."""
    columns: tuple[Column, ...] = make_columns(specification)
    return ResultSet(columns, tuple(tuple(row.get(column.name) for column in columns) for row in rows))
