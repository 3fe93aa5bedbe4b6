"""The target's sequences go on behind the source's: keys that they make have never been a row's that has come.

Counters are brought near before the flip by setval, which nobody notices; what the source has counted beyond by then
is made good in the flip, where ALTER SEQUENCE blocks nextval, and is undone with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from foreshard.proxy.catalog import Catalog
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.move.rows import moving_tables
from foreshard.proxy.triggers.capture import quote_table, quote_text

MARGIN = 1000  # how far ahead of the source's: what it may count until the flip; chosen, not measured
# Of the columns of these tables, by ownership or default; and those that keys are known to come from.
OF_TABLES = """
SELECT DISTINCT quote_ident(n.nspname) || '.' || quote_ident(s.relname) AS name
FROM pg_class s JOIN pg_namespace n ON n.oid = s.relnamespace
WHERE s.relkind = 'S' AND (
  EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = s.oid
          AND d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY ($1::text[]::regclass[]))
  OR EXISTS (SELECT FROM pg_depend d JOIN pg_attrdef a ON a.oid = d.objid
             WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass
             AND d.refobjid = s.oid AND a.adrelid = ANY ($1::text[]::regclass[]))
  OR n.nspname || '.' || s.relname = ANY ($2::text[]))
ORDER BY 1
"""


async def sequence_names(catalog: Catalog, source: Connection, target: Connection) -> list[str]:
    """The sequences behind the tables that move, as SQL, that both shards have."""
    tables = [quote_table(table) for table in moving_tables(catalog)]
    known = [name for name in catalog.all_sequences if name]
    asked, there = await asyncio.gather(*(end.fetch(OF_TABLES, tables, known) for end in (source, target)))
    names = {row["name"] for row in there}
    return [row["name"] for row in asked if row["name"] in names]


async def raise_early(here: Mapping[str, int], there: Mapping[str, int], target: Connection) -> None:
    """Bring the target's counters beyond the source's; whatever becomes of the transaction, they stay there."""
    behind = _behind(here, there)
    if behind:
        raised = [
            f"(SELECT setval({quote_text(name)}, {last + MARGIN}) FROM {name} WHERE last_value <= {last})"
            for name, last in behind
        ]
        await target.execute(f"SELECT {', '.join(raised)}")


async def raise_behind(here: Mapping[str, int], there: Mapping[str, int], target: Connection) -> None:
    """The same inside the flip, for those that the source has overtaken meanwhile."""
    for name, last in _behind(here, there):
        await target.execute(f"ALTER SEQUENCE {name} RESTART WITH {last + 1}")


def _behind(here: Mapping[str, int], there: Mapping[str, int]) -> list[tuple[str, int]]:
    """Sequences of the target that are behind the source's, and how far those are."""
    return [(name, last) for name, last in here.items() if there[name] < last]
