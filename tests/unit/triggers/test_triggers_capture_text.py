"""The SQL of capture as text: which objects, under which names, for which operations."""

from __future__ import annotations

import pytest

from foreshard.proxy.catalog import Table, TableKind
from foreshard.proxy.config import TriggerConfig
from foreshard.proxy.triggers.capture import (
    capture_function_name,
    capture_sql,
    outbox_sql,
    quote_name,
    quote_text,
)


def table(name: str = "document", schema: str = "public") -> Table:
    return Table(schema=schema, name=name, kind=TableKind.ROOT, key="id", key_type="bigint")


def trigger(*on: str, columns: tuple[str, ...] | None = None) -> TriggerConfig:
    return TriggerConfig(name="f", table="document", on=on, columns=columns, function="m:f")


def test_object_names_are_distinct_and_stable() -> None:
    names = [name for name, _ in [*outbox_sql(), *capture_sql(table(), [trigger("insert")])]]
    assert len(set(names)) == len(names)
    assert names == [name for name, _ in [*outbox_sql(), *capture_sql(table(), [])]]


@pytest.mark.parametrize(
    ("on", "made"),
    [
        (("insert",), ("INSERT", "UPDATE")),
        (("update",), ("UPDATE",)),
        (("delete",), ("UPDATE", "DELETE")),
        (("insert", "update", "delete"), ("INSERT", "UPDATE", "DELETE")),
        ((), ()),
    ],
)
def test_triggers_exist_for_the_operations_that_can_call_a_function(on: tuple[str, ...], made: tuple[str, ...]) -> None:
    text = "\n".join(sql for _, sql in capture_sql(table(), [trigger(*on)] if on else []))
    for operation in ("INSERT", "UPDATE", "DELETE"):
        assert (f" AFTER {operation} ON " in text) is (operation in made)
        dropped = f'DROP TRIGGER IF EXISTS "foreshard_capture_{operation.lower()}"'
        assert (dropped in text) is (operation not in made)
    assert ("BEFORE TRUNCATE" in text) is bool(on)


def test_functions_that_an_update_cannot_call_are_not_asked_about() -> None:
    body = dict(capture_sql(table(), [trigger("insert", columns=("body",))]))[
        "capture trigger for update on public.document"
    ]
    assert "*<>" not in body
    body = dict(capture_sql(table(), [trigger("update", columns=("body",))]))[
        "capture trigger for update on public.document"
    ]
    assert 'ROW(foreshard_old."body")::record *<> ROW(foreshard_new."body")::record' in body


def test_names_of_capture_functions_fit_and_differ() -> None:
    long = "d" * 63
    names = [
        capture_function_name(table(name, schema), operation)
        for name, schema in (
            (long, "public"),
            (long[:-1], "public"),
            (long, "other"),
            ("ümläut", "public"),
            ("b_c", "a"),
        )
        for operation in ("insert", "update", "delete")
    ]
    assert len(set(names)) == len(names)
    assert all(len(name.encode()) <= 63 for name in names)


def test_quoting() -> None:
    assert quote_name('a"b') == '"a""b"'
    assert quote_text("it's") == "'it''s'"
    assert quote_text("a\\'b") == "E'a\\\\''b'"
