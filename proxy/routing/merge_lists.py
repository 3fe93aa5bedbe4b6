"""Merged reads that select lists of values: array_agg, string_agg in an order, JSON arrays, put together in the router.

A list without an order is the shards' lists one after the other. For one with an order the shards also give arrays of
what it is sorted by, in that order too, and the router merges the lists by them. DISTINCT, orders that only a shard
knows, and expressions of lists are what a shard finishes (finish_lists.py).
"""

from __future__ import annotations

from collections.abc import Callable

from foreshard._core.merge_plan import Combine
from foreshard.proxy.routing.finish_lists import order_of, sorts_of
from foreshard.proxy.routing.select_list import Expression, SelectList
from foreshard.proxy.routing.tokens import OddText, Piece, Tokens
from foreshard.proxy.routing.tree import Node
from foreshard.proxy.routing.types import DATED, JSON, JSONB, NAMES, STRINGS, Type

JOINED = frozenset(("json_agg", "json_agg_strict", "jsonb_agg", "jsonb_agg_strict"))
ELEMENTS = frozenset((*NAMES.values(), JSON, JSONB))
Hide = Callable[[list[Piece]], int]
Combined = tuple[int, object]  # Combine, extra


def combine_list(
    select: SelectList, expression: Expression, call: Node, name: str, delimiter: bytes | None, hide: Hide
) -> tuple[Combined, list[tuple[int, Type]]] | None:
    """How a list is put together, and the hidden columns it needs with what is in them; None where a shard has to."""
    tokens = select.tokens
    bracket = next(index for index in range(expression.start, expression.stop) if tokens.items[index].word == b"(")
    if tokens.items[bracket - 1].word.strip(b'"') != name.encode() or call.get("agg_distinct"):
        return None
    end = tokens.closing(bracket)
    order = order_of(tokens, bracket, end)
    found = sorts_of(tokens, call, order, end)
    sorts = [] if found is None else found
    known = select.type_of(call["args"][0])
    if found is None or known is None or known.oid not in ELEMENTS:
        return None
    if not sorts:
        return ((int(Combine.COMBINE_JSON if name in JOINED else Combine.COMBINE_ARRAY), None), [])
    if name in JOINED or (name == "string_agg" and known.oid not in STRINGS):
        return None
    if any(not is_merged(select.type_of(node)) for node, _, _ in sorts):
        return None
    around = [b" ", *tokens.pieces(order, end), b")"], tail_of(tokens, end, expression.stop)
    start, stop = tokens.split(bracket + 1, order)[0]
    start += tokens.items[start].word == b"all"
    columns: dict[tuple[Piece, ...], int | None] = {tokens.joined(start, stop): None} if delimiter is None else {}
    hidden: list[tuple[int, Type]] = []

    def column_of(place: tuple[int, int], of: Type) -> int | None:
        text = tokens.joined(*place)
        if text not in columns:
            pieces: list[Piece] = [b"pg_catalog.array_agg(", *tokens.pieces(*place), *around[0], *around[1]]
            column = columns[text] = hide(pieces)
            hidden.append((column, of))
        return columns[text]

    source = column_of((start, stop), known)
    keys = []
    for node, place, words in sorts:
        of = select.type_of(node)
        assert of is not None
        down = b" DESC" in words
        keys.append((column_of(place, of), of.oid, down, b"FIRST" in words or (down and b"LAST" not in words)))
    return ((int(Combine.COMBINE_SORTED), (delimiter, source, tuple(keys))), hidden)


def is_merged(known: Type | None) -> bool:
    """Whether lists are merged by values of a type."""
    return known is not None and known.is_sortable and known.oid not in DATED


def tail_of(tokens: Tokens, end: int, stop: int) -> list[Piece]:
    """FILTER of an aggregate whose closing bracket is at `end`."""
    if end + 1 < stop and tokens.items[end + 1].word != b"filter":
        raise OddText
    return [b" ", *tokens.pieces(end + 1, stop)] if end + 1 < stop else []


__all__ = ["JOINED", "combine_list"]
