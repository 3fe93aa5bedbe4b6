"""Where COPY of declared tables goes.

COPY FROM STDIN of rows that bring their keys, or their parents', is split by shard; into a root whose keys the shards
generate it is one placement unit, like an INSERT of several rows; into a reference table it goes to every shard. COPY
TO STDOUT of a sharded table is the shards' data one after the other, and COPY of a query goes where the query does.
"""

from __future__ import annotations

from foreshard._core.template import Completion, KeyFlag, Operation, RouteKind, Template
from foreshard._core.typed_keys import KeyType
from foreshard.proxy.catalog import Catalog, Column, Table, TableKind
from foreshard.proxy.catalog.model import PLACEABLE_TYPES
from foreshard.proxy.errors import not_built
from foreshard.proxy.routing.collect import Collector
from foreshard.proxy.routing.copy_options import CopyOptions
from foreshard.proxy.routing.inserts import null_key
from foreshard.proxy.routing.locate import KeyUse, chain, key_uses
from foreshard.proxy.routing.query import SAFE, Findings, is_queryable, shadow_of
from foreshard.proxy.routing.reads import plan_select
from foreshard.proxy.routing.rows import fired_profiles
from foreshard.proxy.routing.text import Key
from foreshard.proxy.routing.tree import Node, strings

ACCESS_SHARE = 1  # AccessShareLock
# Columns whose values, or parts of them, may be words that mean the time of their reading.


def plan_copy(collector: Collector, node: Node) -> Template | None:
    """The route of COPY of a declared table; None for other tables. SqlError when it must be refused."""
    relation = node["relation"]
    table = collector.catalog.find(relation["relname"], relation.get("schemaname"))
    if table is None:
        return None
    if "filename" in node or node.get("is_program"):
        raise not_built(f'COPY of "{table.name}" with files of a server', "Use STDIN and STDOUT.")
    options = CopyOptions(node)
    if not node.get("is_from"):
        return plan_copy_out(table, options)
    node_of_query = collector.catalog.query_node
    if node_of_query is not None and node_of_query.is_only_shard:
        return placed(table, "there is only one shard")
    columns = copied_columns(table, node)
    check_where(node, table)
    if table.kind is TableKind.REFERENCE:
        return plan_reference_in(table, columns, options, node)
    options.check(table.name)
    if table.kind is TableKind.ROOT and table.generates_key and table.key not in columns:
        if collector.catalog.owes_claims(table):
            return plan_claimed(table, options)
        return placed(table, "the shard generates the keys")
    return plan_keyed(collector.catalog, table, columns, options)


def plan_dump_lock(collector: Collector, node: Node) -> Template | None:
    """LOCK ... IN ACCESS SHARE MODE of a dump: the default shard's lock will do, for DDL goes through that, too."""
    if node.get("mode") != ACCESS_SHARE:
        return None
    return Template(RouteKind.ROUTE_DEFAULT, is_exact=True, reason="DDL goes through the default shard")


def placed(table: Table, reason: str) -> Template:
    """All rows go to one shard."""
    return Template(
        RouteKind.ROUTE_PLACE,
        operation=Operation.OPERATION_INSERT,
        is_write=True,
        table=table.qualified,
        profiles=fired_profiles(table, "insert"),
        is_exact=True,
        reason=reason,
    )


def plan_claimed(table: Table, options: CopyOptions) -> Template:
    """All rows go to one shard, and what they claim on others is settled in one transaction."""
    return Template(
        RouteKind.ROUTE_COPY,
        operation=Operation.OPERATION_INSERT,
        is_write=True,
        table=table.qualified,
        profiles=fired_profiles(table, "insert"),
        owes_claims=True,
        copy=options.plan_in(is_placed=True),
        is_exact=True,
        reason="the shard generates the keys",
    )


def copied_columns(table: Table, node: Node) -> list[str]:
    """The columns of the data, in their order."""
    named = strings(node.get("attlist"))
    if named:
        return named
    if not table.columns:
        raise not_built(f'COPY FROM STDIN into "{table.name}" without a column list', "Name the columns.")
    return [column.name for column in table.columns if not is_computed(column)]


def is_computed(column: Column) -> bool:
    """GENERATED ALWAYS AS (...) STORED, which COPY leaves out; identity columns it does not."""
    return column.is_generated and bool(column.default_text)


def check_where(node: Node, table: Table) -> None:
    """Refuse a WHERE that calls functions which might not answer alike on every shard."""
    if "whereClause" not in node:
        return
    found = Findings()
    found.read(node["whereClause"])
    for path in found.calls:
        if path[-1] not in SAFE or (len(path) > 1 and path[-2] != "pg_catalog"):
            raise not_built(
                f'the function "{path[-1]}" in COPY FROM STDIN into "{table.name}"', "Leave rows out before."
            )


