"""SELECTs drawn at random whose answers must be merged, and the rows they are asked of.

Every statement says how much of its rows' order is settled: all of it, or none.
"""

from __future__ import annotations

import random
from typing import NamedTuple

SCHEMA = """
CREATE TABLE document (id bigserial PRIMARY KEY, title text, n integer, big bigint, small smallint, price numeric,
  rate numeric(8,2), ratio double precision, single real, flag boolean, made timestamptz, day date, moment timestamp,
  clock time, uid uuid, raw bytea, padded char(8), tag varchar(20), meta jsonb);
CREATE TABLE symbol (id bigserial PRIMARY KEY, document_id bigint NOT NULL REFERENCES document, name text,
  weight integer, cost numeric, code text);
CREATE TABLE language (code text PRIMARY KEY, name text, rank integer);
INSERT INTO language VALUES ('py', 'Python', 1), ('c', 'C', 3), ('rs', 'Rust', NULL);
"""
TABLES = {
    "document": {"key": "id"},
    "symbol": {"key": "id", "parent": "document", "via": "document_id"},
    "language": {"reference": True},
}
DOCUMENT = (
    *("title", "n", "big", "small", "price", "rate", "ratio", "single", "flag", "made", "day", "moment"),
    *("clock", "uid", "raw", "padded", "tag"),
)
SYMBOL = ("name", "weight", "cost", "code")
GROUPS = ("title", "n", "small", "rate", "flag", "day", "tag", "padded", "made", "uid", "ratio", "raw", "clock")
SUMMED = ("n", "big", "small", "price", "rate")
COMPARED = (*SUMMED, "title", "ratio", "single", "made", "day", "moment", "clock", "tag")


def draw_row(draw: random.Random, columns: tuple[str, ...]) -> list[str]:
    """Literals for the columns of a row."""

    def number(*choices: str) -> str:
        return draw.choice(choices)

    makers = {
        "title": lambda: number("'a'", "'B'", "'aa'", "''", "'é'", "'ab'", "'Zebra'", "'o''clock'"),
        "n": lambda: str(draw.choice([-5, 0, 1, 2, 3, 10, 2147483647])),
        "big": lambda: str(draw.choice([-(2**62), 7, 0, 9, 2**61, draw.randrange(10**15)])),
        "small": lambda: str(draw.randrange(-3, 4)),
        "price": lambda: number("1", "1.50", "-0.001", "12345678901234567890.123", "0", "99.9999", "-17", "1e-20"),
        "rate": lambda: f"{draw.randrange(-300, 300) / 100:.2f}",
        "ratio": lambda: number("0.5", "-0.0", "0", "'NaN'", "'Infinity'", "'-Infinity'", "1e300", "3.14"),
        "single": lambda: number("0.25", "-1e10", "'NaN'", "7", "1e-30"),
        "flag": lambda: number("true", "false"),
        "made": lambda: number(
            "'2024-02-29 12:00+00'",
            "'1969-12-31 23:59:59.5+02'",
            "'infinity'",
            "'0044-03-15 BC'",
            "'2024-02-29 12:00:00.000001+00'",
            "'12345-01-01'",
        ),
        "day": lambda: number("'2024-01-01'", "'2023-12-31'", "'-infinity'", "'0001-01-01 BC'", "'99999-01-01'"),
        "moment": lambda: number("'2024-01-01 00:00'", "'2024-01-01 00:00:00.1'", "'infinity'", "'0100-06-01 BC'"),
        "clock": lambda: number("'00:00'", "'12:30:00.25'", "'23:59:59.999999'", "'24:00'"),
        "uid": lambda: f"'{draw.randrange(4):08x}-0000-0000-0000-00000000000{draw.randrange(3)}'",
        "raw": lambda: number("'\\x'", "'\\x00ff'", "'\\xff'", "'\\x7f'"),
        "padded": lambda: number("'a'", "'a  '", "'b'", "' '"),
        "tag": lambda: number("'red'", "'Green'", "'blue'"),
        "name": lambda: number("'f'", "'g'", "'h'", "'_x'"),
        "weight": lambda: str(draw.randrange(-5, 50)),
        "cost": lambda: number("0.1", "2", "3.33", "'NaN'", "-5.5", "1000000"),
        "code": lambda: number("'py'", "'c'", "'rs'", "'none'"),
    }
    return ["NULL" if draw.random() < 0.12 else makers[column]() for column in columns]


