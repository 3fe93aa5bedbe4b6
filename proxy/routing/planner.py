"""Statement text and catalog to a Template. Pure: the same text and catalog always give an equal Template.

Two rules run through all of routing: a statement that touches a declared table is routed by what is proven about it,
or refused with what would work; and a plan depends on a literal's value only where it is marked exact (Text.value_of).
"""

from __future__ import annotations

from typing import Any

from foreshard._core.lexer import lift
from foreshard._core.template import KeyFlag, Operation, RouteKind, Template
from foreshard.proxy.catalog import Catalog
from foreshard.proxy.errors import SqlError, not_built
from foreshard.proxy.routing.away import NewKeys
from foreshard.proxy.routing.collect import Collector
from foreshard.proxy.routing.cte_writes import plan_cte_writes
from foreshard.proxy.routing.functions import read_effects
from foreshard.proxy.routing.inserts import plan_insert
from foreshard.proxy.routing.merge import plan_of_shards
from foreshard.proxy.routing.only_shard import stay
from foreshard.proxy.routing.parameters import parameter_types
from foreshard.proxy.routing.query import REFUSED, fall_back, is_queryable, shadow_of, until_node_follows
from foreshard.proxy.routing.reads import route_read
from foreshard.proxy.routing.references import plan_written_within
from foreshard.proxy.routing.session import HANDLED, plan_called_setting, plan_session, plan_setval
from foreshard.proxy.routing.text import Text
from foreshard.proxy.routing.tree import Node, Parsed, ParseFailure, parse, unwrap
from foreshard.proxy.routing.utility import STATE_WORDS, is_temporary, plan_utility
from foreshard.proxy.routing.words import words_of
from foreshard.proxy.routing.writes import plan_write

CURSOR_OPT_HOLD = 0x20
OPTION = "foreshard"
COPIED = (
    *("verb", "chain", "operation", "is_write", "pin", "table", "text", "name", "refusal", "parts", "profiles", "keys"),
    *("values", "rows", "one_shard_refusal", "keeps_bucket", "can_query", "shadow", "merge", "cursor", "parameters"),
    *("is_reset", "is_exact", "returns", "writes_within", "row_keys", "marks", "lock", "carry", "alters"),
    *("owes_claims", "claim_homes", "is_hashed", "owes_away", "is_wide", "new_keys", "arbiters", "completion"),
    *("copy", "reason"),
)
ALTERING_WORDS = frozenset(
    (
        *("alter", "call", "comment", "create", "do", "drop", "grant", "import", "into", "reassign", "rename"),
        *("replace", "revoke", "security"),
    )
)
TRANSACTION_WORDS = frozenset(
    ("begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release", "declare")
)


