"""Statement text and catalog to a route."""

from foreshard.proxy.routing.planner import Planner

__all__ = ["Planner"]
