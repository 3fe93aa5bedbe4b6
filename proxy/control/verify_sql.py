"""The questions that a verification asks about the rows of one sharded table, as SQL text.

1. A chunk is a range of the key's index: no question holds a snapshot for longer than one chunk takes, and none
   returns more than a bounded number of keys.
2. The same judgement is made of a chunk and of keys that are looked at again, by the same text.
3. Keys travel as text: one column as it prints, several as a JSON array of what they print.
"""

from __future__ import annotations

from foreshard._core.buckets import BUCKET_COUNT, COUNTER_BITS, PLACED_FLAG
from foreshard._core.typed_keys import KeyType
from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.control.away import bucket_of_root
from foreshard.proxy.control.lineage import bucket_of_child, names_bucket
from foreshard.proxy.triggers.capture import quote_name, quote_table

CHUNK_ROWS = 50_000
SUSPECTS_MAX = 1000  # keys of one kind, table and shard that are looked at again; more are only counted
COUNTER_MASK = (1 << COUNTER_BITS) - 1


class RowQuestions:
    """The texts for one table. `catalog` tells its parent; made once per verification and table."""

    def __init__(self, catalog: Catalog, table: Table, *, wants_free: bool) -> None:
        self.table = table
        self.key = KeyText(table)
        self.parent = catalog.tables[table.parent] if table.parent else None
        self.has_counter = table.type_of(table.key) is KeyType.TYPE_INT8 and not table.by_cost
        self._wants_free = wants_free  # keys that do not carry their bucket, to be looked for on other shards
        self._own = quote_name(table.key)  # of no use where the key has several columns
        self._via = KeyText(table, table.via_columns)
        self._bucket = bucket_of_child(catalog, table, "chunk") if table.via_columns else "NULL"
        self._names_bucket = names_bucket(table, table.key, f"chunk.{self._own}") if table.key else "false"

    def first_chunk(self) -> str:
        """$1 owners, $2 shard index, $3 rows of a chunk."""
        return self._judge(f"ORDER BY {self.key.columns} LIMIT $3")

    def next_chunk(self) -> str:
        """The same from after the key $4 on."""
        return self._judge(f"WHERE {self.key.after(4)} ORDER BY {self.key.columns} LIMIT $3")

    def among(self) -> str:
        """The same of the keys in the array $3."""
        return self._judge(f"WHERE {self.key.among(3)}")

    def present(self) -> str:
        """Those keys of the array $1 that the shard has, with the row's version."""
        return (
            f"SELECT {self.key.text} AS key, xmin::text || ' ' || ctid::text AS version "
            f"FROM {quote_table(self.table)} WHERE {self.key.among(1)}"
        )

    def parents_present(self) -> str:
        """Those keys of the array $1 that the parent has on the shard."""
        assert self.parent is not None
        key = KeyText(self.parent, self._parent_columns())
        return f"SELECT DISTINCT {key.text} AS key FROM {quote_table(self.parent)} WHERE {key.among(1)}"

    def placed_ranges(self) -> str:
        """Buckets with placed keys, and the largest of each, by one look at the key's index per bucket."""
        name, table = self._own, quote_table(self.table)
        low = f"{PLACED_FLAG} + (bucket::bigint << {COUNTER_BITS})"
        return f"""
        SELECT bucket, found.key::text AS key, found.key & {COUNTER_MASK} AS counter
        FROM generate_series(0, {BUCKET_COUNT - 1}) AS bucket CROSS JOIN LATERAL (
          SELECT max({name}) AS key FROM {table} WHERE {name} >= {low} AND {name} <= {low} + {COUNTER_MASK}
        ) AS found WHERE found.key IS NOT NULL ORDER BY bucket
        """

    def _judge(self, source: str) -> str:
        """One row: what the rows of the source are, and the keys of those that are wrong, at most SUSPECTS_MAX each."""
        wrong = {
            "misplaced": self._misplaced(),
            "orphans": self._orphan(),
            "other_bucket": self._other_bucket(),
        }
        flags = "".join(f", coalesce({condition}, false) AS {name}" for name, condition in wrong.items())
        arrays = "".join(
            f", (SELECT count(*) FROM judged WHERE {name}) AS {name}_count"
            f", ARRAY(SELECT ARRAY[key, via] FROM judged WHERE {name} LIMIT {SUSPECTS_MAX}) AS {name}"
            for name in wrong
        )
        counter = f"{self._own} & {COUNTER_MASK}" if self.has_counter else "NULL::bigint"
        free = "ARRAY(SELECT key FROM judged WHERE NOT is_placed)" if self._wants_free else "'{}'::text[]"
        return f"""
        WITH place AS (SELECT $1::int[] AS owners, $2::int AS shard), chunk AS MATERIALIZED (
          SELECT {self._columns()}, {self._via.text_or_null} AS via_text FROM {quote_table(self.table)}
          {source}
        ), judged AS MATERIALIZED (
          SELECT {self.key.text} AS key, via_text AS via, {self._names_bucket} AS is_placed, {counter} AS counter{flags}
          FROM chunk
        )
        SELECT (SELECT count(*) FROM judged) AS rows,
               (SELECT {self.key.text} AS last_text FROM chunk ORDER BY {self.key.descending} LIMIT 1) AS last,
               (SELECT max(counter) FROM judged WHERE is_placed) AS counter,
               (SELECT count(*) FROM judged WHERE via IS NULL) AS without_parent,
               {free} AS free{arrays}
        """

    def _columns(self) -> str:
        names = dict.fromkeys((*self.table.row_key, *self.table.key_columns, *self.table.via_columns))
        return ", ".join(quote_name(name) for name in names)

    def _parent_columns(self) -> tuple[str, ...]:
        """The parent's columns that hold the key which the via columns hold."""
        assert self.parent is not None
        is_own = self.table.domain_of_via == self.parent.qualified
        return self.parent.key_columns if is_own else self.parent.via_columns

    def _misplaced(self) -> str:
        """By its key a row is elsewhere. A child with a free key is found through its parent."""
        is_root = self.table.kind is TableKind.ROOT
        bucket = bucket_of_root(self.table, "chunk") if is_root else f"foreshard.bucket_of(chunk.{self._own})"
        wrong = f"((SELECT owners FROM place))[1 + {bucket}] <> (SELECT shard FROM place)"
        if is_root:
            return wrong
        return f"{self._names_bucket} AND {wrong}" if self.table.key else "false"

    def _orphan(self) -> str:
        if self.parent is None:
            return "false"
        pairs = zip(self._parent_columns(), self.table.via_columns, strict=True)
        same = " AND ".join(f"parent.{quote_name(theirs)} = chunk.{quote_name(ours)}" for theirs, ours in pairs)
        return (
            f"chunk.via_text IS NOT NULL AND NOT EXISTS (SELECT FROM {quote_table(self.parent)} AS parent WHERE {same})"
        )

    def _other_bucket(self) -> str:
        """A child's placed key carries its parent's bucket, or a move of that would leave it behind."""
        if self.parent is None or not self.table.key:
            return "false"
        return f"{self._names_bucket} AND foreshard.bucket_of({self._own}) <> {self._bucket}"


