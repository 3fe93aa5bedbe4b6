from typing import Any

from foreshard.proxy.wire.session import Session

CONTROL_POINTS: tuple[str, ...]
SNAPSHOT_POINTS: tuple[str, ...]
CRASH_AT: str
COMMIT: Any
ROLLBACK: Any

class Commit(Session):
    commit_id: str | None
