"""What a router knows of the query node when the schema changes while it looks."""

from __future__ import annotations

import asyncio
from pathlib import Path

from foreshard.proxy.catalog import Catalog, QueryNode
from foreshard.proxy.config import Config, ShardConfig, TableConfig
from foreshard.proxy.control.query_watch import QueryWatch, Seen

CONFIG = Config(
    path=Path("f.yaml"),
    shards=tuple(ShardConfig(name=f"s{index}", dsn=f"postgresql://s{index}/app") for index in range(2)),
    tables=(TableConfig(name="document", key="id"),),
)


class Overtaken(QueryWatch):
    """Finds the same whenever it looks, and nothing new where it has looked already; the first look is overtaken."""

    looks = 0

    async def _read(self, dsn: str) -> Seen | None:
        self.looks += 1
        if self._state is not None:
            return None
        if self.looks == 1:
            self.doubt()
        self._state = ("shard", "node")
        return Seen(QueryNode(relations=frozenset(("public.plain",))))


def test_a_look_that_a_change_has_overtaken_is_taken_again() -> None:
    told: list[Seen] = []

    async def look_twice() -> None:
        watch = Overtaken(CONFIG, Catalog(), told.append)
        await watch.look()
        assert not told
        await watch.look()

    asyncio.run(look_twice())
    assert [seen.node for seen in told] == [QueryNode(relations=frozenset(("public.plain",)))]
