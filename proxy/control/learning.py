"""What the controller does with measurements: learns, publishes models and loads, keeps the shadow ledgers.

No I/O: measurements come in, shared state changes, rows to keep come out.

1. A measurement counts once: in its profile, in its shard's load, in the ledgers.
2. Its predicted cost is taken from the model as it was before it.
3. What is learned is published once per batch, not per measurement.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from foreshard.proxy.config import Config, TableConfig, TriggerConfig, qualified
from foreshard.proxy.placement import ShadowLedgers, SharedState
from foreshard.proxy.profiles import (
    FIRST_GUESS,
    Costs,
    Profile,
    ProfileKey,
    ProfileRow,
    ceilings_of,
    first_known,
    geometric_mean,
    profile_keys,
    registered_prior,
)

HISTORY_ROWS_MAX = 10_000  # kept while the control database is down


class Measurement(NamedTuple):
    """One row of foreshard.measurement; None where the platform could not measure."""

    function: str
    operation: str
    table_name: str
    row_key: str
    size: float
    complexity: float
    volume: float
    cpu_s: float | None
    memory_byte_s: float | None
    io_bytes: float | None
    network_bytes: float | None
    wall_s: float
    queue_s: float

    @property
    def features(self) -> tuple[float, float, float, float]:
        return (1.0, self.size, self.complexity, self.volume)

    @property
    def costs(self) -> Costs:
        return (
            _known(self.cpu_s),
            _known(self.memory_byte_s),
            _known(self.io_bytes),
            _known(self.network_bytes),
        )


class Waiting(NamedTuple):
    """Events of one function and operation in a shard's outbox; size and volume are means, None when unknown."""

    function: str
    operation: str
    events: int
    size: float | None
    volume: float


