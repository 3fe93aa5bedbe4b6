"""Who waits for whom, over all shards: a graph of transactions, and the cycles in it. Pure.

A node is a client's transaction, which may wait on several shards, or one server process that no client of ours uses.
An edge is a lock wait on one shard. A cycle on one shard is PostgreSQL's to break; one over several, only we can see.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

Place = tuple[int, int]  # shard index, process id of the server process
Node = int | Place  # a client (its process id in the proxy), or a process of nobody's
PREPARED = 0  # what pg_blocking_pids gives for a prepared transaction


class OpenTransaction(msgspec.Struct, frozen=True):
    """One client's transaction on several shards."""

    client: int
    places: frozenset[Place]
    commit_id: str = ""  # once it commits: what it has prepared waits for nobody, but is waited for


class Wait(msgspec.Struct, frozen=True):
    """One server process that waits for a lock."""

    place: Place
    since: str  # tells this wait from an earlier one of the same process
    blockers: tuple[int, ...]  # processes of the same shard
    blocking_id: str = ""  # the distributed transaction whose prepared part it waits for


class Cycle(msgspec.Struct, frozen=True):
    """Transactions that wait for each other in a circle, and the waits that make it one."""

    nodes: tuple[Node, ...]
    waits: tuple[Wait, ...]

    @property
    def shards(self) -> set[int]:
        return {wait.place[0] for wait in self.waits}


def lasting(before: Collection[Wait], now: Collection[Wait]) -> list[Wait]:
    """The waits of both looks, less the blockers that only one of them saw.

    Shards are not asked at one moment. What was there in the first look and still is in the second, was there, on all
    shards at once, between the two: so a cycle of such waits is one.
    """
    known = {(wait.place, wait.since): wait for wait in before}
    found = []
    for wait in now:
        earlier = known.get((wait.place, wait.since))
        if earlier is not None:
            blockers = tuple(pid for pid in wait.blockers if pid in earlier.blockers)
            blocking_id = wait.blocking_id if wait.blocking_id == earlier.blocking_id else ""
            found.append(msgspec.structs.replace(wait, blockers=blockers, blocking_id=blocking_id))
    return found


def find_cycles(transactions: Collection[OpenTransaction], waits: Collection[Wait]) -> list[Cycle]:
    """Cycles over more than one shard, none of which shares a node with another."""
    owners = {place: transaction.client for transaction in transactions for place in transaction.places}
    committing = {transaction.commit_id: transaction.client for transaction in transactions if transaction.commit_id}
    edges: dict[Node, dict[Node, Wait]] = {}
    for wait in waits:
        waiter = _node(owners, wait.place)
        for pid in wait.blockers:
            blocker = _node(owners, (wait.place[0], pid)) if pid != PREPARED else committing.get(wait.blocking_id)
            if blocker is not None and blocker != waiter:
                edges.setdefault(waiter, {})[blocker] = wait
    found = []
    while (cycle := _find_cycle(edges)) is not None:
        if len(cycle.shards) > 1:
            found.append(cycle)
            for node in cycle.nodes:
                edges.pop(node, None)
        else:
            edges[cycle.nodes[0]].pop(cycle.nodes[1])
    return found


def _node(owners: Mapping[Place, int], place: Place) -> Node:
    return owners.get(place, place)


def _find_cycle(edges: Mapping[Node, Mapping[Node, Wait]]) -> Cycle | None:
    """Some cycle, by depth-first search without recursion."""
    finished: set[Node] = set()
    for start in edges:
        path, steps = [start], [iter(edges[start])]
        while steps:
            following = next(steps[-1], None)
            if following is None:
                finished.add(path.pop())
                steps.pop()
            elif following in path:
                nodes = path[path.index(following) :]
                after = [*nodes[1:], nodes[0]]
                return Cycle(tuple(nodes), tuple(edges[a][b] for a, b in zip(nodes, after, strict=True)))
            elif following not in finished and following in edges:
                path.append(following)
                steps.append(iter(edges[following]))
    return None


def members_of(cycle: Cycle, transactions: Collection[OpenTransaction]) -> list[OpenTransaction]:
    """The transactions on several shards that are part of the cycle; there are at least two."""
    return [transaction for transaction in transactions if transaction.client in cycle.nodes]


def choose_victim(
    cycle: Cycle, transactions: Collection[OpenTransaction], started_s: Mapping[Place, float]
) -> OpenTransaction:
    """The youngest transaction of the cycle: it has done least. One joins its shards one by one: the first tells."""

    def began_s(transaction: OpenTransaction) -> float:
        return min((started_s[place] for place in transaction.places if place in started_s), default=0.0)

    return max(members_of(cycle, transactions), key=lambda member: (began_s(member), member.client))
