"""Workers on a real shard: after commit, in order, exactly once, retried, limited."""

from __future__ import annotations

import datetime
import socket
import uuid
from decimal import Decimal
from pathlib import Path

import pytest

from tests.support.postgres import Shards
from tests.support.trigger_world import trigger_world

KEEP = """
    def keep(event):
        row = event.new or event.old
        event.execute(
            "INSERT INTO effect (event, function, operation, key, value, attempt) VALUES ($1, $2, $3, $4, $5, $6)",
            event.id, event.function, event.operation, event.key, row["body"], event.attempt,
        )
"""
ALL = {"on": ["insert", "update", "delete"]}


def test_function_runs_after_commit_and_its_effect_and_measurement_replace_the_event(
    tmp_path: Path, one_shard: Shards
) -> None:
    with trigger_world(tmp_path, one_shard, KEEP, {"keep": {}}) as world:
        worker = world.start_worker()
        with world.connect() as client:
            client.execute("INSERT INTO document VALUES (1, 'a', 'one'), (2, 'b', 'two')")
            assert world.query("SELECT count(*) FROM effect") == [(0,)]
        world.wait_for_rows(
            "SELECT operation, key, value, attempt FROM effect ORDER BY key",
            [("insert", 1, "one", 1), ("insert", 2, "two", 1)],
        )
        world.wait_drained()
        measured = world.query(
            "SELECT function, operation, table_name, row_key, size, complexity, volume, attempt, network_bytes, "
            "cpu_s > 0 AND wall_s > 0 AND queue_s >= 0 AND memory_byte_s >= 0 AND io_bytes >= 0 "
            "FROM foreshard.measurement ORDER BY row_key"
        )
        assert measured == [
            ("keep", "insert", "public.document", "1", 12.0, 3.0, 2.0, 1, None, True),
            ("keep", "insert", "public.document", "2", 12.0, 3.0, 2.0, 1, None, True),
        ]
        assert world.stop_worker(worker) == 0
        assert not list((tmp_path / "run").glob("wake-*"))


def test_rolled_back_changes_fire_nothing(tmp_path: Path, one_shard: Shards) -> None:
    with trigger_world(tmp_path, one_shard, KEEP, {"keep": ALL}) as world:
        world.start_worker()
        with world.connect() as client:
            client.execute("INSERT INTO document VALUES (1, 'a', 'kept')")
            client.execute("SAVEPOINT s")
            client.execute("INSERT INTO document VALUES (2, 'a', 'undone')")
            client.execute("ROLLBACK TO SAVEPOINT s")
            client.commit()
            client.execute("UPDATE document SET body = 'undone'")
            client.rollback()
        world.wait_for_rows("SELECT operation, key, value FROM effect", [("insert", 1, "kept")])
        world.wait_drained()
        assert world.query("SELECT count(*) FROM effect") == [(1,)]


def test_changes_of_one_row_are_handled_in_order_by_several_workers(tmp_path: Path, one_shard: Shards) -> None:
    with trigger_world(tmp_path, one_shard, KEEP, {"keep": ALL}) as world:
        for _ in range(3):
            world.start_worker()
        world.execute("INSERT INTO document SELECT n, 'p', '0' FROM generate_series(1, 20) AS n")
        for round_number in range(1, 31):
            world.execute(f"UPDATE document SET body = '{round_number}'")
        world.execute("DELETE FROM document WHERE id > 10")
        world.wait_drained()
        rows = world.query(
            "SELECT key, array_agg(value || operation ORDER BY id) FROM effect GROUP BY key ORDER BY key"
        )
        expected = ["0insert", *(f"{n}update" for n in range(1, 31))]
        assert rows == [(key, expected + (["30delete"] if key > 10 else [])) for key in range(1, 21)]
        assert world.query("SELECT count(DISTINCT event) = count(*) FROM effect") == [(True,)]