class Planner:
    """Plans statements against one version of the catalog. Stateless; one per catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._has_triggers = any(table.has_triggers for table in catalog.tables.values())

    def plan(self, sql: bytes) -> Template:
        """The Template of a text, which may hold several statements. Never raises: refusals are Templates."""
        text = Text(sql)
        try:
            statements = parse(sql)
            if not statements:
                return Template(RouteKind.ROUTE_EMPTY, reason="nothing to do")
            if len(statements) > 1:
                return self.plan_several(sql, statements)
            return self.plan_one(text, statements[0])
        except ParseFailure as failure:
            return self.plan_unparsed(sql, failure)
        except SqlError as refusal:
            return refuse(refusal, text.is_exact)
        except RecursionError:
            return self.plan_unparsed(sql, ParseFailure("the statement is nested too deeply", "54001"))

    def plan_one(self, text: Text, statement: Parsed) -> Template:
        """The Template of a single statement."""
        own = text.sql[statement.start : statement.stop].strip()
        return self.plan_node(text, own, statement.kind, statement.node)

    def plan_node(self, text: Text, own: bytes, kind: str, node: Node) -> Template:
        """The Template of a parse tree; `own` is the text of this statement alone."""
        try:
            found = self.plan_kind(text, own, kind, node)
            return copy_of(found, is_wide=True) if self._has_triggers and found.is_write else found
        except SqlError as refusal:
            return stay(self.catalog, kind, node, refusal, text.is_exact)

    def plan_kind(self, text: Text, own: bytes, kind: str, node: Node) -> Template:
        """The same with every shard in mind."""
        collector = Collector(self.catalog, text)
        if kind == "SelectStmt":
            found = plan_called_setting(text, own, node) or plan_setval(self.catalog, text, node)
            return found or self.plan_read(collector, node)
        if kind == "InsertStmt":
            return self.plan_carried(plan_insert(collector, node))
        if kind in ("UpdateStmt", "DeleteStmt", "MergeStmt"):
            return self.plan_moved(plan_write(collector, kind, node))
        if kind == "ExplainStmt":
            return self.plan_explain(text, own, node)
        if kind == "DeclareCursorStmt":
            return self.plan_cursor(text, own, node)
        if kind == "PrepareStmt":
            return self.plan_prepare(text, own, node)
        if kind in HANDLED:
            return plan_session(self.catalog, text, own, kind, node)
        if kind == "CopyStmt" and not node.get("is_from") and not node.get("filename"):
            return self.plan_copy_out(collector, node)
        found = plan_utility(collector, kind, node)
        if kind == "CreateTableAsStmt" and not found.alters and not is_temporary(node):
            return copy_of(found, alters=True)
        return found

    def plan_carried(self, found: Template) -> Template:
        """An INSERT; the statements of the router's own that carry its rows must have routes, too."""
        if found.kind != RouteKind.ROUTE_CARRY or found.carry is None:
            return found
        parts = [self.plan(found.carry.select)]
        if found.carry.width:
            parts.append(self.plan(found.carry.insert(1, found.carry.width)))
        for part in parts:
            if part.kind == RouteKind.ROUTE_REFUSE and part.refusal is not None:
                raise part.refusal
        return copy_of(found, parts=tuple(parts))

    def plan_moved(self, found: Template) -> Template:
        """An UPDATE of keys: where its rows may stay, it is refused only when they do not, and could not move."""
        if found.kind == RouteKind.ROUTE_CARRY or found.carry is None:
            return self.plan_carried(found)
        try:
            self.plan_carried(copy_of(found, kind=RouteKind.ROUTE_CARRY))
        except SqlError:
            return copy_of(found, carry=None)
        return found

    def plan_read(self, collector: Collector, node: Node) -> Template:
        """A SELECT; what the shards cannot answer, the query node may."""
        try:
            collector.select(node)
            written = plan_written_within(collector, "SelectStmt", node, None)
            if written is not None:
                return written
            if collector.inner_writes:
                effects = read_effects(collector)
                return plan_cte_writes(collector, effects, node, None, Operation.OPERATION_SELECT)
            found = route_read(collector)
        except SqlError as refusal:
            return fall_back(self.catalog, node, refusal, collector.text.is_exact)
        if found.one_shard_refusal is None or found.is_write:
            return found
        if not is_queryable(self.catalog, node):
            problem = until_node_follows(self.catalog, node, found.one_shard_refusal)
            return copy_of(found, one_shard_refusal=problem) if problem.is_passing else found
        return copy_of(found, can_query=True, shadow=shadow_of(self.catalog, node))

    def plan_copy_out(self, collector: Collector, node: Node) -> Template:
        """COPY ... TO STDOUT."""
        try:
            return plan_utility(collector, "CopyStmt", node)
        except SqlError as refusal:
            kind, query = unwrap(node.get("query"))
            if kind != "SelectStmt":
                raise
            return fall_back(self.catalog, query, refusal, True)

    def plan_several(self, sql: bytes, statements: list[Parsed]) -> Template:
        """The Template of a string of statements, which PostgreSQL runs as one transaction."""
        parts = []
        _, literals, _ = lift(sql)
        for statement in statements:
            piece = sql[statement.start : statement.stop].strip()
            part = self.plan(piece)
            if part.kind == RouteKind.ROUTE_REFUSE and part.refusal is not None and part.refusal.sqlstate == REFUSED:
                return refuse(part.refusal, True)
            parts.append(within(part, piece, sum(offset < statement.start for offset, _, _ in literals)))
        pin = next((part.pin for part in parts if part.pin), None)
        plain = (RouteKind.ROUTE_DEFAULT, RouteKind.ROUTE_EMPTY)
        if all(part.kind in plain and not (part.is_reset or part.name or part.cursor) for part in parts):
            return Template(
                RouteKind.ROUTE_DEFAULT,
                is_write=any(part.is_write for part in parts),
                alters=any(part.alters for part in parts),
                pin=pin,
                is_exact=any(part.is_exact for part in parts),
                reason="no declared table in any of the statements",
            )
        return Template(
            RouteKind.ROUTE_MULTI,
            is_write=any(part.is_write for part in parts),
            alters=any(part.alters for part in parts),
            pin=pin,
            parts=tuple(copy_of(part, pin=pin) for part in parts),
            is_reset=pin is not None and all(part.is_reset for part in parts if part.pin),
            is_exact=True,
            owes_claims=any(part.owes_claims for part in parts),
            reason="several statements",
        )

    def plan_explain(self, text: Text, own: bytes, node: Node) -> Template:
        """EXPLAIN goes where its statement goes, and EXPLAIN (FORESHARD) nowhere."""
        options = {unwrap(option)[1]["defname"]: unwrap(option)[1].get("arg") for option in node.get("options", [])}
        kind, query = unwrap(node["query"])
        if OPTION in options:
            if len(options) > 1 or options[OPTION] is not None:
                raise SqlError("42601", "EXPLAIN (FORESHARD) takes no other option", hint="Write EXPLAIN (FORESHARD).")
            try:
                part = self.plan_node(text, own, kind, query)
            except SqlError as refusal:
                part = refuse(refusal, text.is_exact)
            return Template(
                RouteKind.ROUTE_EXPLAIN,
                parts=(part,),
                parameters=parameter_types(self.catalog, kind, query),
                is_exact=text.is_exact,
                reason="about a route",
            )
        inner = self.plan_node(text, own, kind, query)
        if not ("analyze" in options and is_on(text, options["analyze"])):
            inner = explained(inner)
        elif inner.carry is not None:
            raise not_built("EXPLAIN ANALYZE of rows that go to other shards", "EXPLAIN it without ANALYZE.")
        is_text = unwrap(options.get("format"))[1].get("sval", "text").lower() == "text"
        if not is_text or inner.is_write or inner.kind not in (RouteKind.ROUTE_KEYED, RouteKind.ROUTE_SCATTER):
            return copy_of(inner, merge=None)
        return copy_of(inner, merge=plan_of_shards(text, inner.merge))

    def plan_cursor(self, text: Text, own: bytes, node: Node) -> Template:
        """DECLARE: on the one shard where its query runs."""
        kind, query = unwrap(node["query"])
        inner = self.plan_node(text, own, kind, query)
        is_held = bool(node.get("options", 0) & CURSOR_OPT_HOLD)
        if inner.kind == RouteKind.ROUTE_SCATTER:
            refusal = not_built("a cursor over rows of several shards", "Restrict its query to a key.")
            inner = fall_back(self.catalog, query, refusal, text.is_exact)
        problem = not_built("a cursor over rows of several shards", "Restrict its query to keys of one shard.")
        problem = until_node_follows(self.catalog, query, problem)
        is_keyed = not inner.is_write and inner.kind == RouteKind.ROUTE_KEYED
        can_query = is_keyed and is_queryable(self.catalog, query)
        return Template(
            inner.kind,
            operation=inner.operation,
            is_write=inner.is_write,
            pin="cursor WITH HOLD" if is_held else inner.pin,
            table=inner.table,
            keys=inner.keys,
            one_shard_refusal=problem if inner.kind == RouteKind.ROUTE_KEYED else None,
            can_query=can_query,
            shadow=shadow_of(self.catalog, query) if can_query else inner.shadow,
            refusal=inner.refusal,
            cursor=node["portalname"],
            is_exact=text.is_exact,
            reason=inner.reason,
        )

    def plan_prepare(self, text: Text, own: bytes, node: Node) -> Template:
        """PREPARE of the default shard's statements ties the session to its backend."""
        kind, query = unwrap(node["query"])
        inner = self.plan_node(text, own, kind, query)
        if inner.kind not in (RouteKind.ROUTE_DEFAULT, RouteKind.ROUTE_ANY):
            raise not_built(
                "PREPARE of statements on declared tables",
                "Prepare with the protocol's own messages, as drivers do, or send the statement as it is.",
            )
        return Template(RouteKind.ROUTE_DEFAULT, pin="PREPARE", text=own, is_exact=True, reason="about the session")

    def plan_unparsed(self, sql: bytes, failure: ParseFailure) -> Template:
        """A text the parser does not know: a mistake or newer syntax, on the default shard if that is harmless."""
        key, literals, _ = lift(sql)
        outside = words_of(key.decode("utf-8", "replace"))
        inside = words_of(b" ".join(sql[at : at + size] for at, size, _ in literals).decode("utf-8", "replace"))
        names_table = bool((outside | inside) & self.catalog.words)
        may_name_table = b"U&" in sql.upper()  # in escapes
        if self.catalog.is_declared and (names_table or may_name_table or OPTION in outside):
            detail = "The text names a declared table, so it was sent to no shard." if names_table else ""
            hint = "Foreshard knows the grammar of PostgreSQL 17."
            return refuse(SqlError(failure.sqlstate, failure.message, detail, hint, failure.position), True)
        state = (STATE_WORDS | TRANSACTION_WORDS) & outside
        return Template(
            RouteKind.ROUTE_DEFAULT,
            is_write=True,
            alters=bool(ALTERING_WORDS & outside),
            pin="a statement that was not understood" if state else None,
            is_exact=True,
            reason="not understood, and names no declared table",
        )


