"""Clients that fight over a small key space (unique_roots.py), through either of two proxies, and write down what
they are told."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from tests.support.ledger import Act, Look, Outcome, Row
from tests.support.messages import SYNC, extended
from tests.support.proxy import Proxy
from tests.support.raw import Closed, Message, RawConnection, error_of, kinds
from tests.support.unique_roots import ROOTS, VALUES, Root, quoted, row_of

# Told of a statement that did nothing: somebody has the value, or was in the way.
REFUSED = {"23505", "23503", "40001", "40P01", "55P03", "25P02"}
# The connection, or a shard, went away: nobody knows.
BROKEN = {"08006", "08007", "57P01", "57P02", "57P03", "53300", "58000", "XX000"}
ALL = {b"INSERT 0 1", b"INSERT 0 3", b"UPDATE 1", b"DELETE 1"}


class Unclear(Exception):
    """Whether the statement at hand has happened is not known."""


class Refused(Exception):
    """It has not."""


class Client:
    """One client; `acts` is what it remembers."""

    def __init__(self, proxies: tuple[Proxy, Proxy], number: int, seed: int) -> None:
        self.proxy = proxies[number % 2]
        self.number = number
        self.draw = random.Random(seed * 1000 + number)
        self.acts: list[Act] = []
        self.looks: list[Look] = []
        self.was_warned = False  # of a commit that some shard has not confirmed yet
        self.counts: Counter[str] = Counter()
        self.deeds: Counter[str] = Counter()  # that happened
        self.connection: RawConnection | None = None
        self.marks = 0
        self.in_block = False

    def run(self, stopping: threading.Event) -> None:
        deeds: list[Callable[[], None]] = [
            self.insert_row, self.insert_row, self.insert_one_by_one, self.insert_rows, self.move_key,
            self.insert_unless_there, self.insert_or_change, self.make_anew, self.move_value,
            self.delete_row, self.delete_row, self.delete_row,  # leaves room for new ones
            self.insert_wrap, self.delete_wraps, self.insert_account, self.delete_account, self.pass_handle_on,
            self.insert_part, self.delete_part, self.insert_unless_held, self.change_holder, self.move_value_of_holder,
            self.insert_unless_any, self.insert_or_mark_account, self.insert_part_unless_there,
            self.insert_those_not_held,
        ]  # fmt: skip
        while not stopping.is_set():
            try:
                if self.connection is None:
                    self.connection = self.proxy.server.connect()
                self.do(self.draw.choice(deeds))
            except Refused:
                continue  # a read before the deed was refused
            except (Unclear, Closed, OSError, AssertionError) as error:
                if isinstance(error, AssertionError) and self.connection is not None:
                    raise
                self.leave()
                stopping.wait(0.05)
        self.leave()

    def do(self, deed: Callable[[], None]) -> None:
        before = self.counts["happened"]
        deed()
        self.deeds[deed.__name__] += self.counts["happened"] - before

    def leave(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    # -- speaking ------------------------------------------------------------------------------------------------

    def say(self, sql: str) -> list[Message]:
        """The answer to one statement, in either protocol. Refused or Unclear for an error."""
        assert self.connection is not None
        try:
            if self.draw.random() < 0.5:
                answer = self.connection.query(sql)
            else:
                answer = self.connection.ask(extended(sql), SYNC)
        except (Closed, OSError) as error:
            raise Unclear from error
        self.was_warned = self.was_warned or "N" in kinds(answer)
        if "E" in kinds(answer):
            told = error_of(answer)
            self.counts[told["C"]] += 1
            if told["C"] in BROKEN:
                raise Unclear
            assert told["C"] in REFUSED, f"{sql}: {told}"
            raise Refused
        return answer

    def ask(self, sql: str) -> list[list[str | None]]:
        """Rows of a query."""
        return [
            [None if value is None else value.decode() for value in message.values]
            for message in self.say(sql)
            if message.kind == b"D"
        ]

    def change(self, sql: str) -> None:
        """A statement that changes the one row, or the three, that it is for, or (Refused) none."""
        tags = {message.body[:-1] for message in self.say(sql) if message.kind == b"C"}
        if not tags & ALL:
            raise Refused

    def try_to(self, made: list[Row], ended: list[str], *statements: str) -> None:
        """Run one statement, or several in a transaction, and remember what came of it."""
        began_s = time.monotonic()
        outcome = Outcome.UNKNOWN
        self.was_warned = False
        try:
            texts = ["BEGIN", *statements, "COMMIT"] if len(statements) > 1 else list(statements)
            for text in texts:
                if text in ("BEGIN", "COMMIT"):
                    tags = [message.body[:-1] for message in self.say(text) if message.kind == b"C"]
                    if tags == [b"ROLLBACK"]:
                        raise Refused
                else:
                    self.change(text)
            outcome = Outcome.HAPPENED
        except Refused:
            outcome = Outcome.REFUSED
            if len(statements) > 1:
                self.say("ROLLBACK")
        finally:
            self.counts[outcome.value] += 1
            told_s = math.inf if self.was_warned else time.monotonic()
            self.acts.append(Act(tuple(made), tuple(ended), outcome, began_s, told_s))

    # -- values --------------------------------------------------------------------------------------------------

    def mark(self) -> str:
        self.marks += 1
        return f"{self.number}.{self.marks}"

    def value(self, letter: str) -> str:
        return f"{letter}{self.draw.randrange(VALUES)}"

    def other(self, null_share: float = 0.1) -> str | None:
        """A value for a root's unique column."""
        return None if self.draw.random() < null_share else self.value("e")

    def new_row(self, root: Root, key: str | None = None, null_share: float = 0.1) -> tuple[Row, str]:
        """A row of a root, and its VALUES."""
        key, other, mark = key or root.draw_key(self.draw), self.other(null_share), self.mark()
        return root.row(mark, key, other), root.values(mark, key, other)

    def find_row(self) -> tuple[Root, str, str, str | None]:
        """Root, key, mark and unique value of a row that is there; what is seen is remembered."""
        root = self.draw.choice(ROOTS)
        key = root.draw_key(self.draw)
        began_s = time.monotonic()
        found = self.ask(f"SELECT mark, {root.other} FROM {root.table} WHERE {root.is_key(key)}")
        mark = str(found[0][0]) if found else None
        value = (f"{root.table}.{root.key[-1]}", root.value_of(key))
        self.looks.append(Look(value, mark, began_s, time.monotonic()))
        if mark is None:
            raise Refused
        return root, key, mark, found[0][1]

    def find_holder(self) -> tuple[Root, str, str]:
        """Root, mark and value of a row that is found by its unique value."""
        root = self.draw.choice(ROOTS)
        other = self.value("e")
        found = self.ask(f"SELECT mark FROM {root.table} WHERE {root.other} = '{other}'")
        if not found:
            raise Refused
        return root, str(found[0][0]), other

    def find_account(self) -> tuple[str, str, str | None]:
        """Key, mark and handle of some account."""
        found = self.ask(f"SELECT id, mark, handle FROM account WHERE handle = '{self.value('h')}'")
        if not found:
            raise Refused
        return str(found[0][0]), str(found[0][1]), found[0][2]

    # -- deeds ---------------------------------------------------------------------------------------------------

    def insert_row(self) -> None:
        root = self.draw.choice(ROOTS)
        row, values = self.new_row(root)
        self.try_to([row], [], root.insert + values)

    def insert_one_by_one(self) -> None:
        """Several in one transaction, on several shards."""
        root = self.draw.choice(ROOTS)
        made = [self.new_row(root, key, 0.6) for key in sorted(root.sample_keys(self.draw, 3))]
        self.try_to([row for row, _ in made], [], *(root.insert + values for _, values in made))

    def insert_rows(self) -> None:
        """The same in one statement."""
        root = self.draw.choice(ROOTS)
        made = [self.new_row(root, key, 0.6) for key in root.sample_keys(self.draw, 3)]
        self.try_to([row for row, _ in made], [], root.insert + ", ".join(values for _, values in made))

    def move_key(self) -> None:
        """Another key for a row."""
        root, key, known, other = self.find_row()
        goal, mark = root.draw_key(self.draw), self.mark()
        self.try_to(
            [root.row(mark, goal, other)],
            [known],
            f"UPDATE {root.table} SET {root.set_key(goal)}, mark = '{mark}' WHERE {root.is_key(key)}"
            f" AND mark = '{known}'",
        )

    def insert_unless_there(self) -> None:
        root = self.draw.choice(ROOTS)
        row, values = self.new_row(root)
        self.try_to([row], [], root.insert + values + root.on_conflict + " DO NOTHING")

    def insert_or_change(self) -> None:
        """ON CONFLICT DO UPDATE, of a row that is known."""
        root, key, known, _ = self.find_row()
        row, values = self.new_row(root, key)
        self.try_to(
            [row],
            [known],
            f"{root.insert}{values}{root.on_conflict} DO UPDATE SET {root.other} = excluded.{root.other},"
            f" mark = excluded.mark WHERE {root.table}.mark = '{known}'",
        )

    def insert_unless_held(self) -> None:
        """ON CONFLICT by the unique column."""
        root = self.draw.choice(ROOTS)
        row, values = self.new_row(root)
        self.try_to([row], [], f"{root.insert}{values} ON CONFLICT ({root.other}) DO NOTHING")

    def insert_unless_any(self) -> None:
        """ON CONFLICT by whatever is unique."""
        root = self.draw.choice(ROOTS)
        row, values = self.new_row(root)
        self.try_to([row], [], f"{root.insert}{values} ON CONFLICT DO NOTHING")

    def insert_those_not_held(self) -> None:
        """The same for several rows in one statement: those that are returned are there, the others are not."""
        root = self.draw.choice(ROOTS)
        rows = [self.new_row(root, key) for key in root.sample_keys(self.draw, 3)]
        listed = ", ".join(values for _, values in rows)
        began_s, outcomes = time.monotonic(), [Outcome.UNKNOWN] * len(rows)
        self.was_warned = False
        try:
            told = self.ask(f"{root.insert}{listed} ON CONFLICT ({root.other}) DO NOTHING RETURNING mark")
            there = {mark for (mark,) in told}
            outcomes = [Outcome.HAPPENED if row.mark in there else Outcome.REFUSED for row, _ in rows]
        except Refused:
            outcomes = [Outcome.REFUSED] * len(rows)
        finally:
            told_s = math.inf if self.was_warned else time.monotonic()
            for (row, _), outcome in zip(rows, outcomes, strict=True):
                self.counts[outcome.value] += 1
                self.acts.append(Act((row,), (), outcome, began_s, told_s))

    def change_holder(self) -> None:
        """ON CONFLICT DO UPDATE by the unique column: the row that holds the value has another key, on any shard."""
        root, known, other = self.find_holder()
        mark = self.mark()
        self.try_to(
            [Row(mark, ((root.unique, other),))],  # its key is the holder's, or, where that has just gone, the new one
            [known],
            f"{root.insert}{root.values(mark, root.draw_key(self.draw), other)} ON CONFLICT ({root.other})"
            f" DO UPDATE SET mark = excluded.mark WHERE {root.table}.mark = '{known}'",
        )

    def move_value_of_holder(self) -> None:
        """The same, and the row that is there gets another value."""
        root, known, other = self.find_holder()
        mark = self.mark()
        self.try_to(
            [Row(mark, ())],
            [known],
            f"{root.insert}{root.values(mark, root.draw_key(self.draw), other)} ON CONFLICT ({root.other})"
            f" DO UPDATE SET mark = excluded.mark, {root.other} = {quoted(self.other())}"
            f" WHERE {root.table}.mark = '{known}'",
        )

    def delete_row(self) -> None:
        root, key, known, _ = self.find_row()
        self.try_to([], [known], f"DELETE FROM {root.table} WHERE {root.is_key(key)} AND mark = '{known}'")

    def make_anew(self) -> None:
        """Delete and insert again, in one transaction."""
        root, key, known, other = self.find_row()
        mark = self.mark()
        self.try_to(
            [root.row(mark, key, other)],
            [known],
            f"DELETE FROM {root.table} WHERE {root.is_key(key)} AND mark = '{known}'",
            root.insert + root.values(mark, key, other),
        )

    def move_value(self) -> None:
        """Another unique value for a row."""
        root, key, known, _ = self.find_row()
        other, mark = self.other(), self.mark()
        self.try_to(
            [root.row(mark, key, other)],
            [known],
            f"UPDATE {root.table} SET {root.other} = {quoted(other)}, mark = '{mark}' WHERE {root.is_key(key)}"
            f" AND mark = '{known}'",
        )

    def insert_wrap(self) -> None:
        """A child of a row that may be anywhere, which stays as long as its child does."""
        mark = self.mark()
        text = f"INSERT INTO wrap (code, mark) VALUES ('c{self.draw.randrange(VALUES)}', '{mark}')"
        self.try_to([row_of("wrap", mark)], [], text)

    def delete_wraps(self) -> None:
        code = f"c{self.draw.randrange(VALUES)}"
        found = self.ask(f"SELECT mark FROM wrap WHERE code = '{code}' LIMIT 1")
        if not found:
            raise Refused
        known = str(found[0][0])
        self.try_to([], [known], f"DELETE FROM wrap WHERE code = '{code}' AND mark = '{known}'")

    def insert_account(self) -> None:
        handle, mark = self.value("h"), self.mark()
        text = f"INSERT INTO account (handle, mark) VALUES ('{handle}', '{mark}')"
        self.try_to([row_of("account", mark, handle)], [], text)

    def insert_or_mark_account(self) -> None:
        """A generated key that is not used when the handle is there already."""
        _, known, handle = self.find_account()
        mark = self.mark()
        text = (
            f"INSERT INTO account (handle, mark) VALUES ({quoted(handle)}, '{mark}') ON CONFLICT (handle)"
            f" DO UPDATE SET mark = excluded.mark WHERE account.mark = '{known}'"
        )
        self.try_to([row_of("account", mark, handle)], [known], text)

    def delete_account(self) -> None:
        id, known, _ = self.find_account()
        self.try_to([], [known], f"DELETE FROM account WHERE id = {id} AND mark = '{known}'")

    def pass_handle_on(self) -> None:
        """One account's handle becomes another's, wherever they are, in one transaction."""
        giver, given, handle = self.find_account()
        taker, taken, _ = self.find_account()
        if giver == taker:
            raise Refused
        one, two = self.mark(), self.mark()
        self.try_to(
            [row_of("account", one, None), row_of("account", two, handle)],
            [given, taken],
            f"UPDATE account SET handle = NULL, mark = '{one}' WHERE id = {giver} AND mark = '{given}'",
            f"UPDATE account SET handle = {quoted(handle)}, mark = '{two}' WHERE id = {taker} AND mark = '{taken}'",
        )

    def insert_part(self) -> None:
        """A child whose own key is the client's."""
        parent, _, _ = self.find_account()
        key, mark = self.draw.randrange(1, VALUES + 1), self.mark()
        text = f"INSERT INTO part (id, account_id, mark) VALUES ({key}, {parent}, '{mark}')"
        self.try_to([row_of("part", mark, str(key))], [], text)

    def insert_part_unless_there(self) -> None:
        parent, _, _ = self.find_account()
        key, mark = self.draw.randrange(1, VALUES + 1), self.mark()
        text = f"INSERT INTO part (id, account_id, mark) VALUES ({key}, {parent}, '{mark}') ON CONFLICT (id) DO NOTHING"
        self.try_to([row_of("part", mark, str(key))], [], text)

    def delete_part(self) -> None:
        key = self.draw.randrange(1, VALUES + 1)
        found = self.ask(f"SELECT account_id, mark FROM part WHERE id = {key}")
        if not found:
            raise Refused
        parent, known = found[0]
        text = f"DELETE FROM part WHERE id = {key} AND account_id = {parent} AND mark = '{known}'"
        self.try_to([], [str(known)], text)
