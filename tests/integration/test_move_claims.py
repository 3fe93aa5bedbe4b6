"""Claims and notes of rows away move with their bucket: values stay unique, and rows are found, wherever both are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from foreshard._core.buckets import initial_map
from foreshard.proxy.config import Config, TableConfig
from foreshard.proxy.control import list_lacking
from foreshard.proxy.errors import ForeshardError
from foreshard.proxy.move import Transfer
from tests.support.deployment import apply_now, make_config
from tests.support.move_world import Script, large, run, small
from tests.support.postgres import Shards, TestInstances
from tests.support.verified import assert_verified, verdict_of

SHARDS = (0, 1, 2)
OWNERS = initial_map(3)
SCHEMA = """
CREATE TABLE IF NOT EXISTS account (id bigserial PRIMARY KEY, email text, tenant int, code int);
CREATE TABLE IF NOT EXISTS parcel (name text PRIMARY KEY, weight int);
CREATE TABLE IF NOT EXISTS item (
  id bigserial PRIMARY KEY, parcel text NOT NULL REFERENCES parcel ON DELETE CASCADE, label text);
"""
TABLES = (
    TableConfig(name="account", key="id", unique=(("email",), ("tenant", "code"))),
    TableConfig(name="parcel", key="name", placement="cost"),
    TableConfig(name="item", key="id", parent="parcel", via="parcel", unique=(("label",),)),
)
WAYS = pytest.mark.parametrize("script", [small, large], ids=["small", "large"])
BUCKETS = iter(range(4096))
EVERYTHING = {
    "account": "SELECT id, email, tenant, code FROM account",
    "parcel": "SELECT name, weight, foreshard.bucket_where('public.parcel.name', name) FROM parcel",
    "item": "SELECT id, parcel, label FROM item",
    "claim": "SELECT home, name, key, bucket FROM foreshard.claim",
    "away": "SELECT name, key, bucket FROM foreshard.away",
}
WORDS = (
    "CREATE TEMP TABLE word AS SELECT 'word ' || n AS word, foreshard.bucket_of('word ' || n) AS home "
    "FROM generate_series(1, 200000) AS n; CREATE INDEX ON word (home)"
)
TAKEN = psycopg.errors.UniqueViolation


class World(NamedTuple):
    """Three shards, and a connection to each."""

    config: Config
    sides: tuple[psycopg.Connection, ...]

    def ask(self, shard: int, sql: str) -> list[tuple[object, ...]]:
        """The rows that SQL gives on a shard."""
        cursor = self.sides[shard].execute(sql.encode())
        return cursor.fetchall() if cursor.description else []

    def owner(self, bucket: int) -> int:
        """The one shard that says that the bucket is its own."""
        (found,) = [shard for shard in SHARDS if self.ask(shard, f"SELECT foreshard.owns({bucket})") == [(True,)]]
        return found

    def words(self, home: int) -> list[str]:
        """Texts with that home."""
        return [str(word) for (word,) in self.ask(0, f"SELECT word FROM word WHERE home = {home} ORDER BY 1")]

    def write(self, bucket: int, sql: str, shard: int | None = None) -> None:
        """Write to the shard, by default the bucket's, and settle claims as a router does."""
        writer = self.sides[self.owner(bucket) if shard is None else shard]
        with contextlib.ExitStack() as stack:
            for side in self.sides:
                stack.enter_context(side.transaction())
            writer.execute(f"SET LOCAL foreshard.bucket = {bucket}".encode())
            writer.execute(sql.encode())
            for home, command in writer.execute("SELECT home, command FROM foreshard.claims_due()").fetchall():
                self.sides[self.owner(home)].execute(command.encode())

    def move(self, bucket: int, target: int, script: Script) -> None:
        """Move the bucket; the map follows, and nothing else has changed."""
        before = self.everything()
        run(self.config, bucket, script, self.owner(bucket), target)
        assert self.owner(bucket) == target
        self.follow(bucket, target)
        assert self.everything() == before
        assert_verified(self.config)

    def follow(self, bucket: int, shard: int) -> None:
        """What a mover does last."""
        self.ask(0, f"UPDATE foreshard.bucket_map SET shard = {shard} WHERE bucket = {bucket}")

    def everything(self) -> dict[str, list[tuple[object, ...]]]:
        """What there is on all shards; claims are at their homes, and notes with the owners of their buckets."""
        for shard in SHARDS:
            assert self.ask(shard, "SELECT 1 FROM foreshard.claim WHERE NOT foreshard.owns(home)") == []
            assert self.ask(shard, "SELECT 1 FROM foreshard.away WHERE NOT foreshard.owns(bucket)") == []
        return {
            name: sorted((row for shard in SHARDS for row in self.ask(shard, sql)), key=repr)
            for name, sql in EVERYTHING.items()
        }

    def where(self, table: str, column: str, value: str) -> int:
        """The shard that has the row."""
        asked = f"SELECT 1 FROM {table} WHERE {column} = '{value}'"
        (found,) = [shard for shard in SHARDS if self.ask(shard, asked)]
        return found

    def bucket_of_parcel(self, name: str) -> int:
        """The bucket that it is in, as its shard says."""
        asked = f"SELECT foreshard.bucket_where('public.parcel.name', '{name}')"
        return int(str(self.ask(self.where("parcel", "name", name), asked)[0][0]))

    def is_taken(self, sql: str) -> bool:
        """Whether every shard refuses the new row as a duplicate; none, or all do."""
        refused = 0
        for shard in SHARDS:
            bucket = self.ask(shard, "SELECT position('1' IN buckets::text) - 1 FROM foreshard.owned_buckets")[0][0]
            try:
                self.write(int(str(bucket)), sql, shard)
            except TAKEN:
                refused += 1
        assert refused in (0, len(SHARDS))
        return refused > 0

    def is_claimed(self, pattern: str) -> bool:
        """Whether any shard has a claim or a note of a value like that."""
        asked = "SELECT key FROM foreshard.claim UNION ALL SELECT key FROM foreshard.away"
        return any(self.ask(shard, f"SELECT 1 FROM ({asked}) AS k WHERE key LIKE '{pattern}'") for shard in SHARDS)


