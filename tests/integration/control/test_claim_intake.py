"""Columns are declared unique, and no longer, on shards that have rows; `foreshard verify` tells of wrong claims."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from foreshard._core.buckets import BUCKET_COUNT, initial_map
from foreshard.proxy.config import Config, TableConfig
from foreshard.proxy.control.claim_intake import BATCH_ROWS
from foreshard.proxy.errors import ConfigError
from tests.support.deployment import apply_now, make_config
from tests.support.postgres import Shards
from tests.support.verified import assert_verified, verdict_of

SCHEMA = "CREATE TABLE IF NOT EXISTS person (id bigserial PRIMARY KEY, email text, tenant integer, born date);"
NAMES = ("public.person.email", "public.person.tenant,born")
OWNERS = initial_map(3)
FIRST = [next(bucket for bucket in range(BUCKET_COUNT) if OWNERS[bucket] == shard) for shard in range(3)]
ROWS = BATCH_ROWS + 40


@pytest.fixture(autouse=True)
def _look_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreshard.proxy.control.verify_shard.LOOK_AGAIN_S", (0.0, 0.0))


@pytest.fixture
def plain(three_shards: Shards, tmp_path: Path) -> Config:
    """Three shards with rows, and nothing declared unique."""
    config = make_config(three_shards, tmp_path, schema=SCHEMA, tables=(TableConfig(name="person", key="id"),))
    apply_now(config)
    for shard in range(3):
        three_shards.execute(
            f"SET foreshard.bucket = '{FIRST[shard]}'; INSERT INTO person (email, tenant, born) "
            f"SELECT 'mail ' || n, {shard}, date '2026-01-01' + n "
            f"FROM generate_series({shard * ROWS}, {(shard + 1) * ROWS - 1}) AS n;"
            "INSERT INTO person (tenant) VALUES (7)",
            on=shard,
        )
    return config


def declared(config: Config) -> Config:
    table = TableConfig(name="person", key="id", unique=(("email",), ("tenant", "born")))
    return msgspec.structs.replace(config, tables=(table,))


def claims(shards: Shards) -> list[tuple[object, ...]]:
    return [row for shard in range(3) for row in shards.query("SELECT name, key FROM foreshard.claim", on=shard)]


def checks(config: Config) -> list[tuple[str, str, int]]:
    return sorted((one.check, one.subject, one.count) for one in verdict_of(config).findings)


def test_rows_of_all_shards_are_taken_in_and_given_up_again(three_shards: Shards, plain: Config) -> None:
    config = declared(plain)
    assert apply_now(config) > 0
    assert len(claims(three_shards)) == len(set(claims(three_shards))) == 3 * ROWS * 2
    spread = [three_shards.query("SELECT count(*) FROM foreshard.claim", on=shard)[0][0] for shard in range(3)]
    assert min(spread) > 0
    assert_verified(config)
    assert apply_now(config) == 0
    assert apply_now(plain) > 0
    assert claims(three_shards) == []
    assert three_shards.query("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'foreshard_claim%'", on=1) == []
    assert_verified(plain)
    apply_now(config)
    assert len(claims(three_shards)) == 3 * ROWS * 2
    assert_verified(config)


def test_values_on_several_rows_are_listed_and_apply_goes_on_when_they_are_mended(
    three_shards: Shards, plain: Config
) -> None:
    config = declared(plain)
    three_shards.execute(f"UPDATE person SET email = 'mail 3' WHERE email = 'mail {ROWS + 5}'", on=1)
    three_shards.execute("UPDATE person SET email = 'mail 1' WHERE email = 'mail 2'", on=0)
    with pytest.raises(ConfigError) as caught:
        apply_now(config)
    (problem,) = caught.value.problems
    assert "tables.person.unique: 2 values of (email) stand on several rows: (mail 1), (mail 3); change or" in problem
    assert ("claims", NAMES[0], 1) in checks(config), "the set is incomplete"
    # Without the triggers: these values' claims are the other rows'.
    mend = "SET session_replication_role = replica; UPDATE person SET email = NULL WHERE "
    three_shards.execute(f"{mend} email = 'mail 3'", on=1)
    three_shards.execute(f"{mend} email = 'mail 1' AND born = '2026-01-03'", on=0)
    assert apply_now(config) == 1
    assert_verified(config)


def test_verify_finds_lacking_orphan_doubled_and_stray_claims(three_shards: Shards, plain: Config) -> None:
    config = declared(plain)
    apply_now(config)
    three_shards.execute("DELETE FROM foreshard.claim WHERE key = 'mail 9'")
    three_shards.execute("INSERT INTO foreshard.claim VALUES (3, 'public.person.email', 'nobody', 1)", on=2)
    three_shards.execute("INSERT INTO foreshard.claim VALUES (3, 'public.gone.x', 'y', 1)", on=1)
    three_shards.execute(
        f"SET session_replication_role = replica; SET foreshard.bucket = '{FIRST[2]}';"
        "INSERT INTO person (email) VALUES ('mail 4')",
        on=2,
    )
    assert checks(config) == [
        ("claims", "public.gone.x", 1),
        ("orphan claims", "public.person.email", 1),
        ("unclaimed", "public.person.email", 1),
        ("unclaimed", "public.person.email", 1),
    ]
