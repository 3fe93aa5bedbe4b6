"""What moves with a bucket: rows of users' tables, the claims kept at home in it, and the notes of rows away in it.

The order is that in which they may be asked for each other: where the row of a table placed by cost is, its note says;
where a child's is, its parent's row may. They leave in the opposite order. Claims ask nothing, and are asked nothing.
"""

from __future__ import annotations

import msgspec

from foreshard.proxy.catalog import Catalog, Table
from foreshard.proxy.move.rows import in_bucket, moving_tables
from foreshard.proxy.triggers.capture import quote_name, quote_text

# Types whose values are equal, and hashed alike, only if they print alike: bool, bytea, "char", int8, int2, int4, oid,
# date, timestamp, timestamptz, uuid; and, compared byte by byte, text and varchar. All others are hashed as they print.
EXACT_OIDS = frozenset({16, 17, 18, 20, 21, 23, 26, 1082, 1114, 1184, 2950})
STRING_OIDS = frozenset({25, 1043})
TEXT_OID, INT4_OID = 25, 23
# Types whose binary form is the same on every server: the above, float4, float8, json, jsonb, bpchar, time, timetz,
# interval, numeric.
PORTABLE_OIDS = EXACT_OIDS | STRING_OIDS | {114, 700, 701, 1042, 1083, 1186, 1266, 1700, 3802}
NOT_AS_MANY = "FS001"  # SQLSTATE of our own
BLOCK = "#variable_conflict use_column\nDECLARE foreshard_gone bigint; BEGIN steps END"


class Movable(msgspec.Struct, frozen=True):
    """The part of one table that moves, as SQL."""

    schema: str
    table: str
    columns: tuple[str, ...]  # by which both shards are compared: generated ones, too
    type_oids: tuple[int, ...]  # of the columns
    row_key: tuple[str, ...]
    condition: str  # on a row `held`

    @property
    def name(self) -> str:
        """As messages say it."""
        return f"{self.schema}.{self.table}"

    @property
    def quoted(self) -> str:
        return f"{quote_name(self.schema)}.{quote_name(self.table)}"

    @property
    def digest(self) -> str:
        """The sum of hashes of rows, in which two rows are alike only if they print alike."""
        exact, printed = [], []
        for column, oid in zip(self.columns, self.type_oids, strict=True):
            value = f"held.{quote_name(column)}"
            if oid in EXACT_OIDS:
                exact.append(value)
            elif oid in STRING_OIDS:
                exact.append(f'{value} COLLATE "C"')
            else:
                printed.append(value)
        if printed:
            exact.append(f'ROW({", ".join(printed)})::text COLLATE "C"')
        return f"coalesce(sum(hash_record_extended(ROW({', '.join(exact)}), 0)), 0)::text"


def movables(catalog: Catalog, bucket: int) -> list[Movable]:
    """All that moves with the bucket."""
    of_users = [of_table(table, in_bucket(catalog, table, "held", bucket)) for table in moving_tables(catalog)]
    notes = Movable(
        schema="foreshard",
        table="away",
        columns=("name", "key", "bucket"),
        type_oids=(TEXT_OID, TEXT_OID, INT4_OID),
        row_key=("name", "key"),
        condition=f"held.bucket = {bucket}",
    )
    claims = Movable(
        schema="foreshard",
        table="claim",
        columns=("home", "name", "key", "bucket"),
        type_oids=(INT4_OID, TEXT_OID, TEXT_OID, INT4_OID),
        row_key=("home", "name", "key"),
        condition=f"held.home = {bucket}",
    )
    return [notes, *of_users, claims]


def of_table(table: Table, condition: str) -> Movable:
    """The rows `held` of a user's table that meet the condition."""
    return Movable(
        schema=table.schema,
        table=table.name,
        columns=tuple(column.name for column in table.columns),
        type_oids=tuple(column.type_oid for column in table.columns),
        row_key=tuple(table.row_key),
        condition=condition,
    )


def give_up_sql(tables: list[Movable], rows: dict[str, int], bucket: int) -> str:
    """One statement for the source: that many rows of each table leave, and the bucket. NOT_AS_MANY where it is not so.

    In the opposite order: those that others are asked for go last.
    """
    steps = []
    for table in reversed(tables):
        if rows[table.name]:
            steps.append(f"DELETE FROM {table.quoted} AS held WHERE {table.condition};")
            steps.append(_expect(rows[table.name], f"{table.name}: {rows[table.name]} rows were counted"))
    steps.append(
        f"UPDATE foreshard.owned_buckets SET buckets = set_bit(buckets, {bucket}, 0), moves = moves + 1 "
        f"WHERE get_bit(buckets, {bucket}) = 1;"
    )
    steps.append(_expect(1, f"bucket {bucket} was of this shard"))
    body = " ".join(steps)
    return f"DO {quote_text(BLOCK.replace('steps', body, 1))}"


def _expect(rows: int, said: str) -> str:
    """So many were changed by the statement before."""
    return (
        f"GET DIAGNOSTICS foreshard_gone = ROW_COUNT; IF foreshard_gone <> {rows} THEN RAISE EXCEPTION USING "
        f"ERRCODE = '{NOT_AS_MANY}', MESSAGE = {quote_text(said + ', ')} || foreshard_gone || ' would go'; END IF;"
    )
