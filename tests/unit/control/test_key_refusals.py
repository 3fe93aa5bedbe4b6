"""What `plan` says of key columns, from facts as introspection reads them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from foreshard.proxy.catalog import Column
from foreshard.proxy.config import Config, TableConfig
from foreshard.proxy.control.derive import build_catalog
from foreshard.proxy.control.facts import Facts, TableFacts, UniqueIndex
from foreshard.proxy.errors import ConfigError

CONFIG = Config(path=Path("foreshard.yaml"), tables=(TableConfig(name="a", key="id"),))
TABLE = TableFacts(
    schema="public",
    name="a",
    columns=(Column(name="id", type_name="text", type_oid=25, not_null=True),),
    sources={},
    unique=(UniqueIndex(name="a_pkey", columns=("id",), is_primary=True, definition=""),),
)
FACTS = Facts(shard="s0", tables={"public.a": TABLE}, foreign_keys=(), views={}, indexes={}, functions={})


def test_a_text_key_is_taken() -> None:
    table = build_catalog(CONFIG, FACTS).tables["public.a"]
    assert table.key_type == "text"
    assert not table.generates_key


def test_a_text_key_with_a_collation_that_calls_different_texts_equal_is_refused() -> None:
    loose = msgspec.structs.replace(TABLE, undetermined=("id",))
    with pytest.raises(ConfigError, match="its collation calls different texts equal"):
        build_catalog(CONFIG, msgspec.structs.replace(FACTS, tables={"public.a": loose}))


def test_a_text_key_of_a_database_in_another_encoding_is_refused() -> None:
    with pytest.raises(ConfigError, match="encoded in LATIN1; keys that are texts need UTF8"):
        build_catalog(CONFIG, msgspec.structs.replace(FACTS, encoding="LATIN1"))