class Learning:
    """Owns every profile and the ledgers; writes the controller's part of shared state. Made by the controller."""

    def __init__(self, config: Config, state: SharedState) -> None:
        self.state = state
        self.unknown: set[tuple[str, str]] = set()  # measured, but not in the configuration
        self._triggers = {trigger.name: trigger for trigger in config.triggers}
        self._profiles = [self._make(key) for key in profile_keys(config)]
        self._by_key = {(profile.key.function, profile.key.operation): profile for profile in self._profiles}
        self._roots = {qualified(table.name): index for index, table in enumerate(config.tables) if _is_root(table)}
        self._inserts: dict[str, list[Profile]] = {}  # table -> profiles that an insert fires
        for profile in self._profiles:
            if profile.key.operation == "insert":
                self._inserts.setdefault(self._table_of(profile), []).append(profile)
        self._history: list[ProfileRow] = []
        self._ledgers = ShadowLedgers(
            state.shard_count, [shard.weight for shard in config.shards], config.placement.bound
        )
        self._epoch = -1
        self._ledgers_before = state.ledgers()  # of controllers before this one
        self.refresh_priors()
        self.publish()

    def restore(self, rows: Iterable[ProfileRow]) -> list[ProfileKey]:
        """Go on from kept rows; answers the keys whose state was of no use."""
        useless = []
        for row in rows:
            profile = self._by_key.get((row.function, row.operation))
            if profile is not None and not profile.restore(row):
                useless.append(profile.key)
        self.refresh_priors()
        self.publish()
        return useless

    def follow_map(self) -> None:
        """Take the bucket map, which the router keeps true, into the ledgers."""
        epoch, owners = self.state.bucket_map()
        if epoch != self._epoch:
            self._epoch = epoch
            self._ledgers.set_bucket_map(owners.tolist(), epoch)

    def set_up(self, shard: int, up: bool) -> None:
        """A shard came up or went down."""
        self.state.set_up(shard, up)
        self._ledgers.set_up(shard, up)

    def learn(self, shard: int, measurements: Sequence[Measurement]) -> None:
        """Take one batch of one shard's measurements into account, and publish what follows."""
        measured_total = settled_total = 0.0
        for measurement in measurements:
            measured = self.state.scalar_of(measurement.costs)
            self._feed_ledgers(measurement, measured)
            settled_total += self._learn_one(measurement)
            measured_total += measured
        self.state.add_measured(shard, measured_total, settled_total)
        self.publish()
        for policy, costs in self._ledgers.loads().items():
            before = self._ledgers_before[policy]
            self.state.set_ledger(policy, [old + new for old, new in zip(before, costs, strict=True)])

    def settle(self, shard: int, placed: float, waiting: Iterable[Waiting]) -> None:
        """Only what waits in the shard's outbox is pending of the cost that had been placed when it was counted.

        It is predicted anew, by what is known now: rows placed while little was known count for what they will cost.
        The outbox holds what every proxy placed, and each one's controller counts it: each takes its share.
        """
        pending = 0.0
        for waits in waiting:
            profile = self._by_key.get((waits.function, waits.operation))
            if profile is not None:
                pending += waits.events * self._cost_waiting(profile, waits)
        self.state.settle_all(shard, placed - pending / self.state.proxies)

    def _cost_waiting(self, profile: Profile, waits: Waiting) -> float:
        """Scalar cost of one of these events."""
        if waits.size is not None and (complexity := profile.sizes.complexity_at(waits.size)) is not None:
            return self.state.scalar_of(profile.learner.predict((1.0, waits.size, complexity, waits.volume)))
        return self.state.scalar_of(first_known(profile.learner.means(), profile.priors))

    def publish(self) -> None:
        """Put what was learned since the last time into shared state."""
        for index, profile in enumerate(self._profiles):
            if profile.is_published:
                continue
            models = profile.learner.models()
            self.state.set_profile(
                index,
                weights=[model[0] for model in models],
                floors=[model[1] for model in models],
                ceilings=[model[2] for model in models],
                means=[model[3] for model in models],
                samples=profile.learner.samples,
                version=profile.version,
                degraded=profile.learner.degraded,
            )
            profile.is_published = True

    def refresh_priors(self) -> None:
        """Expect of what was never measured: what is registered, else what comparable functions cost."""
        for profile in self._profiles:
            if None in profile.learner.means():
                profile.set_priors(self._prior_of(profile))

    def take_rows(self) -> tuple[list[ProfileRow], list[ProfileRow]]:
        """(profiles to keep, versions to keep) since the last time; `put_back` when they could not be kept."""
        changed = [profile for profile in self._profiles if not profile.is_stored]
        for profile in changed:
            self._history.extend(profile.take_history())
            profile.is_stored = True
        history, self._history = self._history, []
        return [profile.row() for profile in changed], history

    def put_back(self, rows: Iterable[ProfileRow], history: list[ProfileRow]) -> None:
        """Keep these another time."""
        for row in rows:
            self._by_key[row.function, row.operation].is_stored = False
        self._history = (history + self._history)[-HISTORY_ROWS_MAX:]

    def _make(self, key: ProfileKey) -> Profile:
        return Profile(key, ceilings_of(self._triggers[key.function]), self.state.capacities())

    def _learn_one(self, measurement: Measurement) -> float:
        """Learn from one measurement; answers the scalar cost predicted for it."""
        profile = self._by_key.get((measurement.function, measurement.operation))
        if profile is None:
            self.unknown.add((measurement.function, measurement.operation))
            return 0.0
        return profile.record(measurement.features, measurement.costs, measurement.wall_s, measurement.queue_s)

    def _feed_ledgers(self, measurement: Measurement, measured: float) -> None:
        """Inserts of root rows decide, all their events charge. Rows that follow a parent are no decision."""
        table = self._roots.get(measurement.table_name)
        if table is None:
            return
        try:
            key = int(measurement.row_key)
        except ValueError:
            return
        if not -(1 << 63) <= key < 1 << 63:
            return
        if measurement.operation == "insert":
            self._ledgers.insert(key, self._predict_insert(measurement), table)
        self._ledgers.charge(key, measured, table)

    def _predict_insert(self, measurement: Measurement) -> float:
        """Scalar cost of all functions that the insert of this row fired."""
        total = [0.0] * 4
        for profile in self._inserts.get(measurement.table_name, ()):
            costs = profile.learner.predict(measurement.features)
            total = [sum(pair) for pair in zip(total, costs, strict=True)]
        return self.state.scalar_of(total)

    def _prior_of(self, profile: Profile) -> Costs:
        """Registered, else the geometric mean of functions of the same operation and table, operation, or any."""
        others = [other for other in self._profiles if other.learner.samples]
        alike = [other for other in others if other.key.operation == profile.key.operation]
        nearest = [other for other in alike if self._table_of(other) == self._table_of(profile)]
        return first_known(
            registered_prior(self._trigger_of(profile).profile),
            *(geometric_mean(other.learner.means() for other in group) for group in (nearest, alike, others)),
            FIRST_GUESS,
        )

    def _trigger_of(self, profile: Profile) -> TriggerConfig:
        return self._triggers[profile.key.function]

    def _table_of(self, profile: Profile) -> str:
        return qualified(self._trigger_of(profile).table)


def _known(value: float | None) -> float | None:
    """A cost that can be added up; what cannot is unknown: one infinite measurement would load its shard for ever."""
    return value if value is not None and 0 <= value < math.inf else None


def _is_root(table: TableConfig) -> bool:
    return bool(table.key_columns) and table.parent is None and not table.reference