def test_failing_call_blocks_its_row_until_it_succeeds_and_nothing_else(tmp_path: Path, one_shard: Shards) -> None:
    functions = (
        KEEP
        + """
    def flaky(event):
        keep(event)
        if event.new["body"] == "bad" and event.attempt < 3:
            raise ValueError("not yet")
"""
    )
    with trigger_world(tmp_path, one_shard, functions, {"flaky": {"on": ["insert", "update"]}}) as world:
        world.execute("INSERT INTO document VALUES (1, 'a', 'bad'), (2, 'a', 'good')")
        world.execute("UPDATE document SET body = 'later'")
        world.start_worker()
        world.wait_drained()
        rows = world.query("SELECT key, array_agg(value || attempt ORDER BY id) FROM effect GROUP BY key ORDER BY key")
        assert rows == [(1, ["bad3", "later1"]), (2, ["good1", "later1"])]
        assert world.query("SELECT count(*) FROM foreshard.dead_letter") == [(0,)]


def test_event_that_keeps_failing_becomes_a_dead_letter_with_its_traceback(tmp_path: Path, one_shard: Shards) -> None:
    functions = """
    def broken(event):
        event.execute("INSERT INTO effect (key) VALUES (1)")
        raise ValueError("reason of the failure")
"""
    with trigger_world(tmp_path, one_shard, functions, {"broken": {"attempts_max": 2}}) as world:
        world.execute("INSERT INTO document VALUES (1, 'a', 'x')")
        world.start_worker()
        world.wait_drained()
        rows = world.query("SELECT function, row_key, attempt, error, new ->> 'body' FROM foreshard.dead_letter")
        assert len(rows) == 1
        function, key, attempt, error, body = rows[0]
        assert (function, key, attempt, body) == ("broken", "1", 2, "x")
        assert error.startswith("Traceback")
        assert "functions.py" in error
        assert error.endswith("ValueError: reason of the failure")
        assert "foreshard/proxy" not in error
        assert world.query("SELECT count(*) FROM effect") == [(0,)]


def test_images_shared_by_functions_go_with_the_last_of_them(tmp_path: Path, one_shard: Shards) -> None:
    functions = (
        KEEP
        + """
    def again(event):
        keep(event)
        if event.key == 2:
            raise ValueError("never")
"""
    )
    twice = {"function": "functions:keep"}
    with trigger_world(
        tmp_path, one_shard, functions, {"again": {"attempts_max": 2}, "k1": twice, "k2": twice}
    ) as world:
        world.execute("INSERT INTO document SELECT n, 'p', 'text ' || n FROM generate_series(1, 40) AS n")
        assert world.query("SELECT count(*) FROM foreshard.outbox_image") == [(40,)]
        world.start_worker()
        world.start_worker()
        world.wait_drained()
        assert world.query("SELECT count(*) FROM foreshard.outbox_image") == [(0,)]
        assert world.query("SELECT count(*), count(DISTINCT event), bool_and(value = 'text ' || key) FROM effect") == [
            (119, 119, True)
        ]
        assert world.query("SELECT new ->> 'body' FROM foreshard.dead_letter") == [("text 2",)]


def test_call_beyond_its_timeout_is_killed_and_counted(tmp_path: Path, one_shard: Shards) -> None:
    functions = (
        KEEP
        + """
    import time
    def slow(event):
        keep(event)
        if event.key == 2 and event.attempt == 1:
            while True:
                time.sleep(1)
"""
    )
    with trigger_world(tmp_path, one_shard, functions, {"slow": {"timeout": "100ms"}}) as world:
        worker = world.start_worker()
        before = world.executor_pid(worker)
        world.execute("INSERT INTO document SELECT n, 'p', 'b' FROM generate_series(1, 5) AS n")
        world.wait_drained()
        rows = world.query("SELECT key, attempt FROM effect ORDER BY key")
        assert rows == [(1, 1), (2, 2), (3, 1), (4, 1), (5, 1)]
        assert world.executor_pid(worker) != before
        assert world.stop_worker(worker) == 0


def test_call_stuck_in_a_statement_is_killed_with_its_backend(tmp_path: Path, one_shard: Shards) -> None:
    functions = """
    def stuck(event):
        if event.attempt == 1:
            event.fetch("SELECT pg_sleep(3600)")
        event.execute("INSERT INTO effect (key, attempt) VALUES ($1, $2)", event.key, event.attempt)
"""
    with trigger_world(tmp_path, one_shard, functions, {"stuck": {"timeout": "100ms"}}) as world:
        world.start_worker()
        world.execute("INSERT INTO document VALUES (1, 'a', 'x')")
        world.wait_drained()
        assert world.query("SELECT key, attempt FROM effect") == [(1, 2)]
        assert world.query("SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT pg_sleep'") == [(0,)]


