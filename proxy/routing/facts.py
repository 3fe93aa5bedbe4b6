"""What a condition says about routing keys.

A Fact holds for every row that matters of the references in its region: a row of theirs for which it does not hold
can be left out without changing the result. Facts come from the top-level AND of WHERE (region: every reference of
that level) and of ON (inner join: both sides; LEFT and RIGHT: the side that may be filled with NULLs; FULL: none).
Only equality counts: it is never true of NULLs, which outer joins bring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foreshard._core.template import KeyFlag
from foreshard._core.typed_keys import KeyType
from foreshard.proxy.catalog.model import key_family
from foreshard.proxy.routing.scope import Place, Reference, Scope
from foreshard.proxy.routing.text import KeySet, Text
from foreshard.proxy.routing.tree import Node, operator_name, unwrap


@dataclass(frozen=True, eq=False)
class Fact:
    """`place` equals one of `keys`, or equals `other`."""

    place: Place
    region: frozenset[Reference]
    keys: KeySet = ()
    other: Place | None = None


def conjuncts(node: Node | None) -> list[Node]:
    """The conditions that must all be true."""
    kind, fields = unwrap(node)
    if kind == "BoolExpr" and fields.get("boolop") == "AND_EXPR":
        return [found for argument in fields["args"] for found in conjuncts(argument)]
    return [node] if node else []


def key_weight(keys: KeySet) -> tuple[bool, int]:
    """Orders sets of keys by how many shards they may mean."""
    return any(key.flags & KeyFlag.KEY_ARRAY for key in keys), len(keys)


class FactReader:
    """Reads conditions in one scope."""

    def __init__(self, text: Text, scope: Scope) -> None:
        self.text = text
        self.scope = scope

    def read(self, condition: Node | None, region: frozenset[Reference]) -> list[Fact]:
        """All facts that a condition gives for the references of a region."""
        facts = [Fact(place, region, keys) for place, keys in self.constraints(condition).items()]
        for conjunct in conjuncts(condition):
            facts.extend(Fact(left, region, other=right) for left, right in self.equalities(conjunct))
        return facts

    def place(self, node: Node | None) -> Place | None:
        """The column of a declared table that an expression is, when keys are of its type."""
        found = self.scope.resolve(node)
        return found if found and family_of(found) is not None else None

    def constraints(self, condition: Node | None) -> dict[Place, KeySet]:
        """Columns whose value is one of known keys wherever the condition is true."""
        kind, fields = unwrap(condition)
        if kind == "BoolExpr" and fields.get("boolop") == "AND_EXPR":
            return self._all_of(fields["args"])
        if kind == "BoolExpr" and fields.get("boolop") == "OR_EXPR":
            return self._any_of(fields["args"])
        if kind != "A_Expr":
            return {}
        form = fields.get("kind")
        if form == "AEXPR_OP" and operator_name(fields) == "=":
            return self._equal(fields.get("lexpr"), fields.get("rexpr"))
        if form == "AEXPR_IN" and operator_name(fields) == "=":
            return self._one_of(fields.get("lexpr"), unwrap(fields.get("rexpr"))[1].get("items", []))
        if form == "AEXPR_OP_ANY" and operator_name(fields) == "=":
            place = self.place(fields.get("lexpr"))
            keys = self.text.read_array(fields.get("rexpr"), family_at(place)) if place else None
            return {place: keys} if place and keys is not None else {}
        return {}

    def _all_of(self, conditions: list[Node]) -> dict[Place, KeySet]:
        found: dict[Place, KeySet] = {}
        for condition in conditions:
            for place, keys in self.constraints(condition).items():
                if place not in found or key_weight(keys) < key_weight(found[place]):
                    found[place] = keys
        return found

    def _any_of(self, conditions: list[Node]) -> dict[Place, KeySet]:
        branches = [self.constraints(condition) for condition in conditions]
        shared = [place for place in branches[0] if all(place in branch for branch in branches)]
        return {place: tuple(key for branch in branches for key in branch[place]) for place in shared}

    def _equal(self, left: Node | None, right: Node | None) -> dict[Place, KeySet]:
        pairs = row_pairs(left, right)
        if pairs:
            return self._all_of([equality(*pair) for pair in pairs])
        for one, other in ((left, right), (right, left)):
            place = self.place(one)
            keys = self.text.read_keys(other, family_at(place)) if place else None
            if place and keys is not None:
                return {place: keys}
        return {}

    def _one_of(self, left: Node | None, items: list[Node]) -> dict[Place, KeySet]:
        kind, fields = unwrap(left)
        if kind != "RowExpr":
            place = self.place(left)
            keys = self.text.read_list(items, family_at(place)) if place else None
            return {place: keys} if place and keys is not None else {}
        rows = [row_items(item) for item in items]
        found = {}
        for position, column in enumerate(fields.get("args", [])):
            place = self.place(column)
            if place and all(row is not None and position < len(row) for row in rows):
                values = [row[position] for row in rows if row is not None]
                keys = self.text.read_list(values, family_at(place))
                if keys is not None:
                    found[place] = keys
        return found

    def equalities(self, conjunct: Node) -> list[tuple[Place, Place]]:
        """Pairs of columns that are equal wherever the condition is true."""
        kind, fields = unwrap(conjunct)
        if kind != "A_Expr" or fields.get("kind") != "AEXPR_OP" or operator_name(fields) != "=":
            return []
        left, right = fields.get("lexpr"), fields.get("rexpr")
        pairs = row_pairs(left, right) or [(left, right)]
        places = [(self.place(one), self.place(other)) for one, other in pairs]
        return [(one, other) for one, other in places if one and other and family_of(one) == family_of(other)]


def family_of(place: Place) -> KeyType | None:
    """What kind of key a column may hold; None for columns of types that no key has."""
    key_type = place[0].table.type_of(place[1]) if place[0].table is not None else None
    return None if key_type is None else key_family(key_type)


def family_at(place: Place) -> KeyType:
    """The same for a column that is known to be of such a type."""
    found = family_of(place)
    assert found is not None
    return found


def row_items(node: Node | None) -> list[Node] | None:
    """The fields of a row constructor."""
    kind, fields = unwrap(node)
    return fields.get("args", []) if kind == "RowExpr" else None


def row_pairs(left: Node | None, right: Node | None) -> list[tuple[Any, Any]]:
    """Fields of two row constructors side by side; none when they are not two of one size."""
    ours, theirs = row_items(left), row_items(right)
    if ours is None or theirs is None or len(ours) != len(theirs):
        return []
    return list(zip(ours, theirs, strict=True))


def equality(left: Node | None, right: Node | None) -> Node:
    """The condition left = right."""
    return {"A_Expr": {"kind": "AEXPR_OP", "name": [{"String": {"sval": "="}}], "lexpr": left, "rexpr": right}}
