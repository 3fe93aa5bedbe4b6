"""One run of the demo's workload against a proxy that is up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from foreshard.proxy.admin.command_explain import login_of
from foreshard.proxy.config import Config
from foreshard.proxy.demo import figures
from foreshard.proxy.demo.clients import Client
from foreshard.proxy.demo.corpus import Corpus, Document, zipfian_ranks
from foreshard.proxy.demo.display import Display
from foreshard.proxy.demo.load import insert_all, open_clients, read_all, split_units, update_all
from foreshard.proxy.demo.pace import Pace
from foreshard.proxy.demo.report import Report
from foreshard.proxy.demo.verify import Drain, read_effects, read_outbox, read_placement

JOURNAL = "acknowledged.tsv"


class Run:
    """Inserts what is missing, updates, waits for the trigger functions, checks. `run` is called once."""

    def __init__(
        self, config: Config, corpus: Corpus, display: Display, data: Path, seed: int, updates: int | None
    ) -> None:
        user, database = login_of(config)
        self.config = config
        self.corpus = corpus
        self.display = display
        self.seed = seed
        self.dsn = f"postgresql://{user}@{config.listen_host}:{config.listen_port}/{database}"
        self.journal = data / JOURNAL
        self.known: dict[int, str] = {}  # path by key: every row that a client was told of, in this run or before
        self._updates = updates

    async def run(self) -> Report:
        """The whole workload; its figures."""
        began_s = time.monotonic()
        async with open_clients(self.dsn) as clients:
            before = await read_placement(self.config, set())
            self.known = before.paths | self._read_journal()
            async with Pace(self.config) as pace:
                inserted = await self._insert(clients, pace)
            await self._drain()
            balance_inserts = await self._read_balance()
            async with Pace(self.config) as pace:
                updates = await self._update(clients, pace, inserted)
            await self._drain()
            found = await self._find(clients)
        placement = await read_placement(self.config, set(self.known))
        effects = await read_effects(self.config)
        outbox = await read_outbox(self.config)
        balance = await self._read_balance()
        return Report(
            rows=len(self.known),
            inserted=inserted,
            updates=updates,
            found=found,
            misplaced=placement.misplaced,
            outbox_left=outbox.waiting,
            dead_letters=outbox.dead,
            effects_lost=effects.lost,
            effects_repeated=effects.repeated,
            reconnects=sum(client.reconnects for client in clients),
            seconds=round(time.monotonic() - began_s, 2),
            rows_per_shard={shard.name: rows for shard, rows in zip(self.config.shards, placement.rows, strict=True)},
            cost_s_per_shard=await figures.read_costs(self.config),
            policy=self.config.placement.policy,
            balance_inserts=balance_inserts,
            balance=balance,
            functions=await figures.read_functions(self.config),
        )

    async def _insert(self, clients: Sequence[Client], pace: Pace) -> int:
        """Insert every document whose path is not there yet; how many."""
        present = set(self.known.values())
        missing = [document for document in self.corpus.documents if document.path not in present]
        if not missing:
            self.display.say("All documents are there already: reusing them.")
            return 0
        inserted = 0
        with self.journal.open("a") as journal, self.display.step("Inserting documents", len(missing)) as advance:

            def on_rows(keys: dict[str, int]) -> None:
                nonlocal inserted
                self.known |= {key: path for path, key in keys.items()}
                journal.writelines(f"{key}\t{path}\n" for path, key in keys.items())
                journal.flush()
                inserted += len(keys)
                advance(inserted)

            await insert_all(clients, split_units(missing, self.seed), on_rows, pace.wait)
        return inserted

    async def _update(self, clients: Sequence[Client], pace: Pace, inserted: int) -> int:
        """A zipfian stream of updates, each changing a body for good; how many."""
        bodies = {document.path: document for document in self.corpus.documents}
        chosen = sorted((key, bodies[path]) for key, path in self.known.items() if path in bodies)
        count = self._updates if self._updates is not None else len(chosen) // (2 if inserted else 10)
        if not chosen or count == 0:
            return 0
        # Another seed each time: the same keys would get the same bodies again, which is no change.
        stamp = time.time_ns()
        ranks = zipfian_ranks(len(chosen), count, self.seed)
        changes = [changed(chosen[rank], f"{stamp}.{number}") for number, rank in enumerate(ranks)]
        done = 0
        with self.display.step("Updating, zipfian", count) as advance:

            def on_done() -> None:
                nonlocal done
                done += 1
                advance(done)

            await update_all(clients, changes, on_done, pace.wait)
        return count

    async def _drain(self) -> None:
        """Wait until every event has been handled."""
        drain = Drain(self.config)
        waiting = total = await drain.begin()
        with self.display.step("Waiting for trigger functions", total) as advance:
            while waiting:
                waiting = await drain.step()
                advance(total - waiting)

    async def _read_balance(self) -> dict[str, float]:
        """max/mean by policy, once all measurements are in."""
        await figures.wait_settled(self.config)
        return await figures.read_balance(self.config, await figures.read_costs(self.config))

    async def _find(self, clients: Sequence[Client]) -> int:
        """Look every known key up through the proxy."""
        done = 0
        with self.display.step("Finding every row by its key", len(self.known)) as advance:

            def on_done() -> None:
                nonlocal done
                done += 1
                advance(done)

            return await read_all(clients, self.known, on_done)

    def _read_journal(self) -> dict[int, str]:
        """Rows that earlier runs were told are committed; a torn last line is left out."""
        if not self.journal.exists():
            return {}
        whole = self.journal.read_text().rpartition("\n")[0].splitlines()
        return {int(key): path for key, path in (line.split("\t", 1) for line in whole)}


def changed(row: tuple[int, Document], mark: str) -> tuple[int, str]:
    """Key and new body of one update: the text with a comment that no other update has."""
    key, document = row
    return key, f"{document.body}\n# changed {mark}\n"
