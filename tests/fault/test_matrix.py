"""The fault matrix in the documentation has one row for each test that records one."""

from __future__ import annotations

from tests.support.fault_matrix import DOCUMENT, case_names, read_document


def test_every_case_has_its_row_and_every_row_its_case() -> None:
    assert list(read_document()) == case_names()


def test_nothing_in_the_matrix_was_lost_or_is_there_twice() -> None:
    rows = read_document().values()
    with_clients = [row for row in rows if row.seen != ["no clients"]]
    assert with_clients
    assert all("lost 0, doubled 0, verify clean, moves done" in row.data for row in with_clients)
    assert all(row.data.startswith("whole on the ") for row in rows if row not in with_clients)
    assert DOCUMENT.read_text().count("\n| ") == len(rows) + 1
