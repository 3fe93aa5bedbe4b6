"""The demo's trigger functions without a database."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[3] / "config" / "demo" / "demo_functions.py"


@pytest.fixture(scope="module")
def functions() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_functions", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Recorder(SimpleNamespace):
    """An event that remembers what it was asked to run."""

    def __init__(self, body: str, operation: str = "insert", language: str = "python") -> None:
        super().__init__(key=17, operation=operation, new={"body": body, "language": language}, asked=[])

    def execute(self, sql: str, *arguments: Any) -> None:
        self.asked.append((sql.split()[0], arguments))


def test_symbols_are_functions_and_classes_with_their_lines(functions: ModuleType) -> None:
    source = "class A:\n    def f(self): ...\n\nasync def g(): ...\n"
    assert sorted(functions.find_symbols(source)) == [
        ("A", "class", 1),
        ("f", "function", 2),
        ("g", "function", 4),
    ]


@pytest.mark.parametrize("source", ["def f(:", "print 'python 2'", "x = '\\N{no such name}'", "(" * 300])
def test_text_that_is_no_python_has_no_symbols(functions: ModuleType, source: str) -> None:
    assert functions.find_symbols(source) == []


def test_an_update_replaces_the_symbols(functions: ModuleType) -> None:
    event = Recorder("def f(): ...", "update")
    functions.index_document(event)
    assert [verb for verb, _ in event.asked] == ["DELETE", "INSERT", "UPDATE"]
    assert event.asked[1][1] == (17, ["f"], ["function"], [1])


def test_other_languages_have_no_symbols_but_are_counted(functions: ModuleType) -> None:
    event = Recorder("def f(): ...", language="text")
    functions.index_document(event)
    assert [verb for verb, _ in event.asked] == ["UPDATE"]


def test_repetition_compresses_well_and_emptiness_is_no_error(functions: ModuleType) -> None:
    repetitive, empty = Recorder("abc" * 1000), Recorder("")
    functions.compress_document(repetitive)
    functions.compress_document(empty)
    assert repetitive.asked[0][1][1] < 0.1
    assert empty.asked[0][1][1] > 0


def test_similar_texts_share_most_of_their_minhash(functions: ModuleType) -> None:
    text = "".join(f"line {number} of some text\n" for number in range(400)).encode()
    original, changed = functions.minhash(text), functions.minhash(text + b"one more line\n")
    other = functions.minhash("".join(f"{number * 7919:x}" for number in range(1500)).encode())
    assert sum(a == b for a, b in zip(original, changed, strict=True)) > 48
    assert sum(a == b for a, b in zip(original, other, strict=True)) < 16


@pytest.mark.parametrize("data", [b"", b"short", b"x" * 8, b"x" * 9])
def test_minhash_of_short_texts_are_64_signed_numbers(functions: ModuleType, data: bytes) -> None:
    values = functions.minhash(data)
    assert len(values) == 64
    assert all(-(2**63) <= value < 2**63 for value in values)
