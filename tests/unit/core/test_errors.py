"""What is left out of PostgreSQL's errors before a client hears them."""

from __future__ import annotations

import pytest

from foreshard._core.errors import without_own_context

OURS = (
    "PL/pgSQL function foreshard.claim_refuse(text,text) line 14 at RAISE\n"
    'SQL statement "SELECT foreshard.claim_refuse(claim_take.name,\n  claim_take.key)"\n'
    "PL/pgSQL function foreshard.claim_take(text,text,integer,integer) line 9 at PERFORM"
)
THEIRS = 'SQL statement "INSERT INTO item VALUES (1)"\nPL/pgSQL function make_item() line 2 at SQL statement'


def body(context: str, sqlstate: str = "23505") -> bytes:
    fields = ["SERROR", f"C{sqlstate}", "Mduplicate key", *([f"W{context}"] if context else []), "titem"]
    return "\0".join(fields).encode() + b"\0\0"


@pytest.mark.parametrize(
    ("context", "left"),
    [
        (OURS, ""),
        (f"{OURS}\n{THEIRS}", THEIRS),
        (THEIRS, THEIRS),
        ("", ""),
        (f"{OURS}\nCOPY item, line 3", "COPY item, line 3"),
    ],
)
def test_functions_of_ours_are_no_context_of_a_constraint(context: str, left: str) -> None:
    assert without_own_context(body(context)) == body(left)


def test_other_errors_stay_as_they_are() -> None:
    told = body(OURS, "22P02")
    assert without_own_context(told) is told
