"""The catalog as values: what the planner may know without asking a shard.

Built from configuration and from what introspection read on a shard (proxy/control/introspect.py); a change makes a
new Catalog with a higher version, never an altered one.
"""

from __future__ import annotations

import enum
import functools
from typing import TypeVar

import msgspec

from foreshard._core.typed_keys import KeyType

Found = TypeVar("Found")
KEY_TYPES = {
    20: KeyType.TYPE_INT8,
    23: KeyType.TYPE_INT4,
    21: KeyType.TYPE_INT2,
    25: KeyType.TYPE_TEXT,
    1043: KeyType.TYPE_TEXT,
    2950: KeyType.TYPE_UUID,
    17: KeyType.TYPE_BYTEA,
    1082: KeyType.TYPE_DATE,
    1114: KeyType.TYPE_TIMESTAMP,
    1184: KeyType.TYPE_TIMESTAMPTZ,
}  # by OID: the types of columns that may be keys
KEY_TYPES_BY_NAME = {
    "bigint": KeyType.TYPE_INT8,
    "integer": KeyType.TYPE_INT4,
    "smallint": KeyType.TYPE_INT2,
    "text": KeyType.TYPE_TEXT,
    "character varying": KeyType.TYPE_TEXT,
    "uuid": KeyType.TYPE_UUID,
    "bytea": KeyType.TYPE_BYTEA,
    "date": KeyType.TYPE_DATE,
    "timestamp without time zone": KeyType.TYPE_TIMESTAMP,
    "timestamp with time zone": KeyType.TYPE_TIMESTAMPTZ,
}
KEY_TYPES_BY_CATALOG_NAME = {
    "int8": KeyType.TYPE_INT8,
    "int4": KeyType.TYPE_INT4,
    "int2": KeyType.TYPE_INT2,
    "text": KeyType.TYPE_TEXT,
    "varchar": KeyType.TYPE_TEXT,
    "uuid": KeyType.TYPE_UUID,
    "bytea": KeyType.TYPE_BYTEA,
    "date": KeyType.TYPE_DATE,
    "timestamp": KeyType.TYPE_TIMESTAMP,
    "timestamptz": KeyType.TYPE_TIMESTAMPTZ,
}  # as pg_type, and so the parser, names them
PLACEABLE_TYPES = (KeyType.TYPE_INT8, KeyType.TYPE_UUID)  # whose generated keys carry their bucket
VARCHAR_OID = 1043
MODIFIER_HEADER = 4  # a varchar's type modifier is its length and this