def refuse(refusal: SqlError, is_exact: bool) -> Template:
    """The Template of a statement that is answered with an error."""
    return Template(RouteKind.ROUTE_REFUSE, refusal=refusal, is_exact=is_exact, reason=refusal.message)


def is_on(text: Text, argument: Node | None) -> bool:
    """Whether an option of EXPLAIN is given without a value, or with a true one."""
    kind, fields = unwrap(argument)
    text.is_exact = text.is_exact or kind == "Integer"
    value = fields.get("sval", "on") if kind == "String" else "on" if kind != "Integer" or fields.get("ival") else "0"
    return value.lower() not in ("off", "false", "0")


def within(template: Template, text: bytes, literals_before: int) -> Template:
    """The Template of one statement of a string: it reads the string's literals."""
    keys = tuple(
        (index if flags & KeyFlag.KEY_PARAM else index + literals_before, flags, column)
        for index, flags, column in template.keys
    )
    values = tuple(
        (index if is_param or index < 0 else index + literals_before, is_param, shape)
        for index, is_param, shape in template.values
    )
    parts = tuple(within(part, text, literals_before) for part in template.parts)
    arbiters = tuple(within(value, b"", literals_before) for value in template.arbiters)
    homes, marks = (
        None if value is None else within(value, value.text or b"", literals_before)
        for value in (template.claim_homes, template.marks)
    )
    changes = {"parts": parts, "arbiters": arbiters, "claim_homes": homes, "marks": marks}
    return copy_of(template, text=text, keys=keys, values=values, **changes)


def explained(inner: Template) -> Template:
    """EXPLAIN without ANALYZE: where the statement would go, but nothing is changed; a placement is not needed."""
    if inner.kind in (RouteKind.ROUTE_PLACE, RouteKind.ROUTE_CARRY):
        return Template(
            RouteKind.ROUTE_ANY,
            operation=Operation.OPERATION_OTHER,
            table=inner.table,
            is_exact=inner.is_exact,
            reason="any shard can say how it would insert",
        )
    return copy_of(inner, is_write=False, pin=None, owes_away=False, new_keys=NewKeys.NONE, carry=None)


def copy_of(template: Template, **changes: Any) -> Template:
    """A Template with some fields changed."""
    fields: dict[str, Any] = {name: getattr(template, name) for name in COPIED}
    return Template(changes.pop("kind", template.kind), **{**fields, **changes})
