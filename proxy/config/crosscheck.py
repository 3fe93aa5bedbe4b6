"""What must hold between sections: each rule reports at the place in the file where the mistake is.

A parent or `via` that is left out is no mistake: introspection takes it from the foreign key.
"""

from __future__ import annotations

from collections.abc import Mapping

from foreshard.proxy.config.document import Item, did_you_mean, listed
from foreshard.proxy.config.model import Config, TableConfig, TriggerConfig

DEFAULT_SCHEMA = "public"


def qualified(name: str) -> str:
    """The name with its schema; `public` where the configuration names none."""
    return name if "." in name else f"{DEFAULT_SCHEMA}.{name}"


def check(config: Config, places: Mapping[str, Item], root: Item) -> None:
    """Report every contradiction in the configuration to the document that the items belong to."""
    _check_shards(config, places, root)
    tables: dict[str, TableConfig] = {}
    for table in config.tables:
        place = places[f"tables.{table.name}"]
        if qualified(table.name) in tables:
            place.problem(f"is declared twice, also as `{tables[qualified(table.name)].name}`")
        tables.setdefault(qualified(table.name), table)
    for table in config.tables:
        _check_table(table, tables, places)
    _check_cycles(config, tables, places)
    for trigger in config.triggers:
        _check_trigger(trigger, tables, places)
    if config.rebalance.goal >= config.rebalance.start:
        places["rebalance"].problem(f"`goal` must be below `start`, which is {config.rebalance.start:g}")
    if config.schema is not None and not config.schema.is_file():
        places["schema"].problem(f"there is no file {config.schema}")
    if config.functions_path is not None and not config.functions_path.is_dir():
        places["functions_path"].problem(f"there is no folder {config.functions_path}")


def _check_shards(config: Config, places: Mapping[str, Item], root: Item) -> None:
    if "shards" not in places and "embedded" not in places:
        root.problem("lacks `shards`, or `embedded` for shards that Foreshard starts itself")
    if "shards" in places and "embedded" in places:
        places["embedded"].problem("cannot stand beside `shards`: use one of them")
    if "shards" in places and places["shards"].kind == "list" and not places["shards"].items():
        places["shards"].problem("is empty; at least one shard is needed")
    for index, shard in enumerate(config.shards):
        earlier = config.shards[:index]
        if shard.name in [other.name for other in earlier]:
            places[f"shards.{index}"].problem(f"the name `{shard.name}` is used twice")
        same = [other.name for other in earlier if other.dsn == shard.dsn]
        if same:
            places[f"shards.{index}"].problem(f"has the same database as shard `{same[0]}`")


def _check_table(table: TableConfig, tables: Mapping[str, TableConfig], places: Mapping[str, Item]) -> None:
    path = f"tables.{table.name}"
    place = places[path]
    if table.reference:
        given = [name for name in ("key", "parent", "via", "unique") if getattr(table, name)]
        given += ["placement"] if table.placement != "home" else []
        if given:
            place.problem(f"a reference table takes no `{given[0]}`: its rows are the same on every shard")
        return
    if table.key is None and f"{path}.key" not in places:
        place.problem("lacks `key`, the primary key column, or `reference: true`")
    for name in ("key", "via"):
        columns = getattr(table, f"{name}_columns")
        if getattr(table, name) == ():
            places[f"{path}.{name}"].problem("is empty")
        for column in {column for column in columns if columns.count(column) > 1}:
            places[f"{path}.{name}"].problem(f"`{column}` is listed twice")
    if table.parent is None:
        return
    if table.placement != "home":
        places[f"{path}.placement"].problem("a child table takes no `placement`: its rows live with their parents")
    parent = tables.get(qualified(table.parent))
    if parent is None:
        names = [other.name for other in tables.values() if other is not table]
        places[f"{path}.parent"].problem(
            f"`{table.parent}` is not a declared table{did_you_mean(table.parent, names)} (declared: {listed(names)})"
        )
    elif parent.reference:
        places[f"{path}.parent"].problem(f"`{table.parent}` is a reference table; a parent must have a `key`")
    if isinstance(table.via, str) and table.via == table.key and parent is not None and parent is not table:
        places[f"{path}.via"].problem(f"`{table.via}` is the table's own key; it must be the column with the parent's")


def _check_cycles(config: Config, tables: Mapping[str, TableConfig], places: Mapping[str, Item]) -> None:
    for table in config.tables:
        seen = [qualified(table.name)]
        current = table
        while current.parent is not None and qualified(current.parent) in tables:
            name = qualified(current.parent)
            if name == seen[0]:
                names = [tables[step].name for step in [*seen, name]]
                places[f"tables.{table.name}.parent"].problem(f"is a cycle: {' -> '.join(names)}")
            if name in seen:
                break
            seen.append(name)
            current = tables[name]


def _check_trigger(trigger: TriggerConfig, tables: Mapping[str, TableConfig], places: Mapping[str, Item]) -> None:
    path = f"triggers.{trigger.name}"
    table = tables.get(qualified(trigger.table))
    if table is None:
        names = [other.name for other in tables.values()]
        places[f"{path}.table"].problem(
            f"`{trigger.table}` is not a declared table{did_you_mean(trigger.table, names)} (declared: {listed(names)})"
        )
    elif table.reference:
        places[f"{path}.table"].problem(f"`{trigger.table}` is a reference table; trigger functions need a `key`")
    for name in ("on", "columns"):
        values: tuple[str, ...] | None = getattr(trigger, name)
        if values is None:
            continue
        if not values and not (places[f"{path}.{name}"].items() or ()):
            places[f"{path}.{name}"].problem("is empty")
        for value in {value for value in values if values.count(value) > 1}:
            places[f"{path}.{name}"].problem(f"`{value}` is listed twice")
    if trigger.columns is not None and "update" not in trigger.on:
        places[f"{path}.columns"].problem("only says something for `update`, which `on` does not list")
