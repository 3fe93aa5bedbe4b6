from enum import IntEnum

class Combine(IntEnum):
    COMBINE_SUM = 0
    COMBINE_MIN = 1
    COMBINE_MAX = 2
    COMBINE_AND = 3
    COMBINE_OR = 4
    COMBINE_AVG = 5
    COMBINE_ANY = 6
    COMBINE_TEXT = 7
    COMBINE_BIT_AND = 8
    COMBINE_BIT_OR = 9
    COMBINE_BIT_XOR = 10
    COMBINE_ARRAY = 11
    COMBINE_JSON = 12
    COMBINE_KEPT = 13
    COMBINE_SORTED = 14

class LimitSource(IntEnum):
    LIMIT_NONE = 0
    LIMIT_CONSTANT = 1
    LIMIT_LITERAL = 2
    LIMIT_PARAM = 3

class MergePlan:
    pieces: tuple[bytes | int, ...]
    hidden: int
    keys: tuple[tuple[bool, bool], ...]
    group: int
    combines: tuple[tuple[int, int, object], ...]
    order: tuple[tuple[int, bool, bool], ...]
    limit: tuple[int, int]
    offset: tuple[int, int]
    filters: tuple[tuple[int, str, int], ...]
    is_text: bool
    is_float: bool
    is_plan: bool
    finish: tuple[tuple[bytes | int, ...], tuple[bytes | int, ...]] | None
    types: tuple[bytes, ...]
    undated: MergePlan | None
    def __init__(
        self,
        pieces: tuple[bytes | int, ...],
        *,
        hidden: int = 0,
        keys: tuple[tuple[bool, bool], ...] = (),
        group: int = -1,
        combines: tuple[tuple[int, int, object], ...] = (),
        order: tuple[tuple[int, bool, bool], ...] = (),
        limit: tuple[int, int] = (0, 0),
        offset: tuple[int, int] = (0, 0),
        filters: tuple[tuple[int, str, int], ...] = (),
        is_text: bool = False,
        is_float: bool = False,
        is_plan: bool = False,
        finish: tuple[tuple[bytes | int, ...], tuple[bytes | int, ...]] | None = None,
        types: tuple[bytes, ...] = (),
        undated: MergePlan | None = None,
    ) -> None: ...
    def check_text(self, sql: bytes, literals: list[tuple[int, int, int]]) -> bytes: ...
