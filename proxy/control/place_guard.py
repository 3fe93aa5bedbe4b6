"""A guard for tables with triggers of users: none of them may give a row a key that belongs to another shard.

A row is routed by the key in its statement. A BEFORE trigger that changes the key makes another row of it, which no
lookup by key would find, and whose key a row of the right shard could have as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from foreshard.proxy.catalog import Table, TableKind
from foreshard.proxy.control.key_sql import bucket_of_row, function_step
from foreshard.proxy.control.steps import Step
from foreshard.proxy.triggers.capture import quote_name, quote_table, quote_text

TRIGGER = "foreshard_place"
REFUSE_PLACE = """\
CREATE OR REPLACE FUNCTION foreshard.refuse_place() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
  RAISE EXCEPTION 'the key of the new row of "%" belongs to another shard', TG_TABLE_NAME
    USING ERRCODE = 'feature_not_supported', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME,
          DETAIL = 'A row lives where the key that its statement gives says; a trigger has changed it.',
          HINT = 'Give the key as the trigger would make it.';
END
$body$;
"""


def refuse_place_step() -> Step:
    """What the guards of all tables run."""
    return function_step("foreshard.refuse_place()", REFUSE_PLACE)


def place_guard_steps(table: Table) -> Iterator[Step]:
    """The guard of one table, where its rows' own keys say on which shard they are, and a trigger may change them."""
    if table.kind is not TableKind.ROOT or table.by_cost or not table.has_triggers:
        return
    is_elsewhere = f"NOT foreshard.owns({bucket_of_row(table, 'NEW')})"
    changed = " OR ".join(
        f"OLD.{quote_name(column)} IS DISTINCT FROM NEW.{quote_name(column)}" for column in table.routing_columns
    )
    rows, run = quote_table(table), "EXECUTE FUNCTION foreshard.refuse_place()"
    yield Step(
        f"guard of the keys of {table.qualified}",
        f"CREATE OR REPLACE TRIGGER {TRIGGER}_insert AFTER INSERT ON {rows} FOR EACH ROW\n"
        f"WHEN ({is_elsewhere}) {run};\n"
        f"CREATE OR REPLACE TRIGGER {TRIGGER}_update AFTER UPDATE ON {rows} FOR EACH ROW\n"
        f"WHEN (({changed}) AND {is_elsewhere}) {run};\n",
        f"(SELECT count(*) = 2 FROM pg_trigger WHERE tgrelid = to_regclass({quote_text(rows)})"
        f" AND tgname IN ('{TRIGGER}_insert', '{TRIGGER}_update'))",
    )