def test_call_beyond_its_memory_limit_is_killed_and_becomes_a_dead_letter(tmp_path: Path, one_shard: Shards) -> None:
    functions = """
    import time
    def greedy(event):
        block = bytearray(200_000_000)
        while True:
            time.sleep(1)

    def brief(event):
        event.execute("INSERT INTO effect (key) VALUES (1)")
        bytearray(b"x" * 100_000_000)
"""
    limits = {"memory_max": "50MB", "attempts_max": 1}
    with trigger_world(tmp_path, one_shard, functions, {"greedy": limits, "brief": limits}) as world:
        world.start_worker()
        world.execute("INSERT INTO document VALUES (1, 'a', 'x')")
        world.wait_drained()
        errors = dict(world.query("SELECT function, error FROM foreshard.dead_letter"))
        assert "its limit is 50000000, process killed" in errors["greedy"]
        assert "its limit is 50000000" in errors["brief"]
        assert world.query("SELECT count(*) FROM effect") == [(0,)]


def test_function_that_ends_its_process_is_counted_and_the_others_go_on(tmp_path: Path, one_shard: Shards) -> None:
    functions = (
        KEEP
        + """
    import os, signal, sys
    def fatal(event):
        os.kill(os.getpid(), signal.SIGSEGV)
    def leaving(event):
        sys.exit(3)
"""
    )
    once = {"attempts_max": 2}
    with trigger_world(tmp_path, one_shard, functions, {"fatal": once, "leaving": once, "keep": {}}) as world:
        world.start_worker()
        world.execute("INSERT INTO document VALUES (1, 'a', 'x'), (2, 'a', 'x')")
        world.wait_drained()
        rows = world.query("SELECT function, attempt, error FROM foreshard.dead_letter ORDER BY function, row_key")
        assert [row[:2] for row in rows] == [("fatal", 2), ("fatal", 2), ("leaving", 2), ("leaving", 2)]
        assert "SIGSEGV" in rows[0][2]
        assert "SystemExit: 3" in rows[2][2]
        assert world.query("SELECT key FROM effect ORDER BY key") == [(1,), (2,)]


def test_asynchronous_functions_share_the_contract(tmp_path: Path, one_shard: Shards) -> None:
    functions = """
    import asyncio
    async def gather(event):
        await asyncio.gather(*[
            event.execute("INSERT INTO effect (key, value) VALUES ($1, $2)", event.key, str(n)) for n in range(3)
        ])
        assert await event.fetchval("SELECT count(*) FROM effect WHERE key = $1", event.key) == 3
        if event.key == 2 and event.attempt == 1:
            raise ValueError
"""
    with trigger_world(tmp_path, one_shard, functions, {"gather": {}}) as world:
        world.start_worker()
        world.execute("INSERT INTO document VALUES (1, 'a', 'x'), (2, 'b', 'x')")
        world.wait_drained()
        assert world.query("SELECT key, value FROM effect ORDER BY 1, 2") == [
            (key, str(n)) for key in (1, 2) for n in range(3)
        ]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ('event.execute("COMMIT")', "may not run COMMIT"),
        ('event.execute("/* x */ -- y\\n rollback")', "may not run ROLLBACK"),
        ('event.execute("SET search_path = x")', "may not run SET"),
        ('event.execute("SELECT 1; COMMIT")', "cannot insert multiple commands"),
        (
            '\n        try: event.fetch("SELECT 1/0")\n        except Exception: pass',
            "went on after a failed statement",
        ),
        ("missing", "NameError"),
    ],
)
def test_function_that_misuses_its_event_fails_alone(tmp_path: Path, one_shard: Shards, body: str, error: str) -> None:
    functions = f"""
    def bad(event):
        event.execute("INSERT INTO effect (key) VALUES (0)")
        {body}
    def good(event):
        event.execute("INSERT INTO effect (key) VALUES ($1)", event.key)
"""
    with trigger_world(tmp_path, one_shard, functions, {"bad": {"attempts_max": 1}, "good": {}}) as world:
        world.start_worker()
        world.execute("INSERT INTO document VALUES (1, 'a', 'x')")
        world.wait_drained()
        assert world.query("SELECT key FROM effect") == [(1,)]
        assert error in str(world.query("SELECT error FROM foreshard.dead_letter")[0][0])


