"""`foreshard verify` on real shards: clean when all is well, and every kind of damage is found where it was done."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from foreshard._core.buckets import BUCKET_COUNT, bucket_of, initial_map, make_placed_key
from foreshard.proxy.__main__ import main
from foreshard.proxy.config import Config
from foreshard.proxy.control.verify import Options
from foreshard.proxy.control.verify_findings import Finding
from tests.support.deployment import apply_now, make_demo_config
from tests.support.postgres import Shards, TestInstances
from tests.support.proxy import Proxy
from tests.support.sharded import deployment
from tests.support.verified import assert_verified, verdict_of

OWNERS = initial_map(3)
BUCKETS = [[bucket for bucket in range(BUCKET_COUNT) if OWNERS[bucket] == shard] for shard in range(3)]
FREE = [[key for key in range(1, 200) if OWNERS[bucket_of(key)] == shard] for shard in range(3)]


@pytest.fixture(autouse=True)
def _look_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage stays: there is nothing to wait for. Beside traffic the usual waits apply (test below)."""
    monkeypatch.setattr("foreshard.proxy.control.verify_shard.LOOK_AGAIN_S", (0.0, 0.0))


@pytest.fixture
def shards(three_shards: Shards) -> Shards:
    return three_shards


@pytest.fixture
def config(shards: Shards, tmp_path: Path) -> Config:
    """Three shards, each with documents of generated and of free keys, their symbols, and the same languages."""
    config = make_demo_config(shards, tmp_path)
    apply_now(config)
    shards.execute("INSERT INTO language VALUES ('py', 'Python'), ('c', 'C')")
    for shard in range(3):
        shards.execute(
            f"SET foreshard.bucket = '{BUCKETS[shard][0]}';"
            "INSERT INTO document (path) SELECT 'd' || n FROM generate_series(1, 40) AS n;"
            f"INSERT INTO document (id, path) SELECT key, 'free' FROM unnest(ARRAY{FREE[shard][:10]}) AS key;"
            "INSERT INTO symbol (document_id, name) SELECT id, 's' FROM document;"
            "DELETE FROM foreshard.outbox",
            on=shard,
        )
    return config


def found(config: Config, **options: object) -> list[Finding]:
    return list(verdict_of(config, Options(**options)).findings)  # type: ignore[arg-type]


def only(config: Config) -> Finding:
    (finding,) = found(config)
    return finding


def test_a_deployment_in_order_is_clean_and_every_row_was_counted(config: Config) -> None:
    verdict = verdict_of(config)
    assert verdict.is_clean
    assert verdict.rows == 3 * (50 + 50 + 2)
    assert verdict_of(config, Options(is_quick=True)).is_clean


