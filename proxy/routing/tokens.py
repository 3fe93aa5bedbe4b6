"""The tokens of a SELECT and where its clauses lie, for texts that are put together anew.

The parse tree tells where an expression starts, not where it ends; tokens do. What is made of them has literals by
number, so it serves every text that differs in their values only.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from foreshard._core.lexer import LITERAL_ESCAPE, LITERAL_INTEGER, LITERAL_NUMERIC, LITERAL_STRING
from foreshard.proxy.routing.text import Text

Piece = bytes | int  # text as it is, or the number of a literal
WORD = re.compile(rb'"(?:[^"]|"")*"|[A-Za-z_\x80-\xff][\w$\x80-\xff]*|\$\d+|\.\.|.', re.DOTALL)
BLANK = re.compile(rb"\s+|--[^\n\r]*")
OPENING, CLOSING = (b"(", b"["), (b")", b"]")
CLAUSES = frozenset(
    b"select from where group having window order limit offset fetch for union except intersect".split(),
)
QUOTED = (LITERAL_STRING, LITERAL_ESCAPE)


class Token(NamedTuple):
    """One token: its place in the text, its text folded to lower case, its depth in brackets."""

    start: int
    stop: int
    word: bytes
    depth: int
    literal: int  # number of the literal it is; -1: none
    spaced: bool  # white space or a comment stands before it


class OddText(Exception):
    """The text has forms that are not taken apart here."""


class Tokens:
    """The tokens of one statement, and the ranges of its outermost clauses."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.items = list(self._read())
        while self.items and self.items[-1].word == b";":
            self.items.pop()
        self.clauses: dict[bytes, tuple[int, int]] = {}
        self._find_clauses()

    def _read(self) -> list[Token]:
        sql, literals = self.text.sql, self.text.literals
        if any(kind not in (*QUOTED, LITERAL_INTEGER, LITERAL_NUMERIC) for _, _, kind in literals):
            raise OddText
        found: list[Token] = []
        at = depth = number = 0
        spaced = False
        while at < len(sql):
            blank = BLANK.match(sql, at)
            if blank or sql.startswith(b"/*", at):
                at = blank.end() if blank else comment_end(sql, at)
                spaced = True
                continue
            start, stop = self._literal_range(number)
            if start <= at < stop:
                found.append(Token(at, stop, b"", depth, number, spaced))
                number += 1
            else:
                match = WORD.match(sql, at)
                assert match is not None  # the pattern takes any byte
                stop = match.end()
                word = match.group().lower()
                depth -= word in CLOSING
                found.append(Token(at, stop, word, depth, -1, spaced))
                depth += word in OPENING
            at, spaced = stop, False
        return found

    def _literal_range(self, number: int) -> tuple[int, int]:
        """Where a literal stands with quotes and prefix; an empty range behind the last."""
        if number >= len(self.text.literals):
            return len(self.text.sql), len(self.text.sql)
        offset, size, kind = self.text.literals[number]
        if kind in QUOTED:
            return offset - (1 if kind == LITERAL_STRING else 2), offset + size + 1
        return offset, offset + size

    def _find_clauses(self) -> None:
        """Ranges (first token after the key words, end) of the outermost query's clauses."""
        name, start = b"", 0
        for index, token in enumerate(self.items):
            if token.depth or token.word not in CLAUSES or self.is_name(index):
                continue
            if name:
                self.clauses[name] = (start, index)
            name = token.word
            start = index + (2 if name in (b"group", b"order") else 1)
        if name:
            self.clauses[name] = (start, len(self.items))

    def is_name(self, index: int) -> bool:
        """Whether a key word is a column's or alias's name, or part of IS DISTINCT FROM or WITHIN GROUP."""
        before = self.items[index - 1].word if index else b""
        earlier = self.items[index - 2].word if index > 1 else b""
        word = self.items[index].word
        if before in (b".", b"as"):
            return True
        return (word == b"from" and before == b"distinct" and earlier in (b"is", b"not")) or (
            word == b"group" and before == b"within"
        )

    def start_of(self, clause: bytes) -> int:
        """The token at which a clause starts, key words included; the end of the text when it is not there."""
        if clause not in self.clauses:
            return len(self.items)
        return self.clauses[clause][0] - (2 if clause in (b"group", b"order") else 1)

    def end_of_item(self, index: int, stop: int, separator: bytes) -> int:
        """The separator, or the end of the clause, behind a list item that starts at a token."""
        depth = self.items[index].depth
        while index < stop and not (self.items[index].word == separator and self.items[index].depth == depth):
            index += 1
        return index

    def closing(self, bracket: int) -> int:
        """The bracket that closes another."""
        if bracket < 0 or bracket >= len(self.items) or self.items[bracket].word != b"(":
            raise OddText
        for index in range(bracket + 1, len(self.items)):
            if self.items[index].word == b")" and self.items[index].depth == self.items[bracket].depth:
                return index
        raise OddText

    def split(self, start: int, stop: int, separator: bytes = b",") -> list[tuple[int, int]]:
        """The items of a list between two tokens."""
        found = []
        while start < stop:
            end = self.end_of_item(start, stop, separator)
            found.append((start, end))
            start = end + 1
        return found

    def pieces(self, start: int, stop: int) -> list[Piece]:
        """The text of a range of tokens, white space and comments made one blank."""
        found: list[Piece] = []
        for index in range(start, stop):
            token = self.items[index]
            blank = b" " if token.spaced and index > start else b""
            if token.literal < 0:
                found.append(blank + self.text.sql[token.start : token.stop])
            else:
                kind = self.text.literals[token.literal][2]
                quotes = {LITERAL_STRING: (b"'", b"'"), LITERAL_ESCAPE: (b"E'", b"'")}.get(kind, (b"", b""))
                found.extend((blank + quotes[0], token.literal, quotes[1]))
        return found

    def joined(self, start: int, stop: int) -> tuple[Piece, ...]:
        """`pieces` in a form equal for equal texts."""
        return joined(self.pieces(start, stop))


def comment_end(sql: bytes, at: int) -> int:
    """Behind the block comment that starts here; comments nest."""
    depth = 0
    while at < len(sql):
        if sql.startswith(b"/*", at):
            depth, at = depth + 1, at + 2
        elif sql.startswith(b"*/", at):
            depth, at = depth - 1, at + 2
            if depth == 0:
                return at
        else:
            at += 1
    raise OddText


def joined(pieces: list[Piece]) -> tuple[Piece, ...]:
    """The same text in as few pieces as can be."""
    found: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, bytes) and found and isinstance(found[-1], bytes):
            found[-1] += piece
        elif piece != b"":
            found.append(piece)
    return tuple(found)
