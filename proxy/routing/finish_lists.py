"""Aggregates that need every value of a group, over the shards' lists of them: array_agg, string_agg, JSON's, DISTINCT.

Each argument and each expression of the aggregate's own ORDER BY becomes an array_agg in the parts; arrays of one group
are in the same order of rows. Parts of arrays come as text and are strung together as text, which is an array's text
again because every element is a scalar:

    array_agg(x ORDER BY y)  ->  parts: array_agg(x) a, array_agg(y) b
    (SELECT array_agg(v1 ORDER BY v2) FROM unnest(<a of the group's parts>::x[], <b ...>::y[]) AS list(v1, v2))

The lists are aggregates of the outer query, which groups the parts. An aggregate without an order takes the shards' one
after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from foreshard.proxy.routing.builtins import names_in
from foreshard.proxy.routing.tokens import OddText, Piece, Tokens
from foreshard.proxy.routing.tree import Node, unwrap
from foreshard.proxy.routing.types import STRINGS, TEXT, Collation, Type

if TYPE_CHECKING:
    from foreshard.proxy.routing.collect import Call
    from foreshard.proxy.routing.finish import Finisher

LISTED = names_in(
    """
    array_agg string_agg json_agg json_agg_strict json_object_agg json_object_agg_strict json_object_agg_unique
    json_object_agg_unique_strict jsonb_agg jsonb_agg_strict jsonb_object_agg jsonb_object_agg_strict
    jsonb_object_agg_unique jsonb_object_agg_unique_strict
    """
)
DEFAULT = Collation(is_default=True)
LIST = b"foreshard_list"
Sort = tuple[Node, tuple[int, int], bytes]  # an expression, its tokens, its direction as it is written


class NotListed(Exception):
    """A value whose type the router does not know, or whose text does not say everything."""


@dataclass
class Lists:
    """The arrays that one aggregate is made of."""

    head: bytes  # DISTINCT inside of array_agg, where the shards may leave out what comes again
    tail: list[Piece]  # FILTER
    texts: list[bytes] = field(default_factory=list)  # over the parts, with their types
    columns: dict[tuple[Piece, ...], int] = field(default_factory=dict)  # an expression's number in `texts`


def list_of(finisher: Finisher, call: Call, bracket: int, stop: int) -> tuple[Piece, ...]:
    """What stands for an aggregate in the second text; NotListed or OddText."""
    fields, name = call.fields, call.path[-1].encode()
    if fields.get("func_variadic") or fields.get("agg_star"):
        raise NotListed
    items, tokens = finisher.tokens.items, finisher.tokens
    end = tokens.closing(bracket)
    start = bracket + 1 + (items[bracket + 1].word in (b"distinct", b"all"))
    order = order_of(tokens, bracket, end)
    arguments = list(zip(fields.get("args", []), tokens.split(start, order), strict=True))
    sorts = sorts_of(tokens, fields, order, end)
    if sorts is None:
        raise NotListed
    is_distinct = bool(fields.get("agg_distinct"))
    lists = Lists(b"", [b" ", *tokens.pieces(end + 1, stop)] if end + 1 < stop else [])
    if not is_distinct and not sorts:
        found = without_order(finisher, call, arguments, lists, (bracket, stop))
        if found is not None:
            return found
    expressions = {tokens.joined(*place) for node, place in arguments if not is_constant(node)}
    orders = {tokens.joined(*place) for _, place, _ in sorts}
    if is_distinct and not orders <= expressions:
        raise NotListed  # an argument with literals may be the same, but its text does not tell
    if is_distinct and len(expressions) == 1:
        lists.head = b"DISTINCT "
    given: list[Piece] = []
    for index, (node, place) in enumerate(arguments):
        given += [b", "] if index else []
        given += tokens.pieces(*place) if index and is_constant(node) else [column(finisher, lists, node, place)]
    for index, (node, place, words) in enumerate(sorts):
        given += [b", " if index else b" ORDER BY ", column(finisher, lists, node, place) + words]
    names = b", ".join(b"v%d" % (index + 1) for index in range(len(lists.texts)))
    return (
        b"(SELECT pg_catalog." + name + (b"(DISTINCT " if is_distinct else b"("),
        *given,
        b") FROM ROWS FROM (" + b", ".join(b"pg_catalog.unnest(" + text + b")" for text in lists.texts),
        b") AS " + LIST + b"(" + names + b"))",
    )


def without_order(
    finisher: Finisher,
    call: Call,
    arguments: list[tuple[Node, tuple[int, int]]],
    lists: Lists,
    place: tuple[int, int],
) -> tuple[Piece, ...] | None:
    """One shard's after the other's; None where that is no text of the same kind."""
    name = call.path[-1]
    node = arguments[0][0]
    if name == "array_agg":
        column(finisher, lists, *arguments[0])
        return (lists.texts[0],)
    known = finisher.select.type_of(node)
    if name == "string_agg" and known and known.oid in STRINGS and is_constant(arguments[1][0]):
        whole = [b"pg_catalog.string_agg", *finisher.tokens.pieces(*place)]
        part = finisher.add(whole, Type(TEXT, known.collation))
        return (b"pg_catalog.string_agg(" + part + b", ", *finisher.tokens.pieces(*arguments[1][1]), b")")
    return None


def order_of(tokens: Tokens, bracket: int, end: int) -> int:
    """The token ORDER of an aggregate, or its closing bracket."""
    items = tokens.items
    for index in range(bracket + 1, end - 1):
        words = items[index - 1].word, items[index].word, items[index + 1].word
        if items[index].depth == items[bracket].depth + 1 and words[0] != b"." and words[1:] == (b"order", b"by"):
            return index
    return end


def sorts_of(tokens: Tokens, fields: Node, order: int, end: int) -> list[Sort] | None:
    """What an aggregate's ORDER BY has; None for an operator of somebody's own."""
    nodes = [unwrap(item)[1] for item in fields.get("agg_order", [])]
    ranges = tokens.split(order + 2, end) if nodes else []
    if len(ranges) != len(nodes) or bool(nodes) != (order < end):
        raise OddText
    found = []
    for (start, stop), node in zip(ranges, nodes, strict=True):
        if node.get("sortby_dir") == "SORTBY_USING":
            return None
        words = b""
        if node.get("sortby_dir", "SORTBY_DEFAULT") != "SORTBY_DEFAULT":
            words += b" DESC" if node["sortby_dir"] == "SORTBY_DESC" else b" ASC"
        if node.get("sortby_nulls", "SORTBY_NULLS_DEFAULT") != "SORTBY_NULLS_DEFAULT":
            words += b" NULLS FIRST" if node["sortby_nulls"] == "SORTBY_NULLS_FIRST" else b" NULLS LAST"
            stop -= 2
        stop -= node.get("sortby_dir", "SORTBY_DEFAULT") != "SORTBY_DEFAULT"
        found.append((node["node"], (start, stop), words))
    return found


def column(finisher: Finisher, lists: Lists, node: Node, place: tuple[int, int]) -> bytes:
    """The name of an expression's values in the list."""
    text = finisher.tokens.joined(*place)
    if text not in lists.columns:
        known = finisher.select.type_of(node)
        pieces = finisher.tokens.pieces(*place)
        if known is None and lists.texts and unwrap(node)[0] == "ParamRef":  # the delimiter of strings
            known = Type(TEXT, DEFAULT)
            pieces = [b"(", *pieces, b")::pg_catalog.text"]
        if known is None:
            raise NotListed
        cast, shown = finisher.cast_of(known), finisher.shown(pieces, known)
        part = finisher.add([b"pg_catalog.array_agg(" + lists.head, *shown, b")", *lists.tail], Type(TEXT, DEFAULT))
        name, _, collation = cast.partition(b" COLLATE ")
        strung = (
            b"('{' || pg_catalog.string_agg(pg_catalog.substr(%s, 2, pg_catalog.length(%s) - 2), ',') || '}')::%s[]"
            % (part, part, name)
        )
        lists.texts.append(b"(" + strung + b" COLLATE " + collation + b")" if collation else strung)
        lists.columns[text] = len(lists.texts)
    return LIST + b".v%d" % lists.columns[text]


def is_constant(node: Node) -> bool:
    """Whether an argument is a literal."""
    return unwrap(node)[0] == "A_Const"


__all__ = ["LISTED", "NotListed", "list_of", "order_of", "sorts_of"]