@pytest.mark.parametrize("rows", [1, 7, 50])
def test_chunks_of_any_size_count_every_row_once(config: Config, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr("foreshard.proxy.control.verify_rows.CHUNK_ROWS", rows)
    verdict = verdict_of(config)
    assert verdict.is_clean
    assert verdict.rows == 3 * (50 + 50 + 2)


@pytest.mark.parametrize("is_quick", [False, True])
def test_a_placed_key_of_another_shards_bucket_is_misplaced(config: Config, shards: Shards, is_quick: bool) -> None:
    key = make_placed_key(BUCKETS[1][0], 7000)
    shards.execute(f"INSERT INTO document (id, path) VALUES ({key}, 'lost'); DELETE FROM foreshard.outbox", on=0)
    wrong = [finding for finding in found(config, is_quick=is_quick) if finding.check == "misplaced"]
    assert [(finding.place, finding.subject, finding.count, finding.keys) for finding in wrong] == [
        ("shard s0", "public.document", 1, (str(key),))
    ]


def test_a_free_key_away_from_its_home_is_misplaced(config: Config, shards: Shards) -> None:
    shards.execute(
        f"INSERT INTO document (id, path) VALUES ({FREE[2][50]}, 'lost'); DELETE FROM foreshard.outbox", on=1
    )
    finding = only(config)
    assert (finding.check, finding.place, finding.keys) == ("misplaced", "shard s1", (str(FREE[2][50]),))


def test_a_key_on_two_shards_is_doubled_where_it_does_not_belong(config: Config, shards: Shards) -> None:
    shards.execute(
        f"INSERT INTO document (id, path) VALUES ({FREE[2][0]}, 'twice'); DELETE FROM foreshard.outbox", on=0
    )
    finding = only(config)
    assert (finding.check, finding.place, finding.count) == ("doubled", "shard s0", 1)
    assert "shard s2" in finding.what


def test_a_free_child_key_on_two_shards_is_doubled(config: Config, shards: Shards) -> None:
    for shard in (0, 2):
        shards.execute(f"INSERT INTO symbol VALUES (77, {FREE[shard][0]}, 'twice')", on=shard)
    shards.execute(f"INSERT INTO symbol VALUES (78, {FREE[1][0]}, 'once')", on=1)
    finding = only(config)
    assert (finding.check, finding.place, finding.keys) == ("doubled", "shards s0, s2", ("77",))


def test_children_without_their_parent_are_found_and_where_it_is(config: Config, shards: Shards) -> None:
    shards.execute(
        f"SET session_replication_role = replica; INSERT INTO symbol VALUES (1, {FREE[2][0]}, 'a'), (2, 999999, 'b')",
        on=1,
    )
    finding = only(config)
    assert (finding.check, finding.place, finding.count) == ("orphans", "shard s1", 2)
    assert "some of those are on shard s2" in finding.what


def test_a_child_key_of_another_bucket_than_its_parents_is_found(config: Config, shards: Shards) -> None:
    key = make_placed_key(BUCKETS[0][5], 1)
    shards.execute(f"INSERT INTO symbol SELECT {key}, min(id), 'x' FROM document", on=0)
    finding = only(config)
    assert (finding.check, finding.place, finding.keys) == ("bucket", "shard s0", (str(key),))


@pytest.mark.parametrize(
    ("damage", "count"),
    [
        ("UPDATE language SET name = 'Cython' WHERE code = 'py'", 1),
        ("DELETE FROM language", 2),
    ],
)
def test_a_reference_table_that_differs_is_found_with_its_keys(
    config: Config, shards: Shards, damage: str, count: int
) -> None:
    shards.execute(damage + "; INSERT INTO language VALUES ('rs', 'Rust')", on=1)
    shards.execute("INSERT INTO language VALUES ('rs', 'Rust')", on=0)
    by_place = {finding.place: finding for finding in found(config)}
    assert by_place["shard s1"].count == count
    assert "py" in by_place["shard s1"].keys
    assert "rs" in by_place["shard s2"].keys


def test_a_sequence_behind_its_keys_is_found(config: Config, shards: Shards) -> None:
    shards.execute("SELECT setval('document_id_seq', 3)", on=1)
    for is_quick in (False, True):
        (finding,) = found(config, is_quick=is_quick)
        assert (finding.check, finding.place, finding.count) == ("sequence", "shard s1", 37)
        assert "setval('public.document_id_seq', 40)" in finding.remedy.replace('"', "")


def test_a_sequence_that_was_never_called_comes_next_itself(config: Config, shards: Shards) -> None:
    shards.execute("SELECT setval('document_id_seq', 41, false)", on=1)
    assert found(config) == []
    shards.execute("SELECT setval('document_id_seq', 40, false)", on=1)
    assert only(config).count == 1


def test_a_bucket_map_with_holes_or_unknown_shards_is_found(config: Config, shards: Shards) -> None:
    shards.execute(
        "DELETE FROM foreshard.bucket_map WHERE bucket = 4095; UPDATE foreshard.bucket_map SET shard = 9 "
        "WHERE bucket = 4094",
        on=0,
    )
    assert [(finding.check, finding.keys) for finding in found(config)] == [("map", ("4095",)), ("map", ("4094",))]


def test_a_map_that_says_otherwise_than_the_shards_makes_rows_misplaced(config: Config, shards: Shards) -> None:
    shards.execute(f"UPDATE foreshard.bucket_map SET shard = 0 WHERE bucket = {BUCKETS[1][0]}", on=0)
    assert [(finding.check, finding.place, finding.subject, finding.count) for finding in found(config)] == [
        ("misplaced", "shard s1", "public.document", 40), ("misplaced", "shard s1", "public.symbol", 40)
    ]  # fmt: skip


def test_a_shard_that_is_another_one_is_found(config: Config, shards: Shards) -> None:
    shards.execute("UPDATE foreshard.shard_info SET cluster = 'other', index = 7", on=2)
    finding = only(config)
    assert (finding.check, finding.place) == ("identity", "shard s2")
    assert "index 7) of other" in finding.what


def test_leftovers_are_found_and_dead_letters_are_information(config: Config, shards: Shards) -> None:
    (cluster,) = shards.query("SELECT cluster FROM foreshard.shard_info")[0]
    shards.execute(
        "CREATE TABLE foreshard.move_17 (); CREATE FUNCTION foreshard.forgotten() RETURNS int LANGUAGE sql "
        "AS 'SELECT 1';"
        f"INSERT INTO foreshard.decision VALUES ('{'a' * 32}', 'commit', now() - interval '1 hour'),"
        f" ('{'b' * 32}', 'commit', now()), ('{'c' * 32}', 'abort', now() - interval '1 day');"
        "INSERT INTO foreshard.outbox (lane, lsn, xid, ordinal, function, operation, table_name, row_key, volume,"
        " depth, captured_at) VALUES (1, '0/1', '1', 1, 'removed', 'insert', 'public.document', '1', 1, 0, now());"
        "INSERT INTO foreshard.dead_letter (lane, lsn, xid, ordinal, function, operation, table_name, row_key,"
        " volume, depth, captured_at, attempt, error)"
        " VALUES (1, '0/1', '1', 1, 'index_document', 'insert', 'public.document', '1', 1, 0, now(), 5, 'e');",
        on=1,
    )
    verdict = verdict_of(config)
    assert [(finding.subject, finding.count) for finding in verdict.findings] == [
        ("foreshard.decision", 1), ("foreshard.outbox", 1), ("schema foreshard", 2)
    ]  # fmt: skip
    assert verdict.findings[2].keys == ("function forgotten", "table move_17")
    assert [(note.subject, note.count) for note in verdict.notes] == [("foreshard.dead_letter", 1)]
    gid = f"foreshard/{cluster}/s0/{'a' * 32}/s2"
    shards.execute(f"PREPARE TRANSACTION 'other/{gid}'", on=2)
    with psycopg.connect(shards.dsns[2], autocommit=True) as connection:
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE t ()")
        connection.execute(f"PREPARE TRANSACTION '{gid}'")
    (finding,) = [finding for finding in found(config) if finding.place == "shard s2"]
    assert (finding.subject, finding.keys) == ("pg_prepared_xacts", (gid,))


def test_one_table_only_is_looked_at_when_it_is_named(config: Config, shards: Shards) -> None:
    shards.execute("DELETE FROM language; CREATE TABLE foreshard.stray ()", on=1)
    assert found(config, table="document") == []
    assert [finding.check for finding in found(config, table="public.language")] == ["reference"]


def write_file(shards: Shards, folder: Path) -> str:
    path = folder / "foreshard.yaml"
    listed = ", ".join(f"{{name: {shard.name}, dsn: '{shard.dsn}'}}" for shard in shards.shards)
    path.write_text(
        f"shards: [{listed}]\n"
        "tables:\n  document: {key: id}\n  symbol: {key: id}\n  language: {reference: true}\n"
        "triggers:\n  index_document: {table: document, on: [insert, update], columns: [body], "
        "function: 'functions:index_document'}\n"
    )
    return str(path)


def test_the_command_prints_progress_findings_and_json(
    config: Config, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, written = write_file(shards, tmp_path), tmp_path / "verdict.json"
    assert main(["verify", "-c", file]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("clean: 306 rows in 3 tables, ")
    assert "public.document on s1: 50 rows" in captured.err.splitlines()
    shards.execute("DELETE FROM language", on=1)
    assert main(["verify", "-q", "-c", file, "--json", str(written)]) == 1
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines()[0].split() == ["place", "what", "of", "count", "found"]
    assert "c, py" in captured.out
    assert json.loads(written.read_text())["findings"][0]["keys"] == ["c", "py"]
    assert main(["verify", "-c", file, "--table", "documnt"]) == 2
    assert "did you mean `public.document`" in capsys.readouterr().err


def test_a_shard_that_is_down_is_exit_code_2_and_the_others_are_looked_at(
    config: Config, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(write_file(shards, tmp_path))
    shards.execute("DELETE FROM language", on=0)
    file.write_text(file.read_text().replace(shards.dsns[2], "postgresql://app@127.0.0.1:1/x"))
    assert main(["verify", "-c", str(file)]) == 2
    printed = capsys.readouterr().out
    assert "could not look: shard s2 (127.0.0.1:1/x): cannot connect" in printed
    assert "shard s0  public.language" in printed
    file.write_text(file.read_text().replace(shards.dsns[0], "postgresql://app@127.0.0.1:1/y"))
    assert main(["verify", "-c", str(file)]) == 2
    assert "cannot connect" in capsys.readouterr().err


def test_shards_that_were_never_applied_cannot_be_looked_at(
    three_shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "-c", write_file(three_shards, tmp_path)]) == 2
    assert "was never applied; run: foreshard apply" in capsys.readouterr().err


@pytest.fixture
def busy(test_instances: TestInstances, tmp_path: Path) -> Iterator[Proxy]:
    """A deployment in which clients insert, update and delete roots and children until the test ends."""
    with deployment(test_instances, tmp_path) as made:
        stop = threading.Event()

        def write(number: int) -> None:
            with psycopg.connect(made.server.dsn, autocommit=True) as client:
                while not stop.is_set():
                    root = client.execute("INSERT INTO root (tag) VALUES ('busy') RETURNING id").fetchone()
                    assert root is not None
                    client.execute("INSERT INTO child (root_id, tag) VALUES (%s, 'busy')", root)
                    client.execute("UPDATE root SET n = n + 1 WHERE id = %s", root)
                    if number % 2:
                        client.execute("DELETE FROM root WHERE id = %s", root)

        writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for writer in writers:
            writer.start()
        yield made.proxy
        stop.set()
        for writer in writers:
            writer.join()


def test_a_busy_deployment_gives_no_false_alarm(busy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("foreshard.proxy.control.verify_rows.CHUNK_ROWS", 100)
    for _ in range(5):
        assert_verified(busy.configuration)
