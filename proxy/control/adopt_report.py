"""A proposal in words: the report for the terminal, and the configuration file with comments."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

from foreshard.proxy.control.adopt_model import Choice, Kind, Live, Measures, Proposal, short
from foreshard.proxy.control.sizes import bytes_text

WIDTH = 110
PASSWORD_VARIABLE = "FORESHARD_PASSWORD"
_PLAIN_SCALAR = re.compile(r"[A-Za-z_][A-Za-z0-9_$.]*")
_YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def report_lines(live: Live, proposal: Proposal) -> list[str]:
    """What was found and what is proposed, for people."""
    since = f" since {live.statistics_since}" if live.statistics_since else ""
    lines = [
        f"{live.place}: PostgreSQL {live.version}, {len(live.tables)} tables, {bytes_text(live.bytes)}, "
        f"{live.writes:,} writes{since} (rows and sizes are PostgreSQL's estimates)",
        "",
        *_table(live, proposal),
    ]
    obstacles = [(choice.name, choice.obstacles) for choice in proposal.choices.values() if choice.obstacles]
    lines += _section("Cannot be sharded as it is (stays on the first shard, served as ever)", live, obstacles)
    later = [(choice.name, choice.later) for choice in proposal.choices.values() if choice.later]
    lines += _section("Holds on one shard; has to change before there is a second", live, later)
    remarks = list(_remarks(live, proposal))
    if remarks:
        lines += ["", "Good to know", *(line for remark in remarks for line in _wrapped(remark, "  "))]
    return lines


def configuration_lines(live: Live, proposal: Proposal, dsn: str) -> list[str]:
    """The configuration file."""
    shown, has_password = _without_password(dsn)
    lines = [
        f"# Proposed by `foreshard adopt` for {live.place}.",
        "# This database becomes the only shard: it owns all buckets, no row moves and no key changes.",
        "# Next: foreshard plan -c FILE, foreshard apply -c FILE, foreshard serve -c FILE.",
        "listen: 127.0.0.1:6432",
        "shards:",
    ]
    if has_password:
        lines.append(f"  # The password comes from the environment: {PASSWORD_VARIABLE}, as it stands in a URL.")
    lines.append(f"  - {{name: s0, dsn: {json.dumps(shown)}}}")
    lines.append("tables:")
    if not any(choice.kind is not Kind.PLAIN for choice in proposal.choices.values()):
        lines[-1] += " {}"
    for root in proposal.of_kind(Kind.ROOT):
        group = proposal.group_of(root.name)
        lines += ["", *_comment(f"{short(root.name)}: {root.why}")]
        lines += [_entry(live, choice) for choice in group]
        for choice in group:
            lines += _comments(choice)
    references = proposal.of_kind(Kind.REFERENCE)
    if references:
        lines += ["", *_comment("The same rows on every shard.")]
        for choice in references:
            lines += [_entry(live, choice), *_comments(choice)]
    plain = proposal.of_kind(Kind.PLAIN)
    if plain:
        lines += ["", *_comment("Not declared: these stay on the first shard.")]
        for choice in plain:
            lines += _comment(f"{short(choice.name)} ({_size(live.measures[choice.name])}): {choice.why}")
            lines += [line for obstacle in choice.obstacles for line in _comment(f"- {obstacle}")]
            lines += _comments(choice)
    return lines


def scalar(text: str) -> str:
    """A name as YAML reads it back."""
    if _PLAIN_SCALAR.fullmatch(text) and text.lower() not in _YAML_WORDS:
        return text
    return json.dumps(text)


def _table(live: Live, proposal: Proposal) -> list[str]:
    """One row per table, children below their parents."""
    rows = []
    for root in proposal.of_kind(Kind.ROOT):
        rows += _tree(proposal, root, 0)
    rows += [(short(choice.name), choice) for kind in (Kind.REFERENCE, Kind.PLAIN) for choice in proposal.of_kind(kind)]
    names = max([len(name) for name, _ in rows] + [5])
    lines = [f"{'table':<{names}}  {'proposed':<9}  {'size':>8}  {'rows':>13}  {'writes':>6}  why"]
    margin = " " * (names + 46)
    for name, choice in rows:
        measures = live.measures[choice.name]
        share = measures.writes / max(live.writes, 1)
        start = (
            f"{name:<{names}}  {choice.kind.value:<9}  {bytes_text(measures.bytes):>8}  {measures.rows:>13,}  "
            f"{share:>6.0%}  "
        )
        lines += textwrap.wrap(
            choice.why, max(WIDTH, len(margin) + 50), initial_indent=start, subsequent_indent=margin,
            break_long_words=False,
        ) or [start.rstrip()]  # fmt: skip
    return lines


def _tree(proposal: Proposal, choice: Choice, depth: int) -> list[tuple[str, Choice]]:
    rows = [("  " * depth + short(choice.name), choice)]
    for child in proposal.children_of(choice.name):
        rows += _tree(proposal, child, depth + 1)
    return rows


def _section(title: str, live: Live, entries: list[tuple[str, list[str]]]) -> list[str]:
    if not entries:
        return []
    lines = ["", title]
    for name, texts in entries:
        lines.append(f"  {short(name)} ({_size(live.measures[name])})")
        for text in texts:
            lines += _wrapped(f"- {text}", "    ", "      ")
    return lines


def _remarks(live: Live, proposal: Proposal) -> Iterator[str]:
    """About the database as a whole."""
    sharded = {choice.name for choice in proposal.choices.values() if choice.kind in (Kind.ROOT, Kind.CHILD)}
    for kind, readers in (("view or table", live.facts.views), ("function", live.facts.functions)):
        for name, read in sorted(readers.items()):
            if read in sharded:
                yield f"{kind} {short(name)} reads {short(read)}: with several shards, that needs all of them"
    for name in live.materialized_views:
        yield f"materialized view {short(name)} stays on the first shard: REFRESH would see that shard's rows only"
    for name in live.foreign_tables:
        yield f"foreign table {short(name)} stays on the first shard"
    for name in live.publications:
        yield f"publication {name}: from a second shard on, each shard publishes its own rows"
    if live.extensions:
        yield f"extensions {', '.join(live.extensions)}: a further shard needs them too"
    if live.event_triggers:
        yield f"event triggers {', '.join(live.event_triggers)} run when `apply` changes defaults and triggers"
    if live.has_large_objects:
        yield "large objects stay on the first shard, whatever table holds their number"
    for choice in proposal.choices.values():
        measures = live.measures[choice.name]
        if choice.kind is not Kind.PLAIN and measures.deferrable:
            names = ", ".join(measures.deferrable)
            yield f"{short(choice.name)}: deferrable constraints {names} are checked at COMMIT by the row's shard"


def _entry(live: Live, choice: Choice) -> str:
    values = {"key": choice.key, "parent": choice.parent, "via": choice.via}
    inside = ", ".join(f"{name}: {_value(value)}" for name, value in values.items() if value)
    if choice.kind is Kind.REFERENCE:
        inside = "reference: true"
    text = f"  {scalar(short(choice.name))}: {{{inside}}}"
    return f"{text:<70}  # {_size(live.measures[choice.name])}"


def _value(value: str | tuple[str, ...]) -> str:
    """A name, or a list of names."""
    return scalar(short(value)) if isinstance(value, str) else f"[{', '.join(map(scalar, value))}]"


def _comments(choice: Choice) -> list[str]:
    """What has to change before a second shard."""
    return [line for text in choice.later for line in _comment(f"{short(choice.name)}, before a second shard: {text}")]


def _comment(text: str) -> list[str]:
    return _wrapped(text, "  # ")


def _size(measures: Measures) -> str:
    return f"{bytes_text(measures.bytes)}, {measures.rows:,} rows"


def _wrapped(text: str, indent: str, following: str | None = None) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=following or indent, break_long_words=False
    )


def _without_password(dsn: str) -> tuple[str, bool]:
    """The URL with a variable in place of its password, and whether it has one."""
    parts = urlsplit(dsn)
    login, at, hosts = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    if not colon or not password:
        return dsn.replace("${", "$${"), False
    location = f"{user}:${{{PASSWORD_VARIABLE}}}{at}{hosts}"
    return urlunsplit(parts._replace(netloc="@LOCATION@")).replace("${", "$${").replace("@LOCATION@", location), True
