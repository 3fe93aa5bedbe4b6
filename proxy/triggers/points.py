"""Control points: named places where a test may kill the process, to prove that nothing is lost or doubled there.

FORESHARD_CRASH_AT=<name> arms one place. The process that reaches it ends as by kill -9; a replacement that the worker
starts is not armed again. FORESHARD_STOP_AT=<name> stops the process there, once, until SIGCONT.
"""

from __future__ import annotations

import os
import signal

from foreshard.proxy.errors import ForeshardError

# In the order in which a batch passes them.
NAMES = (
    "executor-connected",
    "lanes-taken",
    "batch-read",
    "call-started",
    "call-returned",
    "events-removed",
    "batch-committed",
    "failure-found",  # in the supervisor: an executor ended during a call and has no replacement yet
    "failure-recorded",
)
# In the controller, as it ends a transaction in doubt.
RECOVERY_NAMES = ("recovery-listed", "recovery-decided", "recovery-read", "recovery-finished", "recovery-forgotten")
# In `foreshard apply`, as it spreads a table.
SPREAD_NAMES = ("spread-moved", "spread-prepared", "spread-decided", "spread-finished")
# In the router, as it completes DDL, and follows that of others.
SCHEMA_NAMES = ("schema-ran", "schema-read", "schema-made", "schema-followed", "schema-alone", "schema-noticed")
# In the router, while it keeps commits over several shards out; its other places are in proxy/wire/commit.
GATE_NAMES = ("gate-held", "gate-opened")
# In whoever moves a bucket.
MOVE_NAMES = (
    "move-begun",
    "move-copied",
    "move-caught-up",
    "move-locked",
    "move-taken",
    "move-prepared",
    "move-decided",
    "move-finished",
)
# In the balancer, which writes down what becomes of it.
MOVER_NAMES = ("move-written", "move-noted", "move-fenced", "move-made")
# In the router, as it gives way to one.
HOLD_NAMES = ("hold-taken", "hold-frozen", "hold-given", "hold-thawed")
# In `foreshard apply`, as it claims for older rows.
INTAKE_NAMES = ("intake-locked", "intake-claimed", "intake-ended")
# In `foreshard shards`, as it takes a shard in or lets one go, and in the router, which follows.
LIST_NAMES = (
    "shards-made",
    "shards-copied",
    "shards-locked",
    "shards-prepared",
    "shards-decided",
    "shards-finished",
    "shards-planned",
    "shards-noticed",
)
# In processes that run no functions.
ELSEWHERE = (
    "away-", "claims-", "commit-", "gate-", "hold-", "intake-", "move-", "schema-", "shards-", "snapshots-", "spread-",
)  # fmt: skip

CRASH_AT = "FORESHARD_CRASH_AT"

_armed = os.environ.get(CRASH_AT, "")
_stopping = os.environ.get("FORESHARD_STOP_AT", "")


def control_point(name: str) -> None:
    """End, or stop, this process here when this place is armed."""
    global _stopping
    if name == _armed:
        os.kill(os.getpid(), signal.SIGKILL)
    if name == _stopping:
        _stopping = ""
        os.kill(os.getpid(), signal.SIGSTOP)


def check_armed() -> None:
    """Refuse a name that no place has."""
    if _armed and _armed not in (*NAMES, *RECOVERY_NAMES) and not _armed.startswith(ELSEWHERE):
        raise ForeshardError(f"FORESHARD_CRASH_AT names no control point: {_armed!r}; they are {', '.join(NAMES)}")


def disarm() -> None:
    """Later processes pass every control point."""
    global _armed
    _armed = ""
