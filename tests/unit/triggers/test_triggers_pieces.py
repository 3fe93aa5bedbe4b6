"""The parts of a worker that need no shard: slot, meter, rows, functions, the event's refusals."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import threading
import time
import uuid
from decimal import Decimal
from pathlib import Path

import pytest

from foreshard.proxy.config import TriggerConfig
from foreshard.proxy.errors import ForeshardError
from foreshard.proxy.triggers import points
from foreshard.proxy.triggers.event import TRANSACTION_WORDS, Effects, FunctionMisuse
from foreshard.proxy.triggers.functions import Functions, load_function
from foreshard.proxy.triggers.measure import Meter, resident_bytes
from foreshard.proxy.triggers.rows import make_row_reader
from foreshard.proxy.triggers.slot import Call, CallSlot, EventId

CALL = Call(
    event=EventId(3, "0/16B3748", "771", 2),
    function="index_document",
    attempt=2,
    started_s=12.5,
    timeout_s=30.0,
    memory_bytes_max=None,
    memory_bytes_before=1 << 20,
    backend_pid=4711,
    backend_started="2026-11-22 10:00:00+00",
)


def test_slot_tells_the_running_call_across_a_fork() -> None:
    slot = CallSlot()
    assert slot.read() is None
    pid = os.fork()
    if not pid:
        slot.publish(CALL)
        os._exit(0)
    os.waitpid(pid, 0)
    assert slot.read() == CALL
    slot.clear()
    assert slot.read() is None


def test_slot_reader_never_sees_half_a_record() -> None:
    slot = CallSlot()
    calls = [CALL, Call(**{name: getattr(CALL, name) for name in CALL.__struct_fields__} | {"function": "g" * 3000})]
    is_done = threading.Event()

    def write() -> None:
        while not is_done.is_set():
            for call in calls:
                slot.publish(call)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [slot.read() for _ in range(20_000)]
    finally:
        is_done.set()
        writer.join()
    assert all(call is None or call in calls for call in seen)


def test_slot_refuses_a_name_that_does_not_fit() -> None:
    slot = CallSlot()
    call = Call(**{name: getattr(CALL, name) for name in CALL.__struct_fields__} | {"function": "f" * 4096})
    with pytest.raises(ValueError, match="too long"):
        slot.publish(call)


def test_event_id_reads_as_one_word() -> None:
    assert str(CALL.event) == "0/16B3748-771-2"


def test_meter_tells_cpu_memory_and_io_of_one_call(tmp_path: Path) -> None:
    meter = Meter()
    data = os.urandom(1 << 20)
    meter.start()
    block = bytearray(b"x" * 60_000_000)
    goal_s = time.process_time() + 0.05
    while time.process_time() < goal_s:
        pass
    (tmp_path / "file").write_bytes(data)
    del block
    usage = meter.stop()
    assert usage.cpu_s >= 0.05
    assert usage.wall_s > 0
    assert usage.io_bytes == pytest.approx(len(data), abs=4096)
    assert usage.memory_bytes_peak is not None
    assert usage.memory_bytes_peak > 50_000_000
    assert usage.memory_byte_s == pytest.approx(usage.memory_bytes_peak * usage.wall_s)
    assert usage.network_bytes is None
    meter.start()
    after = meter.stop()
    assert after.memory_bytes_peak is not None
    assert after.memory_bytes_peak < 10_000_000
    assert after.io_bytes is not None
    assert after.io_bytes < 1000
    meter.close()


def test_meter_counts_children_that_were_waited_for() -> None:
    meter = Meter()
    meter.start()
    busy = "import time\nwhile time.process_time() < 0.1: pass"
    subprocess.run([sys.executable, "-S", "-c", busy], check=True)
    assert meter.stop().cpu_s >= 0.1
    meter.close()


def test_meter_without_proc_says_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr("foreshard.proxy.triggers.measure.os.open", refuse)
        meter = Meter()
    meter.start()
    usage = meter.stop()
    assert (usage.memory_byte_s, usage.memory_bytes_peak, usage.io_bytes) == (None, None, None)
    assert usage.cpu_s >= 0


def test_resident_bytes_of_a_process_that_is_gone_are_zero() -> None:
    assert resident_bytes(os.getpid()) > 1_000_000
    assert resident_bytes(2**22 + 1) == 0


def test_rows_become_what_the_column_types_say() -> None:
    types = {"id": "int8", "price": "numeric", "ratio": "float8", "at": "timestamptz", "raw": "bytea", "data": "jsonb"}
    reader = make_row_reader(("id",), types | {"code": "uuid"})
    text = (
        '{"id": 1, "price": 0.10000000000000000001, "ratio": 2, "at": "2026-01-02T03:04:05+00:00", "raw": "\\\\x0aff", '
        '"data": {"x": 1.5}, "code": "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "new_column": 7}'
    )
    row = reader.convert(reader.decode(text), text)
    assert row == {
        "id": 1,
        "price": Decimal("0.10000000000000000001"),
        "ratio": 2.0,
        "at": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
        "raw": b"\x0a\xff",
        "data": {"x": 1.5},
        "code": uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        "new_column": 7,
    }
    assert type(row["ratio"]) is float
    assert reader.convert_key("17") == 17


def test_values_that_do_not_read_as_their_type_stay_as_they_are() -> None:
    reader = make_row_reader(("at",), {"at": "timestamptz", "price": "numeric", "raw": "bytea"})
    text = '{"at": "infinity", "price": "NaN", "raw": "text", "gone": null}'
    row = reader.convert(reader.decode(text), text)
    assert row["at"] == "infinity"
    assert row["price"].is_nan()
    assert (row["raw"], row["gone"]) == ("text", None)
    assert reader.convert_key("infinity") == "infinity"


def test_rows_of_a_table_that_is_gone_are_json() -> None:
    reader = make_row_reader((), {})
    assert reader.convert(reader.decode('{"id": 1.5}'), "") == {"id": 1.5}
    assert reader.convert_key("1") == "1"


def trigger(function: str) -> TriggerConfig:
    return TriggerConfig(name="t", table="document", on=("insert",), function=function)


class Caller:
    async def method(self, event: object) -> None: ...

    async def __call__(self, event: object) -> None: ...


def test_functions_are_found_by_their_path_and_kind() -> None:
    assert load_function(trigger("os.path:join")).call is os.path.join
    assert load_function(trigger("os:path.join")).is_async is False
    assert load_function(trigger("asyncio:sleep")).is_async is True
    assert load_function(trigger("asyncio:sleep")).trigger.name == "t"


@pytest.mark.parametrize(
    ("function", "message"),
    [("os:missing", "has no 'missing'"), ("os:path.missing", "has no"), ("os:name", "cannot be called")],
)
def test_function_that_is_not_there_says_why(function: str, message: str) -> None:
    with pytest.raises(ForeshardError, match=message):
        load_function(trigger(function))


def test_function_that_is_not_registered_says_so() -> None:
    functions = Functions([trigger("os:getpid")])
    assert functions.find("t").call is os.getpid
    assert functions.trigger("other") is None
    with pytest.raises(ForeshardError, match="no trigger function is registered as 'other'"):
        functions.find("other")


@pytest.mark.parametrize("word", sorted(TRANSACTION_WORDS))
@pytest.mark.parametrize(
    "form", ["{}", " {} WORK", "/* a */ {}", "-- x\n{}", "/* BEGIN\n*/--\n\t{};", ";/* /* x */ */;{}"]
)
def test_statements_that_end_the_transaction_are_refused_however_written(word: str, form: str) -> None:
    for spelling in (word, word.upper(), word.capitalize()):
        with pytest.raises(FunctionMisuse, match=f"may not run {word.upper()}"):
            Effects._refuse_transaction_words(make_effects(), form.format(spelling))


@pytest.mark.parametrize("sql", ["SET x = 1", "set session x = 1", "SET", "SET/**/LOCALE = 1"])
def test_settings_that_outlive_the_event_are_refused(sql: str) -> None:
    with pytest.raises(FunctionMisuse):
        make_effects()._refuse_transaction_words(sql)


@pytest.mark.parametrize("sql", ["SELECT 'commit'", "INSERT INTO begin VALUES (1)", "", "/* unfinished", "(SELECT 1)"])
def test_other_statements_pass(sql: str) -> None:
    effects = make_effects()
    effects._refuse_transaction_words(sql)
    assert not effects.has_settings


def test_local_settings_are_noticed() -> None:
    effects = make_effects()
    effects._refuse_transaction_words("SET LOCAL work_mem = '1MB'")
    assert effects.has_settings


def make_effects() -> Effects:
    """Effects that never reach a connection."""
    return Effects(None, "")  # type: ignore[arg-type]


def test_control_point_that_is_not_armed_is_passed() -> None:
    points.control_point("lanes-taken")
    points.check_armed()


def test_unknown_control_point_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "_armed", "nowhere")
    with pytest.raises(ForeshardError, match="names no control point: 'nowhere'"):
        points.check_armed()
    points.disarm()
    points.check_armed()
