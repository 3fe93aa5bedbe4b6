"""The demo's input: the sources of this machine's own Python standard library."""

from __future__ import annotations

import itertools
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import msgspec

LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "node_modules"}
# Suffix -> name in the table `language`.
LANGUAGES = {".py": "python", ".h": "c", ".txt": "text", ".sh": "shell", ".cfg": "data"}


class Document(msgspec.Struct, frozen=True):
    """One file; `path` is relative to the library and names it for good."""

    path: str
    language: str
    body: str


class Corpus(msgspec.Struct, frozen=True):
    """Documents in a seeded order, and how many files could not be taken."""

    documents: tuple[Document, ...]
    not_utf8: int
    with_nul: int

    @property
    def size_bytes(self) -> int:
        """Size of all bodies in characters' UTF-8 bytes."""
        return sum(len(document.body.encode()) for document in self.documents)


def read_corpus(rows_max: int | None, seed: int, root: Path | None = None) -> Corpus:
    """Read the library, shuffled by seed; the first `rows_max` texts when a limit is given.

    PostgreSQL's text holds neither bytes that are not UTF-8 nor NUL: such files are counted and left out.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    texts = [path for path in root.rglob("*") if path.suffix in LANGUAGES]
    paths = sorted(path for path in texts if not LEFT_OUT.intersection(path.relative_to(root).parts))
    random.Random(seed).shuffle(paths)
    documents: list[Document] = []
    not_utf8 = with_nul = 0
    for path in paths:
        if rows_max is not None and len(documents) >= rows_max:
            break
        if not path.is_file():
            continue
        try:
            body = path.read_bytes().decode()
        except UnicodeDecodeError:
            not_utf8 += 1
            continue
        if "\0" in body:
            with_nul += 1
            continue
        documents.append(Document(str(path.relative_to(root)), LANGUAGES[path.suffix], body))
    return Corpus(tuple(documents), not_utf8, with_nul)


def zipfian_ranks(count: int, seed: int, exponent: float = 0.99) -> Iterator[int]:
    """Indexes below `count` without end, rank r with probability proportional to 1/r^exponent; ranks are shuffled."""
    source = random.Random(seed)
    order = list(range(count))
    source.shuffle(order)
    weights = list(itertools.accumulate(1 / (rank + 1) ** exponent for rank in range(count)))
    while True:
        yield order[source.choices(range(count), cum_weights=weights)[0]]
