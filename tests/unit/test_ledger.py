"""The ledger of the uniqueness tests finds what it is there to find."""

from __future__ import annotations

from tests.support.ledger import Act, Look, Outcome, Row, problems, wrong_looks

EMAIL = ("item.email", "a")


def row(mark: str, *values: tuple[str, str]) -> Row:
    return Row(mark, values)


def act(
    made: tuple[Row, ...] = (),
    ended: tuple[str, ...] = (),
    outcome: Outcome = Outcome.HAPPENED,
    at_s: tuple[float, float] = (0, 1),
) -> Act:
    return Act(made, ended, outcome, *at_s)


def test_rows_that_are_as_clients_were_told_are_no_problem() -> None:
    acts = [
        act((row("m1", EMAIL),)),
        act((row("m2", EMAIL),), ("m1",), at_s=(2, 3)),
        act((row("m3"),), ("m2",), Outcome.UNKNOWN, at_s=(4, 5)),
        act((row("m4", EMAIL),), (), Outcome.REFUSED, at_s=(4, 5)),
    ]
    assert problems(acts, [row("m2", EMAIL)]) == []
    assert problems(acts, [row("m3")]) == []


def test_two_rows_with_one_value_are_found() -> None:
    acts = [act((row("m1", EMAIL),), at_s=(0, 5)), act((row("m2", EMAIL),), outcome=Outcome.UNKNOWN)]
    assert problems(acts, [row("m1", EMAIL), row("m2", EMAIL)])


def test_an_acknowledged_row_that_is_gone_is_found() -> None:
    assert problems([act((row("m1"),))], [])
    assert problems([act((row("m1"),)), act((), ("m1",), Outcome.REFUSED)], [])


def test_a_row_that_was_refused_or_ended_and_is_there_is_found() -> None:
    assert problems([act((row("m1"),), outcome=Outcome.REFUSED)], [row("m1")])
    assert problems([act((row("m1"),)), act((), ("m1",), at_s=(2, 3))], [row("m1")])
    assert problems([], [row("m1")])


def test_half_of_an_act_is_found() -> None:
    unknown = act((row("m1"), row("m2")), ("m0",), Outcome.UNKNOWN, at_s=(2, 3))
    before = act((row("m0"),))
    assert problems([before, unknown], [row("m1")])
    assert problems([before, unknown], [row("m0"), row("m1"), row("m2")])
    assert problems([before, unknown], [row("m0")]) == []
    assert problems([before, unknown], [row("m1"), row("m2")]) == []


def test_two_rows_that_held_one_value_at_one_time_are_found_when_both_are_gone() -> None:
    acts = [
        act((row("m1", EMAIL),), at_s=(0, 1)),
        act((row("m2", EMAIL),), at_s=(2, 3)),
        act((), ("m1",), at_s=(4, 5)),
        act((), ("m2",), at_s=(4, 5)),
    ]
    assert problems(acts, [])
    assert problems([acts[0], acts[1], act((), ("m1",), at_s=(1.5, 2.5)), acts[3]], []) == []


def test_a_look_that_missed_a_row_or_saw_one_that_had_gone_is_found() -> None:
    acts = [act((row("m1", EMAIL),)), act((), ("m1",), at_s=(4, 5))]
    right = [Look(EMAIL, "m1", 2, 3), Look(EMAIL, None, 0.5, 3), Look(EMAIL, "m1", 4.5, 6), Look(EMAIL, None, 3, 4.5)]
    assert list(wrong_looks(acts, right)) == []
    for look in (Look(EMAIL, None, 2, 3), Look(EMAIL, "m2", 2, 3), Look(EMAIL, "m1", 6, 7)):
        assert len(list(wrong_looks(acts, [look]))) == 1
    late = [act((row("m1", EMAIL),), at_s=(0, float("inf")))]
    assert list(wrong_looks(late, [Look(EMAIL, None, 2, 3)])) == []