class KeyText:
    """A table's key, or other columns of it, in SQL: as columns, as one text, and compared with such texts."""

    def __init__(self, table: Table, names: tuple[str, ...] | None = None) -> None:
        self.names = table.row_key if names is None else names
        self._types = tuple(_type_of(table, name) for name in self.names)
        self.columns = ", ".join(quote_name(name) for name in self.names)
        self.descending = ", ".join(f"{quote_name(name)} DESC" for name in self.names)

    @property
    def text(self) -> str:
        """The key as one text."""
        if len(self.names) == 1:
            return f"{self.columns}::text"
        return f"jsonb_build_array({', '.join(f'{quote_name(name)}::text' for name in self.names)})::text"

    @property
    def text_or_null(self) -> str:
        """The same; NULL when a column is, or there is none."""
        if len(self.names) < 2:
            return f"{self.columns or 'NULL'}::text"
        return (
            f"CASE WHEN {' AND '.join(f'{quote_name(name)} IS NOT NULL' for name in self.names)} THEN {self.text} END"
        )

    def after(self, parameter: int) -> str:
        """Whether the key is behind the one whose text is the parameter."""
        if len(self.names) == 1:
            return f"{self.columns} > ${parameter}::text::{self._types[0]}"
        return f"({self.columns}) > ({self._parts(f'${parameter}::text::jsonb')})"

    def among(self, parameter: int) -> str:
        """Whether the key is one of those whose texts are in the array parameter."""
        if len(self.names) == 1:
            return f"{self.columns} = ANY (${parameter}::text[]::{self._types[0]}[])"
        return f"({self.columns}) IN (SELECT {self._parts('one::jsonb')} FROM unnest(${parameter}::text[]) AS one)"

    def _parts(self, array: str) -> str:
        return ", ".join(f"({array} ->> {at})::{type_name}" for at, type_name in enumerate(self._types))


def _type_of(table: Table, name: str) -> str:
    column = table.column(name)
    return column.type_name if column is not None else table.key_type