class Question(NamedTuple):
    """A SELECT, its parameters, and whether the order of its rows is settled."""

    sql: str
    values: tuple[str, ...] = ()
    ordered: bool = False


class Drawer:
    """Draws questions from one seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.values: list[str] = []

    def question(self) -> Question:
        self.values = []
        draw = self.draw.choice([self.plain, self.plain, self.totals, self.groups, self.groups, self.distinct])
        sql, ordered = draw()
        return Question(sql, tuple(self.values), ordered)

    def parameter(self, value: object) -> str:
        """A value, sometimes as a parameter."""
        if self.draw.random() < 0.5:
            return str(value)
        self.values.append(str(value))
        return f"${len(self.values)}"

    def source(self) -> tuple[str, dict[str, tuple[str, ...]]]:
        """FROM, and the columns of its aliases."""
        one = {"d": DOCUMENT}
        both = {"d": DOCUMENT, "s": SYMBOL}
        return self.draw.choice(
            [
                ("document d", one),
                ("document d", one),
                ("document d JOIN symbol s ON s.document_id = d.id", both),
                ("document d LEFT JOIN symbol s ON d.id = s.document_id AND s.weight > 10", both),
                ("symbol s JOIN language l ON l.code = s.code", {"s": SYMBOL, "l": ("code", "name", "rank")}),
            ]
        )

    def where(self, columns: dict[str, tuple[str, ...]]) -> str:
        if self.draw.random() < 0.5:
            return ""
        if "d" in columns:
            limit = self.draw.choice([0, 2, 1000])
            return f" WHERE d.n < {self.parameter(limit)}" if self.draw.random() < 0.7 else " WHERE NOT d.flag"
        return f" WHERE s.weight > {self.parameter(20)}"

    def columns_of(self, columns: dict[str, tuple[str, ...]], count: int) -> list[str]:
        everything = [f"{alias}.{name}" for alias, names in columns.items() for name in names]
        return self.draw.sample(everything, min(count, len(everything)))

    def direction(self) -> str:
        return self.draw.choice(["", "", " DESC", " ASC", " NULLS FIRST", " DESC NULLS LAST", " ASC NULLS FIRST"])

    def limit(self, chance: float = 0.5) -> str:
        """LIMIT and OFFSET, or nothing."""
        if self.draw.random() > chance:
            return ""
        number, skip = self.draw.choice([0, 1, 3, 7, 1000]), self.draw.choice([0, 1, 4, 500])
        return self.draw.choice(
            [
                f" LIMIT {self.parameter(number)}",
                f" LIMIT {self.parameter(number)} OFFSET {self.parameter(skip)}",
                f" OFFSET {self.parameter(skip)} LIMIT {self.parameter(number)}",
                f" OFFSET {self.parameter(skip)}",
                f" FETCH FIRST {number} ROWS ONLY",
            ]
        )

    def plain(self) -> tuple[str, bool]:
        """Rows in an order."""
        source, columns = self.source()
        where = self.where(columns)
        shown = self.columns_of(columns, self.draw.randint(1, 4))
        keys = self.columns_of(columns, self.draw.randint(0, 3))
        keys += [f"{alias}.id" for alias in columns if alias != "l"]
        order = ", ".join(key + self.direction() for key in keys)
        star = self.draw.random() < 0.15
        return f"SELECT {'*' if star else ', '.join(shown)} FROM {source}{where} ORDER BY {order}{self.limit()}", True

    def aggregate(self, columns: dict[str, tuple[str, ...]]) -> str:
        """One aggregate."""
        alias = "d" if "d" in columns else "s"
        summed = [f"d.{name}" for name in SUMMED] if alias == "d" else ["s.weight", "s.cost"]
        compared = [f"d.{name}" for name in COMPARED] if alias == "d" else ["s.weight", "s.name", "s.cost"]
        pick = self.draw.choice
        text = pick(
            [
                "count(*)",
                f"count({pick(compared)})",
                f"sum({pick(summed)})",
                f"avg({pick(summed)})",
                f"min({pick(compared)})",
                f"max({pick(compared)})",
                f"sum({alias}.{'n' if alias == 'd' else 'weight'} % 7)",
                f"bool_and({alias}.id > 0)",
                f"bool_or({pick(summed)} > 3)",
                f"every({pick(summed)} > 3)",
                f"bit_or({alias}.{'small' if alias == 'd' else 'weight'})",
            ]
        )
        return text + (f" FILTER (WHERE {pick(summed)} > 1)" if self.draw.random() < 0.2 else "")

    def totals(self) -> tuple[str, bool]:
        """Aggregates of everything."""
        source, columns = self.source()
        where = self.where(columns)
        shown = [self.aggregate(columns) for _ in range(self.draw.randint(1, 4))]
        return f"SELECT {', '.join(shown)} FROM {source}{where}{self.limit(0.2)}", True

    def groups(self) -> tuple[str, bool]:
        """Aggregates of groups."""
        source, columns = self.source()
        where = self.where(columns)
        names = [f"d.{name}" for name in GROUPS] if "d" in columns else ["s.name", "s.code", "l.rank"]
        keys = self.draw.sample(names, self.draw.randint(1, 2))
        if self.draw.random() < 0.15 and "d" in columns:
            keys.append("d.id")
        shown = [*keys, *(self.aggregate(columns) for _ in range(self.draw.randint(0, 3)))]
        self.draw.shuffle(shown)
        having = f" HAVING {keys[0]} IS NOT NULL" if self.draw.random() < 0.1 else ""
        if self.draw.random() < 0.25:
            having = f" HAVING count(*) {self.draw.choice(['>', '>=', '<>', '=', '<'])} {self.parameter(2)}"
            having += f" AND {self.draw.choice([0, -3])} < max({keys[0]})" if keys[0] in ("d.n", "d.small") else ""
        sql = f"SELECT {', '.join(shown)} FROM {source}{where} GROUP BY {', '.join(keys)}{having}"
        if self.draw.random() < 0.3:
            return sql, False
        order = [self.aggregate(columns)] if self.draw.random() < 0.4 else []
        order += [str(1 + self.draw.randrange(len(shown)))] if self.draw.random() < 0.3 else []
        order += self.draw.sample(keys, len(keys))
        return f"{sql} ORDER BY {', '.join(key + self.direction() for key in order)}{self.limit()}", True

    def distinct(self) -> tuple[str, bool]:
        """Rows once each."""
        source, columns = self.source()
        where = self.where(columns)
        names = [f"d.{name}" for name in GROUPS] if "d" in columns else ["s.name", "s.code", "s.weight"]
        shown = self.draw.sample(names, self.draw.randint(1, 3))
        order = ", ".join(name + self.direction() for name in self.draw.sample(shown, len(shown)))
        if self.draw.random() < 0.3 and "s" not in columns:
            rest = "".join(f", {alias}.id" for alias in columns)
            down = self.direction()
            return (
                f"SELECT DISTINCT ON ({shown[0]}) {', '.join(shown)}{rest} FROM {source}{where} "
                f"ORDER BY {shown[0]}{down}{rest}{self.limit()}",
                True,
            )
        if self.draw.random() < 0.3:
            return f"SELECT DISTINCT {', '.join(shown)} FROM {source}{where}", False
        return f"SELECT DISTINCT {', '.join(shown)} FROM {source}{where} ORDER BY {order}{self.limit()}", True
