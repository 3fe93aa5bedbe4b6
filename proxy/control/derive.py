"""Makes the Catalog from configuration and facts, and refuses what could not be right on several shards.

Every refusal names the declaration, what is wrong, and what to do; all of them are raised together. What one shard
alone can keep (a unique index, a foreign key across groups) is refused from the second shard on: an existing database
becomes the only shard as it is, and `held_by_one_shard` tells what has to change before there is another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from foreshard._core.typed_keys import KeyType
from foreshard.proxy.catalog import Catalog, Column, Function, Table, TableKind
from foreshard.proxy.catalog.model import KEY_TYPES, KEY_TYPES_BY_NAME
from foreshard.proxy.config import Config, TableConfig, qualified
from foreshard.proxy.config.document import did_you_mean, listed
from foreshard.proxy.control.facts import Facts, ForeignKey, TableFacts
from foreshard.proxy.errors import ConfigError
from foreshard.proxy.profiles import ProfileKey, profile_indexes

VARCHAR_LENGTH_MAX = 500_000  # what a KeySource holds of n in varchar(n)
UUID_MAKERS = ("gen_random_uuid()", "uuid_generate_v4()", "uuidv4()", "uuidv7()", "foreshard.next_uuid()")
ENCODING = "UTF8"
REFUSED_TYPES = {
    "character": "trailing spaces do not count in it: ALTER the column's TYPE to text",
    "citext": "it calls different texts equal, which hash differently: use text",
    "numeric": "1.0 and 1.00 are equal and print differently: use bigint or text",
    "name": "it cuts what is longer than 63 bytes: use text",
}


def build_catalog(config: Config, facts: Facts, version: int = 1) -> Catalog:
    """The catalog; ConfigError with everything that cannot be sharded as declared. Tables may be missing."""
    deriving = _Deriving(config, facts)
    catalog = deriving.catalog(version)
    orphans = {f"its parent {name} is not there" for name in deriving.missing}
    problems = deriving.problems + [
        f"{config.path}: tables.{name.removeprefix('public.')}: {reason}"
        for name, reason in catalog.pending.items()
        if reason in orphans and name not in deriving.reasons
    ]
    if problems:
        raise ConfigError(problems)
    return catalog


def derive_catalog(config: Config, facts: Facts, version: int = 1) -> Catalog:
    """The catalog of what can be used as it is; a declared table that cannot is pending, with the reason."""
    return _Deriving(config, facts).catalog(version)


def held_by_one_shard(config: Config, facts: Facts) -> list[str]:
    """What would be refused if there were a second shard, one line each; empty when there is one."""
    deriving = _Deriving(config, facts)
    deriving.check_foreign_keys(deriving.tables())
    return deriving.held


def compare_shards(config: Config, all_facts: Iterable[Facts]) -> None:
    """ConfigError when a declared table differs between shards: rows of all shards must fit one description."""
    first, *others = all_facts
    problems = []
    for other in others:
        for name, table in first.tables.items():
            twin = other.tables.get(name)
            if twin is None:
                problems.append(
                    f"{config.path}: tables.{name}: shard {first.shard} has it, shard {other.shard} does not"
                )
                continue
            here = [(column.name, column.type_name, column.not_null) for column in table.columns]
            there = [(column.name, column.type_name, column.not_null) for column in twin.columns]
            for mine, theirs in zip(here, there, strict=False):
                if mine != theirs:
                    problems.append(
                        f"{config.path}: tables.{name}: differs between shards: {first.shard} has {_described(mine)}, "
                        f"{other.shard} has {_described(theirs)}"
                    )
                    break
            else:
                if len(here) != len(there):
                    problems.append(
                        f"{config.path}: tables.{name}: has {len(here)} columns on shard {first.shard} and "
                        f"{len(there)} on shard {other.shard}"
                    )
    if problems:
        raise ConfigError(problems)


def group_of(name: str, tables: dict[str, Table]) -> str:
    """The root of the table's group."""
    while True:
        parent = tables[name].parent
        if parent is None or parent not in tables:
            return name
        name = parent


