"""What follows DDL on the shards, in the transaction that made it: the code of `apply`, asked through that transaction.

The new catalog is derived from the shards as the transaction sees them. It must be one that `plan` accepts, and the
tables' keys must say where rows live as they did before; otherwise the statement fails, and with it the transaction.
Then what the shards lack by now is made: a declared table that was just created is sharded at once.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from foreshard.proxy.catalog import Catalog, Table
from foreshard.proxy.config import Config, qualified
from foreshard.proxy.control.derive import compare_shards, derive_catalog
from foreshard.proxy.control.facts import Facts
from foreshard.proxy.control.inside import Inside, ask, together
from foreshard.proxy.control.introspect import introspect
from foreshard.proxy.control.names import NAMES, local_names
from foreshard.proxy.control.schema_shard import shard_steps
from foreshard.proxy.control.spread_facts import without
from foreshard.proxy.control.steps import find_lacking, run_steps
from foreshard.proxy.errors import ConfigError, SqlError
from foreshard.proxy.triggers.capture import quote_table, quote_text
from foreshard.proxy.triggers.points import control_point

CHANNEL = "foreshard_schema"  # routers listen to it on the first shard
HELD_ROWS = "SELECT EXISTS (SELECT FROM {}) AS has_rows"
# What was made for one table: its functions' names end with a digest of its name.
FORGET = """\
DELETE FROM foreshard.applied WHERE object LIKE {pattern};
DO $forget$
DECLARE
  made regprocedure;
BEGIN
  FOR made IN SELECT oid FROM pg_proc WHERE pronamespace = 'foreshard'::regnamespace AND proname LIKE {digest} LOOP
    EXECUTE 'DROP FUNCTION ' || made;
  END LOOP;
  PERFORM foreshard.claims_forget({relation});
END
$forget$
"""


async def complete_schema(config: Config, old: Catalog, cluster: tuple[str, int]) -> Catalog:
    """The catalog after the statement at hand. SqlError when it would break the sharding."""
    shards = [Inside(index) for index in range(len(config.shards))]
    config = _declared(config, old)
    control_point("schema-ran")
    new, all_facts = await read_schema(config, old, shards)
    check_kept(config, old, new)
    control_point("schema-read")
    new = await _without_rows(old, new, shards)
    await _forget(old, new, shards)
    if await _make_lacking(config, new, all_facts, cluster, shards):
        new = await _without_rows(old, (await read_schema(config, old, shards))[0], shards)
        check_kept(config, old, new)
    await shards[0].execute(f"NOTIFY {CHANNEL}")
    control_point("schema-made")
    return new


async def run_alone(config: Config, old: Catalog, text: bytes) -> Catalog:
    """Run a statement on one shard after the other, outside of transactions; the catalog after it.

    The SqlError of a shard that fails says which shards have done it, and how to go on.
    """
    config = _declared(config, old)
    names = [shard.name for shard in config.shards]
    for index in range(len(names)):
        try:
            await ask([(index, text, False)])
            control_point("schema-alone")
        except SqlError as error:
            told = [f"done on {', '.join(names[:index])}"] if index else []
            told += [f"failed on {names[index]}"]
            told += [f"not begun on {', '.join(names[index + 1 :])}"] if index + 1 < len(names) else []
            detail = f"{error.detail} " if error.detail else ""
            raise SqlError(
                error.sqlstate,
                error.message,
                f"{detail}Shard by shard: {'; '.join(told)}.",
                "DROP INDEX IF EXISTS removes it everywhere, an invalid one too; or go on with IF NOT EXISTS "
                "once the cause is gone and the invalid index is dropped.",
            ) from None
    new, _ = await read_schema(config, old, [Inside(index) for index in range(len(names))])
    return new


def _declared(config: Config, old: Catalog) -> Config:
    """The configuration as this router reads it: tables that `apply` has not spread yet are plain ones."""
    known = old.tables.keys() | old.pending.keys()
    return without(config, {qualified(table.name) for table in config.tables} - known)


async def read_schema(config: Config, old: Catalog, shards: list[Inside]) -> tuple[Catalog, list[Facts]]:
    """The catalog as the transaction sees the shards, and what it was derived from."""
    names = config.shards
    # Inside has those methods of an asyncpg connection that introspection and steps use, and no others.
    all_facts: list[Facts] = await together(
        *(introspect(shard, config, names[shard.shard].name) for shard in shards)  # type: ignore[arg-type]
    )
    all_names = await together(*(shard.fetchval(NAMES) for shard in shards))
    try:
        compare_shards(config, all_facts)
    except ConfigError as error:
        raise refused(error.problems[0]) from None
    first = msgspec.structs.replace(all_facts[0], search_path=old.search_path)
    catalog = derive_catalog(config, first, old.version)
    return msgspec.structs.replace(catalog, local=local_names(all_names)), all_facts


def check_kept(config: Config, old: Catalog, new: Catalog) -> None:
    """SqlError when a table cannot be what it is declared to be any more, or keeps its rows elsewhere."""
    for name, reason in new.pending.items():
        if reason and (name in old.tables or old.pending.get(name) == ""):
            raise refused(f"{name}: {reason}", f"The configuration declares it: {config.path.name}, tables.{name}.")
    for name, table in new.tables.items():
        before = old.tables.get(name)
        if before is not None and _places(before) != _places(table):
            raise refused(
                f"{name}: its rows would be looked for elsewhere", "Keep the key, its type and its default as they are."
            )


def _places(table: Table) -> tuple[Any, ...]:
    """What says where a table's rows are."""
    types = [table.type_of(column) for column in (table.key, table.via or "")]
    return (table.kind, table.key, table.parent, table.via, types, table.key != "" and table.generates_key)


def refused(problem: str, hint: str = "") -> SqlError:
    """The refusal of a statement that has already run: its transaction is rolled back."""
    return SqlError("0A000", f"the table could not be sharded as declared: {problem}", "", hint)


async def _without_rows(old: Catalog, new: Catalog, shards: list[Inside]) -> Catalog:
    """The catalog less the tables that are taken in now but have rows already: `apply` looks where those belong."""
    held = dict(new.pending)
    for name in new.tables.keys() - old.tables.keys():
        sql = HELD_ROWS.format(quote_table(new.tables[name]))
        if any(await together(*(shard.fetchval(sql) for shard in shards))):
            held[name] = "it has rows: run `foreshard apply`"
    left = {name: table for name, table in new.tables.items() if name not in held}
    return msgspec.structs.replace(new, tables=left, pending=held)


async def _forget(old: Catalog, new: Catalog, shards: list[Inside]) -> None:
    """What was made for a table that has been dropped has to be made again, should it come back."""
    for name in old.tables.keys() - new.tables.keys() - {name for name, reason in new.pending.items() if reason}:
        digest = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()[:8]
        relation = quote_text(quote_table(old.tables[name]))
        sql = FORGET.format(pattern=quote_text(f"% o_ {name}"), digest=quote_text(f"%_{digest}"), relation=relation)
        await together(*(shard.execute(sql) for shard in shards))


async def _make_lacking(
    config: Config, new: Catalog, all_facts: list[Facts], cluster: tuple[str, int], shards: list[Inside]
) -> bool:
    """Make what each shard lacks; whether anything was made."""
    made = False
    for shard, facts in zip(shards, all_facts, strict=True):
        steps = shard_steps(config, new, facts, shard.shard, cluster)
        # As above: Inside stands for a connection.
        lacking = await find_lacking(shard, steps)  # type: ignore[arg-type]
        if lacking:
            await run_steps(shard, lacking)  # type: ignore[arg-type]
            made = True
    return made
