"""Which buckets move when a shard is overloaded all the same: decisions only. Pure: no I/O, no clock."""

from foreshard.proxy.rebalance.decision import Decision, Verdict
from foreshard.proxy.rebalance.growth import empty, fill
from foreshard.proxy.rebalance.limits import Limits
from foreshard.proxy.rebalance.loads import Loads, dominant, ratios, shard_loads
from foreshard.proxy.rebalance.rebalancer import Rebalancer
from foreshard.proxy.rebalance.search import Move, Search

__all__ = [
    "Decision",
    "Limits",
    "Loads",
    "Move",
    "Rebalancer",
    "Search",
    "Verdict",
    "dominant",
    "empty",
    "fill",
    "ratios",
    "shard_loads",
]
