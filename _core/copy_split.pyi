from foreshard._core.copy_lines import LineMap
from foreshard._core.copy_plan import CopyPlan
from foreshard._core.template import Template

class CopyPart:
    map: LineMap
    rows: int
    sent: int

class CopySplitter:
    plan: CopyPlan
    parts: list[CopyPart]
    head: bytes | None
    lines: int
    def __init__(
        self,
        template: Template,
        plan: CopyPlan,
        shard_count: int,
        first: int,
        *,
        placed: int = ...,
        ends_csv: bool = ...,
        record_bytes_max: int = ...,
        owners: list[int] | None = ...,
    ) -> None: ...
    def split(self, chunks: list[bytes]) -> list[bytes]: ...
