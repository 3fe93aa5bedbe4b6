from foreshard._core.merge_plan import MergePlan

class Merger:
    plan: MergePlan
    count: int
    described: bool
    needed: int
    emitted: int
    def __init__(self, plan: MergePlan, count: int, limit: int = -1, offset: int = 0) -> None: ...

def check_merge(
    plan: MergePlan,
    description: bytes,
    inputs: list[list[bytes]],
    limit: int = -1,
    offset: int = 0,
    rows_max: int = 0,
    out_max: int = 1 << 20,
) -> tuple[bytes, list[bytes]]: ...
