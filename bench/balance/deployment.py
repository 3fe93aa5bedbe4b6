"""One deployment of the balance bench: fresh databases on four embedded shards, the proxy, its controller and workers.

What every call cost is kept aside on the shards before the controller takes it, so that costs by row are known.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg

from foreshard.proxy.config import Config, load_config
from foreshard.proxy.demo.figures import read_console, read_costs
from foreshard.proxy.demo.verify import Drain, ask_all
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy

SHARDS = 4
POLL_S = 0.1
SETTLE_S = 30.0
FOLDER = Path(__file__).resolve().parent
SCHEMA = """
CREATE TABLE item (id bigserial PRIMARY KEY, payload text NOT NULL, tags integer[] NOT NULL, noise float8 NOT NULL);
CREATE TABLE part (id bigserial PRIMARY KEY, item_id bigint NOT NULL REFERENCES item, payload text NOT NULL,
                   noise float8 NOT NULL);
CREATE INDEX part_item_id ON part (item_id);
"""
TABLES = {"item": {"key": "id"}, "part": {"key": "id", "parent": "item", "via": "item_id"}}
TRIGGERS = {
    "burn_payload": {"table": "item", "on": ["insert", "update"], "function": "burning:burn_payload"},
    "burn_tags": {"table": "item", "on": ["insert", "update"], "function": "burning:burn_tags"},
    "burn_part": {"table": "part", "on": ["insert"], "function": "burning:burn_payload"},
}
KEEP_MEASUREMENTS = """
CREATE TABLE kept (LIKE foreshard.measurement);
CREATE FUNCTION keep_measurements() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN INSERT INTO public.kept SELECT * FROM fresh; RETURN NULL; END $body$;
CREATE TRIGGER keep_measurements AFTER INSERT ON foreshard.measurement REFERENCING NEW TABLE AS fresh
FOR EACH STATEMENT EXECUTE FUNCTION keep_measurements();
"""
LEFT = "SELECT (SELECT count(*) FROM foreshard.outbox), (SELECT count(*) FROM kept)"
COST_BY_ITEM = """
SELECT coalesce(part.item_id, kept.row_key::bigint),
       sum(greatest(cpu_s / {cpu!r}, coalesce(memory_byte_s, 0) / {memory!r}, coalesce(io_bytes, 0) / {io!r}))
FROM kept LEFT JOIN part ON kept.table_name = 'public.part' AND part.id = kept.row_key::bigint GROUP BY 1
"""


class Deployment:
    """A proxy that is up over its shards. Made by `deployed`, ends with its block."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def dsn(self) -> str:
        """Where clients connect."""
        base, _, database = self.config.shards[0].dsn.rpartition("/")
        user = base.partition("://")[2].partition("@")[0]
        return f"postgresql://{user}@{self.config.listen_host}:{self.config.listen_port}/{database}"

    @contextlib.asynccontextmanager
    async def clients(self, count: int) -> AsyncIterator[list[asyncpg.Connection[Any]]]:
        """Ordinary clients of the proxy."""
        made = [await asyncpg.connect(self.dsn) for _ in range(count)]
        try:
            yield made
        finally:
            for client in made:
                await client.close()

    async def drain(self) -> None:
        """Wait until every event is handled and every measurement learned from."""
        drain = Drain(self.config)
        waiting = await drain.begin()
        while waiting:
            waiting = await drain.step()
        async with asyncio.timeout(SETTLE_S):
            while not await self._is_settled():
                await asyncio.sleep(POLL_S)

    async def costs(self) -> list[float]:
        """Measured cost by shard, as the controller counted it."""
        return list((await read_costs(self.config)).values())

    async def groups(self) -> list[float]:
        """Measured cost of each item, its parts included."""
        limits = self.config.placement
        sql = COST_BY_ITEM.format(cpu=limits.cpu_s_per_s, memory=limits.memory_bytes, io=limits.io_bytes_per_s)
        costs: dict[int, float] = defaultdict(float)
        for answer in await ask_all(self.config, sql):
            for item, cost in answer.rows:
                costs[int(str(item))] += float(str(cost))
        return list(costs.values())

    async def item_counts(self) -> list[float]:
        """Items by shard."""
        return [float(str(answer.rows[0][0])) for answer in await ask_all(self.config, "SELECT count(*) FROM item")]

    async def shadows(self) -> dict[str, float]:
        """max/mean by policy in the shadow ledgers, parts left out."""
        rows = await read_console(self.config, "SHOW BALANCE")
        return {str(row["policy"]): float(row["max_over_mean"] or 1) for row in rows if row["source"] == "shadow"}

    async def q_errors(self) -> dict[str, tuple[float, float]]:
        """Median and 95th percentile by profile."""
        return {
            f"{row['function']} {row['operation']}": (float(row["q_median"]), float(row["q_p95"]))
            for row in await read_console(self.config, "SHOW PROFILES")
            if row["q_median"] is not None and row["q_p95"] is not None
        }

    async def _is_settled(self) -> bool:
        answers = [answer.rows[0] for answer in await ask_all(self.config, LEFT)]
        calls = sum(int(row["calls"] or 0) for row in await read_console(self.config, "SHOW PROFILES"))
        return not any(row[0] for row in answers) and calls == sum(int(str(row[1])) for row in answers)


@contextlib.contextmanager
def deployed(instances: TestInstances, folder: Path, policy: str) -> Iterator[Deployment]:
    """A proxy with a policy over fresh databases."""
    shards = instances.create(SHARDS)
    try:
        folder.mkdir()
        (folder / "schema.sql").write_text(SCHEMA)
        proxy = Proxy(
            shards.dsns,
            folder,
            tables=TABLES,
            triggers=TRIGGERS,
            schema="schema.sql",
            functions_path=str(FOLDER),
            placement={"policy": policy, "bound": 1.05},
        )
        keep_measurements(shards)
        with proxy:
            yield Deployment(load_config(proxy.configuration))
    finally:
        instances.drop(shards)


def keep_measurements(shards: Shards) -> None:
    """Keep a copy of every measurement on its shard."""
    shards.execute(KEEP_MEASUREMENTS)
