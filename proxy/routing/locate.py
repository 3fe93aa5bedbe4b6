"""From facts to where the rows are: which keys, and whether each shard's rows may simply be put together.

Both answers come from one argument. *Keys*: when every sharded reference is located (only rows in the buckets of known
keys matter), a shard that holds all those buckets gives the answer that one PostgreSQL with all the data would give,
whatever the statement does. *Concatenation*: when there is a reference, the anchor, that no outer join fills with
NULLs, and for each of its rows only rows of its own bucket matter in every other sharded reference, the result is the
union of the shards' results, as long as the outermost query has no clause that works on all rows together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from foreshard._core.template import KeyFlag
from foreshard._core.typed_keys import TYPE_NAMES, KeyType
from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.catalog.model import PLACEABLE_TYPES, key_family
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.away import claim_of_column, column_name
from foreshard.proxy.routing.collect import Collector
from foreshard.proxy.routing.facts import Fact, family_of, key_weight
from foreshard.proxy.routing.functions import is_unknown
from foreshard.proxy.routing.scope import Place, Reference, ReferenceKind
from foreshard.proxy.routing.text import KeySet

PRODUCT_MAX = 256  # keys of several columns that a statement is located by; with more it is not


@dataclass(frozen=True)
class KeyUse:
    """A key as the Template has it: an index, KeyFlags, and the column it is compared with.

    Of a key of several columns it is the first; `rest` are the others in their order.
    """

    index: int
    flags: int
    column: str
    rest: tuple[KeyUse, ...] = ()

    @property
    def sources(self) -> tuple[tuple[int, int, str], ...]:
        """Index, flags and column of each column's value."""
        return tuple((part.index, part.flags, part.column) for part in (self, *self.rest))


Located = dict[Reference, tuple[KeyUse, ...]]


def needs_placed(catalog: Catalog, table: Table, column: str) -> bool:
    """Whether only a placed value of this column tells the bucket: keys of child tables, which live with parents."""
    if len(table.routing_columns) > 1 and column in table.routing_columns:
        return False
    domain = table.domain(column)
    owner = catalog.tables.get(domain) if domain else None
    return owner is None or owner.kind is TableKind.CHILD


def key_uses(catalog: Catalog, table: Table, column: str, keys: KeySet, flags: int = 0) -> tuple[KeyUse, ...]:
    """Keys compared with a routing column."""
    if needs_placed(catalog, table, column):
        flags |= KeyFlag.KEY_PLACED
    flags |= (table.type_of(column) or 0) * KeyFlag.KEY_TYPE_UNIT
    known = table.column(column)
    if known is not None and flags & KeyFlag.KEY_INSERTED:
        flags |= known.length_max * KeyFlag.KEY_LIMIT_UNIT
    name = column_name(catalog, table, column)
    return tuple(KeyUse(key.index, key.flags | flags, name) for key in keys)


def chained(columns: list[tuple[KeyUse, ...]]) -> tuple[KeyUse, ...] | None:
    """Keys of several columns: every choice of a value per column. None when there are too many, or none is certain."""
    if math.prod(len(uses) for uses in columns) > PRODUCT_MAX:
        return None
    if any(use.flags & KeyFlag.KEY_ARRAY for uses in columns[:-1] for use in uses):
        return None
    return tuple(chain(parts) for parts in itertools.product(*columns))


def chain(parts: Iterable[KeyUse]) -> KeyUse:
    """One key of several columns."""
    *before, last = parts
    first, *rest = [*(replace(use, flags=use.flags | KeyFlag.KEY_PART) for use in before), last]
    return replace(first, rest=tuple(rest))


