"""The demo's clients against PostgreSQL itself: what they send is right whatever stands between."""

from __future__ import annotations

from pathlib import Path

from foreshard.proxy.demo.corpus import read_corpus
from foreshard.proxy.demo.load import Updates, open_clients, read_all, split_units, write_all
from tests.support.postgres import Shards

SCHEMA = Path(__file__).resolve().parents[2] / "config" / "demo" / "schema.sql"


async def at_once() -> None:
    """No pace."""


async def test_every_client_inserts_updates_and_finds_its_rows(one_shard: Shards) -> None:
    one_shard.execute(SCHEMA.read_text())
    one_shard.execute(SCHEMA.read_text())  # it may run again
    corpus = read_corpus(120, 11)
    known: dict[int, str] = {}
    done: list[int] = []
    async with open_clients(one_shard.dsns[0]) as clients:
        units = split_units(corpus.documents, 11)
        assert {unit.client for unit in units} == {client.name for client in clients}
        learn = lambda keys: known.update({key: path for path, key in keys.items()})  # noqa: E731
        first = len(units) // 2
        await write_all(clients, units[:first], learn, Updates(0, lambda: (0, ""), lambda: None), at_once)
        changes = [(key, "changed") for key in known]
        updates = Updates(len(changes), changes.pop, lambda: done.append(1))
        changed = len(changes)
        await write_all(clients, units[first:], learn, updates, at_once)
        assert await read_all(clients, known, lambda: None) == len(known)
        assert await read_all(clients, {**known, 10**9: "missing"}, lambda: None) == len(known)
        assert sum(client.reconnects for client in clients) == 0
    assert sorted(known.values()) == sorted(document.path for document in corpus.documents)
    assert len(done) == changed
    assert one_shard.query("SELECT count(*), sum(revision) - count(*) FROM document") == [(len(known), changed)]
    assert one_shard.query("SELECT count(*) FROM document WHERE body = 'changed'") == [(changed,)]


async def test_an_insert_that_lost_its_connection_is_not_made_twice(one_shard: Shards) -> None:
    one_shard.execute(SCHEMA.read_text())
    documents = read_corpus(4, 11).documents
    async with open_clients(one_shard.dsns[0]) as clients:
        for client in clients:
            await client.insert(documents[:2], one_transaction=False)
            before = client.reconnects
            one_shard.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            keys = await client.insert(documents, one_transaction=True)
            assert client.reconnects == before + 1
            assert set(keys) == {document.path for document in documents}
            rows = one_shard.query("SELECT path FROM document ORDER BY id")
            assert sorted(row[0] for row in rows) == sorted(document.path for document in documents)
            one_shard.execute("DELETE FROM document")
