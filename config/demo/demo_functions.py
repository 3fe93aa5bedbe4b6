"""Trigger functions of the demo: three kinds of real work on a document, each with its own shape of cost.

A function is called once per committed change, after commit, in order per row. What it writes through
`event.execute` commits in the transaction that removes the event: once, whatever dies in between. Each adds the CPU
time of its work to the document, for the demo's figures; Foreshard measures by itself.
"""

from __future__ import annotations

import ast
import lzma
import time
import warnings
from typing import Any

import numpy

MINHASH_COUNT = 64
SHINGLE_BYTES = 8
_random = numpy.random.default_rng(20261122)
_MULTIPLIERS = _random.integers(1, 2**63, MINHASH_COUNT, dtype=numpy.uint64) | numpy.uint64(1)
_OFFSETS = _random.integers(0, 2**63, MINHASH_COUNT, dtype=numpy.uint64)
_POSITION_FACTORS = numpy.uint64(1099511628211) ** numpy.arange(SHINGLE_BYTES, dtype=numpy.uint64)


def index_document(event: Any) -> None:
    """Parse a Python source and write its functions and classes into `symbol`. CPU grows with the syntax tree."""
    began_s = time.process_time()
    symbols = find_symbols(event.new["body"]) if event.new["language"] == "python" else []
    if event.operation == "update":
        event.execute("DELETE FROM symbol WHERE document_id = $1", event.key)
    if symbols:
        names, kinds, lines = (list(column) for column in zip(*symbols, strict=True))
        event.execute(
            "INSERT INTO symbol (document_id, name, kind, line) "
            "SELECT $1, name, kind, line FROM unnest($2::text[], $3::text[], $4::int[]) AS s (name, kind, line)",
            event.key,
            names,
            kinds,
            lines,
        )
    event.execute(
        "UPDATE document SET indexed = indexed + 1, worked_s = worked_s + $2 WHERE id = $1",
        event.key,
        time.process_time() - began_s,
    )


def compress_document(event: Any) -> None:
    """Compress the text and store how far it shrank. CPU grows with size."""
    began_s = time.process_time()
    data = event.new["body"].encode()
    ratio = len(lzma.compress(data, preset=1)) / max(len(data), 1)
    event.execute(
        "UPDATE document SET compressed = compressed + 1, lzma_ratio = $2, worked_s = worked_s + $3 WHERE id = $1",
        event.key,
        ratio,
        time.process_time() - began_s,
    )


def shingle_document(event: Any) -> None:
    """Store a MinHash of the text's shingles, by which near-duplicates are found. Memory grows with size."""
    began_s = time.process_time()
    found = minhash(event.new["body"].encode())
    event.execute(
        "UPDATE document SET shingled = shingled + 1, minhash = $2, worked_s = worked_s + $3 WHERE id = $1",
        event.key,
        found,
        time.process_time() - began_s,
    )


def find_symbols(source: str) -> list[tuple[str, str, int]]:
    """(name, kind, line) of every function and class; nothing for text that is no valid Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    kinds = {ast.FunctionDef: "function", ast.AsyncFunctionDef: "function", ast.ClassDef: "class"}
    return [(node.name, kinds[type(node)], node.lineno) for node in ast.walk(tree) if type(node) in kinds]


def minhash(data: bytes) -> list[int]:
    """The least value of each of 64 hash functions over all 8-byte shingles, as signed 64-bit numbers."""
    text = numpy.frombuffer(data.ljust(SHINGLE_BYTES, b" "), dtype=numpy.uint8).astype(numpy.uint64)
    count = len(text) - SHINGLE_BYTES + 1
    shingles = numpy.zeros(count, dtype=numpy.uint64)
    for position, factor in enumerate(_POSITION_FACTORS):
        shingles += text[position : position + count] * factor
    least = [(shingles * factor + offset).min() for factor, offset in zip(_MULTIPLIERS, _OFFSETS, strict=True)]
    return [int(value) for value in numpy.array(least, dtype=numpy.uint64).view(numpy.int64)]
