"""What follows setval of a declared table's sequence: no shard's counter is left behind the keys that it holds.

Each shard has a sequence of its own. A dump knows one value, that of the first shard, where others may have been
further; after its data have been restored, the keys that are there say where each shard has to go on.
"""

from __future__ import annotations

from foreshard._core.buckets import COUNTER_BITS, PLACED_FLAG
from foreshard.proxy.catalog import Catalog
from foreshard.proxy.control.inside import Inside, together
from foreshard.proxy.triggers.capture import quote_name, quote_table, quote_text

SEQUENCE = "SELECT pg_catalog.pg_get_serial_sequence({table}, {column}) AS name"
# The counter is in the lowest bits of a placed key.
RAISE = f"""
SELECT pg_catalog.setval({{sequence}}, highest) FROM {{name}}, (
  SELECT max({{key}} & {(1 << COUNTER_BITS) - 1}) AS highest FROM {{table}}
  WHERE {{key}} >= {PLACED_FLAG} AND {{key}} < {2 * PLACED_FLAG}) AS held
WHERE highest > last_value OR (highest = last_value AND NOT is_called)
"""


async def raise_counters(catalog: Catalog, name: str, shard_count: int) -> None:
    """A script in the client's transaction (`inside`): on each shard, at least as far as its keys."""
    table = catalog.tables[name]
    if not table.key or not table.is_placeable:
        return
    shards = [Inside(index) for index in range(shard_count)]
    rows, key = quote_table(table), quote_name(table.key)
    asked = SEQUENCE.format(table=quote_text(rows), column=quote_text(table.key))
    sequences = await together(*(shard.fetchval(asked) for shard in shards))
    scripts = [
        shard.execute(RAISE.format(sequence=quote_text(sequence), name=sequence, key=key, table=rows))
        for shard, sequence in zip(shards, sequences, strict=True)
        if sequence
    ]
    await together(*scripts)
