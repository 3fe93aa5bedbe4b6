from typing import Any

CONTROL_POINTS: tuple[str, ...]
CRASH_AT: str
COMMIT: Any
ROLLBACK: Any

class Commit: ...
