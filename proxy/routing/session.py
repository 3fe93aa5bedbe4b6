"""Statements about the session rather than about rows: transactions, settings, cursors, prepared statements."""

from __future__ import annotations

from foreshard._core.template import Completion, Operation, RouteKind, Template, Verb
from foreshard.proxy.catalog import Catalog
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.functions import split_name
from foreshard.proxy.routing.settings import check_setting
from foreshard.proxy.routing.text import Text
from foreshard.proxy.routing.tree import Node, strings, unwrap

VERBS = {
    "TRANS_STMT_BEGIN": Verb.VERB_BEGIN,
    "TRANS_STMT_START": Verb.VERB_BEGIN,
    "TRANS_STMT_COMMIT": Verb.VERB_COMMIT,
    "TRANS_STMT_ROLLBACK": Verb.VERB_ROLLBACK,
    "TRANS_STMT_SAVEPOINT": Verb.VERB_SAVEPOINT,
    "TRANS_STMT_RELEASE": Verb.VERB_RELEASE,
    "TRANS_STMT_ROLLBACK_TO": Verb.VERB_ROLLBACK_TO,
}
# SET TRANSACTION and SET CONSTRAINTS end with the transaction. UNLISTEN and CLOSE leave nothing behind: a session that
# listens or holds a cursor is tied to its backend already.
PINNING = {
    "ListenStmt": "LISTEN",
    "LoadStmt": "LOAD",
    "PrepareStmt": "PREPARE",
    "ExecuteStmt": "EXECUTE",
    "DeallocateStmt": "DEALLOCATE",
    "DiscardStmt": "DISCARD",
}
CHANNEL_KINDS = {"ListenStmt": "LISTEN", "UnlistenStmt": "UNLISTEN"}  # for every shard: any may notify
CURSOR_KINDS = ("FetchStmt", "ClosePortalStmt")
SNAPSHOT = "foreshard.snapshot"
SETVAL = "setval"  # of a template whose completion is control/counters
RESTRICT = (
    b"SELECT set_config(name, 'view, foreign-table', false) FROM pg_settings"
    b" WHERE name = 'restrict_nonsystem_relation_kind'"
)
BOOLEANS = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}
READS = ("VariableSetStmt", "VariableShowStmt", "ConstraintsSetStmt", "UnlistenStmt", *CURSOR_KINDS, *PINNING)
HANDLED = frozenset({"TransactionStmt", "NotifyStmt", *READS}) - {"PrepareStmt"}


def plan_session(catalog: Catalog, text: Text, statement: bytes, kind: str, node: Node) -> Template:
    """The route of a statement about the session; `statement` is its own text."""
    if kind == "TransactionStmt":
        return plan_transaction(catalog, statement, node)
    if kind == "VariableSetStmt":
        return plan_set(catalog, text, statement, node)
    text.is_exact = True
    name = None
    if kind == "DeallocateStmt" and "name" not in node:
        name = "DEALLOCATE ALL"
    if kind == "DiscardStmt" and node.get("target") == "DISCARD_ALL":
        name = "DISCARD ALL"
    if kind in CHANNEL_KINDS:
        name = CHANNEL_KINDS[kind]
    return Template(
        RouteKind.ROUTE_DEFAULT,
        operation=Operation.OPERATION_OTHER,
        name=name,
        is_write=kind in ("ExecuteStmt", "NotifyStmt"),
        pin=PINNING.get(kind),
        text=statement,
        cursor=node.get("portalname") if kind in CURSOR_KINDS else None,
        is_reset=kind == "DiscardStmt" or (name is not None and name != "LISTEN"),
        is_exact=True,
        reason="about the session",
    )


def plan_transaction(catalog: Catalog, statement: bytes, node: Node) -> Template:
    """BEGIN, COMMIT, ROLLBACK and savepoints; prepared transactions are PostgreSQL's while no table is declared."""
    verb = VERBS.get(node["kind"])
    if verb is None:
        if catalog.is_declared:
            raise not_built(
                "PREPARE TRANSACTION and COMMIT PREPARED beside declared tables",
                "Use COMMIT.",
            )
        return Template(
            RouteKind.ROUTE_DEFAULT, is_write=True, text=statement, is_exact=True, reason="about the session"
        )
    return Template(
        RouteKind.ROUTE_TRANSACTION,
        verb=verb,
        chain=bool(node.get("chain")),
        text=statement,
        name=node.get("savepoint_name"),
        is_exact=True,
        reason="about the transaction",
    )


