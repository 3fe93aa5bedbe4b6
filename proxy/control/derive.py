"""Makes the Catalog from configuration and facts, and refuses what could not be right on several shards.

Every refusal names the declaration, what is wrong, and what to do; all of them are raised together. What one shard
alone can keep (a unique index, a foreign key across groups) is refused from the second shard on: an existing database
becomes the only shard as it is, and `held_by_one_shard` tells what has to change before there is another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

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


def compare_shards(config: Config, all_facts: Iterable[Facts], lacking: Collection[str] = ()) -> None:
    """ConfigError when a declared table differs between shards: rows of all shards must fit one description.

    Tables that are `lacking` need not be there yet.
    """
    first, *others = all_facts
    problems = []
    for other in others:
        for name, table in first.tables.items():
            twin = other.tables.get(name)
            if twin is None and name in lacking:
                continue
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


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """How a child's rows are found: by the key of `domain`, which the via columns hold."""

    parent: str | None = None
    via: tuple[str, ...] = ()
    domain: str | None = None


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
        self._routes: dict[str, Route] = {}

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
            if name in self._facts.hidden:
                hiding = self._facts.hidden[name]
                self._held(declared, f"{hiding}, which is not declared, comes first in search_path: rename one of them")
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
        route = self._route(declared, facts)
        key = declared.key_columns
        self._check_key(declared, facts, route.via)
        self._check_unique(declared, facts, route.via)
        if facts.ancestors:
            self._problem(declared, f"inherits from {facts.ancestors[0]}: declare that table instead")
        return Table(
            schema=facts.schema,
            name=facts.name,
            kind=TableKind.ROOT if route.parent is None else TableKind.CHILD,
            key=key[0] if len(key) == 1 else "",
            key_type=_type_name(facts, key[0]) if len(key) == 1 else "",
            parent=route.parent,
            via=route.via[0] if len(route.via) == 1 else None,
            composite_key=key if len(key) > 1 else (),
            composite_via=route.via if len(route.via) > 1 else (),
            via_domain=route.domain if route.domain != route.parent else None,
            primary_key=facts.primary_key if len(facts.primary_key) > 1 else (),
            columns=tuple(_with_fill(column, key, facts) for column in facts.columns),
            functions=functions,
            unique=declared.unique,
            has_triggers=facts.has_triggers,
            by_cost=self._is_by_cost(declared, facts, route.parent),
        )

    def _is_by_cost(self, declared: TableConfig, facts: TableFacts, parent: str | None) -> bool:
        """Whether its rows are placed by cost although clients give the keys."""
        if declared.placement != "cost":
            return False
        if parent is not None:
            self._problem(declared, f"its rows live with those of {parent}: leave `placement` out", "placement")
        elif len(declared.key_columns) != 1 or facts.primary_key != declared.key_columns:
            self._problem(declared, "only a primary key of one column can be placed by cost: leave it out", "placement")
        elif declared.key_columns[0] in facts.sources:
            self._problem(
                declared, "the shards generate its keys, which places it by cost already: leave it out", "placement"
            )
        for name, child in self._declared.items():
            if child.parent is None or qualified(child.parent) != facts.qualified or parent is not None:
                continue
            if not any(key.table == name and key.target == facts.qualified for key in self._facts.foreign_keys):
                self._problem(
                    declared,
                    f"{name} has no foreign key to it, so rows without a parent could be where nobody looks for them: "
                    f"make one, or leave `placement` out",
                    "placement",
                )
        return True

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

    def _route(self, declared: TableConfig, facts: TableFacts) -> Route:
        """Parent and via as declared, or as the foreign keys propose. Problems are reported once."""
        name = facts.qualified
        if name not in self._routes:
            self._routes[name] = Route()  # what a circle of foreign keys sees of it
            self._routes[name] = self._find_route(declared, facts)
        return self._routes[name]

    def _find_route(self, declared: TableConfig, facts: TableFacts) -> Route:
        wanted, via = qualified(declared.parent) if declared.parent else None, declared.via_columns
        names = [column.name for column in facts.columns]
        for column in via:
            if column not in names:
                proposal = f"{did_you_mean(column, names)} (columns: {listed(names)})"
                self._problem(declared, f"{facts.qualified} has no column `{column}`{proposal}", "via")
                return Route(parent=wanted, via=via, domain=wanted)
        found = [self._route_by(key, facts) for key in self._facts.foreign_keys if self._may_be_parent(key, facts)]
        fitting = [
            route for route in found
            if route.via and wanted in (None, route.parent) and (not via or set(via) == set(route.via))
        ]  # fmt: skip
        if wanted and via:
            hinted = Route(parent=wanted, via=via, domain=self._hinted_domain(wanted, via))
            return self._checked(declared, facts, fitting[0] if fitting else hinted)
        if len(fitting) == 1:
            return self._checked(declared, facts, fitting[0])
        if fitting:
            choices = listed(f"{{parent: {route.parent}, via: {_shown(route.via)}}}" for route in fitting)
            self._problem(
                declared, f"has several foreign keys to sharded tables; say which one it lives with: {choices}"
            )
        elif wanted:
            self._problem(declared, f"has no foreign key to {wanted}: say which column holds its key", "via")
        elif via:
            self._problem(
                declared, f"`{', '.join(via)}` is in no foreign key to a sharded table: say the `parent`", "via"
            )
        return Route(parent=wanted, via=via, domain=wanted)

    def _may_be_parent(self, key: ForeignKey, facts: TableFacts) -> bool:
        target = self._declared.get(key.target)
        return (
            key.table == facts.qualified
            and key.target != facts.qualified
            and target is not None
            and not target.reference
            and facts.qualified not in self._declared_ancestors(key.target)
        )

    def _route_by(self, key: ForeignKey, facts: TableFacts) -> Route:
        """How rows are found by a foreign key: by the key of the topmost table that it holds, else of its target."""
        target = self._declared[key.target]
        mapped = dict(zip(key.target_columns, key.columns, strict=True))
        above = self._facts.tables.get(key.target)
        route = self._route(target, above) if above is not None else Route()
        choices = [(target.key_columns, key.target)]
        if route.via:
            choices.insert(0, (route.via, route.domain or ""))
            choices = [each for each in choices if each[1] != key.target or len(each[0]) == 1]
        for columns, domain in choices:
            if columns and all(column in mapped for column in columns):
                return Route(parent=key.target, via=tuple(mapped[column] for column in columns), domain=domain)
        return Route()

    def _hinted_domain(self, parent: str, via: tuple[str, ...]) -> str:
        """Whose key the declared `via` holds where no foreign key says it: the parent's, if it has as many columns."""
        declared, facts = self._declared.get(parent), self._facts.tables.get(parent)
        if declared is None or facts is None or len(declared.key_columns) == len(via):
            return parent
        return self._route(declared, facts).domain or parent

    def _declared_ancestors(self, name: str) -> list[str]:
        """The table's parent, the parent's parent and so on, as far as they are declared (without circles)."""
        found: list[str] = []
        parent = self._declared[name].parent
        while parent is not None and qualified(parent) not in found:
            found.append(qualified(parent))
            above = self._declared.get(qualified(parent))
            parent = above.parent if above else None
        return found

    def _checked(self, declared: TableConfig, facts: TableFacts, route: Route) -> Route:
        """The route, when its columns are of the types of the key that they hold."""
        owner = route.domain or ""
        above, target = self._facts.tables.get(owner), self._declared.get(owner)
        wanted = [above.column(name) for name in target.key_columns] if above is not None and target is not None else []
        if target is not None and len(target.key_columns) != len(route.via):
            key = ", ".join(target.key_columns)
            self._problem(declared, f"names {len(route.via)} columns, the key of {owner} is ({key})", "via")
            return route
        for name, theirs in zip(route.via, wanted, strict=False):
            column = facts.column(name)
            if column is not None and theirs is not None and not _same_keys(column, theirs):
                self._problem(
                    declared,
                    f"column {name} is {column.type_name}, the key of {owner} is {theirs.type_name}: "
                    f"ALTER TABLE {facts.qualified} ALTER COLUMN {name} TYPE {theirs.type_name}",
                    "via",
                )
        return route

    def _check_key(self, declared: TableConfig, facts: TableFacts, via: tuple[str, ...]) -> None:
        names = [name.name for name in facts.columns]
        primary, key = facts.primary_key, declared.key_columns
        for name in key:
            if name not in names:
                proposal = f"{did_you_mean(name, names)} (columns: {listed(names)})"
                self._problem(declared, f"{facts.qualified} has no column `{name}`{proposal}", "key")
                return
        if not primary:
            remedy = f"ALTER TABLE {facts.qualified} ADD PRIMARY KEY ({', '.join(key)})"
            self._problem(declared, f"{facts.qualified} has no primary key: {remedy}", "key")
        elif not set(key) <= set(primary) or (via and set(key) != set(primary)):
            self._problem(
                declared,
                f"its primary key is ({', '.join(primary)}): declare that (key: [{', '.join(primary)}])"
                + ("" if via else ", or the columns of it by which rows belong together"),
                "key",
            )
        elif via and len(key) > 1 and not set(via) <= set(key) and key not in declared.unique:
            self._held(
                declared,
                f"its primary key ({', '.join(primary)}) would hold on each shard only: declare it unique "
                f'(unique: ["{", ".join(key)}"]), or add {", ".join(via)} to it',
            )
        for name in key:
            column = facts.column(name)
            if column is not None:
                self._check_key_type(declared, facts, column)
        if len(key) == 1:
            self._check_source(declared, facts, key[0])
        elif not via:
            self._check_given(declared, facts, key)

    def _check_given(self, declared: TableConfig, facts: TableFacts, key: tuple[str, ...]) -> None:
        """The columns of a composite key say where a row lives before any shard has seen it."""
        for name in key:
            if name in facts.sources:
                others = ", ".join(other for other in key if other != name)
                self._problem(
                    declared,
                    f"column {name} is filled in by the shard, which must be known before: drop its default, or "
                    f"declare the rest of the key (key: [{others}]), by which rows will live together",
                    "key",
                )

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

    def _check_unique(self, declared: TableConfig, facts: TableFacts, via: tuple[str, ...]) -> None:
        """Refuse unique indexes that would hold on each shard only, and declared columns that cannot be claimed."""
        for columns in declared.unique:
            self._check_claimed(declared, facts, columns, bool(via))
        for index in facts.unique:
            is_declared = index.columns in declared.unique and index.is_simple
            holds_place = any(columns and set(columns) <= set(index.columns) for columns in (declared.key_columns, via))
            if not index.is_primary and not is_declared and not holds_place:
                listed_columns = ", ".join(index.columns)
                declaring = listed_columns if len(index.columns) == 1 else f'"{listed_columns}"'
                remedy = f"declare it (unique: [{declaring}]), drop it, or make it not unique"
                if not index.is_simple or any(facts.column(column) is None for column in index.columns):
                    remedy = "only plain columns can be declared: drop it, or make it not unique"
                self._held(
                    declared,
                    f"unique index {index.name} on ({listed_columns}) would hold on each shard only, not "
                    f"over all of them: {remedy}, or add {', '.join(via or declared.key_columns)} to it",
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
        if columns == declared.key_columns and not is_child and set(columns) == set(facts.primary_key):
            self._problem(declared, "a root's key is unique as it is: its rows live where it says", "unique")
        elif columns == declared.key_columns and is_child:
            has_children = any(
                key.target == facts.qualified and key.table != key.target and key.table in self._declared
                for key in self._facts.foreign_keys
            )
            if has_children:
                self._problem(
                    declared,
                    f"its rows have children, which could not be found by a key that clients give: leave "
                    f"{', '.join(columns)} out, and let the shards generate the keys",
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


def _shown(columns: tuple[str, ...]) -> str:
    return columns[0] if len(columns) == 1 else f"[{', '.join(columns)}]"


def _with_fill(column: Column, key: tuple[str, ...], facts: TableFacts) -> Column:
    """A child's key has no default once `apply` has run, but a trigger that fills it from the same source."""
    filled = key == (column.name,) and (facts.filled or bool(facts.sources.get(column.name)))
    return msgspec.structs.replace(column, has_default=True) if filled else column


def _proposal(facts: TableFacts, column: str) -> str:
    return f"placed keys need bigint: ALTER TABLE {facts.qualified} ALTER COLUMN {column} TYPE bigint"
