"""From a Template and an execution's values to buckets, features and errors."""

from __future__ import annotations

import struct

import pytest

from foreshard._core.buckets import bucket_of, make_placed_key
from foreshard._core.lexer import LITERAL_NUMERIC, lift
from foreshard._core.template import RouteKind, Template
from foreshard.proxy.errors import SqlError
from foreshard.proxy.routing import Planner
from tests.support.routes import CATALOG

TEXT, BINARY, NUMBER, STRING = range(4)
Pairs = list[tuple[bytes | None, int]]
PLACED = make_placed_key(77, 5)


def plan(sql: str) -> tuple[Template, Pairs]:
    """The Template of a statement and the literals it is written with."""
    raw = sql.encode()
    literals: Pairs = [
        (raw[at : at + size], NUMBER if kind <= LITERAL_NUMERIC else STRING) for at, size, kind in lift(raw)[1]
    ]
    return Planner(CATALOG).plan(raw), literals


def locate(sql: str, *params: tuple[bytes | None, int]) -> object:
    template, literals = plan(sql)
    assert template.kind == RouteKind.ROUTE_KEYED, template.reason
    return template.check_locate(literals, list(params))


@pytest.mark.parametrize("written", ["5", "'5'", "5::bigint", "'5'::int8", "0x5", "' +5 '", "$$5$$"])
def test_a_literal_names_its_bucket(written: str) -> None:
    assert locate(f"select * from document where id = {written}") == [bucket_of(5)]


def test_a_sign_belongs_to_the_key() -> None:
    assert locate("select * from document where id = -5") == [bucket_of(-5)]
    assert locate("select * from document where id = - 5") == [bucket_of(-5)]
    assert locate("select * from document where id = '-5'") == [bucket_of(-5)]
    assert locate("select * from document where id = -9223372036854775808") == [bucket_of(-(2**63))]


@pytest.mark.parametrize(
    "param",
    [(b"5", TEXT), (b" 5", TEXT), (struct.pack(">q", 5), BINARY), (struct.pack(">i", 5), BINARY), (b"\0\5", BINARY)],
)
def test_a_parameter_names_its_bucket_in_both_formats(param: tuple[bytes, int]) -> None:
    assert locate("select * from document where id = $1", param) == [bucket_of(5)]


def test_several_keys_name_each_bucket_once_in_order() -> None:
    found = locate("select * from document where id in (7, 5, $1, 7)", (b"5", TEXT))
    assert found == [bucket_of(7), bucket_of(5)]
    many = ",".join(str(number) for number in range(5000))
    found = locate(f"select * from document where id = any('{{{many}}}')")
    assert found == list(dict.fromkeys(bucket_of(number) for number in range(5000)))


@pytest.mark.parametrize("written", ["null", "'{}'::bigint[]", "99999999999999999999"])
def test_what_no_row_can_have_goes_to_any_one_shard(written: str) -> None:
    operator = "= any" if "{" in written else "="
    assert locate(f"select * from document where id {operator} ({written})") == [0]
    assert locate("select * from document where id = $1", (None, TEXT)) == [0]


@pytest.mark.parametrize(
    ("param", "sqlstate"),
    [((b"x", TEXT), "22P02"), ((b"5.0", TEXT), "22P02"), ((b"9" * 30, TEXT), "22003"), ((b"abc", BINARY), "22P02")],
)
def test_a_malformed_key_is_told_as_postgres_tells_it(param: tuple[bytes, int], sqlstate: str) -> None:
    with pytest.raises(SqlError) as caught:
        locate("select * from document where id = $1", param)
    assert caught.value.sqlstate == sqlstate


def test_a_null_key_of_a_new_row_is_an_error() -> None:
    with pytest.raises(SqlError, match='null value in column "id" of relation "document"') as caught:
        locate("insert into document (id, path) values ($1, 'a')", (None, TEXT))
    assert caught.value.sqlstate == "23502"
    with pytest.raises(SqlError, match='"document_id" of relation "symbol"'):
        locate("insert into symbol (document_id) values ($1)", (None, BINARY))
    with pytest.raises(SqlError) as caught:
        locate("insert into document (id) values (99999999999999999999)")
    assert caught.value.sqlstate == "22003"


