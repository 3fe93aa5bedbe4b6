"""Rows of an INSERT are found whatever their values, spaces and comments hold, and parts keep what belongs to them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foreshard._core.row_split import RowText
from foreshard.proxy.routing.tree import parse, unwrap

GAPS = st.sampled_from(["", " ", "\n\t", "/* (1), (2) */", "-- ), (\n", " /* /* ( */ ) */ "])
VALUES = st.sampled_from(
    [
        *("1", "-2.5e3", "0x1F", "''", "'it''s (,)'", "E'\\'),('", "$$),($$", "$a1$ $b$ ('$a1$", "U&'\\0041'", "B'01'"),
        *("$1", "$12", "$3::text", "abs(-(1 + 2))", "ARRAY[1, 2]", "(SELECT max(code) FROM language)", "DEFAULT"),
        *('"c$1"', "now()", "'naïve – ☃'", "row(1, $2)", "values", "a$1"),
    ]
)
TAILS = st.sampled_from(["", " RETURNING id", " ON CONFLICT (id) DO UPDATE SET n = $4 RETURNING (n), ($5)", ";"])


@st.composite
def inserts(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text and its rows."""
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        cells = draw(st.lists(VALUES, min_size=1, max_size=3))
        rows.append("(" + ",".join(draw(GAPS) + cell + draw(GAPS) for cell in cells) + ")")
    text = draw(st.sampled_from(["INSERT INTO t (a, b) ", 'insert into "values" as v (x) '])) + draw(GAPS) + " VALUES "
    text += ",".join(draw(GAPS) + row + draw(GAPS) for row in rows)
    return text + draw(TAILS), rows


@given(inserts())
def test_rows_are_found(made: tuple[str, list[str]]) -> None:
    text, rows = made
    whole = RowText(text.encode())
    assert [whole.sql[start:stop].decode() for start, stop in whole.rows] == rows
    assert all(whole.sql[start:stop] == b"$%d" % number for start, stop, number in whole.params)


@given(inserts(), st.data())
def test_a_part_has_its_rows_where_they_were_and_its_parameters_in_order(
    made: tuple[str, list[str]], data: st.DataObject
) -> None:
    text, rows = made
    chosen = sorted(data.draw(st.sets(st.sampled_from(range(len(rows))), min_size=1)))
    whole = RowText(text.encode())
    part, used = whole.part(chosen)
    assert len(part.decode()) == len(text)
    again = RowText(part)
    numbers = dict(zip(range(1, len(used) + 1), used, strict=True))
    assert sorted({number for _, _, number in again.params}) == sorted(numbers)
    found = [part[start:stop].decode() for start, stop in again.rows]

    assert len(found) == len(chosen)
    for row, index in zip(found, chosen, strict=True):
        assert len(row) == len(rows[index])
    for (start, _), index in zip(again.rows, chosen, strict=True):
        assert len(part[:start].decode()) == text.encode()[: whole.rows[index][0]].decode().__len__()


@given(st.integers(1, 5), st.integers(0, 4))
def test_the_parser_reads_the_same_rows_in_a_part(count: int, skipped: int) -> None:
    text = "INSERT INTO t VALUES " + ", ".join(f"({index}, '({index}', $1)" for index in range(count)) + " RETURNING *"
    chosen = [index for index in range(count) if index != skipped] or [0]
    part, used = RowText(text.encode()).part(chosen)
    [statement] = parse(part)
    lists = unwrap(statement.node["selectStmt"])[1]["valuesLists"]
    values = [unwrap(unwrap(row)[1]["items"][0])[1].get("ival", {}).get("ival", 0) for row in lists]
    assert (values, used) == (chosen, [0])


ENDS = st.sampled_from(["*", "id", "'a;b'", "$1", '"c;"', "n /* ; */ + 1", "(1)", "id AS x", "x", "$$;$$", "E'\\';'"])
AFTER = st.sampled_from(["", ";", " ; ", " -- ; end", "/* ; */;", ";\n-- end\n"])


@given(st.lists(ENDS, min_size=1, max_size=3), AFTER)
def test_what_stands_behind_the_last_word_is_returned_last(returned: list[str], after: str) -> None:
    text = f"INSERT INTO t VALUES ($1, 'x'), (2, ';') ON CONFLICT DO NOTHING RETURNING {', '.join(returned)}{after}"
    part, _ = RowText(text.encode()).part([0], b", 7 AS marked")
    [statement] = parse(part)
    names = [unwrap(column)[1].get("name") for column in statement.node["returningList"]]
    assert (len(names), names[-1]) == (len(returned) + 1, "marked")
