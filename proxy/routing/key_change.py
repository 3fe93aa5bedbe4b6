"""UPDATE of the columns that say where a row lives, as far as the row stays on its shard.

There PostgreSQL does all of it: its primary key and foreign keys hold, for the new key's home is on this shard as well.
A row that would have to go to another shard is refused when the keys are known.
"""

from __future__ import annotations

from dataclasses import replace

from foreshard._core.template import KeyFlag
from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.catalog.model import key_family
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.locate import KeyUse, Locator, chained, key_uses
from foreshard.proxy.routing.scope import Reference
from foreshard.proxy.routing.tree import Node

HINT = "Insert a new row and delete the old one."
Pairs = list[tuple[str, Node | None]]


def check_changed(catalog: Catalog, table: Table, columns: list[str]) -> bool:
    """Whether an UPDATE sets columns by which rows are found; SqlError when that cannot be."""
    changes_place = False
    for column in columns:
        if column in table.key_columns and table.by_cost:
            raise refused(table, column, "Its claim says where the row is.")
        if column in table.routing_columns and table.kind is TableKind.ROOT:
            if any(child.is_placeable for child in descendants(catalog, table)):
                raise refused(table, column, "Keys of its children carry the bucket of the old one.")
            changes_place = True
        elif column in table.via_columns:
            raise refused(table, column, "The column's value says on which shard the row lives.")
        elif column in table.key_columns:
            is_domain = any(child.domain_of_via == table.qualified for child in catalog.tables.values())
            if not table.takes_keys or is_domain:
                raise refused(table, column, "Rows are found by it.")
    return changes_place


def descendants(catalog: Catalog, table: Table) -> list[Table]:
    """The tables whose rows live with a table's rows."""
    found = [child for child in catalog.tables.values() if child.parent == table.qualified]
    return [*found, *(below for child in found for below in descendants(catalog, child))]


def new_keys(locator: Locator, target: Reference, table: Table, pairs: Pairs) -> tuple[KeyUse, ...]:
    """The keys that the rows will have: of several columns, those that are not set keep their values."""
    given = dict(pairs)
    columns = [
        assigned(locator, table, column, given[column]) if column in given else kept(locator, target, table, column)
        for column in table.routing_columns
    ]
    uses = columns[0] if len(columns) == 1 else chained(columns)
    if uses is None:
        raise refused(table, table.routing_columns[0], "There are too many keys.")
    return uses


def assigned(locator: Locator, table: Table, column: str, value: Node | None) -> tuple[KeyUse, ...]:
    """The new value of a column, which has to be a constant or a parameter; none for NULL."""
    key_type = table.type_of(column)
    family = key_family(key_type) if key_type is not None else None
    keys = locator.collector.text.read_keys(value, family) if family is not None else None
    if keys is None:
        raise refused(table, column, "The new value is an expression.")
    usable = Locator(locator.collector).usable
    for key in keys:
        if key.flags & KeyFlag.KEY_PARAM and usable.get(key.index) != family:
            raise refused(table, column, f"The type of ${key.index + 1} is not certain.")
    uses = key_uses(locator.catalog, table, column, keys, int(KeyFlag.KEY_INSERTED))
    # NULL is not this row's only if there is a row: PostgreSQL will tell.
    return tuple(replace(use, flags=use.flags & ~KeyFlag.KEY_INSERTED) for use in uses)


def kept(locator: Locator, target: Reference, table: Table, column: str) -> tuple[KeyUse, ...]:
    """The old value of a column, as the conditions say."""
    keys = locator.bound.get((target, column))
    if keys is None:
        raise refused(table, column, "The old value is not known.")
    return key_uses(locator.catalog, table, column, keys)


def elsewhere(table: Table, columns: list[str]) -> SqlError:
    """The refusal of a change to a key that lives on another shard."""
    named = next(column for column in columns if column in table.routing_columns)
    return refused(table, named, "The row would live on another shard.")


def refused(table: Table, column: str, detail: str) -> SqlError:
    """The refusal of a change."""
    return not_built(f'changing "{column}" of "{table.name}"', HINT, detail)
