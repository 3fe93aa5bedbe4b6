"""What a client is told when Foreshard itself answers: the fields of an ErrorResponse."""

from __future__ import annotations

import re
from collections.abc import Mapping


class ForeshardError(Exception):
    """Base of every error that Foreshard raises on purpose; its text is one line fit for an operator."""


class SqlError(ForeshardError):
    """What a client is told: the fields of an ErrorResponse.

    sqlstate is the five-character code of PostgreSQL's appendix A; 0A000 for what is not built yet. position counts
    characters of the statement from 1; 0: none. names are the fields that name objects, by their code letters.
    is_passing: the query node would answer the statement, and is about to follow a change of the schema.
    """

    def __init__(
        self,
        sqlstate: str,
        message: str,
        detail: str = "",
        hint: str = "",
        position: int = 0,
        names: Mapping[str, str] | None = None,
        is_passing: bool = False,
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.detail = detail
        self.hint = hint
        self.position = position
        self.names = names or {}
        self.is_passing = is_passing

    def encode(self, severity: str = "ERROR") -> bytes:
        """The whole ErrorResponse message ('E', length, fields)."""
        fields = [("S", severity), ("V", severity), ("C", self.sqlstate), ("M", self.message)]
        if self.detail:
            fields.append(("D", self.detail))
        if self.hint:
            fields.append(("H", self.hint))
        if self.position:
            fields.append(("P", str(self.position)))
        fields += self.names.items()
        body = b"".join(code.encode() + text.encode() + b"\0" for code, text in fields) + b"\0"
        return b"E" + (len(body) + 4).to_bytes(4, "big") + body


NAMES = b"stcdn"  # the fields that name schema, table, column, data type and constraint

# The innermost come first: everything down to the last function of ours.
OWN_CONTEXT = re.compile(rb"\A(?s:.*)^PL/pgSQL function foreshard\.[^\n]*(?:\n|\Z)", re.MULTILINE)


def decode_error(body: bytes) -> SqlError:
    """An ErrorResponse body as SqlError, without where in the server it arose."""
    fields = {part[:1]: part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}
    names = {code.decode(): text for code, text in fields.items() if code in NAMES}
    return SqlError(
        fields.get(b"C", "XX000"), fields.get(b"M", ""), fields.get(b"D", ""), fields.get(b"H", ""), names=names
    )


def without_own_context(body: bytes) -> bytes:
    """An ErrorResponse body of a broken constraint, without the functions of ours that looked after it; or `body`.

    PostgreSQL's own constraints have no context. What called the statement (functions of users, COPY) stays.
    """
    if b"\0C23" not in body or b"PL/pgSQL function foreshard." not in body:
        return body
    fields = body.split(b"\0")
    for place, field in enumerate(fields):
        if field[:1] == b"W":
            left = OWN_CONTEXT.sub(b"", field[1:])
            fields[place] = b"W" + left if left else b""
    return b"\0".join([field for field in fields if field]) + b"\0\0"


def not_built(what: str, hint: str, detail: str = "") -> SqlError:
    """The answer to what Foreshard does not do yet."""
    return SqlError("0A000", f"Foreshard does not support {what} yet", detail, hint)
