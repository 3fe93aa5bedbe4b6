"""EXPLAIN (FORESHARD): a route and, for a placed row, the decision behind it, as lines of text.

The explanation is a dictionary (`Explanation`) that the router fills from the template and the placer; nothing here
decides anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from foreshard._core.merge_plan import MergePlan
from foreshard.proxy.admin.explain_merge import merge_lines
from foreshard.proxy.admin.results import Column, ResultSet, show_value

RESOURCES = (("cpu", "s"), ("memory", "byte s"), ("io", "bytes"), ("network", "bytes"))
REASONS = {
    "none-up": "no shard is up",
    "only-shard": "one shard is up",
    "transaction": "the transaction already writes there",
    "parent": "it follows its parent",
    "key": "found by its key",
    "candidate-0": "its first candidate is below its cap",
    "lighter-of-two": "its first candidate is above its cap, this is the lighter of the next two",
    "heavy-lightest": "the row is heavy, this is the lightest candidate",
    "fallback": "every candidate is down, this is the next shard that is up",
    "key-hash": "policy key-hash: the hash of the key",
    "cost-hash": "policy cost-hash: the hash of the predicted cost",
    "two-choices": "policy two-choices: the lighter of two",
    "least-loaded": "policy least-loaded: the lightest of all",
}
FIXED = frozenset(("none-up", "only-shard", "transaction", "parent", "key"))  # there was nothing to choose
ROUTES = {
    "empty": "Nothing to run",
    "default": "Default shard",
    "keyed": "By key",
    "scatter": "All shards, rows concatenated",
    "any": "Any shard",
    "place": "Place by predicted cost",
    "refuse": "Refused",
    "transaction": "Transaction control",
    "multi": "Several statements",
    "explain": "Answered by the router",
    "query": "Query node",
    "alone": "All shards, one after the other, outside of transactions",
    "carry": "Rows of a query, carried to their shards",
    "copy": "Rows of a COPY, each to its shard",
}
MERGED = {"scatter": "All shards, rows merged", "keyed": "By key, rows merged"}


class Explanation(TypedDict, total=False):
    """What is known about one statement's route."""

    route: str  # a key of ROUTES
    operation: str  # select, insert, update, delete, other
    table: str | None  # qualified name of the declared table
    shards: Sequence[str]  # names of the shards it would go to
    buckets: Sequence[int]  # buckets of its keys, for "keyed"
    claims: Sequence[tuple[str, int, str, int, str]]  # column, home, its shard, bucket of the row or -1, its shard
    pin: str | None  # why it ties the session to its backend
    refusal: str | None  # what the client would hear
    refusal_detail: str
    refusal_hint: str
    functions: Sequence[str]  # "name on operation" of the trigger functions the write fires
    features: Sequence[float] | None  # sums over the rows: [rows, size, complexity, volume]
    computed: int  # values among them that are expressions, whose size is not known
    merge: MergePlan | None  # how several shards' rows become one result; None: one behind the other
    decision: dict[str, Any] | None  # Placer.explain() or last_decision()


def explain_result(explanation: Explanation, shard_names: Sequence[str]) -> ResultSet:
    """The explanation as PostgreSQL would show a plan: one text column named QUERY PLAN."""
    lines = explain_lines(explanation, shard_names)
    return ResultSet((Column("QUERY PLAN"),), tuple((line,) for line in lines), "EXPLAIN")


def explain_lines(explanation: Explanation, shard_names: Sequence[str]) -> list[str]:
    """The explanation, most important first; indented lines belong to the line above them."""
    decision = explanation.get("decision")
    shards = list(explanation.get("shards") or ())
    if not shards and decision and decision["chosen"] is not None:
        shards = [shard_names[decision["chosen"]]]
    merge = explanation.get("merge") if len(shards) > 1 else None
    head = (MERGED if merge else ROUTES).get(explanation["route"], explanation["route"])
    lines = [f"{head}: {', '.join(shards)}" if shards else head]
    facts: list[tuple[str, Any]] = [
        ("Refusal", explanation.get("refusal")),
        ("Detail", explanation.get("refusal_detail")),
        ("Hint", explanation.get("refusal_hint")),
        ("Operation", None if explanation["route"] == "refuse" else explanation.get("operation")),
        ("Table", explanation.get("table")),
        ("Buckets", ", ".join(str(bucket) for bucket in explanation.get("buckets") or ())),
        ("Pins the session", explanation.get("pin")),
        ("Fires", ", ".join(explanation.get("functions") or ())),
    ]
    lines += [f"  {name}: {value}" for name, value in facts if value]
    lines += [_claim_line(*claim) for claim in explanation.get("claims") or ()]
    if merge is not None:
        lines += ["  Merge:", *(f"    {line}" for line in merge_lines(merge))]
    features = explanation.get("features")
    if features is not None:
        rows, size, complexity, volume = features
        lines.append(
            f"  Features: rows {rows:g}, size {show_value(size)} bytes, complexity {show_value(complexity)}, "
            f"volume {volume:g}"
        )
        computed = explanation.get("computed")
        if computed:
            lines.append(f"    values that are expressions, counted without being evaluated: {computed}")
    if decision:
        lines += _decision_lines(decision, shard_names, bool(explanation.get("functions")))
    return lines


def _claim_line(column: str, home: int, home_shard: str, bucket: int, shard: str) -> str:
    """Where the row of a key that clients give is, as its claim says."""
    found = "there is no row"
    if bucket >= 0:
        away = "at home" if bucket == home else f"away from home, in bucket {bucket} on {shard}"
        found = f"the row is {away}"
    return f"  Claim of {column}: home bucket {home} on {home_shard}; {found}"


def _decision_lines(decision: dict[str, Any], shard_names: Sequence[str], fires: bool) -> list[str]:
    # What was measured once is never predicted as nothing: a function's zero means that nobody knows.
    predicted = ", ".join(
        f"{name} {amount:.4g} {unit}" if amount or not fires else f"{name} unknown"
        for (name, unit), amount in zip(RESOURCES, decision["predicted"], strict=True)
    )
    weight = "heavy" if decision["heavy"] else "light"
    is_choice = decision["reason"] not in FIXED
    lines = [
        f"  Predicted: {predicted}",
        f"  Cost: {decision['cost']:.4g} s of a shard, {weight} (heavy from {decision['heavy_threshold']:.4g} s)",
        *([f"  Policy: {decision['policy']}"] if is_choice else []),
        f"  Reason: {REASONS.get(decision['reason'], decision['reason'])}",
    ]
    candidates = decision["candidates"] if is_choice else []
    if candidates:
        lines.append("  Candidates:")
    for index, candidate in enumerate(candidates):
        bucket = "any bucket" if candidate["bucket"] is None else f"bucket {candidate['bucket']}"
        crowded = ", too many rows" if candidate["crowded"] else ""
        lines.append(
            f"    {index}: {bucket} on {shard_names[candidate['shard']]}, load {candidate['load']:.4g} s, "
            f"cap {candidate['cap']:.4g} s{crowded}"
        )
    return lines
