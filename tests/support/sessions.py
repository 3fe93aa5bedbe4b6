"""Random client sessions with a model of what must hold: transaction status, order of answers, which rows may exist.

A session decides by seed what to say and checks every answer: its shape, whose it is, and the status that ReadyForQuery
gives. What a statement did follows from whether it failed; each row written has a tag of its own, and the model knows
for each whether it must be there, must not, or may be (its client left, or a commit failed).
"""

from __future__ import annotations

import random
import re
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.support.messages import FLUSH, SYNC, TERMINATE, bind, describe_portal, execute, parse, query
from tests.support.raw import Closed, Message, RawConnection, kinds, send_cancel
from tests.support.servers import Server
from tests.support.sharded import SHARD_COUNT, Deployment
from tests.support.verified import assert_verified
from tests.support.waiting import wait_until

ASYNCHRONOUS = b"NSA"
LOST = (Closed, BrokenPipeError, ConnectionResetError)
EXTENDED_SHAPE = re.compile("^12[Tn]D*(?:sD*)*C")


class Statement(NamedTuple):
    """One statement; `tag` is that of the row it writes."""

    sql: str
    tag: str = ""
    verb: str = ""  # of transaction commands
    name: str = ""  # of a savepoint
    must_fail: bool = False
    rows: tuple[str, ...] | None = None  # first column of the only answer possible
    rows_min: int = 0
    rows_max: int = 0  # of Execute


@dataclass
class Model:
    """What is known of a session's transaction, and of every row it has written."""

    status: str = "I"
    pending: list[str] = field(default_factory=list)
    savepoints: list[tuple[str, int]] = field(default_factory=list)
    present: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)

    def may_run(self, statement: Statement) -> bool:
        """Whether a failed transaction lets it pass."""
        return self.status != "E" or statement.verb in ("COMMIT", "ROLLBACK", "ROLLBACK TO")

    def note(self, statement: Statement, ok: bool) -> None:
        """A statement outside of any implicit transaction was answered."""
        match statement.verb:
            case "COMMIT" | "ROLLBACK":
                self._end(statement.verb == "COMMIT", ok)
            case "BEGIN" if ok:
                self.status = "T"
            case "SAVEPOINT" if ok:
                self.savepoints.append((statement.name, len(self.pending)))
            case "RELEASE" | "ROLLBACK TO" if ok:
                self._cut(statement)
            case _ if ok and statement.tag:
                self.pending.append(statement.tag) if self.status == "T" else self.present.add(statement.tag)
            case _ if not ok:
                self.absent.update([statement.tag] if statement.tag else [])
                self.status = "E" if self.status == "T" else self.status

    def note_implicit(self, statements: Sequence[Statement], done: int, *, at_end: bool) -> None:
        """A pipeline outside of a transaction: all or nothing."""
        tags = {each.tag for each in statements if each.tag}
        if done == len(statements):
            (self.unknown if at_end else self.present).update(tags)
        else:
            self.absent |= tags

    def leave(self, in_flight: Sequence[Statement]) -> None:
        """The client is gone: its transaction is undone, unless its end was on the way."""
        ends = any(each.verb == "COMMIT" for each in in_flight)
        (self.unknown if ends and self.status == "T" else self.absent).update(self.pending)
        self.unknown |= {each.tag for each in in_flight if each.tag}
        self._reset()

    def _end(self, commits: bool, ok: bool) -> None:
        if commits and self.status == "T":
            (self.present if ok else self.unknown).update(self.pending)
        else:
            self.absent.update(self.pending)
        self._reset()

    def _reset(self) -> None:
        self.status, self.pending, self.savepoints = "I", [], []

    def _cut(self, statement: Statement) -> None:
        index = max(index for index, (name, _) in enumerate(self.savepoints) if name == statement.name)
        if statement.verb == "RELEASE":
            del self.savepoints[index:]
            return
        keep = self.savepoints[index][1]
        self.absent.update(self.pending[keep:])
        del self.pending[keep:], self.savepoints[index + 1 :]
        self.status = "T"


