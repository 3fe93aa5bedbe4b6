"""One run of the demo's workload against a proxy that is up.

The first half of the documents is inserted by itself. The others arrive while what is there changes, as in a
deployment: an update costs what it costs where its row is, and only rows that still come can make up for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from foreshard.proxy.admin.command_explain import login_of
from foreshard.proxy.config import Config
from foreshard.proxy.control.verify import verify
from foreshard.proxy.control.verify_findings import verdict_lines
from foreshard.proxy.demo import figures
from foreshard.proxy.demo.clients import Client
from foreshard.proxy.demo.corpus import Corpus, Document, zipfian_ranks
from foreshard.proxy.demo.display import Display
from foreshard.proxy.demo.load import Updates, open_clients, read_all, split_units, write_all
from foreshard.proxy.demo.pace import Pace
from foreshard.proxy.demo.report import Balance, Report, by_function
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
            missing = self._missing()
            half = (len(missing) + 1) // 2
            inserts_alone: Balance | None = await self._write(clients, missing[:half], 0)
            updates = self._updates
            if updates is None:
                updates = len(self.corpus.documents) // (2 if missing else 10)
            balance = await self._write(clients, missing[half:], updates)
            if before.paths:  # what there was has been updated: these are not the first inserts
                inserts_alone = None
            found = await self._find(clients)
        placement = await read_placement(self.config, set(self.known))
        effects = await read_effects(self.config)
        outbox = await read_outbox(self.config)
        profiles = await figures.read_profiles(self.config)
        verdict = await verify(self.config)
        if not verdict.is_clean:
            self.display.say("\n".join(verdict_lines(verdict)))
        return Report(
            rows=len(self.known),
            inserted=len(missing),
            updates=updates,
            found=found,
            misplaced=placement.misplaced,
            outbox_left=outbox.waiting,
            dead_letters=outbox.dead,
            effects_lost=effects.lost,
            effects_repeated=effects.repeated,
            findings=len(verdict.findings) + len(verdict.unreachable),
            reconnects=sum(client.reconnects for client in clients),
            seconds=round(time.monotonic() - began_s, 2),
            rows_per_shard={shard.name: rows for shard, rows in zip(self.config.shards, placement.rows, strict=True)},
            cost_s_per_shard=await figures.read_costs(self.config),
            policy=self.config.placement.policy,
            balance_inserts=inserts_alone.by_policy if inserts_alone else None,
            balance=balance.by_policy,
            key_hash_expected_inserts=inserts_alone.key_hash_expected if inserts_alone else None,
            key_hash_expected=balance.key_hash_expected,
            functions=by_function(profiles),
            profiles=profiles,
        )

    def _missing(self) -> list[Document]:
        """Documents whose path is not there yet."""
        present = set(self.known.values())
        missing = [document for document in self.corpus.documents if document.path not in present]
        if not missing:
            self.display.say("All documents are there already: reusing them.")
        return missing

    async def _write(self, clients: Sequence[Client], documents: Sequence[Document], updates: int) -> Balance:
        """Insert the documents and update what is there, wait until all is worked on; the balance then."""
        if not documents and not updates:
            return await self._read_balance()
        done = 0
        title = title_of(len(documents), updates)
        with self.journal.open("a") as journal, self.display.step(title, len(documents) + updates) as advance:

            def on_done(count: int = 1) -> None:
                nonlocal done
                done += count
                advance(done)

            def on_rows(keys: dict[str, int]) -> None:
                self.known |= {key: path for path, key in keys.items()}
                journal.writelines(f"{key}\t{path}\n" for path, key in keys.items())
                journal.flush()
                on_done(len(keys))

            async with Pace(self.config) as pace:
                stream = Updates(updates, self._changes().__next__, on_done)
                await write_all(clients, split_units(documents, self.seed), on_rows, stream, pace.wait)
        await self._drain()
        return await self._read_balance()

    def _changes(self) -> Iterator[tuple[int, str]]:
        """Keys and new bodies without end: of documents that are there by then, a few of them often."""
        stamp = time.time_ns()  # another one each time: the same body again would be no change
        documents = self.corpus.documents
        keys = {path: key for key, path in self.known.items()}
        for number, rank in enumerate(zipfian_ranks(len(documents), self.seed)):
            document = documents[rank]
            if document.path not in keys and len(keys) < len(self.known):
                keys = {path: key for key, path in self.known.items()}
            if document.path in keys:
                yield keys[document.path], f"{document.body}\n# changed {stamp}.{number}\n"

    async def _drain(self) -> None:
        """Wait until every event has been handled."""
        drain = Drain(self.config)
        waiting = total = await drain.begin()
        with self.display.step("Waiting for trigger functions", total) as advance:
            while waiting:
                waiting = await drain.step()
                advance(total - waiting)

    async def _read_balance(self) -> Balance:
        """How even the shards are, once all measurements are in."""
        await figures.wait_settled(self.config)
        return await figures.read_balance(self.config)

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


def title_of(inserts: int, updates: int) -> str:
    """What a step of the load does."""
    if not updates:
        return "Inserting documents"
    return "Inserting, and updating, zipfian" if inserts else "Updating, zipfian"
