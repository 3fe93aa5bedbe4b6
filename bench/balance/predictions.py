"""What the placement is told about each event's cost before it runs."""

from __future__ import annotations

import numpy as np

from bench.balance.workload import FUNCTIONS, Floats, Workload
from foreshard._core.model import Learner
from foreshard._core.shared import SharedState

DELAY_EVENTS = 256  # a measurement arrives this many events after its write
KINDS = ("learned", "noise-free", "error 30 %", "error 100 %")
ERRORS = {"error 30 %": 0.36, "error 100 %": 0.93}  # deviation of the log for that mean absolute percentage error


def predict_costs(workload: Workload, kind: str) -> Floats:
    """Predicted scalar cost of every event."""
    if kind == "learned":
        return learn_costs(workload)
    if kind == "noise-free":
        return workload.cost
    random = np.random.default_rng([workload.seed, 77])
    spread = ERRORS[kind]
    return workload.cost * random.lognormal(-(spread**2) / 2, spread, len(workload.cost))


def learn_costs(workload: Workload) -> Floats:
    """As in production: learners fed with delayed measurements, models published to shared state, read from there."""
    state = SharedState.private(1, FUNCTIONS)
    learners = [Learner() for _ in range(FUNCTIONS)]
    functions = workload.function.tolist()
    features = workload.features.tolist()
    executed = workload.executed.tolist()
    predicted = np.zeros(len(executed))
    for now, function in enumerate(functions):
        if now >= DELAY_EVENTS:
            past = now - DELAY_EVENTS
            learner = learners[functions[past]]
            learner.update(features[past], (executed[past], None, None, None))
            publish(state, functions[past], learner)
        predicted[now] = state.predict(function, features[now])[0]
    return predicted


def publish(state: SharedState, profile: int, learner: Learner) -> None:
    """Put a learner's models where the hot path reads them."""
    weights, floors, ceilings, means = zip(*learner.models(), strict=True)
    state.set_profile(profile, weights, floors, ceilings, means, learner.samples, 1, learner.degraded)
