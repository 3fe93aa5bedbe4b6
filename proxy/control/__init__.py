"""Control database, introspection, schema plan and apply, checks, and the controller."""

from foreshard.proxy.control.connect import connected, control_dsn
from foreshard.proxy.control.derive import build_catalog
from foreshard.proxy.control.introspect import introspect
from foreshard.proxy.control.plan import apply, is_applied, list_lacking, planned, read_catalog, read_owners
from foreshard.proxy.control.query_node import query_node_dsn
from foreshard.proxy.control.two_phase import TwoPhase, read_two_phase, two_phase_ready

__all__ = [
    "TwoPhase",
    "apply",
    "build_catalog",
    "connected",
    "control_dsn",
    "introspect",
    "is_applied",
    "list_lacking",
    "planned",
    "query_node_dsn",
    "read_catalog",
    "read_owners",
    "read_two_phase",
    "two_phase_ready",
]
