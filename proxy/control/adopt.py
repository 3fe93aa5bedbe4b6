"""Proposes how the tables of an existing database are sharded: pure, from what was read of it.

1. What may be declared is asked of the rules that `plan` follows (derive.py), so a proposal is one that it accepts.
2. Reference tables first: small, rarely changed, referenced by far more rows, and referencing nothing else. Then each
   other table chooses the largest table that one of its foreign keys names for every row; what is left at the top of
   a group is a root. Groups with next to no bytes and writes stay plain.
3. Sizes and write counts are PostgreSQL's own estimates: a proposal is for people to read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from foreshard.proxy.config import Config, ShardConfig, TableConfig
from foreshard.proxy.config.kinds import table_name
from foreshard.proxy.config.model import Columns, as_columns
from foreshard.proxy.control.adopt_model import Choice, Kind, Live, Measures, Proposal, short
from foreshard.proxy.control.derive import build_catalog, held_by_one_shard
from foreshard.proxy.control.facts import ForeignKey
from foreshard.proxy.control.sizes import bytes_text
from foreshard.proxy.errors import ConfigError

REFERENCE_ROWS_MAX = 10_000  # fewer rows than this do not spread well over 4096 buckets, and are cheap everywhere
REFERENCE_BYTES_MAX = 64_000_000
REFERENCE_RATIO = 20  # rows that reference it, for each of its own
REFERENCE_CHANGES = 0.1  # changes since the statistics were reset, for each row
REFERENCE_WRITES = 0.001  # or so large a part of all writes
GROUP_SHARE_MIN = 0.01  # of all bytes or all writes: below it a group is not worth spreading
GROUP_ROWS_MIN = 1000  # the same, unless it is written much; chosen, below the 4096 buckets
SHARD = ShardConfig(name="s0", dsn="")
NOWHERE = Path("foreshard.yaml")


def propose(live: Live) -> Proposal:
    """What every table should be."""
    return _Proposing(live).run()


def proposed_tables(proposal: Proposal) -> tuple[TableConfig, ...]:
    """The proposal as configuration: each group from its root down, then the reference tables."""
    tables = []
    for root in proposal.of_kind(Kind.ROOT):
        for choice in proposal.group_of(root.name):
            tables.append(TableConfig(name=choice.name, key=choice.key, parent=choice.parent, via=choice.via))
    tables += [TableConfig(name=choice.name, reference=True) for choice in proposal.of_kind(Kind.REFERENCE)]
    return tuple(tables)


class _Proposing:
    """One run of propose: what has been decided so far."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.choices = {name: Choice(name=name) for name in live.tables}
        self.referencing: dict[str, list[ForeignKey]] = defaultdict(list)
        self.referenced: dict[str, list[ForeignKey]] = defaultdict(list)
        for key in live.facts.foreign_keys:
            self.referencing[key.table].append(key)
            self.referenced[key.target].append(key)
        self.config = Config(path=NOWHERE, shards=(SHARD,))

    def run(self) -> Proposal:
        for choice in self.choices.values():
            choice.obstacles = list(self._obstacles(choice.name))
        while self._add_references():
            pass
        self._choose_parents()
        self._choose_roots()
        proposal = Proposal(choices=self._in_order())
        self._settle(proposal)
        self._explain_later(proposal)
        return proposal

    def measures(self, name: str) -> Measures:
        return self.live.measures.get(name, Measures())

    def _obstacles(self, name: str) -> Iterator[str]:
        """Why the table cannot be sharded, whatever the others are."""
        table = self.live.tables[name]
        try:
            table_name(name)
        except ValueError as error:
            yield f"its name cannot stand in the configuration: {error}"
            return
        if table.partitions and not self.measures(name).is_partitioned:
            yield f"{', '.join(table.partitions)} inherits from it"
        if self.measures(name).has_reserved_keys:
            yield "it has keys from 2^52 to 2^53 - 1, which Foreshard generates itself: give those rows other keys"
        if table.primary_key:
            yield from self._refusals(TableConfig(name=name, key=self._key(name)))
        elif table.unique:
            yield f"it has no primary key: make one of {table.unique[0].name} ({', '.join(table.unique[0].columns)})"
        else:
            yield "it has no primary key: add a bigint column as one"

    def _key(self, name: str) -> Columns:
        """The primary key, of one column or several; less those that a shard fills in, where others are left."""
        table = self.live.tables[name]
        given = tuple(column for column in table.primary_key if column not in table.sources)
        wanted = table.primary_key if len(table.primary_key) == 1 else given
        return wanted[0] if len(wanted) == 1 else wanted or table.primary_key

    def _via(self, key: ForeignKey) -> Columns:
        """The columns that hold the parent's key, in its order."""
        mapped = dict(zip(key.target_columns, key.columns, strict=True))
        columns = tuple(mapped[column] for column in as_columns(self._key(key.target)) if column in mapped)
        return columns[0] if len(columns) == 1 else columns

    def _refusals(self, *tables: TableConfig) -> list[str]:
        """What plan would say of these declarations, on the only shard."""
        try:
            build_catalog(self._configured(tables), self.live.facts)
        except ConfigError as error:
            return [_without_place(problem) for problem in error.problems]
        return []

    def _configured(self, tables: tuple[TableConfig, ...]) -> Config:
        return Config(path=NOWHERE, shards=(SHARD,), tables=tables)

    def _add_references(self) -> bool:
        """Declare one more reference table; False when there is none."""
        for name, choice in self.choices.items():
            if choice.kind is Kind.PLAIN and self._is_reference(name):
                choice.kind = Kind.REFERENCE
                choice.obstacles = []  # of a key it needs none
                choice.why = self._why_reference(name)
                return True
        return False

    def _is_reference(self, name: str) -> bool:
        measures = self.measures(name)
        above = {key.target for key in self.referencing[name]} - {name}
        below = {key.table for key in self.referenced[name]} - {name}
        rows_below = sum(self.measures(table).rows for table in below)
        rarely = max(REFERENCE_CHANGES * measures.rows, REFERENCE_WRITES * self.live.writes)
        return (
            bool(below)
            and all(self.choices[target].kind is Kind.REFERENCE for target in above if target in self.choices)
            and measures.rows <= REFERENCE_ROWS_MAX
            and measures.bytes <= REFERENCE_BYTES_MAX
            and measures.changes <= rarely
            and rows_below >= REFERENCE_RATIO * max(measures.rows, 1)
            and not self._refusals(TableConfig(name=name, reference=True))
        )

    def _why_reference(self, name: str) -> str:
        measures = self.measures(name)
        below = sorted({key.table for key in self.referenced[name]} - {name})
        return f"{measures.rows:,} rows, changed {measures.changes:,} times, referenced by {_short_list(below)}"

    def _choose_parents(self) -> None:
        """Largest parents first, so that of two that need each other the larger stays on top."""
        fitting = [
            key
            for name, choice in self.choices.items()
            if choice.kind is Kind.PLAIN and not choice.obstacles
            for key in self.referencing[name]
            if self._may_be_parent(key)
        ]
        fitting.sort(key=lambda key: (-self.measures(key.target).rows, key.target, key.table, key.name))
        for key in fitting:
            choice = self.choices[key.table]
            if choice.parent is None and key.table not in self._ancestors(key.target):
                choice.parent, choice.via = key.target, self._via(key)
                others = [
                    f"{', '.join(other.columns)} -> {short(other.target)}"
                    for other in fitting
                    if other.table == key.table and other is not key
                ]
                choice.why = f"lives with {short(choice.parent)} by {key.name}" + (
                    f"; the largest of its parents (others: {_short_list(others)})" if others else ""
                )

    def _may_be_parent(self, key: ForeignKey) -> bool:
        """Whether every row of the table has a parent there, by columns that hold the parent's primary key."""
        target = self.choices.get(key.target)
        if target is None or key.target == key.table or target.kind is Kind.REFERENCE or target.obstacles:
            return False
        parent = self.live.tables[key.target]
        table = self.live.tables[key.table]
        shares = self.measures(key.table).null_shares
        has_always = all(
            (column := table.column(name)) is not None and (column.not_null or shares.get(name) == 0)
            for name in key.columns
        )
        if set(key.target_columns) != set(parent.primary_key) or not has_always:
            return False
        own = table.primary_key[0] if len(table.primary_key) == 1 else table.primary_key
        pair = (
            TableConfig(name=key.target, key=self._key(key.target)),
            TableConfig(name=key.table, key=own, parent=key.target, via=self._via(key)),
        )
        return not self._refusals(*pair)

    def _ancestors(self, name: str) -> list[str]:
        """The table, its parent and so on."""
        found = [name]
        while (parent := self.choices[found[-1]].parent) is not None:
            found.append(parent)
        return found

    def _choose_roots(self) -> None:
        """Groups that weigh something are sharded; the others stay as they are."""
        tops = [
            name
            for name, choice in self.choices.items()
            if choice.kind is Kind.PLAIN and choice.parent is None and not choice.obstacles
        ]
        tops.sort(key=lambda name: self._bound_to(name, Kind.PLAIN) is not None)  # their targets are decided first
        for name in tops:
            self._choose_root(name, [other for other in self.choices if name in self._ancestors(other)])
        for name, choice in self.choices.items():
            if choice.kind is Kind.PLAIN:
                choice.parent = choice.via = None
                choice.why = "cannot be sharded as it is" if choice.obstacles else choice.why
            elif choice.kind is not Kind.REFERENCE:
                primary = self.live.tables[name].primary_key
                whole = primary[0] if len(primary) == 1 else primary
                choice.key = self._key(name) if choice.kind is Kind.ROOT else whole

    def _choose_root(self, name: str, group: list[str]) -> None:
        """Decide about the group of tables that would live with this one."""
        choice = self.choices[name]
        size = sum(self.measures(table).bytes for table in group)
        writes = sum(self.measures(table).writes for table in group) / max(self.live.writes, 1)
        rows = sum(self.measures(table).rows for table in group)
        weight = f"{bytes_text(size)}, {writes:.0%} of all writes"
        below = [table for table in group if table != name]
        bound = self._bound_to(name, Kind.ROOT, Kind.CHILD)
        if bound is not None:
            choice.why = f"it could live with {short(bound.target)} if every row had a {', '.join(bound.columns)}"
        elif writes < GROUP_SHARE_MIN and (rows < GROUP_ROWS_MIN or size < GROUP_SHARE_MIN * self.live.bytes):
            choice.why = f"little to spread: {weight}"
        else:
            choice.why = f"at the top of {_short_list(below)}: together {weight}" if below else weight
            choice.kind = Kind.ROOT
            for table in below:
                self.choices[table].kind = Kind.CHILD

    def _bound_to(self, name: str, *kinds: Kind) -> ForeignKey | None:
        """A foreign key by which plan would take the table for a child of one that is of these kinds."""
        for key in self.referencing[name]:
            target = self.choices.get(key.target)
            if target is None or key.target == name or target.kind not in kinds or target.obstacles:
                continue
            is_key = set(key.target_columns) == set(self.live.tables[key.target].primary_key)
            if is_key and name not in self._ancestors(key.target):
                return key
        return None

    def _in_order(self) -> dict[str, Choice]:
        """Largest first within each kind."""
        names = sorted(self.choices, key=lambda name: (-self.measures(name).bytes, name))
        return {name: self.choices[name] for name in names}

    def _settle(self, proposal: Proposal) -> None:
        """The whole must be accepted too: what plan would still refuse stays plain, with what lives with it."""
        while True:
            try:
                build_catalog(self._configured(proposed_tables(proposal)), self.live.facts)
                return
            except ConfigError as error:
                for problem in error.problems:
                    self._demote(proposal, problem)

    def _demote(self, proposal: Proposal, problem: str) -> None:
        place = problem.split(": ", 2)[1].removeprefix("tables.")
        name = next(name for name in proposal.choices if place == name or place.startswith(f"{name}."))
        for choice in proposal.group_of(name):
            choice.obstacles.append(
                _without_place(problem)
                if choice.name == name
                else f"its parent {short(choice.parent or '')} cannot be sharded"
            )
            choice.why = "cannot be sharded as it is"
        for choice in proposal.group_of(name)[::-1]:
            choice.kind, choice.key, choice.parent, choice.via = Kind.PLAIN, None, None, None

    def _explain_later(self, proposal: Proposal) -> None:
        """What has to change before there is a second shard, at the table that it concerns."""
        for problem in held_by_one_shard(self._configured(proposed_tables(proposal)), self.live.facts):
            name = next(name for name in proposal.choices if f": tables.{name}:" in problem)
            proposal.choices[name].later.append(_without_place(problem))
        for key in self.live.facts.foreign_keys:
            if key.table == key.target and proposal.choices[key.table].kind is Kind.ROOT:
                proposal.choices[key.table].later.append(
                    f"foreign key {key.name} references its own table: rows that name each other would have to lie "
                    "on one shard; drop it"
                )
        for name, measures in self.live.measures.items():
            if name in proposal.choices and proposal.choices[name].kind is not Kind.PLAIN:
                proposal.choices[name].later += _remarks(measures)


def _remarks(measures: Measures) -> Iterator[str]:
    """What goes on working, but by shard."""
    for name in measures.exclusions:
        yield f"exclusion constraint {name} would hold on each shard only"
    if measures.triggers:
        yield (f"triggers {_short_list(list(measures.triggers))} would run on the row's shard and see only its rows")
    if measures.has_row_security:
        yield "row security is checked by each shard: its policies must be the same on all"
    if measures.is_unlogged:
        yield "it is unlogged: a crash of one shard empties it there"


def _short_list(names: list[str], most: int = 5) -> str:
    shown = ", ".join(map(short, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _without_place(problem: str) -> str:
    """The message of a problem, without file and declaration, and without the schema that everyone has."""
    return problem.split(": ", 2)[2].replace("public.", "")
