"""One PostgreSQL, and Foreshard over four shards, with the same tables and rows: where random scripts are run."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from tests.differential.pieces import KEY, OIDS, Form, Statement, Unit
from tests.differential.schema import DECLARED, GENERATED, SCHEMA, TABLES, reference_schema
from tests.support import messages
from tests.support.postgres import Shards, TestInstances, open_folder
from tests.support.proxy import Proxy
from tests.support.raw import Message, RawConnection
from tests.support.servers import Server

SHARD_COUNT = 4
# Keys that no row has, by type: one as databases make them today, one as they made them before there was Foreshard.
NONE = {"big": str(2**52 | 77 << 40 | 123456789), "uuid": "04d00000-0000-8000-8000-00000000dead"}
OLD = {"big": "4611686018427", "uuid": "00000000-0000-4000-8000-00000000dead"}
VERIFY_DEADLINE_S = 120.0


class Keys:
    """The keys that databases made, by mark; the reference reads them from a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_mark: dict[str, str] = {}
        self.write({})

    def write(self, made: dict[str, str]) -> None:
        """What the reference's next rows shall get."""
        self.path.write_text(json.dumps(made))
        self.path.chmod(0o644)

    def resolve(self, text: str) -> str:
        """The text with keys in place of marks."""
        return KEY.sub(lambda found: self._key(found[1], found[2]), text) if "@" in text else text

    def _key(self, table: str, mark: str) -> str:
        kind = next(one.columns[one.key[0]] for one in GENERATED if one.name == table)
        return self.by_mark.get(mark, (OLD if mark == "old" else NONE)[kind])


class Client:
    """One connection to one side; remembers which statements it has prepared."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.connection: RawConnection = server.connect()
        self.names: dict[str, str] = {}
        self.count = 0
        self.status = "I"

    def close(self) -> None:
        self.connection.close()

    def ask(self, unit: Unit, keys: Keys) -> list[Message]:
        """Send a unit and read up to its ReadyForQuery."""
        if unit.copy_rows:
            answer = self._copy(unit, keys)
        elif not unit.is_pipeline and not unit.forms[0].by_extended:
            text = "; ".join(statement.sql.as_literals(keys.resolve) for statement in unit.statements)
            answer = self.connection.ask(messages.query(text))
        else:
            fresh: list[tuple[str, str]] = []
            parts = [
                self._encode(statement, form, keys, fresh)
                for statement, form in zip(unit.statements, unit.forms, strict=True)
            ]
            answer = self.connection.ask(*parts, messages.SYNC)
            # Statements whose Parse succeeded stay, whatever came of their execution.
            parsed = sum(message.kind == b"1" for message in answer)
            self.names.update({key: name for key, name in fresh[:parsed] if name})
        self.status = answer[-1].body.decode()
        return answer

    def _copy(self, unit: Unit, keys: Keys) -> list[Message]:
        """COPY FROM STDIN with its rows."""
        self.connection.send(messages.query(unit.statements[0].sql.as_literals(keys.resolve)))
        answer = self.connection.read_until(b"GZ")
        if answer[-1].kind == b"Z":
            return answer
        data = "".join(keys.resolve(line) + "\n" for line in unit.copy_rows)
        self.connection.send(messages.copy_data(data.encode()), messages.COPY_DONE)
        return answer + self.connection.read_until()

    def _encode(self, statement: Statement, form: Form, keys: Keys, fresh: list[tuple[str, str]]) -> bytes:
        """Parse (unless it is known), Bind, Describe and Execute; what is parsed is added to `fresh`."""
        values = statement.sql.values()
        sql = statement.sql.as_parameters(keys.resolve)
        types = [OIDS.get(value.type, 0) for value in values] if form.is_typed else []
        key = f"{sql} {types}"
        name, head = self.names.get(key, "") if form.is_named else "", b""
        if not name:
            self.count += form.is_named
            name = f"s{self.count}" if form.is_named else ""
            fresh.append((key, name))
            head = messages.parse(sql, name, types)
        bound = [value.as_parameter(form.binary_values and form.is_typed, keys.resolve) for value in values]
        bind = messages.bind(
            [data for data, _ in bound],
            name=name,
            formats=[code for _, code in bound],
            results=[form.result_format],
        )
        if form.is_described:
            head += messages.describe_statement(name)
        return head + bind + messages.describe_portal() + messages.execute(rows_max=form.rows_max)


class World:
    """The reference, the deployment, and a look at both that goes past the proxy."""

    def __init__(self, reference: Shards, shards: Shards, proxy: Proxy, keys: Keys) -> None:
        self.reference = Server.of_dsn(reference.dsns[0])
        self.proxied = proxy.server
        self.proxy = proxy
        self.keys = keys
        self._direct = psycopg.connect(reference.dsns[0], autocommit=True)
        self._shards = [psycopg.connect(dsn, autocommit=True) for dsn in shards.dsns]

    def close(self) -> None:
        for connection in (self._direct, *self._shards):
            connection.close()

    def empty(self) -> None:
        """Remove every row on both sides."""
        names = [table.name for table in reversed(TABLES)]
        for server in (self.reference, self.proxied):
            with server.connect() as connection:
                for name in names:
                    connection.rows(f"DELETE FROM {name}")
        for one in (self._direct, self._shards[0]):
            one.execute("SELECT setval('ledger_id_seq', 1, false)")
        self.keys.by_mark.clear()

    def find_made(self, table: str, marks: list[str]) -> dict[str, str]:
        """Keys of committed rows by their marks, asked of the shards."""
        found: dict[str, str] = {}
        for connection in self._shards:
            rows = connection.execute(f"SELECT mark, id::text FROM {table} WHERE mark = ANY(%s)", [marks])  # type: ignore[call-overload]
            found.update(dict(rows.fetchall()))
        return found

    def rows_of_reference(self, sql: str) -> list[tuple[Any, ...]]:
        """Committed rows of the reference."""
        return self._direct.execute(sql).fetchall()  # type: ignore[call-overload,no-any-return]

    def rows_of_shards(self, sql: str) -> list[list[tuple[Any, ...]]]:
        """Committed rows of each shard."""
        return [connection.execute(sql).fetchall() for connection in self._shards]  # type: ignore[call-overload]

    def verify(self) -> str:
        """What `foreshard verify` finds; empty when nothing."""
        command = [sys.executable, "-m", "foreshard.proxy", "verify", "-c", str(self.proxy.configuration)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=VERIFY_DEADLINE_S, check=False)
        return "" if done.returncode == 0 else done.stdout + done.stderr


@contextlib.contextmanager
def open_world(folder: Path) -> Iterator[World]:
    """Fresh databases on instances of their own, and a proxy."""
    instances = TestInstances(SHARD_COUNT)
    try:
        with open_folder("keys") as shared:
            keys = Keys(shared / "keys.json")
            shards, reference = instances.create(SHARD_COUNT), instances.create(1)
            shards.execute(SCHEMA)
            reference.execute(reference_schema(keys.path))
            sections = {"workers": {"per_shard": 0}, "pool": {"size": 4}}
            with Proxy(shards.dsns, folder, tables=DECLARED, **sections) as proxy:
                world = World(reference, shards, proxy, keys)
                try:
                    yield world
                finally:
                    world.close()
    finally:
        instances.close()
