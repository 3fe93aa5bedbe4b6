"""The identifiers in texts that are not parsed: bodies of functions, and statements of newer syntax."""

from __future__ import annotations

import re

from foreshard.proxy.routing.tree import Node, walk

WORD = re.compile(r'"((?:[^"]|"")+)"|([A-Za-z_\u0080-\U0010ffff][\w$\u0080-\U0010ffff]*)')


def words_of(written: str) -> set[str]:
    """The identifiers in a text of any language, folded as SQL folds them; quoted ones as they are."""
    found = set()
    for quoted, bare in WORD.findall(written):
        if bare:
            found.add(bare.lower())
        else:
            found.add(quoted.replace('""', '"'))
            found.update(word.lower() for _, word in WORD.findall(quoted) if word)
    return found


def body_of(node: Node) -> str:
    """All string constants of a statement, which hold the body of a function or a DO block."""
    return "\n".join(fields.get("sval", "") for kind, fields in walk(node) if kind == "String")
