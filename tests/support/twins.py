"""A deployment over three shards, and one PostgreSQL with the same rows: what one answers, the other must."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.postgres import TestInstances
from tests.support.raw import Message, RawConnection, transcript
from tests.support.servers import Server
from tests.support.sharded import ROOTS, SCHEMA, Deployment, deployment


class Twins(NamedTuple):
    """The deployment, and one database with the same rows."""

    deployed: Deployment
    reference: Server

    def fill_in(self, text: str) -> str:
        """`{a}` and `{b}` are keys of different shards, `{c}` is another one of a's, `{d}` one of the third shard."""
        first, second, third = self.deployed.keys
        return text.format(a=first[0], b=second[0], c=first[1], d=third[0])

    def connect(self) -> contextlib.AbstractContextManager[tuple[RawConnection, RawConnection]]:
        """A client of each: (through the proxy, direct)."""
        return _both(self)

    def assert_equal_rows(self) -> None:
        """Every table holds the same."""
        with self.connect() as (proxied, direct):
            assert proxied.rows("SELECT id, tag, n FROM plain ORDER BY id") == direct.rows(
                "SELECT id, tag, n FROM plain ORDER BY id"
            )
            by_key = sorted(proxied.rows("SELECT id, tag, n FROM root"), key=lambda row: int(row[0] or 0))
            assert by_key == direct.rows("SELECT id, tag, n FROM root ORDER BY id")


@contextlib.contextmanager
def _both(twins: Twins) -> Iterator[tuple[RawConnection, RawConnection]]:
    with twins.deployed.server.connect() as proxied, twins.reference.connect() as direct:
        yield proxied, direct


@contextlib.contextmanager
def twins(instances: TestInstances, folder: Path, schema: str = "", **sections: Any) -> Iterator[Twins]:
    """A fresh pair; `schema` are more tables, `sections` more of the configuration."""
    reference = instances.create(1)
    reference.execute(SCHEMA + schema)
    for table in ("root", "plain"):
        reference.execute(f"INSERT INTO {table} (tag, n) SELECT 'kept', n FROM generate_series(1, {ROOTS}) AS n")
    with deployment(instances, folder, schema=schema, **sections) as deployed:
        yield Twins(deployed, Server.of_dsn(reference.dsns[0]))
    instances.drop(reference)


def comparable(answer: list[Message]) -> list[str]:
    """The answer as lines, rows sorted: their order over shards is open."""
    lines = transcript(answer)
    rows = iter(sorted(line for line in lines if line[0] == "D"))
    return [next(rows) if line[0] == "D" else line for line in lines]