def test_effect_refused_at_commit_fails_its_event_alone(tmp_path: Path, one_shard: Shards) -> None:
    with trigger_world(tmp_path, one_shard, KEEP, {"keep": {"attempts_max": 1}}) as world:
        world.execute("ALTER TABLE effect ADD UNIQUE (value) DEFERRABLE INITIALLY DEFERRED")
        world.execute("INSERT INTO effect (value) VALUES ('taken')")
        world.execute(
            "INSERT INTO document SELECT n, 'p', CASE n WHEN 5 THEN 'taken' ELSE n::text END "
            "FROM generate_series(1, 12) AS n"
        )
        world.start_worker()
        world.wait_drained()
        assert world.query("SELECT row_key FROM foreshard.dead_letter") == [("5",)]
        assert world.query("SELECT array_agg(key ORDER BY key) FROM effect WHERE key IS NOT NULL") == [
            ([1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12],)
        ]


def test_unknown_function_waits_for_a_worker_that_knows_it(tmp_path: Path, one_shard: Shards) -> None:
    with trigger_world(tmp_path, one_shard, KEEP, {"keep": {}, "absent": {"function": "nowhere:absent"}}) as world:
        worker = world.start_worker()
        world.execute("INSERT INTO document VALUES (1, 'a', 'x')")
        world.wait_for_rows("SELECT key FROM effect", [(1,)])
        failed = "SELECT function, error ~ 'No module named .nowhere' FROM foreshard.outbox WHERE attempt > 0"
        world.wait_for_rows(failed, [("absent", True)])
        assert world.stop_worker(worker) == 0
        (tmp_path / "nowhere.py").write_text("def absent(event):\n    pass\n")
        world.start_worker()
        world.wait_drained()


def test_writes_of_functions_carry_their_depth_and_end_as_a_dead_letter(tmp_path: Path, one_shard: Shards) -> None:
    functions = """
    def again(event):
        event.execute("INSERT INTO effect (key, attempt) VALUES ($1, $2)", event.key, event.depth)
        event.execute("INSERT INTO document VALUES ($1, 'a', 'x')", event.key + 1)
"""
    with trigger_world(tmp_path, one_shard, functions, {"again": {}}) as world:
        world.start_worker()
        world.execute("INSERT INTO document VALUES (1, 'a', 'x')")
        world.wait_for_rows("SELECT depth FROM foreshard.dead_letter", [(9,)])
        world.wait_drained()
        assert world.query("SELECT attempt FROM effect ORDER BY key") == [(depth,) for depth in range(9)]


def test_effects_see_the_bucket_of_the_events_row(tmp_path: Path, one_shard: Shards) -> None:
    functions = """
    def tell(event):
        bucket = event.fetchval("SELECT current_setting('foreshard.bucket')")
        event.execute("INSERT INTO effect (key, value) VALUES ($1, $2)", event.key, bucket)
"""
    with trigger_world(tmp_path, one_shard, functions, {"tell": {}}) as world:
        world.start_worker()
        placed = 2**52 | 77 << 40 | 5
        world.execute(f"INSERT INTO document VALUES ({placed}, 'a', 'x')")
        world.wait_for_rows("SELECT key, value FROM effect", [(placed, "77")])


def test_a_datagram_on_the_wake_socket_wakes_the_worker(tmp_path: Path, one_shard: Shards) -> None:
    with trigger_world(tmp_path, one_shard, KEEP, {"keep": {}}) as world:
        text = world.path.read_text().replace("50ms", "1h")
        world.path.write_text(text)
        worker = world.start_worker()
        path = tmp_path / "run" / f"wake-0-{worker.pid}.sock"
        world.wait_for(path.exists, "the wake socket")
        world.execute("INSERT INTO document VALUES (1, 'a', 'x')")

        def is_handled() -> bool:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as router:
                router.connect(str(path))
                router.send(b"\0")
            return world.query("SELECT count(*) FROM effect") == [(1,)]

        world.wait_for(is_handled, "the woken worker")
        assert world.stop_worker(worker) == 0


