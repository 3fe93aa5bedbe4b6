"""Settings that a client may not change, because Foreshard's own reading of statements depends on them."""

from __future__ import annotations

from foreshard.proxy.catalog import Catalog
from foreshard.proxy.errors import SqlError, not_built

OWN_PREFIX = "foreshard."
UTF8_NAMES = ("utf8", "unicode", "utf-8")
PLAIN_NAMES = ('"$user"', "$user", "pg_catalog")


def check_setting(catalog: Catalog, name: str, values: list[str] | None) -> None:
    """SqlError when setting `name` to `values` (None: to its default, or to what is not known) must be refused."""
    folded = name.lower()
    if folded.startswith(OWN_PREFIX):
        raise SqlError(
            "42501", f'permission denied to set parameter "{name}"', "Foreshard itself uses the settings of this name."
        )
    if not catalog.is_declared:
        return
    if folded == "search_path" and values is not None and not keeps_meaning(catalog, values):
        raise not_built(
            "changing search_path beside declared tables",
            f"Qualify names instead; Foreshard finds unqualified ones in {', '.join(catalog.search_path)}.",
            "Table names would mean other tables than Foreshard takes them for.",
        )
    if folded == "standard_conforming_strings" and values is not None and values[:1] not in (["on"], ["1"], ["true"]):
        raise not_built("standard_conforming_strings = off", "Write backslashes in E'' strings.")
    if folded in ("client_encoding", "names") and values is not None and values[0].lower() not in UTF8_NAMES:
        raise not_built(f"client_encoding {values[0]}", "Use client_encoding UTF8.")
    if folded == "session_replication_role" and values is not None and values[:1] not in (["origin"], ["local"]):
        raise not_built(
            "session_replication_role", "Leave it at origin.", "Changes would not reach the trigger functions."
        )


def keeps_meaning(catalog: Catalog, values: list[str]) -> bool:
    """Whether a search_path finds the same declared tables as the catalog's does."""
    schemas = [part.strip().strip('"') for value in values for part in value.split(",")]
    return tuple(schema for schema in schemas if schema not in PLAIN_NAMES) == tuple(
        schema for schema in catalog.search_path if schema not in PLAIN_NAMES
    )
