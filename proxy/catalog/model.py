"""The catalog as values: what the planner may know without asking a shard.

Built from configuration and from what introspection read on a shard (proxy/control/introspect.py); a change makes a
new Catalog with a higher version, never an altered one.
"""

from __future__ import annotations

import enum

import msgspec


class TableKind(enum.Enum):
    """How a declared table's rows are spread."""

    ROOT = "root"  # placed by cost; the key carries its bucket
    CHILD = "child"  # lives with its parent
    REFERENCE = "reference"  # same rows on every shard


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column, in attnum order within its table."""

    name: str
    type_name: str  # as format_type() prints it: "bigint", "text", "integer[]"
    type_oid: int
    not_null: bool = False
    has_default: bool = False
    is_generated: bool = False  # GENERATED ALWAYS AS (...) STORED, or identity ALWAYS


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A registered trigger function, as far as routing must know it."""

    name: str
    operations: tuple[str, ...]  # of "insert", "update", "delete"
    columns: tuple[str, ...] | None  # for update: fires only when one of these changed
    profile_indexes: dict[str, int]  # operation -> index of the (function, operation) profile in shared state


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A declared table."""

    schema: str
    name: str
    kind: TableKind
    key: str  # primary key column; "" for reference tables
    key_type: str  # as format_type() prints it; "" for reference tables
    parent: str | None = None  # "schema.name" of the parent
    via: str | None = None  # the child's column that holds the parent's key
    columns: tuple[Column, ...] = ()
    functions: tuple[Function, ...] = ()

    @property
    def qualified(self) -> str:
        """schema.name, the table's name everywhere in Foreshard."""
        return f"{self.schema}.{self.name}"


class Catalog(msgspec.Struct, frozen=True, kw_only=True):
    """All declared tables by qualified name. A name that is not here is a plain table of the default shard."""

    version: int = 1
    tables: dict[str, Table] = {}
    # Views, rules and functions of the shards that read declared tables: qualified name -> table read.
    views: dict[str, str] = {}
    functions: dict[str, str] = {}
    search_path: tuple[str, ...] = ("public",)

    def find(self, name: str, schema: str | None = None) -> Table | None:
        """The declared table an SQL name means; None for plain tables."""
        for candidate in (schema,) if schema else self.search_path:
            table = self.tables.get(f"{candidate}.{name}")
            if table is not None:
                return table
        return None
