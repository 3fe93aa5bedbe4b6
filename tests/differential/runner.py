"""Runs scripts of random units on both sides, compares every answer, and cuts down what differs.

The proxy is asked first: keys that its shards made are handed to the reference, which is then asked the same. What the
proxy refuses (0A000) is counted with its reason; the reference hears a statement that fails alike in its place, so both
transactions go on in the same state.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tests.differential.answers import REFUSED, Result, is_same, reason_of, results_of, show, split
from tests.differential.pieces import Form, Statement, Unit, piece, size_of
from tests.differential.report import Tally
from tests.differential.schema import BY_NAME
from tests.differential.sides import Client, World
from tests.support.messages import query
from tests.support.raw import Closed, Message

REFUSAL = Statement("refusal", piece(f"DO $$BEGIN RAISE EXCEPTION SQLSTATE '{REFUSED}'; END$$"))
REDUCTIONS_MAX = 300


@dataclass
class Mismatch(Exception):
    """Two answers that differ."""

    unit: Unit
    proxied: str
    expected: str
    script: tuple[Unit, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        lines = [self.note, f"proxy:\n    {self.proxied}", f"PostgreSQL:\n    {self.expected}"]
        return "\n".join([self.unit.describe(), *(line for line in lines if line)])


class Runner:
    """One client on each side, and the counts of what was asked. Ended by `close`."""

    def __init__(self, world: World, tally: Tally) -> None:
        self.world = world
        self.tally = tally
        self.proxied = Client(world.proxied)
        self.reference = Client(world.reference)
        self.explaining = Client(world.proxied)
        self.script: list[Unit] = []
        self.new_marks: dict[str, list[str]] = {}

    def close(self) -> None:
        for client in (self.proxied, self.reference, self.explaining):
            client.close()

    @property
    def status(self) -> str:
        return self.proxied.status

    def step(self, unit: Unit) -> None:
        """Run a unit on both sides; Mismatch when the answers differ."""
        self.script.append(unit)
        keys = self.world.keys
        before = self.proxied.status
        try:
            answer = self.proxied.ask(unit, keys)
            results = results_of(answer, unit)
            self._learn(unit, answer)
            self._count(unit, results, before)
        except (Closed, OSError) as error:
            said = "\n    ".join(self.world.proxy.log_text().splitlines()[-30:])
            raise Mismatch(unit, f"{error!r}, log:\n    {said}", "an answer", tuple(self.script)) from None
        refused = next((index for index, one in enumerate(results) if one.sqlstate == REFUSED and one.is_ours), -1)
        if refused >= 0:
            expected = self._mirror_refusal(unit, refused, before)
        else:
            expected = results_of(self.reference.ask(unit, keys), unit)
        if not is_same(results, expected) or self.proxied.status != self.reference.status:
            raise Mismatch(
                unit, show(results, self.proxied.status), show(expected, self.reference.status), tuple(self.script)
            )

    def _mirror_refusal(self, unit: Unit, refused: int, before: str) -> list[Result]:
        """What comes before the refused statement, then one that fails like it."""
        if refused == 0 and before == "I" and len(unit.statements) == 1:
            return [Result((f"E {REFUSED}",), REFUSED)]
        statements = (*unit.statements[:refused], REFUSAL)
        forms = (*unit.forms[:refused], replace(unit.forms[refused], is_named=False))
        mirrored = Unit(statements, forms, unit.is_pipeline)
        return results_of(self.reference.ask(mirrored, self.world.keys), mirrored)

    def _learn(self, unit: Unit, answer: list[Message]) -> None:
        """Hand the keys that the shards made to the reference."""
        found: dict[str, str] = {}
        for statement, form, group in zip(unit.statements, unit.forms, split(answer), strict=False):
            if statement.made is not None:
                rows = [message.values for message in group if message.kind == b"D"]
                marks = {_text(row[statement.made.mark_index]): row[statement.made.key_index] for row in rows}
                is_binary = (unit.is_pipeline or form.by_extended) and form.result_format == 1
                made = {mark: _key_text(statement.made.table, key, is_binary) for mark, key in marks.items()}
                self.new_marks.setdefault(statement.made.table, []).extend(made)
                found.update(made)
        if self.proxied.status == "I":
            wanted: dict[str, list[str]] = {}
            for statement in unit.statements:
                for table, mark in statement.makes:
                    wanted.setdefault(table, []).append(mark)
            for table, names in wanted.items():
                found.update(self.world.find_made(table, names))
        if found:
            self.world.keys.by_mark.update(found)
            self.world.keys.write(found)

    def _count(self, unit: Unit, results: list[Result], before: str) -> None:
        for statement, result in zip(unit.statements, results, strict=False):
            is_refused = result.sqlstate == REFUSED and result.is_ours
            if is_refused and unit.is_string:
                statement = Statement("string", piece(unit.describe()))
            tier = "refused" if is_refused else "session" if statement.kind == "control" else self.tier_of(statement)
            self.tally.add(statement.kind, tier, result.sqlstate, reason_of(result.message) if is_refused else "")
            if is_refused:
                shown = unit.describe() if unit.is_pipeline else statement.sql.as_literals(lambda text: text)
                self.tally.keep_example(reason_of(result.message), f"{before}: {shown}")

    def tier_of(self, statement: Statement) -> str:
        """How the proxy says that it would route the statement."""
        text = "EXPLAIN (FORESHARD) " + statement.sql.as_literals(self.world.keys.resolve)
        rows = [message.values for message in self.explaining.connection.ask(query(text)) if message.kind == b"D"]
        return _text(rows[0][0]).partition(":")[0] if rows else "none"

    # Cutting down

    def differs(self, statement: Statement, form: Form) -> bool:
        """Whether both sides answer one statement differently, outside of transactions; a refusal does not count."""
        unit = Unit.single(statement, form)
        proxied = results_of(self.proxied.ask(unit, self.world.keys), unit)
        expected = results_of(self.reference.ask(unit, self.world.keys), unit)
        return not is_same(proxied, expected) and not any(one.sqlstate == REFUSED for one in proxied)

    def reduce(self, statement: Statement, form: Form) -> Statement:
        """A smaller SELECT on which the sides still differ."""
        current, tries = statement, 0
        while tries < REDUCTIONS_MAX:
            for less in current.sql.reductions():
                tries += 1
                smaller = replace(current, sql=less)
                if size_of(less) < size_of(current.sql) and self.differs(smaller, form):
                    current = smaller
                    break
                if tries >= REDUCTIONS_MAX:
                    return current
            else:
                return current
        return current


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode(errors="replace")


def _key_text(table: str, key: bytes | None, is_binary: bool) -> str:
    """A generated key as text."""
    assert key is not None
    if not is_binary:
        return key.decode()
    if BY_NAME[table].columns["id"] == "uuid":
        text = key.hex()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
    return str(int.from_bytes(key, "big", signed=True))


def shrink(world: World, fill: Iterable[Unit], script: tuple[Unit, ...], deadline_s: float) -> tuple[Unit, ...]:
    """Fewer units that still end in a mismatch, by running ever smaller scripts on emptied tables."""
    ends_at = time.monotonic() + deadline_s
    filling, current = list(fill), list(script)
    size = max(len(current) // 2, 1)
    while size >= 1 and time.monotonic() < ends_at:
        start = 0
        while start < len(current) - 1 and time.monotonic() < ends_at:
            tried = current[:start] + current[min(start + size, len(current) - 1) :]
            if len(tried) < len(current) and fails(world, filling, tried):
                current = tried
            else:
                start += size
        size = 0 if size == 1 else max(size // 2, 1)
    return tuple(current)


def fails(world: World, fill: list[Unit], script: list[Unit]) -> bool:
    """Whether a script, run from the beginning, ends in a mismatch."""
    world.empty()
    runner = Runner(world, Tally())
    try:
        for unit in [*fill, *script]:
            runner.step(unit)
    except Mismatch:
        return True
    finally:
        runner.close()
    return False