def key_family(key_type: KeyType) -> KeyType:
    """The type that stands for all whose values compare and hash alike: integers of every size are one."""
    return KeyType.TYPE_INT8 if key_type <= KeyType.TYPE_INT2 else key_type


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
    default_text: str = ""  # as pg_get_expr() prints it; "" when there is none, or it is not known
    collation: str = ""  # of strings: "bytewise" (sorted as bytes), "exact" (equal only if the bytes are), "" unknown
    has_default_collation: bool = False  # that of the database
    is_generated: bool = False  # GENERATED ALWAYS AS (...) STORED, or identity ALWAYS
    modifier: int = -1  # pg_attribute.atttypmod: what stands in parentheses behind the type

    @property
    def length_max(self) -> int:
        """n of varchar(n); 0 for columns that take any length."""
        return self.modifier - MODIFIER_HEADER if self.type_oid == VARCHAR_OID and self.modifier >= 0 else 0


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
    key: str  # the column of the key; "" for reference tables, and where it has several (composite_key)
    key_type: str  # as format_type() prints it; "" where `key` is
    parent: str | None = None  # "schema.name" of the parent
    via: str | None = None  # the child's column that holds the key of `domain_of_via`; None where it has several
    composite_key: tuple[str, ...] = ()  # in the order that they are hashed in
    composite_via: tuple[str, ...] = ()
    # The table whose key is in the via columns: the parent, or one above it, whose key the parent holds as well.
    via_domain: str | None = None
    primary_key: tuple[str, ...] = ()  # where it has several columns
    columns: tuple[Column, ...] = ()
    functions: tuple[Function, ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()  # columns whose values are claimed: unique over all shards
    has_triggers: bool = False  # of users, or rules: what a write does to rows is not only what its text says
    by_cost: bool = False  # a root whose keys clients give and whose rows may live away from home: keys are claimed

    @property
    def qualified(self) -> str:
        """schema.name, the table's name everywhere in Foreshard."""
        return f"{self.schema}.{self.name}"

    @property
    def claim(self) -> str:
        """The name of the claims of its keys, where it is placed by cost."""
        return f"{self.qualified}.{self.key}"

    @property
    def is_sharded(self) -> bool:
        """Whether its rows are spread: roots and children."""
        return self.kind is not TableKind.REFERENCE

    @property
    def routing_column(self) -> str:
        """The column whose value says where a row lives: a root's key, a child's reference to its parent.

        "" where it takes several: see `routing_columns`.
        """
        return self.via or "" if self.kind is TableKind.CHILD else self.key

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns of the key."""
        return self.composite_key or ((self.key,) if self.key else ())

    @property
    def via_columns(self) -> tuple[str, ...]:
        """The columns that hold the key of `domain_of_via`."""
        return self.composite_via or ((self.via,) if self.via else ())

    @property
    def routing_columns(self) -> tuple[str, ...]:
        """The columns whose values say where a row lives, in the order that they are hashed in."""
        return self.via_columns if self.kind is TableKind.CHILD else self.key_columns

    @property
    def domain_of_via(self) -> str | None:
        """The table whose key is in the via columns."""
        return self.via_domain or self.parent

    def column(self, name: str) -> Column | None:
        """A column by name; None when there is none, or columns are not known."""
        return next((column for column in self.columns if column.name == name), None)

    def has_column(self, name: str) -> bool:
        """Whether the table is known to have this column."""
        return name in (*self.key_columns, *self.via_columns) or self.column(name) is not None

    def type_of(self, name: str) -> KeyType | None:
        """The type of a column as keys have it; None for types that no key has, and for unknown columns."""
        column = self.column(name)
        if column is not None:
            return KEY_TYPES.get(column.type_oid)
        return KEY_TYPES_BY_NAME.get(self.key_type) if name and name in (self.key, self.via) else None

    @property
    def row_key(self) -> tuple[str, ...]:
        """The columns that tell one row from all others of the table: its primary key."""
        return self.primary_key or self.key_columns

    @property
    def is_placeable(self) -> bool:
        """Whether keys of this type can name their bucket."""
        return self.type_of(self.key) in PLACEABLE_TYPES

    @property
    def takes_keys(self) -> bool:
        """Whether clients may give a key: a child's is then claimed."""
        is_held = bool(self.composite_key) or self.key in self.via_columns  # the key holds where the row lives
        return self.kind is not TableKind.CHILD or is_held or (self.key,) in self.unique

    @property
    def generates_key(self) -> bool:
        """Whether the shards make this table's keys, which then name their bucket."""
        column = self.column(self.key)
        return self.type_of(self.key) in PLACEABLE_TYPES and (column is None or column.has_default)

    def domain(self, name: str) -> str | None:
        """The table whose keys this column holds: equal values of one domain live in one bucket. None for others."""
        if not name or not self.is_sharded:
            return None
        if name == self.key:
            return self.qualified
        return self.domain_of_via if name == self.via else None

    @property
    def domains(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        """Columns whose values say together where a row lives, and the table whose key they are."""
        if not self.is_sharded:
            return ()
        found = [(self.via_columns, self.domain_of_via or ""), (self.key_columns, self.qualified)]
        return tuple((columns, domain) for columns, domain in found if columns)


class QueryNode(msgspec.Struct, frozen=True, kw_only=True):
    """What the query node has: a statement that needs nothing else may be answered there."""

    relations: frozenset[str] = frozenset()  # qualified names of tables and views
    functions: frozenset[str] = frozenset()  # qualified names of users' functions that only read
    is_only_shard: bool = False  # there is one shard, which has everything and is asked itself
    is_behind: bool = False  # the schema has changed, and the node is about to follow


class Catalog(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """All declared tables by qualified name. A name that is not here is a plain table of the default shard."""

    version: int = 1
    tables: dict[str, Table] = {}
    # Views, rules and functions of the shards that read declared tables: qualified name -> table read.
    views: dict[str, str] = {}
    functions: dict[str, str] = {}
    # Sequences that feed keys of declared tables: qualified name -> table; names as serial columns get them are known.
    sequences: dict[str, str] = {}
    search_path: tuple[str, ...] = ("public",)
    # Declared tables that cannot be used: qualified name -> why; "" where there is no such table yet.
    pending: dict[str, str] = {}
    # Types, functions, schemas and sequences that only the first shard has, by bare name.
    local: frozenset[str] = frozenset()
    query_node: QueryNode | None = None  # None: there is none to be asked

    def find(self, name: str, schema: str | None = None) -> Table | None:
        """The declared table an SQL name means; None for plain tables."""
        return self._search(self.tables, name, schema)

    def find_view(self, name: str, schema: str | None = None) -> str | None:
        """The declared table that a view, rule or partition parent of this name reads; None when it reads none."""
        return self._search(self.views, name, schema)

    def find_pending(self, name: str, schema: str | None = None) -> str | None:
        """Why the declared table of this name cannot be used, "" when it does not exist; None for other names."""
        return self._search(self.pending, name, schema)

    def find_function(self, name: str, schema: str | None = None) -> str | None:
        """The declared table that a function of this name works on; None when it works on none."""
        return self._search(self.functions, name, schema)

    def find_sequence(self, name: str, schema: str | None = None) -> str | None:
        """The declared table whose keys come from a sequence of this name; None when there is none."""
        return self._search(self.all_sequences, name, schema)

    def _search(self, names: dict[str, Found], name: str, schema: str | None) -> Found | None:
        for candidate in (schema,) if schema else self.search_path:
            found = names.get(f"{candidate}.{name}")
            if found is not None:
                return found
        return None

    def root_of(self, table: Table) -> Table:
        """The root of a table's group."""
        while table.parent is not None and table.parent in self.tables:
            table = self.tables[table.parent]
        return table

    def claim_of(self, table: Table, column: str) -> str | None:
        """The name of the claims that say where rows with this column's values live; None where the values say it."""
        owner = self.tables.get(table.domain(column) or "")
        return owner.claim if owner is not None and owner.by_cost else None

    @functools.cached_property
    def claiming_groups(self) -> frozenset[str]:
        """Roots of the groups with a table whose values are claimed."""
        return frozenset(self.root_of(table).qualified for table in self.tables.values() if table.unique)

    def owes_claims(self, table: Table) -> bool:
        """Whether a write of this table, its cascades included, may owe claims to other shards."""
        return self.root_of(table).qualified in self.claiming_groups

    def claims_below(self, table: Table) -> bool:
        """Whether a child of the table, or of its children, has values that are claimed."""
        children = [other for other in self.tables.values() if other.parent == table.qualified]
        return any(child.unique or self.claims_below(child) for child in children)

    @functools.cached_property
    def is_declared(self) -> bool:
        """Whether any table is declared, be it there or not."""
        return bool(self.tables or self.pending)

    @functools.cached_property
    def all_sequences(self) -> dict[str, str]:
        """`sequences`, and the names that PostgreSQL gives the sequences of serial and identity key columns."""
        usual = {
            f"{table.schema}.{table.name}_{table.key}_seq": table.qualified
            for table in self.tables.values()
            if table.key
        }
        return {**usual, **self.sequences}

    @functools.cached_property
    def words(self) -> frozenset[str]:
        """The bare names that a text cannot do without if it touches a declared table in any way known here."""
        everything = (*self.tables, *self.views, *self.functions, *self.all_sequences, *self.pending)
        return frozenset(name.rpartition(".")[2] for name in everything)

    @functools.cached_property
    def schemas(self) -> frozenset[str]:
        """Schemas that hold declared tables."""
        return frozenset(name.partition(".")[0] for name in (*self.tables, *self.pending))
