"""What routing tells the relay about keys whose rows may live away from home (ARCHITECTURE.md, "Away rows")."""

from __future__ import annotations

from enum import IntEnum

from foreshard.proxy.catalog import Catalog, Table
from foreshard.proxy.routing.tree import Node


class NewKeys(IntEnum):
    """Whether a statement inserts rows whose keys it gives into a table that is placed by cost."""

    NONE = 0
    PLAIN = 1
    ON_CONFLICT = 2  # rows that are there already must be looked for first


class ClaimedColumn(str):
    """A column's name in a Template's keys whose values do not say where the rows live: the claims of this name do."""

    claim: str


def column_name(catalog: Catalog, table: Table, column: str) -> str:
    """How a Template's keys name a column."""
    name = f"{table.name}.{column}"
    claim = catalog.claim_of(table, column)
    if claim is None:
        return name
    found = ClaimedColumn(name)
    found.claim = claim
    return found


def claim_of_column(column: str) -> str | None:
    """The claims that a column of a Template's keys goes by."""
    return column.claim if isinstance(column, ClaimedColumn) else None


def new_keys(table: Table, node: Node, gives_keys: bool) -> NewKeys:
    """What an InsertStmt is to a table that is placed by cost."""
    if not table.by_cost or not gives_keys:
        return NewKeys.NONE
    return NewKeys.ON_CONFLICT if "onConflictClause" in node else NewKeys.PLAIN


def owes_away(table: Table, kind: str, columns: list[str]) -> bool:
    """Whether a write makes, removes or renames rows, so that away from home it owes their claims."""
    return table.by_cost and (kind in ("InsertStmt", "DeleteStmt", "MergeStmt") or table.key in columns)
