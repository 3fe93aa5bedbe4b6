"""A configuration over the shards of a test, and its schema applied."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from foreshard.proxy.config import Config, TableConfig, TriggerConfig
from foreshard.proxy.control import apply
from tests.support.postgres import Shards

SCHEMA = """
CREATE TABLE IF NOT EXISTS language (code text PRIMARY KEY, name text);
CREATE TABLE IF NOT EXISTS document (
  id bigserial PRIMARY KEY, path text NOT NULL, language text REFERENCES language, body text);
CREATE TABLE IF NOT EXISTS symbol (
  id bigserial PRIMARY KEY, document_id bigint NOT NULL REFERENCES document ON DELETE CASCADE, name text);
CREATE TABLE IF NOT EXISTS plain (id bigserial PRIMARY KEY, note text);
"""
TABLES = (
    TableConfig(name="document", key="id"),
    TableConfig(name="symbol", key="id"),
    TableConfig(name="language", reference=True),
)
INDEX_DOCUMENT = TriggerConfig(
    name="index_document",
    table="document",
    on=("insert", "update"),
    columns=("body",),
    function="functions:index_document",
)


def make_config(shards: Shards, folder: Path, *, schema: str | None = None, **sections: Any) -> Config:
    """A configuration over the shards; `schema` is written to a file that it names."""
    config = Config(path=folder / "foreshard.yaml", shards=shards.shards, run_directory=folder / "run", **sections)
    if schema is None:
        return config
    file = folder / "schema.sql"
    file.write_text(schema)
    return msgspec.structs.replace(config, schema=file)


def make_demo_config(shards: Shards, folder: Path, **sections: Any) -> Config:
    """document (root), symbol (child), language (reference), plain; one function on document."""
    return make_config(shards, folder, schema=SCHEMA, **({"tables": TABLES, "triggers": (INDEX_DOCUMENT,)} | sections))


def apply_now(config: Config) -> int:
    """Apply the configuration; the number of objects made."""
    return asyncio.run(apply(config))
