"""The placement rule in plain Python, written from its description and not from the compiled kernel."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

MASK = 2**64 - 1
BUCKETS = 4096


def mix64(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & MASK
    return value ^ value >> 31


@dataclass
class ReferenceShard:
    """What is known about one shard."""

    weight: float = 1.0
    up: bool = True
    measured: float = 0.0
    placed: float = 0.0
    settled: float = 0.0
    rows: float = 0.0

    @property
    def load(self) -> float:
        return self.measured + max(0.0, self.placed - self.settled)


@dataclass
class ReferenceState:
    """Shards and bucket map, with the names that SharedState has."""

    owners: list[int]
    shard_list: list[ReferenceShard]
    heavy_threshold: float = 0.0
    heavy_samples: float = 0.0

    def set_weight(self, shard: int, weight: float) -> None:
        self.shard_list[shard].weight = weight

    def set_up(self, shard: int, up: bool) -> None:
        self.shard_list[shard].up = up

    def add_measured(self, shard: int, cost: float, settled: float = 0.0) -> None:
        self.shard_list[shard].measured += cost
        self.shard_list[shard].settled += settled

    def loads(self) -> list[float]:
        return [shard.load for shard in self.shard_list]

    def shards(self) -> list[ReferenceShard]:
        return self.shard_list


@dataclass
class ReferencePlacer:
    """One process's placer."""

    state: ReferenceState
    policy: str = "bounded"
    bound: float = 1.05
    seed: int = 0
    counter: int = 0
    reason: str = field(default="", init=False)

    def place_known(self, cost: float, rows: float = 1.0, key_hash: int | None = None, only_shard: int = -1) -> int:
        chosen = self.decide(cost, key_hash, only_shard)
        self.counter += 1
        self.learn_threshold(cost)
        if chosen >= 0:
            self.state.shard_list[chosen].placed += cost
            self.state.shard_list[chosen].rows += rows
        return chosen

    def last_decision(self) -> dict[str, object]:
        return {"reason": self.reason}

    def learn_threshold(self, cost: float) -> None:
        state = self.state
        if cost <= 0:
            return
        state.heavy_samples += 1
        step = min(1.0, max(0.02, 20 / state.heavy_samples))
        if state.heavy_threshold <= 0:
            state.heavy_threshold = cost
        elif cost >= state.heavy_threshold:
            state.heavy_threshold *= 1 + step * (1 - 0.05)
        else:
            state.heavy_threshold /= 1 + step * 0.05

    def decide(self, cost: float, key_hash: int | None, only_shard: int) -> int:
        shards = self.state.shard_list
        up = [index for index, shard in enumerate(shards) if shard.up]
        if only_shard >= 0:
            return self.because("transaction", only_shard)
        if not up:
            return self.because("none-up", -1)
        if len(up) == 1:
            return self.because("only-shard", up[0])
        chosen = self.decide_by_policy(cost, key_hash, up)
        if not shards[chosen].up:
            after = [(chosen + i) % len(shards) for i in range(1, len(shards))]
            return self.because("fallback", next(index for index in after if shards[index].up))
        return chosen

    def because(self, reason: str, shard: int) -> int:
        self.reason = reason
        return shard

    def decide_by_policy(self, cost: float, key_hash: int | None, up: list[int]) -> int:
        if self.policy == "cost-hash":
            (bits,) = struct.unpack("<Q", struct.pack("<d", cost))
            return self.because("cost-hash", mix64(bits) % len(self.state.shard_list))
        if self.policy == "least-loaded":
            return self.because("least-loaded", min(up, key=self.relative_load))
        proposed = self.propose(cost, key_hash)
        if self.policy == "key-hash":
            return self.because("key-hash", proposed[0])
        if self.policy == "two-choices":
            living = [index for index in proposed[:2] if index in up] or proposed[:1]
            return self.because("two-choices", min(living, key=self.relative_load))
        return self.decide_bounded(cost, proposed, up)

    def relative_load(self, shard: int) -> float:
        return self.state.shard_list[shard].load / self.state.shard_list[shard].weight

    def propose(self, cost: float, key_hash: int | None) -> list[int]:
        salted = mix64((mix64(self.seed) + self.counter) & MASK) + math.frexp(cost)[1]
        seed = salted if key_hash is None else key_hash
        buckets = [mix64((seed + i * 0xD1B54A32D192ED03) & MASK) % BUCKETS for i in range(4)]
        if key_hash is not None:
            buckets[0] = key_hash % BUCKETS
        return [self.state.owners[bucket] for bucket in buckets]

    def decide_bounded(self, cost: float, proposed: list[int], up: list[int]) -> int:
        shards = self.state.shard_list
        weight_total = sum(shards[index].weight for index in up)
        rows_total = sum(shards[index].rows for index in up)
        load_total = cost + sum(shards[index].load for index in up)

        def crowded(index: int) -> bool:
            return shards[index].rows > 1.15 * rows_total * shards[index].weight / weight_total + 64

        def living(indexes: list[int]) -> list[int]:
            return [index for index in indexes if index in up]

        def usable(indexes: list[int]) -> list[int]:
            spared = [index for index in living(indexes) if not crowded(index)]
            return spared if any(not crowded(index) for index in living(proposed)) else living(indexes)

        if cost > 0 and cost >= self.state.heavy_threshold:
            return self.because("heavy-lightest", min(usable(proposed) or proposed[:1], key=self.relative_load))
        home = proposed[0]
        cap = self.bound * shards[home].weight * load_total / weight_total
        if usable([home]) and shards[home].load <= cap:
            return self.because("candidate-0", home)
        others = usable(proposed[1:3]) or usable(proposed[3:])
        best = min(others, key=self.relative_load, default=home)
        if others and not (usable([home]) and self.relative_load(best) >= self.relative_load(home)):
            return self.because("lighter-of-two", best)
        return self.because("candidate-0", home)