def test_rows_reach_functions_as_python_values(tmp_path: Path, one_shard: Shards) -> None:
    functions = """
    def show(event):
        event.execute("INSERT INTO effect (value) VALUES ($1)", repr((event.key, event.old, event.new)))
"""
    with trigger_world(tmp_path, one_shard, functions, {"show": {}}) as world:
        world.execute("DROP TABLE document")
        world.execute(
            "CREATE TABLE document (id uuid PRIMARY KEY, price numeric, ratio float8, at timestamptz, day date, "
            "raw bytea, data jsonb, tags text[], late timestamptz, big bigint, flag boolean, nothing text)"
        )
        world.capture()
        world.start_worker()
        world.execute(
            "INSERT INTO document VALUES ('6ba7b810-9dad-11d1-80b4-00c04fd430c8', 12345678901234567890.123456789, 0.5, "
            "'2026-01-02 03:04:05.678+00', '2026-01-02', '\\x00ff', '{\"a\": [1.5]}', '{x,y}', 'infinity', "
            "9007199254740993, true)"
        )
        world.wait_drained()
        key, old, new = eval(  # what repr() gave
            world.query("SELECT value FROM effect")[0][0],
            {"UUID": uuid.UUID, "Decimal": Decimal, "datetime": datetime},
        )
        assert key == uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
        assert old is None
        assert new == {
            "id": key,
            "price": Decimal("12345678901234567890.123456789"),
            "ratio": 0.5,
            "at": datetime.datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=datetime.UTC),
            "day": datetime.date(2026, 1, 2),
            "raw": b"\x00\xff",
            "data": {"a": [1.5]},
            "tags": ["x", "y"],
            "late": "infinity",
            "big": 9007199254740993,
            "flag": True,
            "nothing": None,
        }


def test_worker_outlives_a_lost_connection(tmp_path: Path, one_shard: Shards) -> None:
    with trigger_world(tmp_path, one_shard, KEEP, {"keep": {}}) as world:
        worker = world.start_worker()
        found = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'foreshard worker'"
        world.wait_for_rows(found, [(1,)])
        before = world.executor_pid(worker)
        world.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'foreshard worker'"
        )
        world.execute("INSERT INTO document VALUES (1, 'a', 'x')")
        world.wait_for_rows("SELECT key, attempt FROM effect", [(1, 1)])
        assert world.executor_pid(worker) == before


def test_connection_lost_during_a_call_is_no_failure_of_the_event(tmp_path: Path, one_shard: Shards) -> None:
    functions = """
    import os
    def cut(event):
        if not os.path.exists(__file__ + ".cut"):
            open(__file__ + ".cut", "w").close()
            event.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        event.execute("INSERT INTO effect (key, attempt) VALUES ($1, $2)", event.key, event.attempt)
"""
    with trigger_world(tmp_path, one_shard, functions, {"cut": {}}) as world:
        world.execute("INSERT INTO document VALUES (1, 'a', 'x'), (2, 'a', 'x')")
        world.start_worker()
        world.wait_drained()
        assert world.query("SELECT key, attempt FROM effect ORDER BY key") == [(1, 1), (2, 1)]


def test_sigterm_finishes_the_running_event_and_leaves_the_rest(tmp_path: Path, one_shard: Shards) -> None:
    functions = """
    import os, pathlib, time
    def gate(event):
        folder = pathlib.Path(__file__).parent
        (folder / "entered").touch()
        while not (folder / "open").exists():
            time.sleep(0.01)
        event.execute("INSERT INTO effect (key) VALUES ($1)", event.key)
"""
    with trigger_world(tmp_path, one_shard, functions, {"gate": {}}) as world:
        world.execute("INSERT INTO document SELECT 1, 'a', 'x'")
        world.execute("UPDATE document SET body = 'y'")
        world.execute("INSERT INTO document SELECT n, 'a', 'x' FROM generate_series(2, 9) AS n")
        worker = world.start_worker()
        world.wait_for((tmp_path / "entered").exists, "the call")
        worker.terminate()
        (tmp_path / "open").touch()
        assert worker.wait(30) == 0
        assert world.query("SELECT count(*) FROM effect") == [(1,)]
        assert world.query("SELECT count(*) FROM foreshard.outbox") == [(8,)]


