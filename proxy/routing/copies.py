"""Where COPY of declared tables goes.

COPY TO STDOUT of a sharded table is the shards' data one after the other. COPY FROM STDIN into a root whose keys the
shard generates is one placement unit, like an INSERT of several rows: all of its rows go to one shard. Rows that bring
their keys, or their parents', would have to be told apart in the stream and are refused.
"""

from __future__ import annotations

from foreshard._core.template import Operation, RouteKind, Template
from foreshard.proxy.catalog import Table, TableKind
from foreshard.proxy.errors import not_built
from foreshard.proxy.routing.collect import Collector
from foreshard.proxy.routing.rows import fired_profiles
from foreshard.proxy.routing.text import Text
from foreshard.proxy.routing.tree import Node, strings, unwrap

HINT = "Use INSERT with several rows, which are split by shard."


def plan_copy(collector: Collector, node: Node) -> Template | None:
    """The route of COPY of a declared table; None for other tables. SqlError when it must be refused."""
    relation = node["relation"]
    table = collector.catalog.find(relation["relname"], relation.get("schemaname"))
    if table is None:
        return None
    if "filename" in node or node.get("is_program"):
        raise not_built(f'COPY of "{table.name}" with files of a server', "Use STDIN and STDOUT.")
    return plan_copy_in(table, node) if node.get("is_from") else plan_copy_out(collector.text, table, node)


def plan_copy_in(table: Table, node: Node) -> Template:
    """COPY FROM STDIN."""
    columns = strings(node.get("attlist"))
    is_placed = table.kind is TableKind.ROOT and table.generates_key and columns and table.key not in columns
    if not is_placed:
        raise not_built(f'COPY FROM STDIN of rows that say where they live ("{table.name}")', HINT)
    if table.unique:
        raise not_built(f'COPY FROM STDIN into "{table.name}", which has unique columns', "Insert the rows.")
    if "whereClause" in node:
        raise not_built(f'COPY FROM STDIN with WHERE into "{table.name}"', "Leave rows out in the client.")
    return Template(
        RouteKind.ROUTE_PLACE,
        operation=Operation.OPERATION_INSERT,
        is_write=True,
        table=table.qualified,
        profiles=fired_profiles(table, "insert"),
        is_exact=True,
        reason="the shard generates the keys",
    )


def plan_copy_out(text: Text, table: Table, node: Node) -> Template:
    """COPY TO STDOUT."""
    options = {unwrap(option)[1]["defname"]: unwrap(option)[1].get("arg") for option in node.get("options", [])}
    form = unwrap(options.get("format"))[1].get("sval", "text").lower()
    if table.is_sharded and (form not in ("text", "csv") or "header" in options):
        raise not_built(
            f'COPY TO STDOUT of "{table.name}" with a header', "Use the formats text and csv, without HEADER.",
            "Every shard would send one.",
        )  # fmt: skip
    return Template(
        RouteKind.ROUTE_SCATTER if table.is_sharded else RouteKind.ROUTE_ANY,
        operation=Operation.OPERATION_SELECT,
        table=table.qualified,
        is_exact=True,
        reason="every shard answers with its rows" if table.is_sharded else "every shard has the rows",
    )
