"""Reads the configuration file: `load_config` returns a Config or raises ConfigError with every mistake in the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from foreshard.proxy.config import crosscheck, kinds, model
from foreshard.proxy.config.document import Document, Item
from foreshard.proxy.config.sections import QUERY_NODE, SHARD, TABLE, TOP, TRIGGER, read_scalar, read_values
from foreshard.proxy.errors import ConfigError

# Keys of the top level that are not plain fields.
SPECIAL = ("listen", "shards", "tables", "triggers", "query_node")


def load_config(path: Path | str, environ: Mapping[str, str] | None = None) -> model.Config:
    """The configuration in the file. ConfigError names file, line, place, and what is allowed, for every mistake."""
    file = Path(path)
    document = Document(file, os.environ if environ is None else environ)
    if document.root is None:
        raise ConfigError([f"{file}: is empty; it needs at least `shards` or `embedded`"])
    entries = document.root.entries() if document.root.kind == "mapping" else None
    if entries is None:
        raise ConfigError([f"{file}:{document.root.line}: must be a mapping, such as `listen: 127.0.0.1:6432`"])
    values = read_values(TOP, document.root, SPECIAL) or {}
    places: dict[str, Item] = dict(entries)
    if "listen" in entries:
        listen = read_scalar(kinds.address, entries["listen"])
        if isinstance(listen, tuple):
            values["listen_host"], values["listen_port"] = listen
    if "shards" in entries:
        values["shards"] = _read_shards(entries["shards"], places)
    if "tables" in entries:
        values["tables"] = _read_named(entries["tables"], TABLE, kinds.table_name, places)
    if "triggers" in entries:
        values["triggers"] = _read_named(entries["triggers"], TRIGGER, kinds.identifier, places)
    if "query_node" in entries:
        values["query_node"] = _read_query_node(entries["query_node"])
    config = _absolute(model.Config(path=file.absolute(), **values))
    crosscheck.check(config, places, document.root)
    document.problems.raise_if_any()
    return config


def _read_shards(item: Item, places: dict[str, Item]) -> tuple[model.ShardConfig, ...]:
    found: list[model.ShardConfig] = []
    for element in item.items() or ():
        values = read_values(SHARD, element)
        if values is not None:
            places[f"shards.{len(found)}"] = element
            found.append(model.ShardConfig(**values))
    return tuple(found)


def _read_query_node(item: Item) -> model.QueryNodeConfig | None:
    """`off`, or where the database is."""
    if item.kind == "text":
        word = item.text()
        if word not in ("off", "false", None):
            item.problem("must be `off`, or a mapping such as {database: app_query}")
        return model.QueryNodeConfig(is_on=False)
    values = read_values(QUERY_NODE, item)
    if values and "database" in values and "dsn" in values:
        item.problem("has both `database` and `dsn`: the DSN names its database already")
    return None if values is None else model.QueryNodeConfig(**values)


def _read_named(item: Item, section: Any, kind: kinds.Kind, places: dict[str, Item]) -> tuple[Any, ...]:
    """A mapping of name -> section, as structs that have a `name`; `places` learns where each and its keys stand."""
    found = []
    for name, entry in (item.entries() or {}).items():
        try:
            kind(name)
        except ValueError as error:
            entry.problem(str(error))
            continue
        values = read_values(section, entry)
        places[entry.path] = entry
        if entry.kind == "mapping":
            places.update({inner.path: inner for inner in (entry.entries() or {}).values()})
        if values is not None:
            found.append(section.struct(name=name, **values))
    return tuple(found)


def _absolute(config: model.Config) -> model.Config:
    """Relative paths count from the file's folder."""
    folder = config.path.parent

    def settle(path: Path) -> Path:
        return Path(os.path.normpath(folder / path))

    changes: dict[str, Any] = {"run_directory": settle(config.run_directory)}
    changes["functions_path"] = settle(config.functions_path) if config.functions_path else folder
    if config.schema is not None:
        changes["schema"] = settle(config.schema)
    if config.embedded is not None:
        changes["embedded"] = msgspec.structs.replace(config.embedded, data=settle(config.embedded.data))
    return msgspec.structs.replace(config, **changes)
