"""The demo's input and how it is divided among clients."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from foreshard.proxy.demo.clients import insert_of
from foreshard.proxy.demo.corpus import Corpus, Document, read_corpus, zipfian_ranks
from foreshard.proxy.demo.load import WAYS, split_units


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text("not ours")
    (tmp_path / "good.py").write_text("x = 'é'\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    (tmp_path / "nul.txt").write_bytes(b"a\0b")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    return read_corpus(None, 1, tmp_path)


def test_texts_that_postgresql_cannot_hold_are_left_out_and_counted(corpus: Corpus) -> None:
    assert {document.path for document in corpus.documents} == {"good.py", "empty.txt"}
    assert (corpus.not_utf8, corpus.with_nul) == (1, 1)


def test_size_counts_bytes(corpus: Corpus) -> None:
    assert corpus.size_bytes == len("x = 'é'\n".encode())


def test_the_same_seed_gives_the_same_texts_and_a_limit_gives_the_first_of_them() -> None:
    ten = read_corpus(10, 7)
    assert ten == read_corpus(10, 7)
    assert ten.documents[:3] == read_corpus(3, 7).documents
    assert len(ten.documents) == 10


def test_every_document_is_in_exactly_one_unit() -> None:
    documents = [Document(str(number), "text", "") for number in range(500)]
    units = split_units(documents, 3)
    assert [document for unit in units for document in unit.documents] == documents
    assert {unit.client for unit in units} == {client for _, client, _, _ in WAYS}
    assert any(unit.one_transaction for unit in units)
    assert units == split_units(documents, 3)


def test_zipfian_ranks_favour_few() -> None:
    ranks = list(islice(zipfian_ranks(1000, 5), 20_000))
    assert ranks == list(islice(zipfian_ranks(1000, 5), 20_000))
    assert set(ranks) <= set(range(1000))
    most_common = [count for _, count in Counter(ranks).most_common(10)]
    assert sum(most_common) > len(ranks) / 4


def test_a_multi_row_insert_numbers_its_parameters() -> None:
    assert "VALUES ($1, $2, $3), ($4, $5, $6) RETURNING" in insert_of(2)
    assert "VALUES (%s, %s, %s) RETURNING" in insert_of(1, "%")
