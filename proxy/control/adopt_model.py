"""An existing database as `adopt` sees it, and what it proposes for each table; values only."""

from __future__ import annotations

import enum

import msgspec

from foreshard.proxy.config.model import Columns
from foreshard.proxy.control.facts import Facts, TableFacts


class Measures(msgspec.Struct, frozen=True, kw_only=True):
    """What introspection for routing does not ask of a table: sizes, writes, and what else hangs on it."""

    bytes: int = 0  # with indexes, TOAST and partitions
    rows: int = 0  # PostgreSQL's estimate
    inserts: int = 0  # since the statistics were reset
    updates: int = 0
    deletes: int = 0
    is_partitioned: bool = False
    is_unlogged: bool = False
    has_row_security: bool = False
    triggers: tuple[str, ...] = ()  # the users' own
    exclusions: tuple[str, ...] = ()  # exclusion constraints
    deferrable: tuple[str, ...] = ()  # deferrable constraints
    generated: tuple[str, ...] = ()  # generated columns
    null_shares: dict[str, float] = {}  # by column, of those in foreign keys; PostgreSQL's estimate
    has_reserved_keys: bool = False  # keys that Foreshard keeps for those it generates

    @property
    def writes(self) -> int:
        return self.inserts + self.updates + self.deletes

    @property
    def changes(self) -> int:
        """Writes but for those that made the rows which are there: what is left tells a table that is only filled."""
        return self.updates + self.deletes + max(self.inserts - self.rows, 0)


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """A live database: all its tables as facts, and measured."""

    name: str
    place: str
    version: str
    facts: Facts  # of every table, not only of declared ones
    measures: dict[str, Measures]
    statistics_since: str = ""
    foreign_tables: tuple[str, ...] = ()
    materialized_views: tuple[str, ...] = ()
    publications: tuple[str, ...] = ()
    subscriptions: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()
    event_triggers: tuple[str, ...] = ()
    has_large_objects: bool = False

    @property
    def tables(self) -> dict[str, TableFacts]:
        return self.facts.tables

    @property
    def bytes(self) -> int:
        return sum(measures.bytes for measures in self.measures.values())

    @property
    def writes(self) -> int:
        return sum(measures.writes for measures in self.measures.values())


class Kind(enum.Enum):
    """What a table is proposed to be."""

    ROOT = "root"
    CHILD = "child"
    REFERENCE = "reference"
    PLAIN = "plain"


class Choice(msgspec.Struct, kw_only=True):
    """What is proposed for one table, and why."""

    name: str
    kind: Kind = Kind.PLAIN
    key: Columns = None
    parent: str | None = None
    via: Columns = None
    why: str = ""
    obstacles: list[str] = []  # why it cannot be sharded as it is, and what would have to change
    later: list[str] = []  # what one shard keeps, and several would not


class Proposal(msgspec.Struct, kw_only=True):
    """Everything that is proposed: roots with their children below them, then reference tables, then plain ones."""

    choices: dict[str, Choice]
    remarks: list[str] = []  # about the database as a whole

    def of_kind(self, kind: Kind) -> list[Choice]:
        return [choice for choice in self.choices.values() if choice.kind is kind]

    def children_of(self, name: str) -> list[Choice]:
        return [choice for choice in self.choices.values() if choice.parent == name]

    def group_of(self, name: str) -> list[Choice]:
        """The table and all that live with it, parents first."""
        found = [self.choices[name]]
        for child in self.children_of(name):
            found += self.group_of(child.name)
        return found


def short(name: str) -> str:
    """As the configuration may have it: without the schema `public`."""
    return name.removeprefix("public.")
