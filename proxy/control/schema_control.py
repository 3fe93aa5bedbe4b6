"""What the control database should have: the cluster's name and epoch, the bucket map, the profiles."""

from __future__ import annotations

import uuid

from foreshard._core.buckets import BUCKET_COUNT, initial_map
from foreshard.proxy.control.balance_store import balance_table_steps
from foreshard.proxy.control.introspect import Connection
from foreshard.proxy.control.load_exchange import load_table_steps
from foreshard.proxy.control.move_store import move_table_steps
from foreshard.proxy.control.steps import APPLIED, SCHEMA, Step, labelled_step
from foreshard.proxy.errors import ForeshardError
from foreshard.proxy.profiles import profile_sql
from foreshard.proxy.triggers.capture import quote_text

CLUSTER = labelled_step(
    "table foreshard.cluster",
    """\
CREATE TABLE IF NOT EXISTS foreshard.cluster (
  name text NOT NULL,
  epoch bigint NOT NULL,
  shards integer NOT NULL,
  is_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_only_row)
);
COMMENT ON TABLE foreshard.cluster IS 'one row; epoch counts changes of the bucket map, shards are those of the first';
""",
)
BUCKET_MAP = labelled_step(
    "table foreshard.bucket_map",
    f"""\
CREATE TABLE IF NOT EXISTS foreshard.bucket_map (
  bucket integer PRIMARY KEY CHECK (bucket BETWEEN 0 AND {BUCKET_COUNT - 1}),
  shard integer NOT NULL
);
COMMENT ON TABLE foreshard.bucket_map IS 'the shard index that owns each bucket';
""",
)
BUSY_ROUTER = labelled_step(
    "table foreshard.busy_router",
    """\
CREATE UNLOGGED TABLE IF NOT EXISTS foreshard.busy_router (
  instance text PRIMARY KEY,
  transactions text NOT NULL,
  told_at timestamptz NOT NULL
);
COMMENT ON TABLE foreshard.busy_router IS 'what routers tell each other of transactions that may be in a deadlock';
""",
)


def new_cluster_name() -> str:
    """A name that no other cluster has."""
    return f"cluster-{uuid.uuid4().hex[:12]}"


async def read_cluster(connection: Connection) -> tuple[str, int] | None:
    """Name of the cluster that the control database knows, and how many shards it began with; None before that."""
    if not await connection.fetchval("SELECT to_regclass('foreshard.cluster') IS NOT NULL"):
        return None
    row = await connection.fetchrow("SELECT name, shards FROM foreshard.cluster")
    return None if row is None else (row["name"], row["shards"])


async def read_bucket_map(connection: Connection) -> list[int]:
    """Owner of every bucket; ForeshardError when the map is not complete."""
    rows = await connection.fetch("SELECT bucket, shard FROM foreshard.bucket_map ORDER BY bucket")
    if [row["bucket"] for row in rows] != list(range(BUCKET_COUNT)):
        raise ForeshardError(f"the bucket map in the control database has {len(rows)} of {BUCKET_COUNT} buckets")
    return [row["shard"] for row in rows]


def control_steps(cluster: str, count: int) -> list[Step]:
    """Everything that the control database of a cluster that began with `count` shards should have, in order."""
    owners = ",".join(map(str, initial_map(count)))
    return [
        SCHEMA,
        APPLIED,
        CLUSTER,
        BUCKET_MAP,
        BUSY_ROUTER,
        *move_table_steps(),
        *balance_table_steps(),
        *load_table_steps(),
        Step(
            "row of foreshard.cluster",
            f"INSERT INTO foreshard.cluster (name, epoch, shards) VALUES ({quote_text(cluster)}, 1, {count})\n"
            "ON CONFLICT (is_only_row) DO NOTHING;\n",
        ),
        Step(
            "rows of foreshard.bucket_map",
            "INSERT INTO foreshard.bucket_map (bucket, shard)\n"
            "SELECT place - 1, shard FROM unnest(\n"
            f"  '{{{owners}}}'::integer[]) WITH ORDINALITY AS owner(shard, place)\n"
            "ON CONFLICT (bucket) DO NOTHING;\n",
        ),
        *(labelled_step(name, sql) for name, sql in profile_sql()),
    ]
