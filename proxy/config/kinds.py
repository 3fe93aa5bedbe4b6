"""What a single value may be: each kind turns the text of a scalar into a value, or says what it should have been.

Sizes follow the standards: kB, MB, GB are powers of 1000, KiB, MiB, GiB powers of 1024.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from foreshard.proxy.config.document import did_you_mean, listed

DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
SIZE_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
NAME_BYTES_MAX = 63  # PostgreSQL's NAMEDATALEN - 1

# A kind turns text into a value; ValueError says what is allowed.
Kind = Callable[[str], object]


def quantity(text: str, units: dict[str, float] | dict[str, int], example: str) -> float:
    """A number with a unit, as a number of the base unit; zero needs none."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"`{text}` must be a number with a unit, such as {example} (units: {listed(units)})")
    number, unit = float(match.group(1)), match.group(2)
    if not unit and number == 0:
        return 0.0
    if unit not in units:
        problem = f"has the unknown unit `{unit}`" if unit else "has no unit"
        raise ValueError(f"`{text}` {problem}; write it such as {example} (units: {listed(units)})")
    return number * units[unit]


def duration(text: str) -> float:
    """Seconds."""
    return quantity(text, DURATION_UNITS, "30s or 5ms")


def positive_duration(text: str) -> float:
    """Seconds, more than none."""
    value = duration(text)
    if value <= 0:
        raise ValueError("must be longer than 0s")
    return value


def size(text: str) -> float:
    """Bytes, possibly a fraction where it is an average."""
    return quantity(text, SIZE_UNITS, "64MB")


def positive_size(text: str) -> int:
    """Whole bytes, at least one."""
    value = int(size(text))
    if value < 1:
        raise ValueError("must be more than 0B")
    return value


def size_in(low: int, high: int) -> Kind:
    """Whole bytes within limits, both allowed."""

    def read(text: str) -> int:
        value = int(size(text))
        if not low <= value <= high:
            raise ValueError(f"`{text}` is out of range: allowed is {low}B to {high}B")
        return value

    return read


def rate(text: str) -> float:
    """Bytes per second, more than none, written as a size or as 200MB/s."""
    return float(positive_size(text.removesuffix("/s")))


def byte_seconds(text: str) -> float:
    """Memory held over time, written `64MB * 2s`."""
    left, star, right = text.partition("*")
    if not star:
        raise ValueError(f"`{text}` must be a size times a duration, such as 64MB * 2s")
    return size(left.strip()) * duration(right.strip())


def integer(low: int, high: int) -> Kind:
    """A whole number within limits, both allowed."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", text) or not low <= int(text) <= high:
            raise ValueError(f"`{text}` must be a whole number from {low} to {high}")
        return int(text)

    return read


def number(low: float, high: float) -> Kind:
    """A number within limits, both allowed."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise ValueError(f"`{text}` must be a number from {low:g} to {high:g}")
        return value

    return read


def boolean(text: str) -> bool:
    """true or false."""
    if text not in {"true", "false"}:
        raise ValueError(f"`{text}` must be true or false")
    return text == "true"


def choice(*words: str) -> Kind:
    """One of the words."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"`{text}` is not known{did_you_mean(text, words)} (allowed: {listed(words)})")
        return text

    return read


def identifier(text: str) -> str:
    """A name that PostgreSQL takes as it is written."""
    if not _IDENTIFIER.fullmatch(text) or len(text.encode()) > NAME_BYTES_MAX:
        raise ValueError(f"`{text}` must be a name of letters, digits and _, at most {NAME_BYTES_MAX} bytes")
    return text


def database_name(text: str) -> str:
    """A database's name, as PostgreSQL keeps it."""
    if not text or "\0" in text or len(text.encode()) > NAME_BYTES_MAX:
        raise ValueError(f"must be the name of a database, at most {NAME_BYTES_MAX} bytes")
    return text


def columns(text: str) -> tuple[str, ...]:
    """One column, or several with commas between them."""
    return tuple(identifier(part.strip()) for part in text.split(","))


def table_name(text: str) -> str:
    """A table, with its schema or without."""
    parts = text.split(".")
    if len(parts) > 2:
        raise ValueError(f"`{text}` must be TABLE or SCHEMA.TABLE")
    return ".".join(identifier(part) for part in parts)


def function_name(text: str) -> str:
    """A Python callable, as `module:callable`."""
    if not _FUNCTION.fullmatch(text):
        raise ValueError(f"`{text}` must be MODULE:CALLABLE, such as demo_functions:index_document")
    return text


def module_name(text: str) -> str:
    """A Python module."""
    if not _FUNCTION.fullmatch(f"{text}:x"):
        raise ValueError(f"`{text}` must be a module's name, such as numpy or app.models")
    return text


def address(text: str) -> tuple[str, int]:
    """HOST:PORT; port 0 lets the system choose."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"`{text}` must be HOST:PORT, such as 127.0.0.1:6432 or [::1]:6432")
    return host, int(port)


def dsn(text: str) -> str:
    """A connection URL. Messages never repeat it, for it may hold a password."""
    example = "postgresql://USER@HOST:PORT/DATABASE"
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError(f"must be {example}") from None
    if parts.scheme not in {"postgresql", "postgres"}:
        raise ValueError(f"must be {example}")
    for host in parts.netloc.rpartition("@")[2].split(","):
        address_part = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]*)(?::(\d+))?", host)
        if address_part is None or (address_part.group(2) and not 0 < int(address_part.group(2)) < 65536):
            raise ValueError(f"has a host or port that cannot be read; must be {example}")
    if not parts.path.strip("/"):
        raise ValueError(f"names no database; must be {example}")
    return text


def path(text: str) -> Path:
    """A path; a relative one counts from the configuration file's folder."""
    if not text:
        raise ValueError("must be a path")
    return Path(text)
