"""Names of prepared transactions: read back exactly, or not taken for ours."""

from __future__ import annotations

import random

import pytest

from foreshard._core.two_phase import GID_BYTES_MAX, Gid, gid_prefix, make_gid, new_id, parse_gid

ID = "0123456789abcdef0123456789abcdef"


def test_a_gid_is_read_back_as_it_was_made() -> None:
    gid = make_gid("cluster-1", "s0", ID, "s1")
    assert gid == f"foreshard/cluster-1/s0/{ID}/s1"
    assert parse_gid(gid) == Gid("cluster-1", "s0", ID, "s1")
    assert gid.startswith(gid_prefix("cluster-1"))
    assert not gid.startswith(gid_prefix("cluster"))


def test_random_names_are_read_back_or_refused() -> None:
    source = random.Random(7)
    made = 0
    for _ in range(2000):
        parts = ["".join(source.choices("abcdefgh/'\\ \n_-é", k=source.randrange(1, 4))) for _ in range(3)]
        try:
            gid = make_gid(parts[0], parts[1], ID, parts[2])
        except ValueError:
            assert any(letter in part for part in parts for letter in "/'\\ \n"), parts
            continue
        assert parse_gid(gid) == Gid(parts[0], parts[1], ID, parts[2])
        made += 1
    assert made > 100


@pytest.mark.parametrize("part", ["", "a/b", "a'b", "a b", "a\\b", "a\0", "a\n"])
def test_a_part_that_would_break_the_name_is_refused(part: str) -> None:
    for parts in ((part, "s0", ID, "s1"), ("c", part, ID, "s1"), ("c", "s0", part, "s1"), ("c", "s0", ID, part)):
        with pytest.raises(ValueError, match=r"cannot be part|no transaction id"):
            make_gid(*parts)


def test_a_gid_of_the_size_postgresql_takes_is_the_longest() -> None:
    rest = GID_BYTES_MAX - len(make_gid("c", "s", ID, "x")) + 1
    gid = make_gid("c", "s", ID, "x" * rest)
    assert len(gid) == GID_BYTES_MAX
    assert parse_gid(gid) is not None
    with pytest.raises(ValueError, match="more than 199 bytes"):
        make_gid("c", "s", ID, "x" * (rest + 1))
    with pytest.raises(ValueError, match="more than 199 bytes"):
        make_gid("c", "s", ID, "x" * (rest - 1) + "é")


@pytest.mark.parametrize(
    "gid",
    ["", "foreshard", "other/c/s0/" + ID + "/s1", f"foreshard/c/s0/{ID}", f"foreshard/c/s0/{ID}/s1/x",
     f"foreshard/c/s0/{ID[:-1]}/s1", f"foreshard/c/s0/{ID.upper()}/s1", f"foreshard//s0/{ID}/s1",
     f"foreshard/c/s0/{ID}/", f"foreshard/c/s0/{ID}/s'1", f"foreshard/c/s0/{ID}/s1\n"],
)  # fmt: skip
def test_other_names_are_not_taken_for_ours(gid: str) -> None:
    assert parse_gid(gid) is None


def test_ids_are_not_given_twice() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(make_gid("c", "a", id, "b") for id in ids)
