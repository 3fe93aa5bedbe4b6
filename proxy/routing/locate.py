"""From facts to where the rows are: which keys, and whether each shard's rows may simply be put together.

Both answers come from one argument. *Keys*: when every sharded reference is located (only rows in the buckets of known
keys matter), a shard that holds all those buckets gives the answer that one PostgreSQL with all the data would give,
whatever the statement does. *Concatenation*: when there is a reference, the anchor, that no outer join fills with
NULLs, and for each of its rows only rows of its own bucket matter in every other sharded reference, the result is the
union of the shards' results, as long as the outermost query has no clause that works on all rows together.
"""

from __future__ import annotations

from dataclasses import dataclass

from foreshard._core.template import KeyFlag
from foreshard._core.typed_keys import KeyType
from foreshard.proxy.catalog import Catalog, Table, TableKind
from foreshard.proxy.catalog.model import PLACEABLE_TYPES
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.collect import Collector
from foreshard.proxy.routing.facts import Fact, family_of, key_weight
from foreshard.proxy.routing.functions import is_unknown
from foreshard.proxy.routing.scope import Place, Reference, ReferenceKind
from foreshard.proxy.routing.text import KeySet


@dataclass(frozen=True)
class KeyUse:
    """A key as the Template has it: an index, KeyFlags, and the column it is compared with."""

    index: int
    flags: int
    column: str


Located = dict[Reference, tuple[KeyUse, ...]]


def needs_placed(catalog: Catalog, table: Table, column: str) -> bool:
    """Whether only a placed value of this column tells the bucket: keys of child tables, which live with parents."""
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
    return tuple(KeyUse(key.index, key.flags | flags, f"{table.name}.{column}") for key in keys)


class Locator:
    """Draws the conclusions from a collector's facts. One per statement."""

    def __init__(self, collector: Collector) -> None:
        self.catalog = collector.catalog
        self.collector = collector
        self.sharded = [one for one in collector.references if one.kind is ReferenceKind.SHARDED]
        self.usable = usable_params(collector)
        self.facts = [fact for fact in collector.facts if fact.other is not None or self.is_usable(fact)]
        self.has_doubtful_keys = len(self.facts) < len(collector.facts)

    def is_usable(self, fact: Fact) -> bool:
        """Whether the types of parameters among the keys are surely those of the column."""
        family = family_of(fact.place)
        return all(not key.flags & KeyFlag.KEY_PARAM or self.usable.get(key.index) == family for key in fact.keys)

    def locate(self, seeds: Located | None = None) -> Located:
        """References whose rows that matter all lie in the buckets of known keys."""
        located: Located = dict(seeds or {})
        bound = self.bind()
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
        for column in (table.routing_column, table.key):
            if column and (one, column) in bound and self.names_bucket(table, column):
                return key_uses(self.catalog, table, column, bound[one, column])
        return None

    def names_bucket(self, table: Table, column: str) -> bool:
        """Whether values of a column may say where their rows are."""
        return not needs_placed(self.catalog, table, column) or table.type_of(column) in PLACEABLE_TYPES

    def by_neighbour(self, one: Reference, located: Located) -> tuple[KeyUse, ...] | None:
        """The keys of a located reference in whose buckets this one's rows that matter lie."""
        for ours, theirs, region in self.pairs():
            if ours[0] is one and one in region and theirs[0] in located and same_domain(ours, theirs):
                return located[theirs[0]]
        return None

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
            for ours, theirs, region in self.pairs():
                if ours[0] in region and theirs[0] in tied and same_domain(ours, theirs):
                    tied.add(ours[0])
            if len(tied) == before:
                return tied & set(self.sharded)


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
    found: dict[tuple[int, int], str] = {}
    for use in (use for group in uses for use in group):
        found.setdefault((use.index, use.flags), use.column)
    return tuple((index, flags, column) for (index, flags), column in found.items())
