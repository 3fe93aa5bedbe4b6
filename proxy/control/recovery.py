"""Ends the prepared transactions whose coordinator gave up: what every controller does, several at once if need be.

A round lists what is prepared on every shard and ends what has been so for longer than `limits.commit_timeout`, as its
decision shard says. There `(id, 'abort')` is inserted first, which waits for a decision that is just being made; then
the row is read back, whoever wrote it. So no clock, lease or order of events is trusted, and any number of recoverers
and the coordinator itself may do this for one transaction at one time.

1. A transaction ends only as a row of foreshard.decision on its decision shard says. While that shard is down, or is
   not configured, or its decision transaction is still open, it stays in doubt, with its locks.
2. A decision is forgotten only when it was read before a round in which every shard was listed and none had its id: all
   PREPAREs lie before the decision, so none can come later.
3. An abort, which a late coordinator must still run into, stays until no transaction is open on its shard that was open
   when it was first seen (recovery_shard.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import msgspec

from foreshard._core.two_phase import Gid, parse_gid
from foreshard.proxy.config import Config
from foreshard.proxy.control.kept import ShardDown
from foreshard.proxy.control.recovery_shard import ABORT, COMMIT, DECISIONS_MAX, Finish, Prepared, ShardLink
from foreshard.proxy.control.retry import pause
from foreshard.proxy.triggers.points import control_point

ROUND_INTERVAL_S = 1.0
CLEAN_INTERVAL_S = 5.0
T = TypeVar("T")
ENDED = {COMMIT: "committed", ABORT: "rolled back"}


class Part(msgspec.Struct, frozen=True):
    """One participant of a transaction: what is prepared where."""

    link: ShardLink
    prepared: Prepared
    gid: Gid


class Recovery:
    """Owns one connection to each shard. Made by the controller; runs until that stops."""

    clean_interval_s = CLEAN_INTERVAL_S

    def __init__(self, config: Config, report: Callable[[str], None]) -> None:
        self.grace_s = config.limits.commit_timeout_s
        self.links = {shard.name: ShardLink(shard) for shard in config.shards}
        self._report = report
        self._doubts: dict[str, str] = {}  # gid -> why it is in doubt, as of the last round
        self._clean_at_s = 0.0

    async def run(self, stopping: asyncio.Event) -> None:
        """Recover until `stopping` is set."""
        try:
            while not stopping.is_set():
                await self.run_round()
                await pause(stopping, ROUND_INTERVAL_S)
        finally:
            self.close()

    def close(self) -> None:
        """Give every connection up."""
        for link in self.links.values():
            link.close()

    async def run_round(self) -> int:
        """List, end what is due, forget what nothing needs any more; the number of transactions' parts ended."""
        now_s = asyncio.get_running_loop().time()
        decisions: dict[str, dict[str, str]] = {}
        if now_s >= self._clean_at_s:
            self._clean_at_s = now_s + self.clean_interval_s
            decisions = await self._ask_all(ShardLink.read_old_decisions)  # before the shards are listed: rule 2
            if any(len(outcomes) > DECISIONS_MAX // 2 for outcomes in decisions.values()):
                self._clean_at_s = now_s  # many: there are more
        listed = await self._ask_all(ShardLink.list_prepared)
        parts = self._parts(listed)
        self._doubts, before = {}, self._doubts
        ended = sum(await asyncio.gather(*(self._resolve(name, some) for name, some in self._due(parts).items())))
        for gid, reason in self._doubts.items():
            if before.get(gid) != reason:
                self._report(f"{gid} is in doubt: {reason}")
        if len(listed) == len(self.links):
            await self._forget(decisions, {part.gid.id for part in parts})
        return ended

    async def _ask_all(self, question: Callable[[ShardLink], Awaitable[T]]) -> dict[str, T]:
        """The answers by shard name, without the shards that are down."""
        answers = await asyncio.gather(*map(question, self.links.values()), return_exceptions=True)
        found = {}
        for name, answer in zip(self.links, answers, strict=True):
            if isinstance(answer, BaseException):
                if not isinstance(answer, ShardDown):
                    raise answer
            else:
                found[name] = answer
        return found

    def _parts(self, listed: Mapping[str, list[Prepared]]) -> list[Part]:
        """Everything listed whose name Foreshard made."""
        found = []
        for name, some in listed.items():
            for prepared in some:
                gid = parse_gid(prepared.gid)
                if gid is not None:
                    found.append(Part(self.links[name], prepared, gid))
        return found

    def _due(self, parts: list[Part]) -> dict[str, dict[str, list[Part]]]:
        """By decision shard and id: the transactions prepared long enough ago."""
        found: dict[str, dict[str, list[Part]]] = defaultdict(lambda: defaultdict(list))
        for part in parts:
            found[part.gid.decision_shard][part.gid.id].append(part)
        return {
            name: due
            for name, some in found.items()
            if (due := {id: parts for id, parts in some.items() if self._is_due(parts)})
        }

    def _is_due(self, parts: list[Part]) -> bool:
        return max(part.prepared.age_s for part in parts) >= self.grace_s

    async def _resolve(self, name: str, due: Mapping[str, list[Part]]) -> int:
        """End what one shard decides; the number of parts ended."""
        control_point("recovery-listed")
        if name not in self.links:
            self._doubt(due, f"shard {name}, which decides it, is not in the configuration")
            return 0
        link, ended, left = self.links[name], 0, dict(due)
        try:
            outcomes = await link.read_outcomes(list(due))
            for id, parts in due.items():
                outcome = outcomes.get(id) or await link.decide(id)
                control_point("recovery-read")
                del left[id]
                if outcome is None:
                    self._doubt({id: parts}, f"the transaction that decides it is still open on shard {name}")
                else:
                    ended += sum([await self._finish(part, outcome) for part in parts])
        except ShardDown as error:
            self._doubt(left, f"shard {name}, which decides it, is down: {error}")
        return ended

    def _doubt(self, left: Mapping[str, list[Part]], reason: str) -> None:
        for parts in left.values():
            for part in parts:
                self._doubts[part.prepared.gid] = reason

    async def _finish(self, part: Part, outcome: str) -> bool:
        """Commit or roll back one part; False when that is not, or not by us, done."""
        prepared, link = part.prepared, part.link
        try:
            finish = await link.finish(prepared, outcome)
        except ShardDown as error:
            self._doubts[prepared.gid] = f"it is to be {ENDED[outcome]}, but shard {link.name} says: {error}"
            return False
        control_point("recovery-finished")
        if finish is Finish.DONE:
            about = f"prepared {prepared.age_s:.1f} s before by {prepared.owner}"
            self._report(f"shard {link.name}: {ENDED[outcome]} {prepared.gid}, {about}")
        return finish is Finish.DONE

    async def _forget(self, decisions: Mapping[str, Mapping[str, str]], listed: set[str]) -> None:
        """Delete the decisions of which every shard was just asked and none had anything prepared."""
        for name, outcomes in decisions.items():
            unneeded = outcomes.keys() - listed
            if unneeded:
                with contextlib.suppress(ShardDown):
                    await self.links[name].forget(unneeded)
                control_point("recovery-forgotten")
