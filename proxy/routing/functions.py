"""What the functions that a statement calls mean for its route: reads, writes, session state, several shards."""

from __future__ import annotations

from dataclasses import dataclass

from foreshard.proxy.catalog import Catalog
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.builtins import AGGREGATES, DYNAMIC, LOCAL, PURE, WINDOWS, WRITES
from foreshard.proxy.routing.collect import Call, Collector
from foreshard.proxy.routing.settings import check_setting
from foreshard.proxy.routing.text import Text
from foreshard.proxy.routing.tree import Node, column_path, strings, unwrap

BUILTIN = AGGREGATES | DYNAMIC | LOCAL | PURE | WINDOWS | WRITES
SESSION_LOCKS = {
    "pg_advisory_lock",
    "pg_advisory_lock_shared",
    "pg_try_advisory_lock",
    "pg_try_advisory_lock_shared",
}
SEQUENCE_FUNCTIONS = {"nextval", "currval", "setval", "pg_sequence_last_value", "pg_get_sequence_data"}
CATALOG_SCHEMA = "pg_catalog"
MAY_LEAVE = ["foreshard", "may_leave"]  # called in texts of the router's own
HARMLESS_SETTINGS = {"jit"}  # may differ between shards; asyncpg sets it around its introspection


@dataclass
class Effects:
    """What a statement's functions do besides computing."""

    is_write: bool = False
    pin: str | None = None


def is_unknown(call: Call) -> bool:
    """Whether a function is not one of PostgreSQL's own."""
    if call.path == MAY_LEAVE:
        return False
    return call.path[-1] not in BUILTIN or (len(call.path) > 1 and call.path[-2] != CATALOG_SCHEMA)


def read_effects(collector: Collector) -> Effects:
    """Check every call; SqlError for those that would give a wrong answer."""
    effects = Effects()
    for call in collector.calls:
        name = call.path[-1]
        if is_unknown(call):
            effects.is_write = True
            check_declared(collector.catalog, call.path)
            continue
        if name in WRITES:
            effects.is_write = True
        if name in SESSION_LOCKS:
            effects.pin = "advisory lock"
        if name == "set_config":
            effects.pin = set_config(collector.catalog, collector.text, call.fields) or effects.pin
        if collector.catalog.is_declared:
            check_call(collector.catalog, collector.text, name, call.fields)
    return effects


def check_declared(catalog: Catalog, path: list[str]) -> None:
    """Refuse a function that works on a declared table."""
    table = catalog.find_function(path[-1], path[-2] if len(path) > 1 else None)
    if table is not None:
        raise not_built(
            f'the function "{path[-1]}"',
            f'Send the statements of its body to "{table}" through Foreshard instead.',
            f'It works on "{table}", whose rows are on several shards.',
        )


def check_call(catalog: Catalog, text: Text, name: str, fields: Node) -> None:
    """Refuse calls that would answer for one shard only."""
    if name == "lastval":
        raise placed_sequence(name, "any of the declared tables")
    if name in SEQUENCE_FUNCTIONS and not is_dump_of_sequences(name, fields):
        table = sequence_table(catalog, text, name, (fields.get("args") or [None])[0])
        if table is not None:
            raise placed_sequence(name, f'"{table}"')
    if name in DYNAMIC:
        raise not_built(
            f'the function "{name}" beside declared tables',
            "Select the rows through Foreshard and build the result in the client.",
            "It reads tables that are named in its arguments, on one shard only.",
        )


def is_dump_of_sequences(name: str, fields: Node) -> bool:
    """pg_get_sequence_data(seqrelid): a dump asks for all sequences and keeps what it was asked to dump."""
    path = column_path((fields.get("args") or [None])[0])
    return name == "pg_get_sequence_data" and path is not None and path[-1] == "seqrelid"


def placed_sequence(name: str, whose: str) -> SqlError:
    """The refusal of a sequence function on placed keys."""
    return not_built(
        f"{name} of placed keys",
        "Use RETURNING to learn a new row's key.",
        f"Each shard makes keys of {whose} from a sequence of its own.",
    )


def sequence_table(catalog: Catalog, text: Text, name: str, argument: Node | None) -> str | None:
    """The declared table whose keys come from the sequence that an argument names; refuses what cannot be known."""
    kind, fields = unwrap(argument)
    if kind == "TypeCast":
        return sequence_table(catalog, text, name, fields.get("arg"))
    if kind == "FuncCall" and strings(fields["funcname"])[-1] == "pg_get_serial_sequence" and fields.get("args"):
        table = catalog.find(*split_name(str(text.value_of(fields["args"][0]) or "")))
        return table.qualified if table else None
    if kind == "A_Const":
        return catalog.find_sequence(*split_name(str(text.value_of(argument))))
    raise not_built(
        f"{name} of a sequence that is not named in the statement, beside declared tables",
        "Write the sequence's name into the statement.",
    )


def split_name(written: str) -> tuple[str, str | None]:
    """Name and schema of a possibly qualified SQL name, folded as PostgreSQL folds it."""
    parts: list[str] = []
    current, quoted, was_quoted = "", False, False
    for letter in [*written.strip(), "."]:
        if letter == '"':
            quoted, was_quoted = not quoted, True
        elif letter == "." and not quoted:
            parts.append(current if was_quoted else current.strip().lower())
            current, was_quoted = "", False
        else:
            current += letter
    if not parts:
        return written, None  # an open quote: no name at all, and PostgreSQL will say so
    return parts[-1], parts[-2] if len(parts) > 1 else None


def set_config(catalog: Catalog, text: Text, fields: Node) -> str | None:
    """Check a call of set_config; why it pins, None when its effect ends with the transaction."""
    arguments = fields.get("args", [])
    name = text.value_of(arguments[0]) if arguments else None
    if name is None:
        if catalog.is_declared:
            raise not_built(
                "set_config of a setting that is not named in the statement",
                "Write the setting's name into the statement.",
            )
        return "set_config"
    value = text.value_of(arguments[1]) if len(arguments) > 1 else None
    check_setting(catalog, str(name), None if value is None else [str(value)])
    if catalog.is_declared and str(name).lower() not in HARMLESS_SETTINGS:
        raise not_built(
            f"set_config of {name} beside declared tables",
            "Use SET or SET LOCAL: Foreshard makes those on every shard of the session.",
            "The function would make the setting on one shard only.",
        )
    is_local = text.value_of(arguments[2]) if len(arguments) > 2 else None
    return None if is_local in (1, "t", "true", "on") else f"set_config {name}"


def check_shard_local(collector: Collector) -> None:
    """Refuse, in a statement over declared tables, functions whose effect or answer belongs to one server."""
    for call in collector.calls:
        name = call.path[-1]
        if not is_unknown(call) and (name in WRITES or name in LOCAL):
            raise not_built(
                f'the function "{name}" in a statement over declared tables',
                "Call it in a statement of its own, which runs on the default shard.",
                "It would run on the shard that holds the rows, not where other sessions and plain tables are.",
            )


__all__ = ["Effects", "check_shard_local", "is_unknown", "read_effects", "split_name"]
