"""A shard as a script sees it that runs inside a client's transaction: it asks through the client's own connection.

`Inside` has the methods of an asyncpg connection that introspection and steps use, so the same code serves `apply` and
the client's DDL. Its coroutines await nothing but questions, which they yield to whoever drives them
(proxy/wire/asking.pyx): a list of (shard, SQL), answered by the rows of each. `together` puts the questions of several
coroutines into one, so that shards answer at the same time.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Coroutine, Generator, Iterable, Sequence
from typing import Any

from foreshard.proxy.errors import SqlError
from foreshard.proxy.triggers.capture import quote_text

Question = list[tuple[int, bytes, bool]]  # shard, SQL, whether it writes
Answers = list[list[tuple[str | None, ...]]]  # the rows of each, as text
PARAMETER = re.compile(r"\$(\d+)")


@types.coroutine
def ask(question: Question) -> Generator[Question, Answers, Answers]:
    """Have shards answer; SqlError when one of them fails."""
    return (yield question)


async def together(*scripts: Coroutine[Any, Any, Any]) -> list[Any]:
    """The results of scripts that run at the same time; the first SqlError ends them all."""
    results: list[Any] = [None] * len(scripts)
    waiting: dict[int, Question] = {}
    try:
        for index in range(len(scripts)):
            _step(scripts[index], index, None, waiting, results)
        while waiting:
            asked, waiting = waiting, {}
            answers = iter(await ask([part for question in asked.values() for part in question]))
            for index, question in asked.items():
                _step(scripts[index], index, [next(answers) for _ in question], waiting, results)
    finally:
        for script in scripts:
            script.close()
    return results


def _step(
    script: Coroutine[Any, Any, Any],
    index: int,
    answer: Answers | None,
    waiting: dict[int, Question],
    results: list[Any],
) -> None:
    """Resume one of the scripts: it asks something more, or has its result."""
    try:
        waiting[index] = script.send(answer)
    except StopIteration as done:
        results[index] = done.value


class Inside:
    """One shard of the transaction. Made for one script."""

    def __init__(self, shard: int) -> None:
        self.shard = shard

    async def fetch(self, sql: str, *arguments: Any) -> list[dict[str, Any]]:
        """The rows of a SELECT, as JSON has their values."""
        if sql.startswith("SHOW"):
            return [{"value": row[0]} for row in await self._ask(sql, False)]
        text = f"SELECT coalesce(json_agg(foreshard_row), '[]')::text FROM ({_filled(sql, arguments)}) AS foreshard_row"
        rows = await self._ask(text, False)
        return list(json.loads(rows[0][0] or "[]"))

    async def fetchrow(self, sql: str, *arguments: Any) -> dict[str, Any] | None:
        """The first row; None when there is none."""
        rows = await self.fetch(sql, *arguments)
        return rows[0] if rows else None

    async def fetchval(self, sql: str, *arguments: Any) -> Any:
        """The first value of the first row; None when there is none."""
        row = await self.fetchrow(sql, *arguments)
        return next(iter(row.values())) if row else None

    async def execute(self, sql: str, *arguments: Any) -> None:
        """Run statements that change something."""
        await self._ask(_filled(sql, arguments) if arguments else sql, True)

    async def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement for each row of arguments."""
        texts = [_filled(sql, row) for row in rows]
        if texts:
            await self._ask(";\n".join(texts), True)

    async def _ask(self, sql: str, is_write: bool) -> list[tuple[str | None, ...]]:
        [rows] = await ask([(self.shard, sql.encode(), is_write)])
        return rows


def _filled(sql: str, arguments: Sequence[Any]) -> str:
    """The SQL with its parameters written into it."""
    sql = sql.strip().rstrip(";")
    return PARAMETER.sub(lambda found: _literal(arguments[int(found[1]) - 1]), sql) if arguments else sql


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, str):
        return quote_text(value)
    if isinstance(value, list | tuple):
        return f"ARRAY[{', '.join(_literal(each) for each in value)}]"
    raise SqlError("XX000", f"no literal for {type(value).__name__}")
