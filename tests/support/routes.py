"""Routes in one line each, and the catalog that routing tests plan against."""

from __future__ import annotations

import msgspec

from foreshard._core.template import KeyFlag, RouteKind, Template
from foreshard.proxy.catalog import Catalog, Column, Function, QueryNode, Table, TableKind


def column(name: str, type_name: str, type_oid: int, *, has_default: bool = False) -> Column:
    return Column(name=name, type_name=type_name, type_oid=type_oid, has_default=has_default)


DOCUMENT = Table(
    schema="public",
    name="document",
    kind=TableKind.ROOT,
    key="id",
    key_type="bigint",
    columns=(
        column("id", "bigint", 20, has_default=True),
        column("path", "text", 25),
        column("size", "integer", 23),
        column("price", "numeric", 1700),
        column("body", "text", 25),
        column("tags", "text[]", 1009),
        column("meta", "jsonb", 3802),
    ),
    functions=(
        Function(
            name="index", operations=("insert", "update"), columns=("body",), profile_indexes={"insert": 0, "update": 1}
        ),
        Function(
            name="audit",
            operations=("insert", "update", "delete"),
            columns=None,
            profile_indexes={"insert": 2, "update": 3, "delete": 4},
        ),
    ),
)
SYMBOL = Table(
    schema="public",
    name="symbol",
    kind=TableKind.CHILD,
    key="id",
    key_type="bigint",
    parent="public.document",
    via="document_id",
    columns=(column("id", "bigint", 20), column("document_id", "bigint", 20), column("name", "text", 25)),
)
USAGE = Table(
    schema="public",
    name="usage",
    kind=TableKind.CHILD,
    key="id",
    key_type="bigint",
    parent="public.symbol",
    via="symbol_id",
    columns=(column("id", "bigint", 20), column("symbol_id", "bigint", 20), column("line", "integer", 23)),
)
NOTE = Table(
    schema="public",
    name="note",
    kind=TableKind.CHILD,
    key="id",
    key_type="bigint",
    parent="public.document",
    via="document_id",
    columns=(column("id", "bigint", 20), column("document_id", "bigint", 20), column("remark", "text", 25)),
)
ACCOUNT = Table(  # of another group, in another schema, with a name that needs quotes
    schema="Sales",
    name="Account",
    kind=TableKind.ROOT,
    key="no",
    key_type="bigint",
    columns=(column("no", "bigint", 20, has_default=True), column("owner", "text", 25)),
)
PERSON = Table(  # with a key that clients give
    schema="public",
    name="person",
    kind=TableKind.ROOT,
    key="email",
    key_type="text",
    columns=(column("email", "text", 25), column("born", "date", 1082), column("device", "uuid", 2950)),
)
LETTER = Table(
    schema="public",
    name="letter",
    kind=TableKind.CHILD,
    key="id",
    key_type="bigint",
    parent="public.person",
    via="person_email",
    columns=(
        column("id", "bigint", 20, has_default=True),
        column("person_email", "character varying", 1043),
        column("body", "text", 25),
    ),
)
DEVICE = Table(
    schema="public",
    name="device",
    kind=TableKind.ROOT,
    key="id",
    key_type="uuid",
    columns=(column("id", "uuid", 2950, has_default=True), column("name", "text", 25)),
)
DAY = Table(
    schema="public",
    name="day",
    kind=TableKind.ROOT,
    key="day",
    key_type="date",
    columns=(column("day", "date", 1082), column("noon", "timestamp with time zone", 1184)),
)
LANGUAGE = Table(
    schema="public",
    name="language",
    kind=TableKind.REFERENCE,
    key="",
    key_type="",
    columns=(column("code", "text", 25), column("title", "text", 25), column("rank", "integer", 23)),
)
TABLES = (DOCUMENT, SYMBOL, USAGE, NOTE, ACCOUNT, PERSON, LETTER, DEVICE, DAY, LANGUAGE)
CATALOG = Catalog(
    tables={table.qualified: table for table in TABLES},
    views={"public.long_document": "public.document"},
    functions={"public.count_documents": "public.document"},
)

QUERY_CATALOG = msgspec.structs.replace(  # and a query node that has all of it but one table
    CATALOG,
    query_node=QueryNode(
        relations=frozenset({table.qualified for table in TABLES} - {LETTER.qualified} | {"public.plain"}),
        functions=frozenset({"public.shout"}),
    ),
)


def describe_key(index: int, flags: int, name: str) -> str:
    """document.id=$1, =#0 (first literal), =-#0; [] array, ? only when placed, ! of a new row."""
    source = f"${index + 1}" if flags & KeyFlag.KEY_PARAM else f"#{index}"
    sign = "-" if flags & KeyFlag.KEY_NEGATIVE else ""
    marks = "[]" * bool(flags & KeyFlag.KEY_ARRAY) + "?" * bool(flags & KeyFlag.KEY_PLACED)
    return f"{name}={sign}{source}{marks}" + "!" * bool(flags & KeyFlag.KEY_INSERTED)


def describe(template: Template) -> str:
    """A route in one line."""
    kind = RouteKind(template.kind).name.removeprefix("ROUTE_").lower()
    if template.refusal is not None and template.kind != RouteKind.ROUTE_QUERY:
        return f"refuse {template.refusal.sqlstate} {template.refusal.message}".replace(
            "Foreshard does not support ", ""
        )
    words = [kind]
    if template.verb:
        words.append(f"verb={template.verb}")
    words += [describe_key(*key) for key in template.keys]
    if template.is_write:
        words.append("write")
    if template.keeps_bucket:
        words.append("in-bucket")
    if template.carry is not None and template.carry.is_move:
        words.append("or-move")
    if template.one_shard_refusal is not None and not template.is_write:
        words.append("one-shard")
    if template.can_query:
        words.append("or-query")
    if template.merge is not None:
        words.append("merge" if template.merge.finish is None else "finish")
    if template.rows > 1:
        words.append(f"rows={template.rows}")
    if template.lock:
        words.append("every")
    if template.row_keys:
        words.append("split")
    words += [f"({word})" for word in (template.pin and f"pin {template.pin}", template.cursor, template.name) if word]
    if template.is_reset:
        words.append("reset")
    words += [f"[{describe(part)}]" for part in template.parts]
    return " ".join(words)