def test_worker_gives_way_to_a_client_that_holds_the_row_of_a_later_event(tmp_path: Path, one_shard: Shards) -> None:
    functions = """
    def touch(event):
        event.execute("UPDATE document SET path = 'touched' WHERE id = $1", event.key)
        event.execute("INSERT INTO effect (key, attempt) VALUES ($1, $2)", event.key, event.attempt)
"""
    with trigger_world(tmp_path, one_shard, functions, {"touch": {"attempts_max": 1}}) as world:
        world.execute("INSERT INTO document VALUES (1, 'a', 'x'), (2, 'b', 'x')")
        with world.connect() as client:
            client.execute("UPDATE document SET body = 'y' WHERE id = 2")
            world.start_worker()
            world.wait_for_rows("SELECT path FROM document WHERE id = 1", [("touched",)])
            client.execute("UPDATE document SET body = 'y' WHERE id = 1")
        world.wait_drained()
        assert world.query("SELECT key, attempt FROM effect ORDER BY key") == [(1, 1), (2, 1)]
        assert world.query("SELECT path, body FROM document") == [("touched", "y")] * 2


def test_settings_of_the_role_do_not_reach_the_worker(tmp_path: Path, one_shard: Shards) -> None:
    functions = """
    import time
    def tell(event):
        time.sleep(0.1)
        event.execute(
            "INSERT INTO effect (key, value) VALUES ($1, current_setting('transaction_isolation'))", event.key
        )
"""
    settings = {
        "default_transaction_isolation": "'serializable'",
        "idle_in_transaction_session_timeout": "10",
        "default_transaction_read_only": "on",
    }
    with trigger_world(tmp_path, one_shard, functions, {"tell": {"attempts_max": 1}}) as world:
        world.execute("INSERT INTO document VALUES (1, 'a', 'x')")
        name = world.query("SELECT current_database()")[0][0]
        for setting, value in settings.items():
            world.execute(f"ALTER DATABASE {name} SET {setting} = {value}")
        world.start_worker()
        world.wait_for_rows("SELECT key, value FROM effect", [(1, "read committed")])


def test_import_that_hangs_is_ended_like_a_call(tmp_path: Path, one_shard: Shards) -> None:
    hanging = {"function": "hanging:f", "timeout": "200ms", "attempts_max": 2}
    with trigger_world(tmp_path, one_shard, KEEP, {"hanging": hanging, "keep": {}}) as world:
        (tmp_path / "hanging.py").write_text("import time\nwhile True:\n    time.sleep(1)\n")
        world.execute("INSERT INTO document VALUES (1, 'a', 'x')")
        world.start_worker()
        world.wait_drained()
        assert world.query("SELECT function, error ~ '^timeout' FROM foreshard.dead_letter") == [("hanging", True)]
        assert world.query("SELECT key FROM effect") == [(1,)]


def test_column_added_while_the_worker_runs_is_read_by_its_type(tmp_path: Path, one_shard: Shards) -> None:
    functions = """
    def show(event):
        event.execute("INSERT INTO effect (key, value) VALUES ($1, $2)", event.key, repr(event.new.get("price")))
"""
    with trigger_world(tmp_path, one_shard, functions, {"show": {}}) as world:
        world.start_worker()
        world.execute("INSERT INTO document VALUES (1, 'a', 'x')")
        world.wait_drained()
        world.execute("ALTER TABLE document ADD price numeric")
        world.execute("INSERT INTO document VALUES (2, 'a', 'x', 0.10)")
        world.wait_drained()
        assert world.query("SELECT value FROM effect ORDER BY key") == [("None",), ("Decimal('0.10')",)]
