"""The user's schema file: SQL that runs on every shard, inside the transaction of `plan` and `apply`."""

from __future__ import annotations

import re
from pathlib import Path

import pgparse

from foreshard.proxy.errors import ConfigError

# For files that the parser cannot read (syntax newer than it): better to refuse too much than to wait for ever.
COPY_ANYWHERE = re.compile(r"\bcopy\b[^;]*\b(stdin|stdout)\b", re.IGNORECASE)
BLANK = re.compile(rb"(?:\s|--[^\n]*|/\*.*?\*/)*", re.DOTALL)  # what may stand before a statement


def read_schema_file(path: Path) -> str:
    """The file's text; ConfigError names each statement that cannot run there, with its line."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: {getattr(error, 'strerror', None) or 'is not UTF-8 text'}"]) from None
    problems = [f"{path}:{line}: {message}" for line, message in _find_problems(text)]
    if problems:
        raise ConfigError(problems)
    return text


def _find_problems(text: str) -> list[tuple[int, str]]:
    copy = "must not hold COPY from or to the client: use INSERT, or load the rows through the proxy"
    transaction = "must not hold BEGIN, COMMIT or ROLLBACK: the file runs inside one transaction"
    try:
        statements = pgparse.parse(text)
    except pgparse.PGQueryError:
        match = COPY_ANYWHERE.search(text)
        return [(text.count("\n", 0, match.start()) + 1, copy)] if match else []
    found = []
    encoded = text.encode()
    for entry in statements:
        start = entry.get("stmt_location", 0)
        blank = BLANK.match(encoded, start)
        line = encoded.count(b"\n", 0, blank.end() if blank else start) + 1
        (kind, fields), *_ = entry["stmt"].items()
        if kind == "CopyStmt" and "filename" not in fields:
            found.append((line, copy))
        elif kind == "TransactionStmt":
            found.append((line, transaction))
    return found
