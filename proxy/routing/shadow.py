"""Shadows: the tables of a read for the query node, as a transaction sees them that has written.

The node reads through sessions of its own, which cannot see what a client has not committed. So the rows of the
statement's tables are taken out of the client's own transaction, all tables of a shard by one statement (one snapshot),
as text rows with the number of their table, and put into temporary tables of the node that have the tables' names:
unqualified names then mean those (proxy/wire/shadowing.pyx runs the texts). No plan, and the refusal stands, where a
name would not: qualified names, views over declared tables, users' functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from foreshard.proxy.catalog import Catalog
from foreshard.proxy.routing.tree import Node

ROWS_MAX = 1_000_000  # of all tables; chosen, not measured
STAGE = "pg_temp.foreshard_rows"
TAG = "$foreshard$"


class ShadowPlan(NamedTuple):
    """What shards and node are sent; they answer nothing that the client sees."""

    sharded: bytes  # SELECT of (number of the table, row) on every shard; empty: no table is sharded
    default: bytes  # the same on the default shard, which has the plain and the reference tables, too
    create: bytes  # makes the tables on the node
    copy: bytes  # takes the rows
    fill: bytes  # gives each table its own


def plan_shadow(catalog: Catalog, relations: Iterable[Node], ctes: set[str]) -> ShadowPlan | None:
    """How the tables that a statement for the node names are shadowed; None where they cannot be."""
    places = set()
    for relation in relations:
        name = relation["relname"]
        place = _place_of(catalog, name)
        if relation.get("schemaname") or catalog.find_view(name) is not None:
            return None
        if place is not None:
            places.add(place)
        elif name not in ctes:
            return None
    return _plan(catalog, sorted(places)) if places else None


def _place_of(catalog: Catalog, name: str) -> str | None:
    """The qualified name of a table of the node; None when it has none of that name."""
    assert catalog.query_node is not None
    candidates = (f"{schema}.{name}" for schema in catalog.search_path)
    return next((place for place in candidates if place in catalog.query_node.relations), None)


def _plan(catalog: Catalog, places: list[str]) -> ShadowPlan:
    """The texts for these tables."""
    everywhere: list[str] = []
    first: list[str] = []
    for number, place in enumerate(places):
        table = catalog.tables.get(place)
        is_sharded = table is not None and table.is_sharded
        columns = table.columns if table is not None else ()
        row = f"ROW({_listed(column.name for column in columns)})" if columns else "foreshard_row"
        text = f"SELECT '{number}', {row}::pg_catalog.text FROM {quoted(place)} AS foreshard_row"
        (everywhere if is_sharded else first).append(text)
    fill = [
        f"INSERT INTO {temporary(place)} SELECT (held).* FROM (SELECT value::{quoted(place)} AS held FROM {STAGE} "
        f"WHERE number = '{number}' OFFSET 0) AS rows"
        for number, place in enumerate(places)
    ]
    return ShadowPlan(
        sharded=_union(everywhere),
        default=_union(everywhere + first),
        create="; ".join(
            (
                "DEALLOCATE ALL",  # what is prepared means the foreign tables
                *(_making(place) for place in places),
                f"CREATE TEMPORARY TABLE {STAGE} (number text, value text) ON COMMIT DROP",
            )
        ).encode(),
        copy=f"COPY {STAGE} FROM STDIN (FORMAT binary)".encode(),
        fill="; ".join((*fill, f"DROP TABLE {STAGE}", *(_checking(place) for place in places))).encode(),
    )


def _union(selects: list[str]) -> bytes:
    """One statement for all of them, with one row more than there may be."""
    return f"{' UNION ALL '.join(selects)} LIMIT {ROWS_MAX + 1}".encode() if selects else b""


def _making(place: str) -> str:
    """Make one table; a cursor that is open may need the one of an earlier statement, which gives up its name."""
    name = temporary(place)
    return (
        f"DO {TAG} DECLARE earlier regclass := to_regclass({_text(name)}); BEGIN IF earlier IS NOT NULL THEN "
        f"EXECUTE format('ALTER TABLE %s RENAME TO %I', earlier, 'foreshard ' || earlier::oid); END IF; END {TAG}; "
        f"CREATE TEMPORARY TABLE {name} (LIKE {quoted(place)} INCLUDING INDEXES) ON COMMIT DROP"
    )


def _checking(place: str) -> str:
    """An error when the name means something else on the node: search_path has put pg_temp behind."""
    bare = quoted(place.partition(".")[2])
    return (
        f"DO {TAG} BEGIN IF {_text(bare)}::regclass <> {_text(temporary(place))}::regclass THEN "
        f"RAISE EXCEPTION 'pg_temp is not the first schema of search_path'; END IF; END {TAG}"
    )


def temporary(place: str) -> str:
    """The temporary table that hides a table, quoted."""
    return f"pg_temp.{quoted(place.partition('.')[2])}"


def quoted(place: str) -> str:
    """A name, or a qualified one, quoted."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in place.split(".", 1))


def _listed(names: Iterable[str]) -> str:
    return ", ".join("foreshard_row." + quoted(name) for name in names)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
