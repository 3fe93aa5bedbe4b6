"""What a client is told when Foreshard itself answers: the fields of an ErrorResponse."""

from __future__ import annotations

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
        self, sqlstate: str, message: str, detail: str = "", hint: str = "", position: int = 0,
        names: Mapping[str, str] | None = None, is_passing: bool = False,
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


def decode_error(body: bytes) -> SqlError:
    """An ErrorResponse body as SqlError, without where in the server it arose."""
    fields = {part[:1]: part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part}
    names = {code.decode(): text for code, text in fields.items() if code in NAMES}
    return SqlError(
        fields.get(b"C", "XX000"), fields.get(b"M", ""), fields.get(b"D", ""), fields.get(b"H", ""), names=names
    )


def not_built(what: str, hint: str, detail: str = "") -> SqlError:
    """The answer to what Foreshard does not do yet."""
    return SqlError("0A000", f"Foreshard does not support {what} yet", detail, hint)
