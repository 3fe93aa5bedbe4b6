"""Names in a query: which table reference a column belongs to, as PostgreSQL resolves it.

Where that is not certain (columns not known, ambiguous names), the answer is None: it costs a fact, never truth.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from foreshard.proxy.catalog import Table
from foreshard.proxy.routing.tree import Node, column_path


class ReferenceKind(enum.Enum):
    """What a table reference means."""

    SHARDED = "sharded"
    REFERENCE = "reference"  # a declared reference table
    PLAIN = "plain"  # any other table of the default shard
    SYSTEM = "system"  # pg_catalog and information_schema
    DERIVED = "derived"  # rows computed in the statement: sub-select, CTE, function


@dataclass(eq=False)
class Reference:
    """One appearance of a table in a statement. Two appearances of one table are two references."""

    kind: ReferenceKind
    name: str  # by which columns are qualified: the alias, else the table's name
    schema: str | None = None
    table: Table | None = None  # of declared tables whose columns keep their names
    declared: Table | None = None  # of all declared tables
    outputs: tuple[tuple[str, Place | None], ...] = ()  # of CTEs: their columns, as far as they are known
    cte: str = ""  # the CTE whose rows these are
    is_nullable: bool = False  # on the side of an outer join that may be filled with NULLs


Place = tuple[Reference, str]  # a column of a reference
Outputs = list[tuple[str, Place | None]]  # the columns of a query's result: name, and what it is a column of


@dataclass
class Names:
    """What a FROM clause, or one side of a join, makes visible."""

    references: list[Reference] = field(default_factory=list)
    hidden: set[str] = field(default_factory=set)  # aliases of joins: what is behind them is not looked up
    merged: dict[str, Place | None] = field(default_factory=dict)  # columns named by USING

    def join(self, other: Names) -> Names:
        """Both together."""
        return Names([*self.references, *other.references], self.hidden | other.hidden, {**self.merged, **other.merged})

    def owner(self, column: str) -> Place | None:
        """The place of an unqualified column that exactly one known table has."""
        if column in self.merged:
            return self.merged[column]
        found = [one for one in self.references if one.table is not None and one.table.has_column(column)]
        return (found[0], column) if len(found) == 1 else None

    def may_own(self, column: str) -> bool:
        """Whether an unqualified column may be one of these."""
        if self.hidden or column in self.merged:
            return True
        return any(
            one.table is None or not one.table.columns or one.table.has_column(column) for one in self.references
        )


@dataclass
class Scope:
    """Names of one query level and of those around it."""

    names: Names
    outer: Scope | None = None

    def resolve(self, node: Node | None) -> Place | None:
        """The place that a column reference means, when that is certain."""
        path = column_path(node)
        if path is None:
            return None
        return self._resolve_bare(path[0]) if len(path) == 1 else self._resolve_qualified(path)

    def _resolve_bare(self, column: str) -> Place | None:
        if self.names.may_own(column):
            return self.names.owner(column)
        return self.outer._resolve_bare(column) if self.outer is not None else None

    def _resolve_qualified(self, path: list[str]) -> Place | None:
        *schemas, qualifier, column = path
        schema = schemas[-1] if schemas else None
        found = [
            one
            for one in self.names.references
            if one.name == qualifier and (schema is None or one.schema is None or one.schema == schema)
        ]
        if not found and qualifier not in self.names.hidden:
            return self.outer._resolve_qualified(path) if self.outer is not None else None
        if len(found) != 1 or found[0].table is None or not found[0].table.has_column(column):
            return None
        return found[0], column