def fill_accounts(world: World, bucket: int, home: int, start: int, count: int) -> list[str]:
    """Rows in a bucket, with values at home in another."""
    mails = world.words(home)[start : start + count]
    values = ", ".join(f"('{mail}', {bucket}, {n})" for n, mail in enumerate(mails, start + 100 * home))
    world.write(bucket, f"INSERT INTO account (email, tenant, code) VALUES {values}")
    return mails


def fill_parcels(world: World, bucket: int, home: int, start: int, count: int) -> list[str]:
    """Parcels in a bucket, with keys at home in another; the first half of them has items."""
    names = world.words(home)[start : start + count]
    parcels = ", ".join(f"('{name}', {bucket})" for name in names)
    items = ", ".join(f"('{name}', 'label {name} {n}')" for name in names[: (count + 1) // 2] for n in (1, 2))
    world.write(bucket, f"INSERT INTO parcel VALUES {parcels}; INSERT INTO item (parcel, label) VALUES {items}")
    return names


def exercise_account(world: World, mail: str) -> None:
    """Claimed everywhere; deleted, and then free."""
    again = f"INSERT INTO account (email) VALUES ('{mail}')"
    assert world.is_taken(again)
    shard = world.where("account", "email", mail)
    (row,) = world.ask(shard, f"SELECT tenant, code, foreshard.bucket_of(id) FROM account WHERE email = '{mail}'")
    tenant, code, bucket = map(int, map(str, row))
    assert world.is_taken(f"INSERT INTO account (tenant, code) VALUES ({tenant}, {code})")
    world.write(bucket, f"DELETE FROM account WHERE email = '{mail}'", shard)
    assert not world.is_claimed(mail)
    world.write(bucket, again, shard)
    assert world.is_taken(again)


def exercise_parcel(world: World, name: str, spare: str, bucket: int) -> None:
    """Claimed everywhere; renamed and back, if there is another name; deleted, and then free everywhere."""
    shard = world.where("parcel", "name", name)
    again = f"INSERT INTO parcel VALUES ('{name}', 0)"
    assert world.is_taken(again)
    if spare:
        world.write(bucket, f"UPDATE parcel SET name = '{spare}' WHERE name = '{name}'", shard)
        assert not world.is_claimed(name)
        assert world.is_taken(f"INSERT INTO parcel VALUES ('{spare}', 0)")
        world.write(bucket, f"UPDATE parcel SET name = '{name}' WHERE name = '{spare}'", shard)
        assert not world.is_claimed(spare)
        assert world.is_taken(again)
    world.write(bucket, f"DELETE FROM parcel WHERE name = '{name}'", shard)
    for place in SHARDS:
        assert not world.is_claimed(f"%{name}%")
        world.write(bucket, again, place)
        assert world.is_taken(again)
        world.write(bucket, f"DELETE FROM parcel WHERE name = '{name}'", place)


def exercise_items(world: World, name: str, other: str) -> None:
    """The label of a parcel's item is claimed, deleted with it, and then free for another parcel."""
    again = f"INSERT INTO item (parcel, label) VALUES ('{{}}', 'label {name} 1')"
    bucket, another = world.bucket_of_parcel(name), world.bucket_of_parcel(other)
    for parcel, place in ((name, bucket), (other, another)):
        with pytest.raises(TAKEN):
            world.write(place, again.format(parcel))
    world.write(bucket, f"DELETE FROM item WHERE parcel = '{name}'")
    assert not world.is_claimed(f"label {name} %")
    world.write(another, again.format(other))
    world.write(another, f"DELETE FROM item WHERE label = 'label {name} 1'")
    world.write(bucket, again.format(name))


@pytest.fixture(scope="module")
def world(test_instances: TestInstances, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Three shards; each test has buckets of its own."""
    shards = test_instances.create(len(SHARDS))
    config = make_config(shards, tmp_path_factory.mktemp("claims"), schema=SCHEMA, tables=TABLES)
    apply_now(config)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(psycopg.connect(dsn, autocommit=True)) for dsn in shards.dsns]
        opened = World(config, tuple(connections))
        opened.ask(0, WORDS)
        yield opened
    test_instances.drop(shards)


def new_bucket(shard: int) -> int:
    """A bucket of that shard that no test has used."""
    return next(bucket for bucket in BUCKETS if OWNERS[bucket] == shard)


@WAYS
def test_claims_move_with_their_home_and_not_with_their_rows(world: World, script: Script) -> None:
    bucket, beside, other = new_bucket(0), new_bucket(0), new_bucket(1)
    own = fill_accounts(world, bucket, bucket, 0, 3)
    away = fill_accounts(world, bucket, other, 0, 3) + fill_accounts(world, bucket, beside, 0, 3)
    guests = fill_accounts(world, other, bucket, 3, 3) + fill_accounts(world, beside, bucket, 6, 3)
    claimed = f"SELECT count(*) FROM foreshard.claim WHERE home = {bucket} AND name = 'public.account.email'"
    assert world.ask(0, claimed) == [(9,)]
    for step, target in enumerate((1, 2, 0)):
        world.move(bucket, target, script)
        assert world.ask(target, claimed) == [(9,)]
        for mails in (own, away[:3], away[3:], guests[:3], guests[3:]):
            exercise_account(world, mails[step])
        assert_verified(world.config)


@WAYS
def test_rows_placed_by_cost_move_with_their_bucket_and_their_claims_with_their_home(
    world: World, script: Script
) -> None:
    home, bucket, third = new_bucket(0), new_bucket(1), new_bucket(2)
    at_home = fill_parcels(world, home, home, 0, 14)
    away = fill_parcels(world, bucket, home, 14, 14)  # claims at home, rows in bucket
    spares = world.words(third)
    assert {world.where("parcel", "name", name) for name in at_home} == {0}
    assert {world.where("parcel", "name", name) for name in away} == {1}
    for moved, target in (
        (home, 2),  # the home moves, the rows stay
        (bucket, 0),  # their bucket moves
        (home, 0),  # the home comes to the shard where its rows live away
        (home, 1),  # and leaves it again
        (bucket, 1),  # their bucket comes to their home's shard
        (bucket, 2),  # and leaves it again
    ):
        world.move(moved, target, script)
        assert {world.where("parcel", "name", name) for name in at_home} == {world.owner(home)}
        assert {world.where("parcel", "name", name) for name in away} == {world.owner(bucket)}
        for names, others in ((at_home, away), (away, at_home)):
            exercise_items(world, names[0], others[0])
            exercise_parcel(world, names.pop(), spares.pop(), bucket)
            exercise_parcel(world, names.pop(0), "", bucket)


@pytest.mark.parametrize("place", ["home", "rows"])
def test_what_is_claimed_and_released_while_a_bucket_is_copied_arrives(world: World, place: str) -> None:
    home, bucket, other = new_bucket(0), new_bucket(0), new_bucket(1)
    moved = home if place == "home" else bucket
    mails = fill_accounts(world, bucket, home, 0, 6)
    names = fill_parcels(world, bucket, other, 0, 6)
    before: dict[str, list[tuple[object, ...]]] = {}

    async def script(transfer: Transfer) -> None:
        await transfer.begin()
        await transfer.copy()
        world.write(bucket, f"DELETE FROM account WHERE email = '{mails[0]}'")
        world.write(bucket, f"UPDATE account SET email = 'other {mails[1]}' WHERE email = '{mails[1]}'")
        fill_accounts(world, bucket, home, 6, 2)
        world.write(bucket, f"DELETE FROM parcel WHERE name = '{names[1]}'")
        world.write(bucket, f"DELETE FROM parcel WHERE name = '{names[3]}'")
        world.write(bucket, f"INSERT INTO parcel VALUES ('{names[3]}', 7)")
        world.write(bucket, f"UPDATE parcel SET name = 'other {names[4]}' WHERE name = '{names[4]}'")
        fill_parcels(world, bucket, other, 6, 2)
        before.update(world.everything())
        await transfer.flip()
        await transfer.commit()

    run(world.config, moved, script, 0, 2)
    world.follow(moved, 2)
    assert world.everything() == before
    assert_verified(world.config)


def test_a_claim_or_a_note_on_the_target_keeps_the_bucket_where_it_is(world: World) -> None:
    bucket = new_bucket(0)
    for table, values in (("claim", f"({bucket}, 'n', 'k', 1)"), ("away", f"('n', 'k', {bucket})")):
        world.ask(1, f"INSERT INTO foreshard.{table} VALUES {values}")
        with pytest.raises(ForeshardError, match=rf"shard s1 has 1 rows of foreshard\.{table} that belong to bucket"):
            run(world.config, bucket, small, 0, 1)
        world.ask(1, f"DELETE FROM foreshard.{table} WHERE name = 'n'")
    assert world.owner(bucket) == 0


def test_verify_finds_claims_that_have_another_home(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreshard.proxy.control.verify_shard.LOOK_AGAIN_S", (0.0, 0.0))
    home, beside = new_bucket(0), new_bucket(0)
    fill_accounts(world, home, home, 0, 1)
    fill_parcels(world, home, home, 1, 1)
    claims = f"name IN ('public.account.email', 'public.parcel.name') AND bucket = {home}"
    world.ask(0, f"UPDATE foreshard.claim SET home = {beside} WHERE {claims}")
    assert sorted((one.check, one.subject, one.count) for one in verdict_of(world.config).findings) == [
        ("claim", "public.parcel", 1),
        ("claim", "public.parcel", 1),
        ("orphan claims", "public.account.email", 1),
        ("unclaimed", "public.account.email", 1),
    ]
    world.ask(0, f"UPDATE foreshard.claim SET home = {home} WHERE {claims}")
    assert_verified(world.config)


def test_apply_leaves_what_has_moved(world: World) -> None:
    bucket = new_bucket(0)
    world.move(bucket, 1, small)
    owned = "SELECT buckets, moves, arrivals FROM foreshard.owned_buckets"
    before = [world.ask(shard, owned) for shard in SHARDS]
    assert asyncio.run(list_lacking(world.config)) == []
    for shard in SHARDS:
        world.ask(shard, "UPDATE foreshard.applied SET digest = '' WHERE object = 'row of foreshard.owned_buckets'")
    assert apply_now(world.config) == len(SHARDS)
    assert [world.ask(shard, owned) for shard in SHARDS] == before
    assert_verified(world.config)


def test_a_bucket_that_comes_is_not_one_that_has_left(world: World) -> None:
    bucket = new_bucket(1)
    ((moves, arrivals),) = world.ask(2, "SELECT moves, arrivals FROM foreshard.owned_buckets")
    world.move(bucket, 2, small)
    assert world.ask(2, "SELECT moves, arrivals FROM foreshard.owned_buckets") == [(moves, int(str(arrivals)) + 1)]
    assert world.ask(2, f"SELECT foreshard.still_placed({moves})") == [(True,)]


def test_claims_of_an_earlier_version_are_refused(one_shard: Shards, tmp_path: Path) -> None:
    one_shard.execute(
        "CREATE SCHEMA foreshard; CREATE TABLE foreshard.claim (name text, key text, bucket integer, "
        "CONSTRAINT claim_is_unique PRIMARY KEY (name, key))"
    )
    config = make_config(one_shard, tmp_path, schema=SCHEMA, tables=TABLES)
    with pytest.raises(ForeshardError, match=r"an earlier version of Foreshard made this deployment; .*anew"):
        apply_now(config)
