"""What moves with a bucket: rows of users' tables, the claims kept at home in it, and the notes of rows away in it.

The order is that in which they may be asked for each other: where the row of a table placed by cost is, its note says;
where a child's is, its parent's row may. They leave in the opposite order. Claims ask nothing, and are asked nothing.
"""

from __future__ import annotations

import msgspec

from foreshard.proxy.catalog import Catalog
from foreshard.proxy.move.rows import in_bucket, moving_tables
from foreshard.proxy.triggers.capture import quote_name, quote_text


class Movable(msgspec.Struct, frozen=True):
    """The part of one table that moves, as SQL."""

    schema: str
    table: str
    columns: tuple[str, ...]  # by which both shards are compared: generated ones, too
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
    def count_sql(self) -> str:
        """How many rows there are."""
        return (
            f"SELECT {quote_text(self.name)} AS name, count(*) AS rows, '' AS digest "
            f"FROM {self.quoted} AS held WHERE {self.condition}"
        )

    @property
    def digest_sql(self) -> str:
        """How many rows there are, and the sum of hashes of all that they print."""
        listed = ", ".join(f"held.{quote_name(name)}" for name in self.columns)
        return (
            f"SELECT {quote_text(self.name)} AS name, count(*) AS rows, "
            f"coalesce(sum(hashtextextended(ROW({listed})::text, 0)::numeric), 0)::text AS digest "
            f"FROM {self.quoted} AS held WHERE {self.condition}"
        )


def movables(catalog: Catalog, bucket: int) -> list[Movable]:
    """All that moves with the bucket."""
    of_users = [
        Movable(
            schema=table.schema,
            table=table.name,
            columns=tuple(column.name for column in table.columns),
            row_key=tuple(table.row_key),
            condition=in_bucket(catalog, table, "held", bucket),
        )
        for table in moving_tables(catalog)
    ]
    notes = Movable("foreshard", "away", ("name", "key", "bucket"), ("name", "key"), f"held.bucket = {bucket}")
    claims = Movable(
        "foreshard", "claim", ("home", "name", "key", "bucket"), ("home", "name", "key"), f"held.home = {bucket}"
    )
    return [notes, *of_users, claims]
