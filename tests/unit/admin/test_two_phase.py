"""How SHOW TWO_PHASE words each state of a prepared transaction."""

from __future__ import annotations

import pytest

from foreshard._core.two_phase import make_gid
from foreshard.proxy.admin.sources import ShardAnswer
from foreshard.proxy.admin.views_two_phase import OUTCOMES_SQL, PREPARED_SQL, show_two_phase, state_of
from tests.unit.admin.test_console import Sources

ID = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("answer", "age_s", "state"),
    [
        (ShardAnswer("s0"), 0.1, "waiting"),
        (ShardAnswer("s0"), 60.0, "in doubt: its decision is still open, or no controller runs"),
        (ShardAnswer("s0", ((ID, "commit"),)), 0.1, "committing"),
        (ShardAnswer("s0", ((ID, "abort"),)), 60.0, "rolling back"),
        (ShardAnswer("s0", error="refused"), 0.1, "in doubt: shard s0, which decides, is down"),
        (ShardAnswer("s1"), 0.1, "in doubt: shard s0 is not in the configuration"),
    ],
)
def test_the_state_follows_from_what_the_decision_shard_says(answer: ShardAnswer, age_s: float, state: str) -> None:
    assert state_of(ID, "s0", age_s, {answer.shard: answer}) == state


class Prepared(Sources):
    """One of ours on s1, decided on s0; one of somebody else; s2 down."""

    def __init__(self) -> None:
        super().__init__()
        self.gid = make_gid("c", "s0", ID, "s1")
        self.asked: list[str] = []

    async def ask_shards(self, sql: str) -> list[ShardAnswer]:
        self.asked.append(sql)
        rows: tuple[tuple[object, ...], ...] = ((self.gid, "app", 4.5, True), ("mine", "bob", 99.0, False))
        if sql == PREPARED_SQL:
            return [ShardAnswer("s0"), ShardAnswer("s1", rows), ShardAnswer("s2", error="refused")]
        return [ShardAnswer("s0", ((ID, "commit"),)), ShardAnswer("s1"), ShardAnswer("s2", error="refused")]


async def test_ours_others_and_shards_that_are_down_are_all_listed() -> None:
    sources = Prepared()
    assert (await show_two_phase(sources)).rows == (
        ("s1", sources.gid, ID, "s0", "s1", "app", 4.5, "committing"),
        ("s1", "mine", None, None, None, "bob", 99.0, "not of this cluster: end it by hand"),
        ("s2", None, None, None, None, None, None, "unknown: refused"),
    )
    assert sources.asked == [PREPARED_SQL, OUTCOMES_SQL.format(f"'{ID}'")]
