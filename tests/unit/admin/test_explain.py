"""EXPLAIN (FORESHARD) as text."""

from __future__ import annotations

from foreshard._core.placement import Placer
from foreshard._core.shared import SharedState
from foreshard._core.template import RouteKind
from foreshard.proxy.admin.explain import REASONS, ROUTES, Explanation, explain_lines, explain_result

PLACED: Explanation = {
    "route": "place",
    "operation": "insert",
    "table": "public.document",
    "functions": ["index_document on insert", "compress_document on insert"],
    "features": [1.0, 5231.0, 3.0, 1.0],
    "decision": {
        "policy": "bounded",
        "predicted": [0.0125, 1200.0, 0.0, 0.0],
        "cost": 0.0125,
        "heavy_threshold": 0.085,
        "heavy": False,
        "candidates": [
            {"bucket": 17, "shard": 1, "load": 1.5, "cap": 1.75, "crowded": False},
            {"bucket": 99, "shard": 0, "load": 1.0, "cap": 1.75, "crowded": True},
        ],
        "chosen": 1,
        "reason": "candidate-0",
    },
}


def test_a_placed_row_shows_cost_candidates_and_reason() -> None:
    assert explain_lines(PLACED, ["s0", "s1"]) == [
        "Place by predicted cost: s1",
        "  Operation: insert",
        "  Table: public.document",
        "  Fires: index_document on insert, compress_document on insert",
        "  Features: rows 1, size 5231 bytes, complexity 3, volume 1",
        "  Predicted: cpu 0.0125 s, memory 1200 byte s, io unknown, network unknown",
        "  Cost: 0.0125 s of a shard, light (heavy from 0.085 s)",
        "  Policy: bounded",
        "  Reason: its first candidate is below its cap",
        "  Candidates:",
        "    0: bucket 17 on s1, load 1.5 s, cap 1.75 s",
        "    1: bucket 99 on s0, load 1 s, cap 1.75 s, too many rows",
    ]


def test_a_keyed_read_shows_its_buckets_and_shard() -> None:
    explanation: Explanation = {"route": "keyed", "operation": "select", "shards": ["s1"], "buckets": [17]}
    assert explain_lines(explanation, ["s0", "s1"]) == ["By key: s1", "  Operation: select", "  Buckets: 17"]


def test_a_refusal_says_what_the_client_would_hear() -> None:
    lines = explain_lines({"route": "refuse", "refusal": "Foreshard does not support keyless UPDATE yet"}, ["s0"])
    assert lines == ["Refused", "  Refusal: Foreshard does not support keyless UPDATE yet"]


def test_a_refusal_has_the_hint_of_the_error_and_no_operation() -> None:
    told: Explanation = {"route": "refuse", "operation": "other", "refusal": "no", "refusal_detail": "d"}
    lines = explain_lines({**told, "refusal_hint": "h"}, ["s0"])
    assert lines == ["Refused", "  Refusal: no", "  Detail: d", "  Hint: h"]


def test_a_write_that_has_no_choice_shows_its_cost_and_no_candidates() -> None:
    decision = {**(PLACED["decision"] or {}), "reason": "key", "candidates": []}
    keyed: Explanation = {**PLACED, "route": "keyed", "shards": ["s1"], "decision": decision}
    lines = explain_lines(keyed, ["s0", "s1"])
    assert lines[0] == "By key: s1"
    assert lines[-1] == "  Reason: found by its key"
    assert not any("Policy" in line or "Candidates" in line for line in lines)


def test_values_that_nobody_knows_yet_are_counted() -> None:
    lines = explain_lines({**PLACED, "computed": 2}, ["s0", "s1"])
    assert "    values that are expressions, counted without being evaluated: 2" in lines


def test_the_result_is_one_column_named_query_plan() -> None:
    result = explain_result(PLACED, ["s0", "s1"])
    assert [column.name for column in result.columns] == ["QUERY PLAN"]
    assert result.tag == "EXPLAIN"


def test_a_real_decision_can_be_explained() -> None:
    state = SharedState.private(3, 1)
    state.set_bucket_map([bucket % 3 for bucket in range(4096)], 1)
    decision = Placer(state, "bounded", 1.05, 1).explain([1.0, 100.0, 2.0, 1.0], [0])
    assert decision["reason"] in REASONS
    lines = explain_lines({"route": "place", "decision": decision}, ["s0", "s1", "s2"])
    assert lines[0].startswith("Place by predicted cost: s")
    assert any(line.startswith("    3: ") for line in lines)


def test_every_kind_of_route_is_told_in_words() -> None:
    assert {kind.name.removeprefix("ROUTE_").lower() for kind in RouteKind} == set(ROUTES)
