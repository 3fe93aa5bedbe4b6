"""What EXPLAIN (FORESHARD) says of a merged read: what each shard is asked, and what the router does with the rows."""

from __future__ import annotations

from foreshard._core.merge_plan import Combine, LimitSource, MergePlan

WORDS = {
    Combine.COMBINE_SUM: "sum",
    Combine.COMBINE_MIN: "least",
    Combine.COMBINE_MAX: "greatest",
    Combine.COMBINE_AND: "and",
    Combine.COMBINE_OR: "or",
    Combine.COMBINE_AVG: "average",
    Combine.COMBINE_ANY: "any",
    Combine.COMBINE_TEXT: "strings joined",
    Combine.COMBINE_BIT_AND: "bitwise and",
    Combine.COMBINE_BIT_OR: "bitwise or",
    Combine.COMBINE_BIT_XOR: "bitwise exclusive or",
    Combine.COMBINE_ARRAY: "arrays joined",
    Combine.COMBINE_JSON: "JSON arrays joined",
    Combine.COMBINE_KEPT: "arrays",
    Combine.COMBINE_SORTED: "arrays merged in order",
}


def merge_lines(plan: MergePlan) -> list[str]:
    """One line for each step, in the order in which rows pass them."""
    lines = [f"Each shard is asked: {shown_text(plan.pieces)}"]
    if plan.is_plan:
        return [*lines, "Plans are shown shard by shard"]
    if plan.finish is not None:
        lines.append("Rows are taken from the shards as they come")
        before, behind = (shown_text(pieces) for pieces in plan.finish)
        return [*lines, f"One shard puts them together: {before}rows{behind}"]
    if plan.keys:
        keys = ", ".join(ordered(number, *key) for number, key in enumerate(plan.keys))
        lines.append(f"Rows are taken from the shards in order of {keys}")
    else:
        lines.append("Rows are taken from the shards as they come")
    if plan.group >= 0:
        lines.append(grouping(plan))
    if plan.filters:
        conditions = " and ".join(f"{named(one)} {operator} {named(other)}" for one, operator, other in plan.filters)
        lines.append(f"Groups are kept that have {conditions}")
    if plan.order:
        lines.append(f"Groups are sorted by {', '.join(ordered(*each) for each in plan.order)}")
    limits = [
        f"{word} {shown(source)}"
        for word, source in (("OFFSET", plan.offset), ("LIMIT", plan.limit))
        if source[0] != LimitSource.LIMIT_NONE
    ]
    if limits:
        lines.append(f"{' and '.join(limits)} count the merged rows")
    if plan.hidden:
        lines.append(f"The first {plan.hidden} columns are not shown")
    return lines


def grouping(plan: MergePlan) -> str:
    """What becomes of rows that belong together."""
    which = f"equal in the first {plan.group} columns" if plan.group else "of all shards"
    parts = ", ".join(f"{WORDS[Combine(kind)]} of {named(column)}" for column, kind, _ in plan.combines)
    return f"Rows {which} become one" + (f": {parts}" if parts else "")


def shown_text(pieces: tuple[bytes | int, ...]) -> str:
    """A text; the literals of the very statement are not part of a plan."""
    return b"".join(piece if isinstance(piece, bytes) else b"<literal>" for piece in pieces).decode("utf-8", "replace")


def named(column: int) -> str:
    """A column of the shards' rows, hidden ones counted."""
    return f"column {column + 1}"


def ordered(column: int, down: bool, nulls_first: bool) -> str:
    """A sort key."""
    return f"{named(column)}{' DESC' if down else ''}{' NULLS FIRST' if nulls_first else ''}"


def shown(source: tuple[int, int]) -> str:
    """Where LIMIT or OFFSET has its number."""
    kind, number = source
    if kind == LimitSource.LIMIT_PARAM:
        return f"${number + 1}"
    return str(number) if kind == LimitSource.LIMIT_CONSTANT else "<literal>"
