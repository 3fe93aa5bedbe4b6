"""Distributed transactions made by hand, in any state that a coordinator could leave them in."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from foreshard._core.two_phase import make_gid, new_id
from tests.support.postgres import Shards

SCHEMA_SQL = "CREATE TABLE mark (name text PRIMARY KEY)"


class TwoPhaseWorld:
    """Shards that are applied, and a table to see on each of them which transactions happened."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self.names = [shard.name for shard in shards.shards]
        shards.execute(SCHEMA_SQL)
        self.cluster = str(shards.query("SELECT cluster FROM foreshard.shard_info")[0][0])

    def gid(self, id: str, participant: int, decision: int = 0) -> str:
        """The name of one participant's prepared transaction."""
        return make_gid(self.cluster, self.names[decision], id, self.names[participant])

    def prepare(self, participants: Sequence[int] = (1, 2), decision: int = 0, name: str = "") -> str:
        """Prepare a mark on the participants; its id, which is the mark's name unless another is given."""
        id = new_id()
        for participant in participants:
            with psycopg.connect(self.shards.dsns[participant], autocommit=True) as connection:
                connection.execute("BEGIN")
                connection.execute("INSERT INTO mark VALUES (%s)", [name or id])
                connection.execute(f"PREPARE TRANSACTION '{self.gid(id, participant, decision)}'")
        return id

    def decide(self, id: str, outcome: str = "commit", decision: int = 0, age_s: float = 0.0) -> None:
        """Write the decision, some time ago."""
        self.shards.execute(
            "INSERT INTO foreshard.decision VALUES "
            f"('{id}', '{outcome}', clock_timestamp() - interval '{age_s} seconds')",
            on=decision,
        )

    def open_decision(self, id: str, decision: int = 0) -> psycopg.Connection:
        """A coordinator's transaction that has decided to commit and has not ended; its mark is there too."""
        connection = psycopg.connect(self.shards.dsns[decision])
        connection.execute("INSERT INTO mark VALUES (%s)", [id])
        connection.execute("INSERT INTO foreshard.decision (id, outcome) VALUES (%s, 'commit')", [id])
        return connection

    def marks(self, id: str) -> list[int]:
        """Indexes of the shards on which the transaction happened."""
        count = f"SELECT count(*) FROM mark WHERE name = '{id}'"
        return [index for index in range(len(self.names)) if self.shards.query(count, on=index) == [(1,)]]

    def prepared(self) -> list[str]:
        """Names of everything that is prepared."""
        sql = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
        return [str(row[0]) for index in range(len(self.names)) for row in self.shards.query(sql, on=index)]

    def decisions(self) -> dict[str, str]:
        """Outcome by id, on all shards."""
        sql = "SELECT id, outcome FROM foreshard.decision"
        return {
            str(row[0]): str(row[1]) for index in range(len(self.names)) for row in self.shards.query(sql, on=index)
        }
