"""Clients that fight over a small key space, through either of two proxies, and write down what they are told.

`item` has client-given text keys and a unique column; `account` generated keys and a unique column; `part`, its child,
keys that clients give. So values are arbitrated by primary keys at home, and by claims here and elsewhere.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from tests.support.ledger import Act, Outcome, Row, Value
from tests.support.messages import SYNC, extended
from tests.support.proxy import Proxy
from tests.support.raw import Closed, Message, RawConnection, error_of, kinds

SCHEMA = """
CREATE TABLE item (name text PRIMARY KEY, email text UNIQUE, mark text NOT NULL);
CREATE TABLE account (id bigserial PRIMARY KEY, handle text UNIQUE, mark text NOT NULL);
CREATE TABLE part (id bigint PRIMARY KEY, account_id bigint NOT NULL REFERENCES account, mark text NOT NULL);
"""
TABLES = {
    "item": {"key": "name", "unique": ["email"]},
    "account": {"key": "id", "unique": ["handle"]},
    "part": {"key": "id", "parent": "account", "via": "account_id", "unique": ["id"]},
}
LEFT = {
    "item": "SELECT mark, name, email FROM item",
    "account": "SELECT mark, handle FROM account",
    "part": "SELECT mark, id::text FROM part",
}
NAMES = {"item": ("item.name", "item.email"), "account": ("account.handle",), "part": ("part.id",)}
VALUES = 14
# Told of a statement that did nothing: somebody has the value, or was in the way.
REFUSED = {"23505", "23503", "40001", "40P01", "55P03", "25P02"}
# The connection, or a shard, went away: nobody knows.
BROKEN = {"08006", "08007", "57P01", "57P02", "57P03", "53300", "58000", "XX000"}
ALL = {b"INSERT 0 1", b"INSERT 0 3", b"UPDATE 1", b"DELETE 1"}


def row_of(table: str, mark: str, *values: str | None) -> Row:
    """A row version, with its values that must be unique."""
    pairs: list[Value] = [(name, value) for name, value in zip(NAMES[table], values, strict=True) if value is not None]
    return Row(mark, tuple(pairs))


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
        self.counts: Counter[str] = Counter()
        self.connection: RawConnection | None = None
        self.marks = 0
        self.in_block = False

    def run(self, stopping: threading.Event) -> None:
        deeds: list[Callable[[], None]] = [
            self.insert_item, self.insert_items, self.insert_rows, self.move_name, self.insert_unless_there,
            self.insert_or_change, self.delete_item, self.make_item_anew, self.move_email, self.insert_account,
            self.delete_account, self.pass_handle_on, self.insert_part, self.delete_part,
        ]  # fmt: skip
        while not stopping.is_set():
            try:
                if self.connection is None:
                    self.connection = self.proxy.server.connect()
                self.draw.choice(deeds)()
            except Refused:
                continue  # a read before the deed was refused
            except (Unclear, Closed, OSError, AssertionError) as error:
                if isinstance(error, AssertionError) and self.connection is not None:
                    raise
                self.leave()
                stopping.wait(0.05)
        self.leave()

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
        if "E" in kinds(answer):
            told = error_of(answer)
            self.counts[told["C"]] += 1
            if told["C"] in BROKEN:
                raise Unclear
            # A row's new key may be another shard's: not built.
            assert told["C"] in REFUSED or (told["C"] == "0A000" and "SET name" in sql), f"{sql}: {told}"
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
            self.acts.append(Act(tuple(made), tuple(ended), outcome, began_s, time.monotonic()))

    # -- values --------------------------------------------------------------------------------------------------

    def mark(self) -> str:
        self.marks += 1
        return f"{self.number}.{self.marks}"

    def value(self, letter: str) -> str:
        return f"{letter}{self.draw.randrange(VALUES)}"

    def email(self) -> str | None:
        return None if self.draw.random() < 0.1 else self.value("e")

    def new_item(self, name: str | None = None) -> tuple[Row, str]:
        """A row of item, and its VALUES."""
        name, email, mark = name or self.value("n"), self.email(), self.mark()
        return row_of("item", mark, name, email), f"('{name}', {quoted(email)}, '{mark}')"

    def find_item(self) -> tuple[str, str, str | None]:
        """Name, mark and email of an item that is there."""
        name = self.value("n")
        found = self.ask(f"SELECT mark, email FROM item WHERE name = '{name}'")
        if not found:
            raise Refused
        return name, str(found[0][0]), found[0][1]

    def find_account(self) -> tuple[str, str, str | None]:
        """Key, mark and handle of some account."""
        found = self.ask(f"SELECT id, mark, handle FROM account WHERE handle = '{self.value('h')}'")
        if not found:
            raise Refused
        return str(found[0][0]), str(found[0][1]), found[0][2]

    # -- deeds ---------------------------------------------------------------------------------------------------

    def insert_item(self) -> None:
        row, values = self.new_item()
        self.try_to([row], [], f"INSERT INTO item (name, email, mark) VALUES {values}")

    def insert_items(self) -> None:
        """Several at once, to several shards."""
        names = self.draw.sample([f"n{number}" for number in range(VALUES)], 3)
        made = [self.new_item(name) for name in sorted(names)]
        texts = [f"INSERT INTO item (name, email, mark) VALUES {values}" for _, values in made]
        self.try_to([row for row, _ in made], [], *texts)

    def insert_rows(self) -> None:
        """The same in one statement."""
        names = self.draw.sample([f"n{number}" for number in range(VALUES)], 3)
        made = [self.new_item(name) for name in names]
        text = "INSERT INTO item (name, email, mark) VALUES " + ", ".join(values for _, values in made)
        self.try_to([row for row, _ in made], [], text)

    def move_name(self) -> None:
        """Another key for a row."""
        name, known, email = self.find_item()
        other, mark = self.value("n"), self.mark()
        self.try_to(
            [row_of("item", mark, other, email)],
            [known],
            f"UPDATE item SET name = '{other}', mark = '{mark}' WHERE name = '{name}' AND mark = '{known}'",
        )

    def insert_unless_there(self) -> None:
        row, values = self.new_item()
        self.try_to([row], [], f"INSERT INTO item (name, email, mark) VALUES {values} ON CONFLICT (name) DO NOTHING")

    def insert_or_change(self) -> None:
        """ON CONFLICT DO UPDATE, of a row that is known."""
        name, known, _ = self.find_item()
        row, values = self.new_item(name)
        self.try_to(
            [row],
            [known],
            f"INSERT INTO item (name, email, mark) VALUES {values} ON CONFLICT (name) DO UPDATE"
            f" SET email = excluded.email, mark = excluded.mark WHERE item.mark = '{known}'",
        )

    def delete_item(self) -> None:
        name, known, _ = self.find_item()
        self.try_to([], [known], f"DELETE FROM item WHERE name = '{name}' AND mark = '{known}'")

    def make_item_anew(self) -> None:
        """Delete and insert again, in one transaction."""
        name, known, email = self.find_item()
        mark = self.mark()
        self.try_to(
            [row_of("item", mark, name, email)],
            [known],
            f"DELETE FROM item WHERE name = '{name}' AND mark = '{known}'",
            f"INSERT INTO item (name, email, mark) VALUES ('{name}', {quoted(email)}, '{mark}')",
        )

    def move_email(self) -> None:
        name, known, _ = self.find_item()
        email, mark = self.email(), self.mark()
        self.try_to(
            [row_of("item", mark, name, email)],
            [known],
            f"UPDATE item SET email = {quoted(email)}, mark = '{mark}' WHERE name = '{name}' AND mark = '{known}'",
        )

    def insert_account(self) -> None:
        handle, mark = self.value("h"), self.mark()
        text = f"INSERT INTO account (handle, mark) VALUES ('{handle}', '{mark}')"
        self.try_to([row_of("account", mark, handle)], [], text)

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

    def delete_part(self) -> None:
        key = self.draw.randrange(1, VALUES + 1)
        found = self.ask(f"SELECT account_id, mark FROM part WHERE id = {key}")
        if not found:
            raise Refused
        parent, known = found[0]
        text = f"DELETE FROM part WHERE id = {key} AND account_id = {parent} AND mark = '{known}'"
        self.try_to([], [str(known)], text)


def quoted(value: str | None) -> str:
    return "NULL" if value is None else f"'{value}'"
