"""Seeded random statements over the tables of tests/support/routes.py, most of them a little perverse."""

from __future__ import annotations

import random
from dataclasses import dataclass

TABLES = {"document": "d", "symbol": "s", "usage": "u", "note": "n", "language": "l"}
INTEGERS = {
    "document": ["id", "size"],
    "symbol": ["id", "document_id"],
    "usage": ["id", "symbol_id", "line"],
    "note": ["id", "document_id"],
    "language": ["rank"],
}
TEXTS = {"document": "path", "symbol": "name", "usage": "line::text", "note": "remark", "language": "code"}
KIN = [  # columns that tie tables of one group together
    ("symbol.document_id", "document.id"),
    ("note.document_id", "document.id"),
    ("usage.symbol_id", "symbol.id"),
    ("symbol.document_id", "note.document_id"),
    ("document.id", "document.id"),
]
JOINS = ["join", "join", "left join", "left join", "right join", "full join", "cross join"]


@dataclass
class Source:
    """One table reference of a statement."""

    table: str
    alias: str

    def integer(self, chance: random.Random) -> str:
        return f"{self.alias}.{chance.choice(INTEGERS[self.table])}"

    @property
    def text(self) -> str:
        return f"{self.alias}.{TEXTS[self.table]}"


class SqlMaker:
    """Makes statements. `keys` holds, for each table, keys that rows have."""

    def __init__(self, seed: int, keys: dict[str, list[int]]) -> None:
        self.chance = random.Random(seed)
        self.keys = keys
        self.count = 0

    def source(self) -> Source:
        table = self.chance.choice([*TABLES, "document", "symbol"])
        self.count += 1
        return Source(table, f"{TABLES[table]}{self.count}")

    def key(self, table: str = "document") -> str:
        """A literal, mostly of a key that exists."""
        value = self.chance.choice(self.keys.get(table) or [1])
        if self.chance.random() < 0.1:
            value = self.chance.choice([0, -7, 5, 1 << 52, 9999999999999999999])
        form = self.chance.random()
        if form < 0.15:
            return f"'{value}'"
        return f"{value}::bigint" if form < 0.25 and abs(value) < 1 << 63 else str(value)

    def kin(self, one: Source, other: Source) -> str:
        """A condition that ties two references together, or nearly."""
        pairs = [
            (left, right)
            for left, right in KIN
            if {left.split(".")[0], right.split(".")[0]} == {one.table, other.table}
        ]
        if not pairs or self.chance.random() < 0.25:
            if self.chance.random() < 0.5:
                return f"{one.integer(self.chance)} = {other.integer(self.chance)}"
            return f"{one.text} = {other.text}"
        left, right = self.chance.choice(pairs)
        if left.split(".")[0] != one.table:
            left, right = right, left
        written = [f"{one.alias}.{left.split('.')[1]}", f"{other.alias}.{right.split('.')[1]}"]
        self.chance.shuffle(written)
        return " = ".join(written)

    def restriction(self, one: Source) -> str:
        """A condition on one reference."""
        column = one.integer(self.chance)
        owner = {"document_id": "document", "symbol_id": "symbol"}.get(column.split(".")[1], one.table)
        form = self.chance.randrange(12)
        if form < 5:
            return f"{column} = {self.key(owner)}"
        if form == 5:
            return f"{column} in ({self.key(owner)}, {self.key(owner)})"
        if form == 6:
            return f"({column} = {self.key(owner)} or {column} = {self.key(owner)})"
        if form == 7:
            return f"({column} = {self.key(owner)} or {one.text} > 'm')"
        if form == 8:
            return f"{column} = any('{{{self.chance.choice(self.keys['document'])},NULL,3}}')"
        if form == 9:
            return f"({column}, {one.text}) = ({self.key(owner)}, {one.text})"
        if form == 10:
            return f"not {column} = {self.key(owner)}"
        return f"{column} is null" if self.chance.random() < 0.5 else f"{one.text} < 'k'"

    def condition(self, sources: list[Source], depth: int) -> str:
        """A few conditions joined by AND, now and then by OR."""
        parts = []
        for _ in range(self.chance.randrange(1, 4)):
            roll = self.chance.random()
            if roll < 0.3 and len(sources) > 1:
                parts.append(self.kin(*self.chance.sample(sources, 2)))
            elif roll < 0.45 and depth:
                parts.append(self.sub_select(sources, depth - 1))
            else:
                parts.append(self.restriction(self.chance.choice(sources)))
        return (" or " if self.chance.random() < 0.08 else " and ").join(parts)

    def sub_select(self, outer: list[Source], depth: int) -> str:
        """A sub-select as a condition."""
        inner = self.source()
        one = self.chance.choice(outer)
        where = self.kin(inner, one) if self.chance.random() < 0.7 else self.condition([inner], depth)
        if self.chance.random() < 0.3:
            where += " and " + self.condition([inner], depth)
        form = self.chance.randrange(5)
        body = f"from {inner.table} {inner.alias} where {where}"
        if form == 0:
            return f"not exists (select 1 {body})"
        if form == 1:
            return f"{one.integer(self.chance)} in (select {inner.integer(self.chance)} {body})"
        if form == 2:
            return f"(select count(*) {body}) > 0"
        return f"exists (select 1 {body})"

    def from_clause(self, sources: list[Source]) -> str:
        """The sources joined somehow."""
        written = f"{sources[0].table} {sources[0].alias}"
        for position, one in enumerate(sources[1:], 1):
            join = self.chance.choice([*JOINS, ","])
            item = f"{one.table} {one.alias}"
            shared = [column for column in ("id", "document_id") if column in INTEGERS[one.table]]
            left = sources[0]
            if position == 1 and join not in (",", "cross join") and self.chance.random() < 0.2:
                column = self.chance.choice(shared or ["id"])
                if column in INTEGERS[one.table] and column in INTEGERS[left.table]:
                    written += f" {join} {item} using ({column})"
                    continue
            if join in (",", "cross join"):
                written += f"{'' if join == ',' else ' '}{join} {item}"
                if join == ",":
                    return written + "".join(f", {rest.table} {rest.alias}" for rest in sources[position + 1 :])
                continue
            on = self.kin(one, self.chance.choice(sources[:position]))
            if self.chance.random() < 0.3:
                on += " and " + self.restriction(self.chance.choice(sources[: position + 1]))
            written += f" {join} {item} on {on}"
        return written

    def select(self, depth: int = 1) -> str:
        """A SELECT."""
        sources = [self.source() for _ in range(self.chance.choice([1, 1, 2, 2, 2, 3]))]
        columns = ", ".join(
            self.chance.choice([one.integer(self.chance), one.text, f"{one.alias}.*"]) for one in sources
        )
        tail = ""
        if self.chance.random() < 0.2:
            columns, tail = self.chance.choice(
                [("count(*)", ""), ("max(" + sources[0].text + ")", ""), (sources[0].text, " order by 1 limit 2")]
            )
        elif depth and self.chance.random() < 0.2:
            inner = self.source()
            columns += f", (select count(*) from {inner.table} {inner.alias} where {self.kin(inner, sources[0])})"
        where = f" where {self.condition(sources, depth)}" if self.chance.random() < 0.9 else ""
        made = f"select {columns} from {self.from_clause(sources)}{where}{tail}"
        roll = self.chance.random()
        if roll < 0.04 and not tail:
            return f"with x as ({made}) select * from x"
        if roll < 0.1:
            return self.set_operation()
        if roll < 0.18:
            return self.lateral()
        return made

    def set_operation(self) -> str:
        """Two SELECTs of one integer column, put together."""
        arms = []
        for _ in range(2):
            one = self.source()
            arms.append(
                f"select {one.integer(self.chance)} from {one.table} {one.alias} where {self.condition([one], 1)}"
            )
        return self.chance.choice([" union all ", " union ", " except ", " intersect "]).join(arms)

    def lateral(self) -> str:
        """A table and a query over another one for each of its rows."""
        outer, inner = self.source(), self.source()
        tie = self.kin(inner, outer)
        if self.chance.random() < 0.5:
            body = f"select count(*) as c from {inner.table} {inner.alias} where {tie}"
        else:
            body = f"select {inner.text} as c from {inner.table} {inner.alias} where {tie} order by 1 limit 2"
        join = self.chance.choice(
            [", lateral ({}) x", " left join lateral ({}) x on true", " join lateral ({}) x on true"]
        )
        where = f" where {self.restriction(outer)}" if self.chance.random() < 0.6 else ""
        return f"select {outer.alias}.*, x.c from {outer.table} {outer.alias}{join.format(body)}{where}"

    def write(self) -> str:
        """An UPDATE or DELETE that returns the rows it changed."""
        target = Source(self.chance.choice(["document", "symbol", "usage"]), "t")
        column = {"document": "path", "symbol": "name", "usage": "line"}[target.table]
        value = "line + 1" if column == "line" else "'changed'"
        others = [self.source()] if self.chance.random() < 0.3 else []
        where = self.condition([target, *others], 1)
        if others and self.chance.random() < 0.8:
            where += " and " + self.kin(target, others[0])
        item = "".join(f"{one.table} {one.alias}" for one in others)
        if self.chance.random() < 0.5:
            using = f" using {item}" if item else ""
            return f"delete from {target.table} t{using} where {where} returning t.*"
        using = f" from {item}" if item else ""
        return f"update {target.table} t set {column} = {value}{using} where {where} returning t.*"
