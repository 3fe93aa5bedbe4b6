"""A YAML document with line numbers, environment variables expanded, and every problem collected.

Scalars stay text: what a value means is decided by the field it stands in, so `on:` is a key and `5ms` a duration,
whatever YAML would make of them. `${NAME}` is replaced from the environment; `$${` writes a plain `${`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from foreshard.proxy.errors import ConfigError

_REFERENCE = re.compile(r"\$(\$\{)|\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Problems:
    """Collects what is wrong with one file, in the order of its lines."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._found: list[tuple[int, str]] = []

    def add(self, line: int, path: str, message: str) -> None:
        """One mistake; `path` is the place in the document, such as `tables.symbol.parent`."""
        place = f" {path}:" if path else ""
        self._found.append((line, f"{self.file}:{line}:{place} {message}"))

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_if_any(self) -> None:
        """Raise ConfigError with every problem, if there is one."""
        if self._found:
            raise ConfigError([message for _, message in sorted(self._found, key=lambda entry: entry[0])])


class Item:
    """One value of the document: where it stands, and its YAML node."""

    def __init__(self, node: yaml.Node, path: str, document: Document) -> None:
        self.path = path
        self.line = node.start_mark.line + 1
        self._node = node
        self._document = document
        self._entries: dict[str, Item] | None = None  # kept, so that its problems are reported once

    def problem(self, message: str) -> None:
        """Report a mistake at this value."""
        self._document.problems.add(self.line, self.path, message)

    @property
    def kind(self) -> str:
        """`text`, `list`, `mapping`, or `nothing` for an empty value."""
        if isinstance(self._node, yaml.MappingNode):
            return "mapping"
        if isinstance(self._node, yaml.SequenceNode):
            return "list"
        return "nothing" if self._node.tag == "tag:yaml.org,2002:null" else "text"

    def text(self) -> str | None:
        """The scalar with variables replaced; None, and a problem, when it is no scalar or a variable is unset."""
        if not isinstance(self._node, yaml.ScalarNode):
            self.problem(f"must be a single value, not a {self.kind}")
            return None
        missing: list[str] = []
        value = _REFERENCE.sub(lambda match: self._replace(match, missing), str(self._node.value))
        for message in missing:
            self.problem(message)
        return None if missing else value

    def items(self) -> list[Item] | None:
        """The elements of a list; None, and a problem, when it is none."""
        if not isinstance(self._node, yaml.SequenceNode):
            self.problem("must be a list, such as [a, b]")
            return None
        return [Item(node, f"{self.path}[{index}]", self._document) for index, node in enumerate(self._node.value)]

    def entries(self) -> dict[str, Item] | None:
        """The entries of a mapping, an empty value being an empty one; None, and a problem, when it is none."""
        if self._entries is not None:
            return self._entries
        if self.kind == "nothing":
            return {}
        if not isinstance(self._node, yaml.MappingNode):
            self.problem("must be a mapping, such as {name: value}")
            return None
        found: dict[str, Item] = {}
        for key, value in self._node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.problem("keys must be plain words")
                continue
            name = str(key.value)
            item = Item(value, f"{self.path}.{name}" if self.path else name, self._document)
            item.line = key.start_mark.line + 1
            if name in found:
                item.problem(f"is written twice (first on line {found[name].line})")
                continue
            found[name] = item
        self._entries = found
        return found

    def _replace(self, match: re.Match[str], missing: list[str]) -> str:
        if match.group(1):
            return "${"
        name = match.group(2)
        if not _NAME.fullmatch(name):
            missing.append(f"`${{{name}}}` is no variable: write ${{NAME}}, or $${{ for a plain ${{")
        elif name not in self._document.environ:
            missing.append(f"the environment has no variable {name}")
        else:
            return self._document.environ[name]
        return ""


class Document:
    """A whole file: its root item and the problems found so far."""

    def __init__(self, file: Path, environ: Mapping[str, str]) -> None:
        self.problems = Problems(file)
        self.environ = environ
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            raise ConfigError([f"{file}: {reason}"]) from None
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise ConfigError([f"{file}:{line}: is not YAML: {error.problem or error.context}"]) from None
        except yaml.YAMLError as error:
            raise ConfigError([f"{file}: is not YAML: {str(error).splitlines()[0]}"]) from None
        self.root = Item(node, "", self) if node is not None else None


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """A proposal to append to a message: "; did you mean `x`?", or nothing when no word is near."""
    near = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean `{near[0]}`?" if near else ""


def listed(words: Iterable[str]) -> str:
    """The allowed words, for the end of a message."""
    return ", ".join(words) or "none"