def plan_keyed(catalog: Catalog, table: Table, columns: list[str], options: CopyOptions) -> Template:
    """COPY FROM STDIN of rows that say where they live."""
    routing = table.routing_columns
    for column in routing:
        if column not in columns:
            raise null_key(table, column)
    sources = list(
        chain(use for index, column in enumerate(routing) for use in copy_uses(catalog, table, column, index)).sources
    )
    fields = [options.field(columns, column) for column in routing]
    own = -1
    if table.kind is TableKind.CHILD and table.key in columns and not table.takes_keys:
        if table.type_of(table.key) not in PLACEABLE_TYPES:
            raise not_built(
                f'given keys of the child table "{table.name}"',
                f'Leave "{table.key}" out: the shard generates it. Or declare the table with unique: [{table.key}].',
            )
        own = len(sources)
        sources += own_use(table, own).sources
        fields.append(options.field(columns, table.key))
    return Template(
        RouteKind.ROUTE_COPY,
        operation=Operation.OPERATION_INSERT,
        is_write=True,
        table=table.qualified,
        profiles=fired_profiles(table, "insert"),
        keys=tuple(sources),
        owes_claims=catalog.owes_claims(table),
        copy=options.plan_in(
            fields=tuple(fields),
            own=own,
            generates=table.kind is TableKind.ROOT and table.generates_key,
            follows=table.kind is TableKind.CHILD and catalog.claim_of(table, routing[0]) is not None,
        ),
        is_exact=True,
        reason="the rows say where they live",
    )


def copy_uses(catalog: Catalog, table: Table, column: str, index: int) -> tuple[KeyUse, ...]:
    """A routing column of copied rows as a key of the Template: they are read like parameters."""
    return key_uses(catalog, table, column, (Key(index, int(KeyFlag.KEY_PARAM)),), int(KeyFlag.KEY_INSERTED))


def own_use(table: Table, index: int) -> KeyUse:
    """The key of a child's own rows, which must name its parent's bucket."""
    flags = KeyFlag.KEY_PARAM | KeyFlag.KEY_INSERTED | KeyFlag.KEY_PLACED
    key_type = table.type_of(table.key) or KeyType.TYPE_INT8
    return KeyUse(index, int(flags) | key_type * KeyFlag.KEY_TYPE_UNIT, f"{table.name}.{table.key}")


def plan_reference_in(table: Table, columns: list[str], options: CopyOptions, node: Node) -> Template:
    """COPY FROM STDIN into a reference table: the first shard takes the rows, the others are given the outcome."""
    options.check(table.name)
    if table.functions:
        raise not_built(
            f'COPY FROM STDIN into the reference table "{table.name}" with a trigger function', "Use INSERT."
        )
    return Template(
        RouteKind.ROUTE_COPY,
        operation=Operation.OPERATION_INSERT,
        is_write=True,
        table=table.qualified,
        lock=table.qualified.encode(),
        copy=options.plan_in(is_everywhere=True),
        completion=Completion.COMPLETE_ROWS,
        is_exact=True,
        reason="every shard has the rows of a reference table",
    )


def plan_copy_out(table: Table, options: CopyOptions) -> Template:
    """COPY TO STDOUT of a table."""
    return Template(
        RouteKind.ROUTE_SCATTER if table.is_sharded else RouteKind.ROUTE_ANY,
        operation=Operation.OPERATION_SELECT,
        table=table.qualified,
        copy=options.plan_out(),
        is_exact=True,
        reason="every shard answers with its rows" if table.is_sharded else "every shard has the rows",
    )


def plan_copy_select(collector: Collector, node: Node, query: Node) -> Template:
    """COPY (SELECT ...) TO STDOUT: as the query. Rows that would have to be merged are the query node's."""
    inner = plan_select(collector, query)
    refusal = not_built("COPY of a query whose rows are merged over several shards", "Use SELECT.")
    if inner.merge is not None and inner.kind == RouteKind.ROUTE_SCATTER:
        raise refusal
    if inner.kind != RouteKind.ROUTE_DEFAULT and ("filename" in node or node.get("is_program")):
        raise not_built("COPY of declared tables with files of a server", "Use STDOUT.")
    problem = refusal if inner.merge is not None else inner.one_shard_refusal
    can_query = problem is not None and not inner.is_write and is_queryable(collector.catalog, query)
    return Template(
        inner.kind,
        operation=Operation.OPERATION_SELECT,
        is_write=inner.is_write,
        pin=inner.pin,
        table=inner.table,
        keys=inner.keys,
        one_shard_refusal=problem,
        can_query=can_query,
        shadow=shadow_of(collector.catalog, query) if can_query else None,
        copy=CopyOptions(node).plan_out(),
        is_exact=True,
        reason=inner.reason,
    )
