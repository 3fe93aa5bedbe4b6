"""The options of a COPY statement, in either syntax, as far as its rows are read here."""

from __future__ import annotations

from foreshard._core.copy_plan import CopyForm, CopyPlan
from foreshard.proxy.errors import not_built
from foreshard.proxy.routing.settings import UTF8_NAMES
from foreshard.proxy.routing.tree import Node, strings, unwrap

FORMS = {"text": CopyForm.COPY_TEXT, "csv": CopyForm.COPY_CSV, "binary": CopyForm.COPY_BINARY}
TRUE = ("", "true", "on", "1", "match")
FALSE = ("false", "off", "0")
# What each shard may do by itself, or what is read here.
KNOWN = frozenset(
    (
        *("format", "freeze", "delimiter", "null", "default", "header", "quote", "escape", "force_quote"),
        *("force_not_null", "force_null", "encoding", "on_error", "log_verbosity"),
    )
)


class CopyOptions:
    """Made for one CopyStmt. What is wrong with an option is left to the shard, which hears the statement first."""

    def __init__(self, node: Node) -> None:
        self.values: dict[str, str | list[str]] = {}
        for option in node.get("options", []):
            fields = unwrap(option)[1]
            self.values[fields["defname"].lower()] = written(fields.get("arg"))
        self.form = FORMS.get(self.word("format", "text").lower(), CopyForm.COPY_TEXT)
        self.header = self.word("header", "false").lower()

    def word(self, name: str, missing: str) -> str:
        """An option that is one word."""
        found = self.values.get(name, missing)
        return found if isinstance(found, str) else missing

    @property
    def default(self) -> str | None:
        """What stands for a column's default; None: nothing."""
        return self.word("default", "") if "default" in self.values else None

    def check(self, table: str) -> None:
        """Refuse options under which rows cannot be told apart, or that concern all rows together."""
        for name in self.values:
            if name not in KNOWN:
                raise not_built(f'the option {name} in COPY FROM STDIN into "{table}"', "Leave it out.")
        if self.word("encoding", "utf8").lower() not in UTF8_NAMES:
            raise not_built(f'ENCODING {self.word("encoding", "")} in COPY FROM STDIN into "{table}"', "Use UTF8.")
        if self.header not in TRUE and self.header not in FALSE:
            raise not_built(f'HEADER {self.header} in COPY FROM STDIN into "{table}"', "Use HEADER true or match.")

    def field(self, columns: list[str], column: str) -> tuple[int, bool, bool]:
        """Where a column stands in the data, and whether FORCE_NULL and FORCE_NOT_NULL concern it."""
        return columns.index(column), self.names(column, "force_null"), self.names(column, "force_not_null")

    def names(self, column: str, option: str) -> bool:
        """Whether an option's list has a column."""
        found = self.values.get(option, [])
        return column in found or "*" in found

    def plan_in(
        self,
        *,
        fields: tuple[tuple[int, bool, bool], ...] = (),
        own: int = -1,
        generates: bool = False,
        is_placed: bool = False,
        is_everywhere: bool = False,
        moments: tuple[int, ...] = (),
        follows: bool = False,
    ) -> CopyPlan:
        """For COPY FROM STDIN."""
        return CopyPlan(
            self.form,
            is_from=True,
            has_header=self.header in TRUE and self.form != CopyForm.COPY_BINARY,
            delimiter=self.word("delimiter", "").encode(),
            quote=self.word("quote", "").encode(),
            escape=self.word("escape", "").encode(),
            null=self.word("null", "").encode() if "null" in self.values else None,
            default=None if self.default is None else self.default.encode(),
            fields=fields,
            own=own,
            generates=generates,
            is_placed=is_placed,
            is_everywhere=is_everywhere,
            moments=moments,
            follows=follows,
        )

    def plan_out(self) -> CopyPlan:
        """For COPY TO STDOUT."""
        return CopyPlan(self.form, is_from=False, has_header=self.header in TRUE)


def written(node: Node | None) -> str | list[str]:
    """The value of an option: a word, or the columns of a list (`*` for all)."""
    kind, fields = unwrap(node)
    if kind == "List":
        return strings(fields.get("items"))
    if kind == "A_Star":
        return ["*"]
    if kind == "Boolean":
        return "true" if fields.get("boolval") else "false"
    if kind == "Integer":
        return str(fields.get("ival", 0))
    return str(fields.get("sval", fields.get("fval", "")))
