"""The demo's clients against PostgreSQL itself: what they send is right whatever stands between."""

from __future__ import annotations

from pathlib import Path

from foreshard.proxy.demo.corpus import read_corpus
from foreshard.proxy.demo.load import insert_all, open_clients, read_all, split_units, update_all
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
        await insert_all(clients, units, lambda keys: known.update({key: path for path, key in keys.items()}), at_once)
        await update_all(clients, [(key, "changed") for key in known], lambda: done.append(1), at_once)
        assert await read_all(clients, known, lambda: None) == len(known)
        assert await read_all(clients, {**known, 10**9: "missing"}, lambda: None) == len(known)
        assert sum(client.reconnects for client in clients) == 0
    assert sorted(known.values()) == sorted(document.path for document in corpus.documents)
    assert len(done) == len(known)
    assert one_shard.query("SELECT count(*), sum(revision), count(DISTINCT body) FROM document") == [
        (len(known), 2 * len(known), 1)
    ]


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
