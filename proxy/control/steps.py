"""A step of the schema: one object that a database should have, the SQL that makes it, and how to see that it is there.

A step is lacking when its digest is not the one in foreshard.applied, or when the object is not there. Every step may
run again at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.triggers.capture import quote_text

ALWAYS = "false"  # `present` of a step that is only asked for when it must run


@dataclass(frozen=True)
class Step:
    """One object. `present` is an SQL condition that holds when the object is there; "" when only the digest tells."""

    object: str
    sql: str
    present: str = ""
    shown: str = ""  # what `plan` prints in place of `sql` where that holds a password

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()[:16]


def labelled_step(label: str, sql: str) -> Step:
    """A step whose label says what it makes: `table NAME`, `view NAME`, `function NAME`, `schema NAME`; or anything."""
    kind, _, name = label.partition(" ")
    present = {
        "table": f"to_regclass({quote_text(name)}) IS NOT NULL",
        "view": f"to_regclass({quote_text(name)}) IS NOT NULL",
        "function": f"to_regproc({quote_text(name)}) IS NOT NULL",
        "schema": f"to_regnamespace({quote_text(name)}) IS NOT NULL",
    }
    return Step(label, sql, present.get(kind, ""))


APPLIED = labelled_step(
    "table foreshard.applied",
    """\
CREATE TABLE IF NOT EXISTS foreshard.applied (
  object text PRIMARY KEY,
  digest text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE foreshard.applied IS 'what foreshard apply has made here; the digest is of its SQL';
""",
)
SCHEMA = labelled_step(
    "schema foreshard",
    """\
CREATE SCHEMA IF NOT EXISTS foreshard;
GRANT USAGE ON SCHEMA foreshard TO PUBLIC;
""",
)


async def read_applied(connection: Connection) -> dict[str, str]:
    """Digest by object, as recorded in the database."""
    if not await connection.fetchval("SELECT to_regclass('foreshard.applied') IS NOT NULL"):
        return {}
    return {
        row["object"]: row["digest"] for row in await connection.fetch("SELECT object, digest FROM foreshard.applied")
    }


async def find_lacking(connection: Connection, steps: Sequence[Step]) -> list[Step]:
    """The steps that must run, in their order."""
    applied = await read_applied(connection)
    conditions = [f"({step.present or 'true'})" for step in steps]
    present = await connection.fetchval(f"SELECT ARRAY[{', '.join(conditions)}]") if steps else []
    return [
        step
        for step, is_there in zip(steps, present, strict=True)
        if not is_there or applied.get(step.object) != step.digest
    ]


async def run_steps(connection: Connection, steps: Sequence[Step]) -> None:
    """Run the steps and record them. The caller holds the transaction."""
    for step in steps:
        await connection.execute(step.sql)
    await record_steps(connection, steps)


async def record_steps(connection: Connection, steps: Sequence[Step]) -> None:
    """Record that the steps have been run."""
    await connection.executemany(
        """
        INSERT INTO foreshard.applied (object, digest) VALUES ($1, $2)
        ON CONFLICT (object) DO UPDATE SET digest = excluded.digest, applied_at = excluded.applied_at
        """,
        [(step.object, step.digest) for step in steps],
    )