class Locator:
    """Draws the conclusions from a collector's facts. One per statement."""

    def __init__(self, collector: Collector) -> None:
        self.catalog = collector.catalog
        self.collector = collector
        self.sharded = [one for one in collector.references if one.kind is ReferenceKind.SHARDED]
        self.usable = usable_params(collector)
        self.facts = [fact for fact in collector.facts if fact.other is not None or self.is_usable(fact)]
        self.has_doubtful_keys = len(self.facts) < len(collector.facts)
        self.bound = self.bind()
        self.equal = {(ours, theirs) for ours, theirs, region in self.pairs() if ours[0] in region}

    def is_usable(self, fact: Fact) -> bool:
        """Whether the types of parameters among the keys are surely those of the column."""
        family = family_of(fact.place)
        return all(not key.flags & KeyFlag.KEY_PARAM or self.usable.get(key.index) == family for key in fact.keys)

    def locate(self, seeds: Located | None = None) -> Located:
        """References whose rows that matter all lie in the buckets of known keys."""
        located: Located = dict(seeds or {})
        bound = self.bound
        while True:
            before = len(located)
            for one in self.sharded:
                if one not in located:
                    uses = self.by_key(one, bound)
                    if uses is None:
                        uses = self.by_neighbour(one, located)
                    if uses is not None:
                        located[one] = uses
            if len(located) == before:
                return located

    def bind(self) -> dict[Place, KeySet]:
        """Columns of which only rows with known values matter."""
        bound: dict[Place, KeySet] = {}
        for fact in self.facts:
            if fact.other is None and fact.place[0] in fact.region:
                improve(bound, fact.place, fact.keys)
        changed = True
        while changed:
            changed = False
            for one, other, region in self.pairs():
                if other in bound and one[0] in region and one not in bound:
                    bound[one] = bound[other]
                    changed = True
        return bound

    def pairs(self) -> list[tuple[Place, Place, frozenset[Reference]]]:
        """Equal columns, both ways round."""
        found = []
        for fact in self.facts:
            if fact.other is not None:
                found.append((fact.place, fact.other, fact.region))
                found.append((fact.other, fact.place, fact.region))
        return found

    def by_key(self, one: Reference, bound: dict[Place, KeySet]) -> tuple[KeyUse, ...] | None:
        """The keys of a reference whose routing column, or own key, is bound."""
        table = one.table
        if table is None:
            return None
        for columns, _ in table.domains:
            if not all((one, column) in bound for column in columns):
                continue
            if len(columns) == 1 and self.names_bucket(table, columns[0]):
                return key_uses(self.catalog, table, columns[0], bound[one, columns[0]])
            if len(columns) > 1 and columns == table.routing_columns:
                uses = chained([key_uses(self.catalog, table, column, bound[one, column]) for column in columns])
                if uses is not None:
                    return uses
        return None

    def names_bucket(self, table: Table, column: str) -> bool:
        """Whether values of a column may say where their rows are."""
        return not needs_placed(self.catalog, table, column) or table.type_of(column) in PLACEABLE_TYPES

    def by_neighbour(self, one: Reference, located: Located) -> tuple[KeyUse, ...] | None:
        """The keys of a located reference in whose buckets this one's rows that matter lie."""
        other = self.neighbour(one, located)
        return located[other] if other is not None else None

    def neighbour(self, one: Reference, others: Iterable[Reference]) -> Reference | None:
        """A reference among others in whose rows' buckets this one's rows that matter lie."""
        for other in others:
            for ours, domain in one.table.domains if one.table is not None else ():
                for theirs, same in other.table.domains if other.table is not None else ():
                    if domain == same and self.are_equal(one, ours, other, theirs):
                        return other
        return None

    def are_equal(self, one: Reference, ours: tuple[str, ...], other: Reference, theirs: tuple[str, ...]) -> bool:
        """Whether columns of two references are equal, one by one; of several, some may equal the same parameter."""
        if len(ours) != len(theirs):
            return False
        pairs = [((one, mine), (other, yours)) for mine, yours in zip(ours, theirs, strict=True)]
        return any(pair in self.equal for pair in pairs) and all(
            pair in self.equal or self.have_same_value(*pair) for pair in pairs
        )

    def have_same_value(self, first: Place, second: Place) -> bool:
        """Whether both columns are bound to one and the same value."""
        keys = self.bound.get(first)
        return (
            keys is not None
            and len(keys) == 1
            and not keys[0].flags & KeyFlag.KEY_ARRAY
            and (keys == self.bound.get(second))
        )

    def problem(self) -> SqlError | None:
        """Why the rows of FROM and WHERE are not the union of the shards'; None when they are."""
        top = self.collector.levels[0]
        if any("aggregates of an outer query" in level.merges for level in self.collector.levels):
            return merging("aggregates")
        for call in self.collector.calls:
            if is_unknown(call):
                return merging(f'the function "{call.path[-1]}"', "Nothing is known about what it does on each shard.")
        anchors = [one for one in self.sharded if one in top.references and not one.is_nullable]
        if any(len(self.tied(anchor)) == len(self.sharded) for anchor in anchors):
            return None
        return merging(
            "this combination of declared tables", "Their rows that belong together may be on several shards."
        )

    def tied(self, anchor: Reference) -> set[Reference]:
        """The references of which, for each row of the anchor, only rows in its own bucket matter."""
        tied = {anchor}
        while True:
            before = len(tied)
            tied |= {one for one in self.sharded if one not in tied and self.neighbour(one, tied) is not None}
            if len(tied) == before:
                return tied & set(self.sharded)


