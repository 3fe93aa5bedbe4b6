"""What a call is expected to cost before it has been measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from foreshard.proxy.config import ProfilePrior, TriggerConfig

# CPU seconds, memory byte-seconds, I/O bytes, network bytes; None where nothing is known.
Costs = tuple[float | None, float | None, float | None, float | None]

NOTHING_KNOWN: Costs = (None, None, None, None)
FIRST_GUESS: Costs = (1e-3, None, None, None)  # chosen, not measured: keeps the first rows of all from being free


def registered_prior(prior: ProfilePrior) -> Costs:
    """What the configuration says a call costs."""
    return (prior.cpu_s, prior.memory_byte_s, prior.io_bytes, prior.network_bytes)


def ceilings_of(trigger: TriggerConfig) -> Costs:
    """The most that one call can cost: it is killed at its timeout and at its memory limit."""
    memory = trigger.memory_bytes_max
    return (trigger.timeout_s, None if memory is None else memory * trigger.timeout_s, None, None)


def geometric_mean(costs: Iterable[Sequence[float | None]]) -> Costs:
    """Per resource the geometric mean of the known costs above 0; None without any."""
    columns = list(zip(*costs, strict=True)) or [()] * 4
    cpu, memory, io, network = (_mean_of([value for value in column if value]) for column in columns)
    return (cpu, memory, io, network)


def first_known(*choices: Sequence[float | None]) -> Costs:
    """Per resource the first cost that is known."""
    cpu, memory, io, network = (
        next((value for value in column if value is not None), None) for column in zip(*choices, strict=True)
    )
    return (cpu, memory, io, network)


def _mean_of(values: list[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None