def test_a_missing_parameter_is_an_error() -> None:
    with pytest.raises(SqlError) as caught:
        locate("select * from document where id = $2", (b"5", TEXT))
    assert caught.value.sqlstate == "08P01"


def test_a_childs_placed_key_names_its_bucket_and_an_old_one_means_every_shard() -> None:
    assert locate(f"select * from symbol where id = {PLACED}") == [77]
    assert locate(f"select * from symbol where id in ({PLACED}, 5)") == "every"
    assert locate("select * from symbol where id = 5 and document_id = 6") == [bucket_of(6)]
    assert locate(f"select * from usage where symbol_id = {PLACED}") == [77]
    assert locate("update symbol set name = 'x' where id = 5") == "every"
    assert locate("delete from symbol where id = 5") == "every"


@pytest.mark.parametrize(
    "sql",
    [
        "update symbol set name = 'x' where id = 5 returning ctid",
        "delete from symbol where id = 5 and name = unknown()",
        "select * from symbol where id = 5 order by name",
        "insert into usage (symbol_id, line) values (5, 1)",
    ],
)
def test_an_old_child_key_is_refused_where_one_shard_must_be_known(sql: str) -> None:
    with pytest.raises(SqlError, match="does not carry its bucket") as caught:
        locate(sql)
    assert caught.value.sqlstate == "0A000"
    assert caught.value.hint


def test_parameters_of_other_types_are_no_keys() -> None:
    template, _ = plan("select * from document where id = $1")
    assert template.check_types([]) is None
    for oid in (0, 20, 21, 23, 705):
        assert template.check_types([oid]) is None
    for oid in (25, 700, 701, 1700, 1016):
        refusal = template.check_types([oid])
        assert isinstance(refusal, SqlError)
        assert refusal.sqlstate == "0A000"
    template, _ = plan("select * from document where id = $1::bigint")
    assert template.check_types([25]) is None
    assert template.check_types([701]) is not None
    template, _ = plan("select * from document where id = any($2)")
    assert template.check_types([1700, 1016]) is None
    assert template.check_types([1700, 20]) is not None


def test_a_string_of_statements_reads_the_literals_of_the_whole() -> None:
    template, literals = plan("delete from document where size = 1 and id = 5; delete from document where id = 7")
    assert template.kind == RouteKind.ROUTE_MULTI
    assert [part.check_locate(literals, []) for part in template.parts] == [[bucket_of(5)], [bucket_of(7)]]


def test_features_count_what_the_rows_will_hold() -> None:
    def features(sql: str, *params: tuple[bytes | None, int]) -> list[float]:
        template, literals = plan(sql)
        return template.check_features(literals, list(params))

    # The key that the shard makes counts as a number: 8 bytes, one value.
    assert features("insert into document (path) values ('abc')") == [1, 8 + 3, 2, 1]
    assert features("insert into document (path) values ('abc'), ($1), (null)", (b"de", TEXT)) == [3, 24 + 5, 5, 9]
    assert features("insert into document (path, tags) values ('a', '{b,c}')") == features(
        "insert into document (tags, path) values ($1, $2)", (b"{b,c}", TEXT), (b"a", TEXT)
    )
    assert features("update document set path = 'abcd', size = 5 where id = 6") == [1, 4 + 8, 2, 1]
    assert features("delete from document where id = 6") == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("sql", "profiles"),
    [
        ("insert into document (path) values ('a')", (0, 2)),
        ("update document set body = 'a' where id = 5", (1, 3)),
        ("update document set path = 'a' where id = 5", (3,)),
        ("update document set (path, body) = ('a', 'b') where id = 5", (1, 3)),
        ("delete from document where id = 5", (4,)),
        ("insert into symbol (document_id) values (5)", ()),
        ("select * from document where id = 5", ()),
    ],
)
def test_a_write_fires_the_profiles_of_its_operation_and_columns(sql: str, profiles: tuple[int, ...]) -> None:
    assert plan(sql)[0].profiles == profiles
