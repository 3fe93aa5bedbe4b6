"""Placement bookkeeping above the kernels: the state file of a configuration, and what imbalance means."""

from foreshard._core.ledgers import ShadowLedgers
from foreshard._core.placement import Placer
from foreshard._core.shared import POLICIES, SharedState
from foreshard.proxy.placement.balance import (
    Spread,
    expected_by_hash,
    indivisible_bound,
    longest_first,
    max_over_mean,
)
from foreshard.proxy.placement.state import attach_state, open_state, set_weights

__all__ = [
    "POLICIES",
    "Placer",
    "ShadowLedgers",
    "SharedState",
    "Spread",
    "attach_state",
    "expected_by_hash",
    "indivisible_bound",
    "longest_first",
    "max_over_mean",
    "open_state",
    "set_weights",
]