class Session:
    """One client of a random session; `run` says and checks one thing, `end` leaves."""

    def __init__(self, server: Server, keys: list[list[int]], number: int, seed: str) -> None:
        self.server, self.keys = server, keys
        self.name = f"{seed}.{number}"
        self.draw = random.Random(self.name)
        self.model = Model()
        self.connection = server.connect()
        self.tags = 0
        self.said: list[str] = []  # for whoever reads a failure
        self.in_flight: list[Statement] = []
        self.losses = 0

    # -- what to say -------------------------------------------------------------------------------------------

    def key(self) -> int:
        return self.draw.choice(self.draw.choice(self.keys))

    def tag(self) -> str:
        self.tags += 1
        return f"{self.name}.{self.tags}"

    def statement(self) -> Statement:
        """Anything but a transaction command."""
        key, tag, mark = self.key(), self.tag(), f"{self.name} {self.tags}"
        count = sum(map(len, self.keys))
        forms = [
            Statement(f"SELECT '{mark}' FROM root WHERE id = {key}", rows=(mark,)),
            Statement(f"SELECT '{mark}' FROM root WHERE id <= {count}", rows=(mark,) * count),
            Statement(
                f"SELECT '{mark}', repeat('x', 300) FROM root WHERE id <= {count}", rows=(mark,) * count, rows_max=7
            ),
            Statement(f"SELECT '{mark}' FROM plain WHERE n = 3", rows=(mark,)),
            Statement(f"INSERT INTO root (tag) VALUES ('{tag}')", tag),
            Statement(f"INSERT INTO child (root_id, tag) VALUES ({key}, '{tag}')", tag),
            Statement(f"INSERT INTO plain (tag) VALUES ('{tag}')", tag),
            Statement(f"INSERT INTO root (tag) VALUES ('{tag}') RETURNING '{mark}'", tag, rows=(mark,)),
            Statement("SELECT 1 / (n - n) FROM plain", must_fail=True),
            Statement(f"SELECT 1 / (n - {key}) FROM root WHERE n <= {count}", must_fail=True),
            Statement("SELECT missing FROM root", must_fail=True),
            Statement("SELECT count(*) FROM root"),
            Statement(f"INSERT INTO child (root_id, tag) VALUES ({key}, '{tag}', 1)", must_fail=True),
            Statement("SELEC", must_fail=True),
            Statement(f"SELECT '{mark}', pg_sleep(0.002) FROM root WHERE id = {key}", rows=(mark,)),
        ]
        return self.draw.choices(forms, [8, 5, 4, 4, 6, 6, 4, 4, 1, 2, 1, 1, 1, 1, 3])[0]

    def command(self) -> Statement:
        """A transaction command that fits, more or less."""
        if self.model.status == "I":
            return Statement("BEGIN", verb="BEGIN")
        known = [name for name, _ in self.model.savepoints]
        name = self.draw.choice(known) if known else "a"
        forms = [Statement("COMMIT", verb="COMMIT"), Statement("ROLLBACK", verb="ROLLBACK")]
        if known:
            forms.append(Statement(f"ROLLBACK TO {name}", verb="ROLLBACK TO", name=name))
        if self.model.status == "T":
            new = self.draw.choice("ab")
            forms.append(Statement(f"SAVEPOINT {new}", verb="SAVEPOINT", name=new))
            if known:
                forms.append(Statement(f"RELEASE {name}", verb="RELEASE", name=name))
        return self.draw.choice(forms)

    # -- saying it ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """One exchange, or a departure in the middle of one."""
        chance = self.draw.random()
        if chance < 0.45:
            self.ask_simple(self.command() if self.draw.random() < 0.3 else self.statement())
        elif chance < 0.95:
            self.ask_pipeline()
        else:
            self.leave([self.statement() for _ in range(self.draw.randrange(3))])

    def run_or_survive(self) -> None:
        """The same where connections are lost: what was on its way may have happened; go on with a new connection."""
        try:
            self.run()
        except LOST:
            self.losses += 1
            self.said.append("lost")
            self.model.leave(self.in_flight)
            self.in_flight = []
            self.connection.close()
            self.connection = wait_until(self._connected)

    def _connected(self) -> RawConnection | None:
        """A new connection; None while the proxy has no shard to offer."""
        try:
            return self.server.connect()
        except (*LOST, AssertionError):
            return None

    def ask_simple(self, statement: Statement) -> None:
        """One simple Query."""
        self.said.append(statement.sql)
        self.in_flight = [statement]
        self.connection.send(query(statement.sql))
        self.maybe_cancel()
        answer = self.hear()
        failed = "E" in kinds(answer)
        assert re.fullmatch("(TD*)?E" if failed else "(TD*)?C", kinds(answer)), (kinds(answer), statement)
        self.check(statement, not failed, answer)
        self.model.note(statement, not failed)
        self.expect_status()

    def ask_pipeline(self) -> None:
        """Some statements by extended query up to one Sync, perhaps in several packets."""
        statements = [self.statement() for _ in range(self.draw.choice([1, 1, 2, 3, 5]))]
        if self.draw.random() < 0.4:
            first = self.command()
            if first.verb not in ("COMMIT", "ROLLBACK") or self.draw.random() < 0.5:
                statements.insert(0, first)
        if statements[0].verb in ("COMMIT", "ROLLBACK"):
            del statements[1:]
        self.in_flight = statements
        for statement in statements:
            self.said.append("> " + statement.sql)
            self.connection.send(self.encode(statement), FLUSH if self.draw.random() < 0.2 else b"")
        self.connection.send(SYNC)
        self.maybe_cancel()
        self.check_pipeline(statements, self.hear())
        self.expect_status()

    def encode(self, statement: Statement) -> bytes:
        told = parse(statement.sql) + bind() + describe_portal()
        if statement.rows_max == 0 or self.draw.random() < 0.5:
            return told + execute()
        return told + execute(rows_max=statement.rows_max) * 3 + execute()

    def maybe_cancel(self) -> None:
        if self.draw.random() < 0.04:
            send_cancel(*self.connection.address, self.connection.pid, self.connection.secret)

    def hear(self) -> list[Message]:
        """The answer less what may come at any time and the ReadyForQuery, which `ready` keeps."""
        answer = [message for message in self.connection.read_until(b"Z") if message.kind not in ASYNCHRONOUS]
        self.ready = answer[-1].body.decode()
        self.in_flight = []
        return answer[:-1]

    def check(self, statement: Statement, ok: bool, answer: Sequence[Message]) -> None:
        """The answer is this statement's."""
        assert not (ok and statement.must_fail), statement
        assert not (ok and not self.model.may_run(statement)), statement
        if ok and statement.rows is not None:
            found = tuple((message.values[0] or b"").decode() for message in answer if message.kind == b"D")
            assert found == statement.rows, statement

    def check_pipeline(self, statements: Sequence[Statement], answer: list[Message]) -> None:
        """Whole answers in order, then at most one error, and nothing behind it."""
        shown, done, is_implicit = kinds(answer), 0, self.model.status == "I" and statements[0].verb != "BEGIN"
        while done < len(statements):
            whole = EXTENDED_SHAPE.match(shown)
            if whole is None:
                break
            self.check(statements[done], True, answer[: whole.end()])
            shown, answer = shown[whole.end() :], answer[whole.end() :]
            if not is_implicit:
                self.model.note(statements[done], True)
            done += 1
        assert re.fullmatch("(1?2?[Tn]?D*(sD*)*E)?", shown), (shown, statements)
        assert shown or done == len(statements), statements
        if is_implicit:
            self.model.note_implicit(statements, done, at_end=bool(shown))
        elif done < len(statements):
            self.model.note(statements[done], False)
            self.model.absent |= {each.tag for each in statements[done:] if each.tag}

    def expect_status(self) -> None:
        assert self.ready == self.model.status, (self.ready, self.model.status)

    def leave(self, in_flight: Sequence[Statement] = ()) -> None:
        """Go away in some manner in the middle of a pipeline, and come back."""
        self.end(in_flight)
        self.connection = self.server.connect()

    def end(self, in_flight: Sequence[Statement] = ()) -> None:
        """Go away for good."""
        self.said.append(f"left with {[each.sql for each in in_flight]} on the way")
        for statement in in_flight:
            self.connection.try_send(self.encode(statement) if self.draw.random() < 0.5 else query(statement.sql))
        manner = self.draw.randrange(4)
        if manner == 0:
            self.connection.try_send(SYNC)
        if manner == 1:
            self.connection.try_send(TERMINATE)
        if manner == 2:
            self.connection.abort()
        else:
            self.connection.close()
        self.model.leave(in_flight)