def locate_all(
    locator: Locator, target: Reference, table: Table, problem: SqlError | None
) -> tuple[tuple[int, int, str], ...] | None:
    """The keys of a write; None when it goes to every shard. Raises why it cannot: `problem`, or doubtful keys."""
    located = locator.locate()
    if all(one in located for one in locator.sharded):
        return distinct([located[one] for one in locator.sharded])
    if problem is None:
        return None
    if target not in located and locator.has_doubtful_keys:
        raise not_built(
            "a parameter both as a key and otherwise",
            "Write $n::bigint wherever it stands, or use two parameters.",
            "The type of the parameter is not certain.",
        )
    if target not in located:
        raise problem
    raise not_built(
        "writing a declared table from rows of several shards",
        "Restrict every declared table in the statement to one key as well.",
        problem.detail,
    )


def check_param_types(collector: Collector, table: Table, column: str, uses: list[KeyUse]) -> None:
    """Refuse a parameter that is a key here and may be of another type elsewhere in the statement."""
    usable = Locator(collector).usable
    key_type = table.type_of(column) or KeyType.TYPE_INT8
    for use in uses:
        if use.flags & KeyFlag.KEY_PARAM and usable.get(use.index) != key_family(key_type):
            raise not_built(
                f"${use.index + 1} both as a key and otherwise",
                f"Write ${use.index + 1}::{TYPE_NAMES[key_type]} wherever it stands, or use two parameters.",
                "The type of the parameter is not certain.",
            )


def same_domain(one: Place, other: Place) -> bool:
    """Whether equal values of two columns mean one bucket."""
    first, second = one[0].table, other[0].table
    if first is None or second is None:
        return False
    return first.domain(one[1]) is not None and first.domain(one[1]) == second.domain(other[1])


def improve(bound: dict[Place, KeySet], place: Place, keys: KeySet) -> None:
    """Keep the smaller set of keys."""
    if place not in bound or key_weight(keys) < key_weight(bound[place]):
        bound[place] = keys


def usable_params(collector: Collector) -> dict[int, KeyType]:
    """The parameters whose every use makes them keys of one family, so that their bytes mean what a key means."""
    compared = collector.text.key_params
    found: dict[int, set[KeyType | None]] = {}
    for node, cast in collector.params:
        family = cast if cast is not None else compared.get(id(node))
        found.setdefault(node.get("number", 0) - 1, set()).add(family)
    return {index: family for index, (family, *others) in found.items() if family is not None and not others}


def merging(what: str, detail: str = "") -> SqlError:
    """The refusal of what would need rows of several shards to be merged."""
    return not_built(
        f"{what} over rows of several shards",
        "Restrict every declared table in the statement to one key (WHERE key = ...), or to rows that live with it.",
        detail,
    )


def distinct(uses: list[tuple[KeyUse, ...]]) -> tuple[tuple[int, int, str], ...]:
    """All key uses once each, as the Template takes them."""
    found: dict[tuple[Any, ...], tuple[tuple[int, int, str], ...]] = {}
    for use in (use for group in uses for use in group):
        found.setdefault((unnamed(use.sources), claim_of_column(use.column)), use.sources)
    return tuple(source for sources in found.values() for source in sources)


def unnamed(sources: tuple[tuple[int, int, str], ...]) -> tuple[tuple[int, int], ...]:
    """Sources of one key without the columns they are compared with: what tells it from other keys."""
    return tuple((index, flags) for index, flags, _ in sources)


def starts(keys: tuple[tuple[int, int, str], ...]) -> dict[tuple[tuple[int, int], ...], int]:
    """For each key its position among the Template's sources: that of its first column."""
    found = {}
    first = 0
    for at, (_, flags, _) in enumerate(keys):
        if not flags & KeyFlag.KEY_PART:
            found[unnamed(keys[first : at + 1])] = first
            first = at + 1
    return found