def _described(column: tuple[str, str, bool]) -> str:
    return f"`{column[0]} {column[1]}{' NOT NULL' if column[2] else ''}`"


class _Deriving:
    """One run of build_catalog: the inputs and the problems found so far."""

    def __init__(self, config: Config, facts: Facts) -> None:
        self.problems: list[str] = []
        self.reasons: dict[str, str] = {}  # by table, the first of its problems
        self.missing: list[str] = []  # declared tables that are not there
        self.held: list[str] = []  # problems, but for the shard being the only one
        self._config = config
        self._facts = facts
        self._indexes = profile_indexes(config)
        self._declared = {qualified(table.name): table for table in config.tables}

    def catalog(self, version: int) -> Catalog:
        """What can be used, and what is pending."""
        tables = self.tables()
        self.check_foreign_keys(tables)
        pending = dict.fromkeys(self.missing, "") | self.reasons
        while True:
            left = {name: table for name, table in tables.items() if name not in pending}
            lost = [table for table in left.values() if table.parent is not None and table.parent not in left]
            if not lost:
                break
            pending |= {table.qualified: f"its parent {table.parent} is not there" for table in lost}
        return Catalog(
            version=version,
            tables=left,
            views=self._facts.indexes | self._facts.views,
            functions=self._facts.functions,
            search_path=self._facts.search_path,
            pending=pending,
        )

    def tables(self) -> dict[str, Table]:
        """Every declared table that exists, with parents filled in."""
        made: dict[str, Table] = {}
        for name, declared in self._declared.items():
            facts = self._facts.tables.get(name)
            if facts is None:
                self.missing.append(name)
            else:
                made[name] = self._table(declared, facts)
        return self._without_cycles(made)

    def _without_cycles(self, tables: dict[str, Table]) -> dict[str, Table]:
        """The tables; when foreign keys propose parents in a circle, that is a problem and none are returned."""
        for name in tables:
            seen, current = [name], tables[name].parent
            while current in tables and current not in seen:
                seen.append(current)
                current = tables[current].parent
            if current == name:
                circle = " -> ".join([*seen, name])
                self._problem(self._declared[name], f"foreign keys make a circle: {circle}; declare a `parent` for one")
                self.reasons |= dict.fromkeys(tables, f"foreign keys make a circle: {circle}")
                return {}
        return tables

    def check_foreign_keys(self, tables: dict[str, Table]) -> None:
        """Refuse foreign keys that a shard could not check."""
        for key in self._facts.foreign_keys:
            if key.table in tables:
                message = self._refuse_foreign_key(key, tables)
                if message:
                    self._held(self._declared[key.table], f"foreign key {key.name} to {key.target} {message}")
            elif key.target in tables and tables[key.target].kind is not TableKind.REFERENCE:
                self._held(
                    self._declared[key.target],
                    f"{key.table} is not declared, so its rows lie on the first shard, but its foreign key {key.name} "
                    f"references {key.target}: declare {key.table} as its child, or drop the foreign key",
                )

    def _problem(self, table: TableConfig, message: str, key: str = "") -> None:
        place = f"tables.{table.name}" + (f".{key}" if key else "")
        self.reasons.setdefault(qualified(table.name), message)
        self.problems.append(f"{self._config.path}: {place}: {message}")

    def _held(self, table: TableConfig, message: str) -> None:
        """A problem, unless there is one shard, which holds every row."""
        problems = self.held if len(self._config.shards) == 1 else self.problems
        if problems is self.problems:
            self.reasons.setdefault(qualified(table.name), message)
        problems.append(f"{self._config.path}: tables.{table.name}: {message}")

    def _table(self, declared: TableConfig, facts: TableFacts) -> Table:
        functions = tuple(self._functions(declared, facts))
        if declared.reference:
            return Table(
                schema=facts.schema,
                name=facts.name,
                kind=TableKind.REFERENCE,
                key="",
                key_type="",
                columns=facts.columns,
                functions=functions,
            )
        parent, via = self._parent(declared, facts)
        self._check_key(declared, facts)
        self._check_unique(declared, facts, via)
        if facts.ancestors:
            self._problem(declared, f"inherits from {facts.ancestors[0]}: declare that table instead")
        return Table(
            schema=facts.schema,
            name=facts.name,
            kind=TableKind.ROOT if parent is None else TableKind.CHILD,
            key=declared.key or "",
            key_type=_type_name(facts, declared.key),
            parent=parent,
            via=via,
            columns=tuple(_with_fill(column, declared.key, facts) for column in facts.columns),
            functions=functions,
            unique=declared.unique,
        )

    def _functions(self, declared: TableConfig, facts: TableFacts) -> Iterator[Function]:
        names = [column.name for column in facts.columns]
        for trigger in self._config.triggers:
            if qualified(trigger.table) != facts.qualified:
                continue
            for column in trigger.columns or ():
                if column not in names:
                    self.reasons.setdefault(facts.qualified, f"triggers.{trigger.name}: no column `{column}`")
                    self.problems.append(
                        f"{self._config.path}: triggers.{trigger.name}.columns: {facts.qualified} has no column "
                        f"`{column}`{did_you_mean(column, names)} (columns: {listed(names)})"
                    )
            yield Function(
                name=trigger.name,
                operations=trigger.on,
                columns=trigger.columns,
                profile_indexes={
                    operation: self._indexes[ProfileKey(trigger.name, operation)] for operation in trigger.on
                },
            )

    def _parent(self, declared: TableConfig, facts: TableFacts) -> tuple[str | None, str | None]:
        """Parent and via as declared, or as the foreign keys propose."""
        wanted = qualified(declared.parent) if declared.parent else None
        if declared.via and facts.column(declared.via) is None:
            names = [column.name for column in facts.columns]
            self._problem(
                declared,
                f"{facts.qualified} has no column `{declared.via}`{did_you_mean(declared.via, names)} "
                f"(columns: {listed(names)})",
                "via",
            )
            return wanted, declared.via
        if wanted and declared.via:
            self._check_via(declared, facts, declared.via, wanted)
            return wanted, declared.via
        fitting = [key for key in self._facts.foreign_keys if self._may_be_parent(key, facts, wanted, declared.via)]
        if len(fitting) == 1:
            self._check_via(declared, facts, fitting[0].columns[0], fitting[0].target)
            return fitting[0].target, fitting[0].columns[0]
        if fitting:
            choices = listed(f"{{parent: {key.target}, via: {key.columns[0]}}}" for key in fitting)
            self._problem(
                declared, f"has several foreign keys to sharded tables; say which one it lives with: {choices}"
            )
        elif wanted:
            self._problem(declared, f"has no foreign key to {wanted}: say which column holds its key", "via")
        elif declared.via:
            self._problem(
                declared, f"`{declared.via}` is in no foreign key to a sharded table: say the `parent`", "via"
            )
        return wanted, declared.via

    def _may_be_parent(self, key: ForeignKey, facts: TableFacts, wanted: str | None, via: str | None) -> bool:
        target = self._declared.get(key.target)
        return (
            key.table == facts.qualified
            and key.target != facts.qualified
            and target is not None
            and not target.reference
            and facts.qualified not in self._declared_ancestors(key.target)
            and key.target_columns == (target.key,)
            and wanted in (None, key.target)
            and via in (None, key.columns[0])
        )

    def _declared_ancestors(self, name: str) -> list[str]:
        """The table's parent, the parent's parent and so on, as far as they are declared (without circles)."""
        found: list[str] = []
        parent = self._declared[name].parent
        while parent is not None and qualified(parent) not in found:
            found.append(qualified(parent))
            above = self._declared.get(qualified(parent))
            parent = above.parent if above else None
        return found

    def _check_via(self, declared: TableConfig, facts: TableFacts, via: str, parent: str) -> None:
        above = self._facts.tables.get(parent)
        parent_key = self._declared[parent].key if parent in self._declared else None
        column = facts.column(via)
        wanted = above.column(parent_key) if above is not None and parent_key is not None else None
        if column is None or wanted is None or _same_keys(column, wanted):
            return
        self._problem(
            declared,
            f"column {via} is {column.type_name}, the key of {parent} is {wanted.type_name}: "
            f"ALTER TABLE {facts.qualified} ALTER COLUMN {via} TYPE {wanted.type_name}",
            "via",
        )

    def _check_key(self, declared: TableConfig, facts: TableFacts) -> None:
        key = declared.key or ""
        column = facts.column(key)
        names = [name.name for name in facts.columns]
        primary = facts.primary_key
        if column is None:
            proposal = f"{did_you_mean(key, names)} (columns: {listed(names)})"
            self._problem(declared, f"{facts.qualified} has no column `{key}`{proposal}", "key")
            return
        if not primary:
            remedy = f"ALTER TABLE {facts.qualified} ADD PRIMARY KEY ({key})"
            self._problem(declared, f"{facts.qualified} has no primary key: {remedy}", "key")
        elif primary != (key,):
            what = f"its primary key is ({', '.join(primary)})"
            self._problem(declared, f"{what}; a sharded table's primary key is the one column it is declared by", "key")
        self._check_key_type(declared, facts, column)
        self._check_source(declared, facts, key)

    def _check_key_type(self, declared: TableConfig, facts: TableFacts, column: Column) -> None:
        """Refuse types whose equal values may hash differently, or be stored otherwise than they were sent."""
        problem = _type_problem(column, facts, self._facts.encoding)
        if problem:
            self._problem(declared, f"column {column.name} is {column.type_name}; {problem}", "key")

    def _check_source(self, declared: TableConfig, facts: TableFacts, key: str) -> None:
        source = facts.sources.get(key)
        if source is None:
            return
        if source.identity == "a":
            remedy = f"ALTER TABLE {facts.qualified} ALTER COLUMN {key} SET GENERATED BY DEFAULT"
            self._problem(
                declared,
                f"column {key} is GENERATED ALWAYS AS IDENTITY, which Foreshard must replace by a default that clients "
                f"may override; agree to that by {remedy}",
                "key",
            )
            return
        column = facts.column(key)
        key_type = KEY_TYPES.get(column.type_oid) if column is not None else None
        if key_type is KeyType.TYPE_UUID:
            if not source.default.endswith(UUID_MAKERS):
                known = f"only these can be replaced: {listed(UUID_MAKERS)}"
                self._problem(declared, f"column {key} has the default {source.default}; {known}", "key")
        elif key_type in (KeyType.TYPE_INT4, KeyType.TYPE_INT2) and (source.sequence or source.identity):
            self._problem(declared, f"column {key} is {_type_name(facts, key)}, {_proposal(facts, key)}", "key")
        elif not source.identity and source.default and not source.sequence:
            self._problem(
                declared, f"column {key} has the default {source.default}; only a sequence can be replaced", "key"
            )

    def _check_unique(self, declared: TableConfig, facts: TableFacts, via: str | None) -> None:
        """Refuse unique indexes that would hold on each shard only, and declared columns that cannot be claimed."""
        for columns in declared.unique:
            self._check_claimed(declared, facts, columns, via is not None)
        for index in facts.unique:
            is_declared = index.columns in declared.unique and index.is_simple
            if not index.is_primary and not is_declared and not {declared.key, via} & set(index.columns):
                listed_columns = ", ".join(index.columns)
                declaring = listed_columns if len(index.columns) == 1 else f'"{listed_columns}"'
                remedy = f"declare it (unique: [{declaring}]), drop it, or make it not unique"
                if not index.is_simple or any(facts.column(column) is None for column in index.columns):
                    remedy = "only plain columns can be declared: drop it, or make it not unique"
                self._held(
                    declared,
                    f"unique index {index.name} on ({listed_columns}) would hold on each shard only, not "
                    f"over all of them: {remedy}, or add {via or declared.key} to it",
                )

    def _check_claimed(
        self, declared: TableConfig, facts: TableFacts, columns: tuple[str, ...], is_child: bool
    ) -> None:
        for name in columns:
            column = facts.column(name)
            if column is None:
                names = [known.name for known in facts.columns]
                proposal = f"{did_you_mean(name, names)} (columns: {listed(names)})"
                self._problem(declared, f"{facts.qualified} has no column `{name}`{proposal}", "unique")
                continue
            problem = _type_problem(column, facts, self._facts.encoding)
            if problem:
                self._problem(declared, f"column {name} is {column.type_name}; {problem}", "unique")
        if columns == (declared.key,) and not is_child:
            self._problem(declared, "a root's key is unique as it is: its rows live where it says", "unique")
        elif columns == (declared.key,):
            has_children = any(
                key.target == facts.qualified and key.table != key.target and key.table in self._declared
                for key in self._facts.foreign_keys
            )
            if has_children:
                self._problem(
                    declared,
                    f"its rows have children, which could not be found by a key that clients give: leave "
                    f"{declared.key} out, and let the shards generate the keys",
                    "unique",
                )

    def _refuse_foreign_key(self, key: ForeignKey, tables: dict[str, Table]) -> str:
        """Why a declared table's foreign key cannot be kept; "" when it can."""
        source, target = tables[key.table], tables.get(key.target)
        if target is None:
            if key.target in self._declared:
                return ""  # missing table, already said
            return (
                f"cannot be checked: {key.target} is not declared, so its rows lie on the first shard only; "
                f"declare it ({{reference: true}} if it is the same on every shard), or drop the foreign key"
            )
        if target.kind is TableKind.REFERENCE:
            return ""
        if source.kind is TableKind.REFERENCE:
            return (
                "cannot be checked: the rows of a reference table are on every shard, the referenced ones on one each"
            )
        if group_of(key.table, tables) == group_of(key.target, tables):
            return ""
        return "crosses groups: it would hold only when both rows happen to lie on one shard; drop it"


