"""With one shard, what is refused because of others runs as it is; what would lose a row's place stays refused."""

from __future__ import annotations

import msgspec
import pytest

from foreshard._core.template import RouteKind
from foreshard.proxy.catalog import QueryNode
from foreshard.proxy.routing import Planner
from tests.support.routes import CATALOG

ONLY = Planner(msgspec.structs.replace(CATALOG, query_node=QueryNode(is_only_shard=True)))


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE document SET size = id",
        "DELETE FROM symbol WHERE name = 'x'",
        "INSERT INTO symbol (document_id, name) SELECT id, path FROM document",
        "INSERT INTO language (code) VALUES ('py')",
        "INSERT INTO document (path) VALUES ('p') ON CONFLICT (path) DO UPDATE SET body = 'b'",
        "WITH made AS (INSERT INTO document (path) VALUES ('p') RETURNING id) SELECT * FROM made",
        "MERGE INTO document d USING note n ON d.id = n.document_id WHEN MATCHED THEN DELETE",
        "MERGE INTO document d USING (SELECT 1 AS id) n ON d.id = n.id WHEN NOT MATCHED THEN INSERT (id) VALUES (n.id)",
        "INSERT INTO plain SELECT id FROM document",
        "TRUNCATE document",
        "LOCK TABLE document",
        "COPY document FROM STDIN",
        "COPY (SELECT count(*) FROM document) TO STDOUT",
        "SELECT count_documents()",
        "SELECT d.id FROM document d, plain p WHERE d.id = p.id FOR UPDATE",
    ],
)
def test_what_is_refused_because_of_other_shards_goes_to_the_only_one(sql: str) -> None:
    found = ONLY.plan(sql.encode())
    assert found.kind != RouteKind.ROUTE_REFUSE, found.refusal
    assert found.is_write or sql.startswith("COPY (")


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE document SET id = 5 WHERE id = 4",
        "UPDATE symbol SET document_id = 5",
        "INSERT INTO document (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET id = 2",
        "MERGE INTO document d USING plain p ON d.id = p.id WHEN MATCHED THEN UPDATE SET id = 7",
        "WITH moved AS (UPDATE symbol SET document_id = 5 RETURNING id) SELECT * FROM moved",
        "ALTER TABLE document RENAME TO other",
        "COPY document TO '/tmp/file'",
        "SELECT set_config('search_path', path, false) FROM document",
    ],
)
def test_what_would_lose_a_rows_place_or_the_catalog_stays_refused(sql: str) -> None:
    assert ONLY.plan(sql.encode()).kind == RouteKind.ROUTE_REFUSE


def test_functions_of_the_written_table_are_charged_and_woken() -> None:
    assert ONLY.plan(b"DELETE FROM document WHERE path = 'p'").profiles == (4,)


def test_an_advisory_lock_of_the_session_still_pins() -> None:
    assert ONLY.plan(b"SELECT pg_advisory_lock(id), nextval(path) FROM document").pin == "advisory lock"