def lead_sessions(
    deployed: Deployment, count: int, seed: str, seconds: float, disturb: Callable[[], None] | None = None
) -> list[Session]:
    """Lead sessions until the time is over, `disturb` again and again meanwhile; the first failure is raised."""
    end = time.monotonic() + seconds
    sessions = [Session(deployed.server, deployed.keys, number, seed) for number in range(count)]
    failures: list[str] = []

    def lead(session: Session) -> None:
        try:
            while time.monotonic() < end and not failures:
                session.run() if disturb is None else session.run_or_survive()
            session.end()
        except BaseException:
            failures.append("\n".join([f"seed {seed}", *session.said[-12:], traceback.format_exc()]))
            session.connection.close()

    threads = [threading.Thread(target=lead, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    try:
        while disturb is not None and any(thread.is_alive() for thread in threads):
            disturb()
    finally:
        for thread in threads:
            thread.join()
    assert not failures, failures[0] + deployed.proxy.log_text()
    return sessions


def rows_of_tags(deployed: Deployment) -> dict[str, int]:
    """How many rows each tag has, over all tables and shards."""
    found: dict[str, int] = {}
    for shard in range(SHARD_COUNT):
        for table in ("root", "child", "plain"):
            for (tag,) in deployed.shards.query(f"SELECT tag FROM {table} WHERE tag <> 'kept'", on=shard):
                found[str(tag)] = found.get(str(tag), 0) + 1
    return found


def assert_truth(deployed: Deployment, sessions: Sequence[Session], *, is_durable: bool = True) -> None:
    """Nothing is left over, and the rows are those that the clients were told; the deployment is empty again."""
    deployed.come_to_rest()
    found = rows_of_tags(deployed)
    assert set(found.values()) == {1}
    assert any(session.model.present for session in sessions)
    for session in sessions:
        assert not session.model.absent & found.keys(), sorted(session.model.absent & found.keys())
        if is_durable:
            assert session.model.present <= found.keys(), sorted(session.model.present - found.keys())
    assert_verified(deployed.proxy.configuration)
    for table in ("child", "root", "plain"):
        deployed.shards.execute(f"DELETE FROM {table} WHERE tag <> 'kept'")