def _type_problem(column: Column, facts: TableFacts, encoding: str) -> str:
    """Why a column's values cannot be keys: equal ones may hash differently, or be stored otherwise than sent."""
    key_type = KEY_TYPES.get(column.type_oid)
    if key_type is None:
        return REFUSED_TYPES.get(column.type_name, f"keys may be of the types {listed(KEY_TYPES_BY_NAME)}")
    if key_type is KeyType.TYPE_TEXT and column.name in facts.undetermined:
        return "its collation calls different texts equal, which hash differently: give it a deterministic one"
    if key_type is KeyType.TYPE_TEXT and encoding != ENCODING:
        return f"the database is encoded in {encoding}; keys that are texts need {ENCODING}"
    if column.length_max > VARCHAR_LENGTH_MAX:
        return f"a varchar key has at most {VARCHAR_LENGTH_MAX} characters: use text"
    if key_type in (KeyType.TYPE_TIMESTAMP, KeyType.TYPE_TIMESTAMPTZ) and column.modifier >= 0:
        return "values are rounded when they are stored: leave its precision out"
    return ""


def _type_name(facts: TableFacts, column: str | None) -> str:
    known = facts.column(column or "")
    return known.type_name if known is not None else ""


def _same_keys(one: Column, other: Column) -> bool:
    """Whether two columns hold the same keys: integers of one size, or texts."""
    types = [KEY_TYPES.get(column.type_oid) for column in (one, other)]
    return types[0] is types[1]


def _with_fill(column: Column, key: str | None, facts: TableFacts) -> Column:
    """A child's key has no default once `apply` has run, but a trigger that fills it from the same source."""
    filled = column.name == key and (facts.filled or bool(facts.sources.get(column.name)))
    return msgspec.structs.replace(column, has_default=True) if filled else column


def _proposal(facts: TableFacts, column: str) -> str:
    return f"placed keys need bigint: ALTER TABLE {facts.qualified} ALTER COLUMN {column} TYPE bigint"
