"""What introspection reads on a shard, as values: tables with their keys and constraints, and who reads them.

`Facts` hold no decision; proxy/control/derive.py makes the Catalog from them and refuses what cannot be sharded.
"""

from __future__ import annotations

import msgspec

from foreshard.proxy.catalog import Column


class ForeignKey(msgspec.Struct, frozen=True, kw_only=True):
    """A foreign key, from the table that holds the columns to the one it references."""

    name: str
    table: str  # qualified, as are all table names here
    columns: tuple[str, ...]
    target: str
    target_columns: tuple[str, ...]


class UniqueIndex(msgspec.Struct, frozen=True, kw_only=True):
    """A unique index or exclusion constraint; an expression stands as its text."""

    name: str
    columns: tuple[str, ...]
    is_primary: bool
    definition: str

    @property
    def is_simple(self) -> bool:
        """Whether it says no more than that its columns together are unique, NULLs apart."""
        is_unique = self.definition.startswith("CREATE UNIQUE INDEX")
        return is_unique and " WHERE " not in self.definition and " NULLS NOT DISTINCT" not in self.definition


class KeySource(msgspec.Struct, frozen=True, kw_only=True):
    """Where a column's generated values come from."""

    identity: str = ""  # "a" ALWAYS, "d" BY DEFAULT, "" no identity
    default: str = ""  # the default's expression, as PostgreSQL prints it
    sequence: str = ""  # qualified and quoted name of the sequence that the column owns or its default names


class TableFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One table as it is on the shard."""

    schema: str
    name: str
    columns: tuple[Column, ...]
    sources: dict[str, KeySource]  # by column, for those with a default or identity
    unique: tuple[UniqueIndex, ...]
    partitions: tuple[str, ...] = ()  # partitions and inheriting tables, qualified
    ancestors: tuple[str, ...] = ()  # tables it is a partition of or inherits from
    captured: bool = False  # it has Foreshard's capture triggers
    has_triggers: bool = False  # of users; rules count as well
    away: bool = False  # it has Foreshard's triggers for keys placed by cost
    filled: bool = False  # it has Foreshard's trigger that generates a child's key
    undetermined: tuple[str, ...] = ()  # columns whose collation calls different texts equal

    @property
    def qualified(self) -> str:
        return f"{self.schema}.{self.name}"

    def column(self, name: str) -> Column | None:
        """The column of the name."""
        return next((column for column in self.columns if column.name == name), None)

    @property
    def primary_key(self) -> tuple[str, ...]:
        return next((index.columns for index in self.unique if index.is_primary), ())


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything read from one shard."""

    shard: str
    tables: dict[str, TableFacts]  # declared tables that exist, by qualified name
    foreign_keys: tuple[ForeignKey, ...]  # all that touch a declared table on either end
    views: dict[str, str]  # view, ruled table, partition -> the declared table it reads
    indexes: dict[str, str]  # index -> the declared table it is of
    functions: dict[str, str]  # function -> the declared table its body names
    stray: tuple[TableFacts, ...] = ()  # not declared, but with Foreshard's capture triggers or key default
    search_path: tuple[str, ...] = ("public",)
    hidden: dict[str, str] = {}  # declared table -> one that is not, which search_path finds first by the same name
    encoding: str = "UTF8"
    claim_sets: dict[str, str] = {}  # columns that were declared unique when `apply` ran last -> quoted table
