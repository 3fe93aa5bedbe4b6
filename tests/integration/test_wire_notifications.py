"""LISTEN hears every shard: a notification may be raised by a trigger wherever its row lives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.messages import SYNC, extended
from tests.support.postgres import TestInstances
from tests.support.raw import RawConnection, error_of, kinds
from tests.support.sharded import SHARD_COUNT, Deployment, deployment

OWN_CHANNELS = "SELECT count(*) FROM pg_listening_channels()"
TELL = """CREATE OR REPLACE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN PERFORM pg_notify('news', NEW.tag); RETURN NULL; END$$;
CREATE TRIGGER tell AFTER UPDATE ON root FOR EACH ROW EXECUTE FUNCTION tell()"""


@pytest.fixture(scope="module")
def deployed(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Shards whose root table tells of each update."""
    with deployment(test_instances, tmp_path_factory.mktemp("news"), pool={"size": 4}) as made:
        made.shards.execute(TELL)
        yield made


@pytest.fixture
def listener(deployed: Deployment) -> Iterator[RawConnection]:
    """A client that has listened; after it nobody listens any more."""
    with deployed.server.connect() as connection:
        yield connection
    deployed.come_to_rest()
    with deployed.server.connect() as other:
        for keys in deployed.keys:
            assert other.value(f"{OWN_CHANNELS} WHERE {keys[0]} IN (SELECT id FROM root WHERE id = {keys[0]})") == "0"


def news(listener: RawConnection) -> bytes:
    """The next notification's channel and payload."""
    message = listener.read_message()
    assert message.kind == b"A"
    return message.body[4:]


def touch(deployed: Deployment, shard: int, tag: str) -> None:
    """Update a row of a shard through the proxy."""
    with deployed.server.connect() as writer:
        writer.rows(f"UPDATE root SET tag = '{tag}' WHERE id = {deployed.keys[shard][0]}")


@pytest.mark.parametrize("shard", range(SHARD_COUNT))
def test_an_idle_listener_hears_of_every_shard_and_once(
    deployed: Deployment, listener: RawConnection, shard: int
) -> None:
    listener.rows("LISTEN news")
    touch(deployed, shard, f"from {shard}")
    assert news(listener) == f"news\0from {shard}\0".encode()
    assert kinds(listener.query("SELECT 1")) == "TDCZ"


def test_listen_works_in_extended_query_and_unlisten_ends_it_on_every_shard(
    deployed: Deployment, listener: RawConnection
) -> None:
    assert "E" not in kinds(listener.ask(extended("LISTEN news"), SYNC))
    touch(deployed, 1, "heard")
    assert news(listener) == b"news\0heard\0"
    listener.rows("UNLISTEN *")
    for shard in range(SHARD_COUNT):
        touch(deployed, shard, "unheard")
    assert kinds(listener.query("SELECT 1")) == "TDCZ"


def test_listen_in_a_transaction_counts_from_its_commit_and_not_when_it_rolls_back(
    deployed: Deployment, listener: RawConnection
) -> None:
    for statement in ("BEGIN", "LISTEN news", "ROLLBACK"):
        listener.rows(statement)
    touch(deployed, 2, "unheard")
    for statement in ("BEGIN", "SELECT 1", "LISTEN news", "COMMIT"):
        listener.rows(statement)
    touch(deployed, 2, "heard")
    assert news(listener) == b"news\0heard\0"


def test_notify_reaches_a_listener_through_the_proxy(deployed: Deployment, listener: RawConnection) -> None:
    listener.rows("LISTEN news")
    with deployed.server.connect() as speaker:
        speaker.rows("NOTIFY news, 'one'")
        speaker.rows("SELECT pg_notify('news', 'two')")
    assert [news(listener), news(listener)] == [b"news\0one\0", b"news\0two\0"]


def test_a_listener_that_writes_on_two_shards_at_once_is_refused_before_anything_commits(
    deployed: Deployment, listener: RawConnection
) -> None:
    look = f"SELECT n FROM root WHERE id = {deployed.keys[0][2]}"
    before = listener.value(look)
    for statement in ("BEGIN", "LISTEN news"):
        listener.rows(statement)
    for shard in (0, 1):
        listener.rows(f"UPDATE root SET n = n + 1 WHERE id = {deployed.keys[shard][2]}")
    assert error_of(listener.query("COMMIT"))["C"] == "0A000"
    listener.rows("ROLLBACK")
    assert listener.value(look) == before
