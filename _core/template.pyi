from enum import IntEnum
from typing import Any

from foreshard._core.carry_plan import CarryPlan
from foreshard._core.copy_plan import CopyPlan
from foreshard._core.errors import SqlError
from foreshard._core.merge_plan import MergePlan

class RouteKind(IntEnum):
    ROUTE_EMPTY = 0
    ROUTE_DEFAULT = 1
    ROUTE_KEYED = 2
    ROUTE_SCATTER = 3
    ROUTE_ANY = 4
    ROUTE_PLACE = 5
    ROUTE_REFUSE = 6
    ROUTE_TRANSACTION = 7
    ROUTE_EXPLAIN = 8
    ROUTE_MULTI = 9
    ROUTE_QUERY = 11
    ROUTE_ALONE = 12
    ROUTE_CARRY = 13
    ROUTE_COPY = 14

class Verb(IntEnum):
    VERB_NONE = 0
    VERB_BEGIN = 1
    VERB_COMMIT = 2
    VERB_ROLLBACK = 3
    VERB_SAVEPOINT = 4
    VERB_RELEASE = 5
    VERB_ROLLBACK_TO = 6

class Operation(IntEnum):
    OPERATION_SELECT = 0
    OPERATION_INSERT = 1
    OPERATION_UPDATE = 2
    OPERATION_DELETE = 3
    OPERATION_OTHER = 4

class Completion(IntEnum):
    COMPLETE_NONE = 0
    COMPLETE_SCHEMA = 1
    COMPLETE_FIRST = 2
    COMPLETE_ROWS = 3

class KeyFlag(IntEnum):
    KEY_PARAM = 1
    KEY_ARRAY = 2
    KEY_NEGATIVE = 4
    KEY_PLACED = 8
    KEY_INSERTED = 16
    KEY_CAST = 32
    KEY_QUOTED = 64
    KEY_PART = 128
    KEY_TYPE_UNIT = 256
    KEY_LIMIT_UNIT = 4096

class Buckets:
    every: bool
    def __len__(self) -> int: ...
    def as_list(self) -> list[int]: ...

class Template:
    kind: int
    verb: int
    chain: bool
    operation: int
    is_write: bool
    pin: str | None
    table: str | None
    text: bytes | None
    name: str | None
    refusal: SqlError | None
    parts: tuple[Template, ...]
    profiles: tuple[int, ...]
    one_shard_refusal: SqlError | None
    keeps_bucket: bool
    arbiters: tuple[Template, ...]
    can_query: bool
    shadow: Any
    merge: MergePlan | None
    alters: bool
    owes_claims: bool
    claim_homes: Template | None
    is_hashed: bool
    owes_away: bool
    is_wide: bool
    new_keys: int
    claims: tuple[str | None, ...]
    is_claimed: bool
    cursor: str | None
    parameters: tuple[int, ...]
    is_reset: bool
    is_exact: bool
    returns: bool
    writes_within: bool
    row_keys: tuple[int, ...]
    marks: Template | None
    lock: bytes | None
    completion: int
    carry: CarryPlan | None
    copy: CopyPlan | None
    keys: tuple[tuple[int, int, str], ...]
    values: tuple[tuple[int, bool, int], ...]
    rows: int
    reason: str
    def __init__(
        self,
        kind: int,
        *,
        verb: int = 0,
        chain: bool = False,
        operation: int = 4,
        is_write: bool = False,
        pin: str | None = None,
        table: str | None = None,
        text: bytes | None = None,
        name: str | None = None,
        refusal: SqlError | None = None,
        parts: tuple[Template, ...] = (),
        profiles: tuple[int, ...] = (),
        keys: tuple[tuple[int, int, str], ...] = (),
        values: tuple[tuple[int, bool, int], ...] = (),
        rows: int = 1,
        one_shard_refusal: SqlError | None = None,
        keeps_bucket: bool = False,
        arbiters: tuple[Template, ...] = (),
        can_query: bool = False,
        shadow: Any = None,
        merge: MergePlan | None = None,
        alters: bool = False,
        cursor: str | None = None,
        parameters: tuple[int, ...] = (),
        is_reset: bool = False,
        is_exact: bool = False,
        returns: bool = False,
        writes_within: bool = False,
        row_keys: tuple[int, ...] = (),
        marks: Template | None = None,
        lock: bytes | None = None,
        owes_claims: bool = False,
        claim_homes: Template | None = None,
        is_hashed: bool = False,
        completion: int = 0,
        carry: CarryPlan | None = None,
        copy: CopyPlan | None = None,
        owes_away: bool = False,
        new_keys: int = 0,
        reason: str = "",
    ) -> None: ...
    def check_types(self, type_oids: list[int]) -> SqlError | None: ...
    def text_parameters(self, type_oids: list[int]) -> tuple[int, ...]: ...
    def check_locate(
        self, literals: list[tuple[bytes | None, int]], params: list[tuple[bytes | None, int]]
    ) -> list[int] | str: ...
    def check_features(
        self, literals: list[tuple[bytes | None, int]], params: list[tuple[bytes | None, int]]
    ) -> list[float]: ...