def plan_snapshot(values: list[str] | None, *, is_reset: bool, is_local: bool) -> Template:
    """SET foreshard.snapshot, which no shard hears of: `text` is on or off."""
    word = "off" if is_reset or values is None else values[0].lower()
    if word not in BOOLEANS:
        raise SqlError("22023", 'parameter "foreshard.snapshot" requires a Boolean value')
    if is_local:
        raise not_built("SET LOCAL foreshard.snapshot", "BEGIN ISOLATION LEVEL REPEATABLE READ does it.")
    return Template(
        RouteKind.ROUTE_DEFAULT,
        text=b"on" if BOOLEANS[word] else b"off",
        name=SNAPSHOT,
        is_reset=is_reset,
        is_exact=True,
        reason="about the session",
    )


def plan_called_setting(text: Text, statement: bytes, node: Node) -> Template | None:
    """What pg_dump sets by calling set_config, made on every backend of the session; None for all else.

    With an empty search_path every table is named with its schema, so what is taken for a declared table is one.
    """
    if b" ".join(statement.split()) == RESTRICT:
        return called_setting(text, statement, "restrict_nonsystem_relation_kind")
    targets = node.get("targetList", [])
    if len(targets) != 1 or set(node) - {"targetList", "limitOption", "op"}:
        return None
    kind, call = unwrap(unwrap(targets[0])[1].get("val"))
    path = strings(call.get("funcname")) if kind == "FuncCall" else []
    arguments = call.get("args", [])
    if path not in (["set_config"], ["pg_catalog", "set_config"]) or len(arguments) != 3:
        return None
    name, value, is_local = (text.value_of(argument) for argument in arguments)
    if str(name).lower() != "search_path" or value != "" or is_local != 0:
        return None
    return called_setting(text, statement, "search_path")


def plan_setval(catalog: Catalog, text: Text, node: Node) -> Template | None:
    """SELECT setval(...) of a sequence that feeds keys of a declared table: every shard's, none below its keys.

    None for all else.
    """
    targets = node.get("targetList", [])
    if len(targets) != 1 or set(node) - {"targetList", "limitOption", "op"}:
        return None
    kind, call = unwrap(unwrap(targets[0])[1].get("val"))
    if kind != "FuncCall" or strings(call.get("funcname")) not in (["setval"], ["pg_catalog", "setval"]):
        return None
    values = [text.value_of(argument) for argument in call.get("args", [])]
    table = catalog.find_sequence(*split_name(str(values[0]))) if len(values) > 1 and None not in values else None
    if table is None:
        return None
    return Template(
        RouteKind.ROUTE_SCATTER,
        is_write=True,
        table=table,
        returns=True,
        lock=table.encode(),
        completion=Completion.COMPLETE_SCHEMA,
        name=SETVAL,
        is_exact=True,
        reason="every shard has a sequence of its own",
    )


def called_setting(text: Text, statement: bytes, name: str) -> Template:
    """The route of a SELECT that makes a setting: as SET."""
    text.is_exact = True
    return Template(
        RouteKind.ROUTE_DEFAULT, pin=f"SET {name}", text=statement, name=name, is_exact=True, reason="about the session"
    )


def plan_set(catalog: Catalog, text: Text, statement: bytes, node: Node) -> Template:
    """SET and RESET. Their text is kept, so that it can be replayed on another backend."""
    text.is_exact = True
    form, name = node["kind"], node.get("name", "")
    is_reset = form in ("VAR_RESET", "VAR_RESET_ALL", "VAR_SET_DEFAULT")
    values = None
    if form == "VAR_SET_VALUE":
        values = [str(text.value_of(argument)) for argument in node.get("args", []) if unwrap(argument)[0]]
    if name.lower() == SNAPSHOT:
        return plan_snapshot(values, is_reset=is_reset, is_local=bool(node.get("is_local")))
    check_setting(catalog, name, values)
    ends_with_transaction = node.get("is_local") or (form == "VAR_SET_MULTI" and name.startswith("TRANSACTION"))
    return Template(
        RouteKind.ROUTE_DEFAULT,
        pin=None if ends_with_transaction else "RESET" if is_reset else f"SET {name}",
        text=statement,
        name=name,
        is_reset=is_reset,
        is_exact=True,
        reason="about the session",
    )
