from foreshard._core.errors import SqlError
from foreshard.proxy.wire.endpoint import Endpoint

class Owner(Endpoint):
    wait_deadline: float

class BackendHome: ...

class Backend(Endpoint):
    shard: int
    parameters: dict[str, str]
    pid: int
    secret: bytes
    connected_at: float
    idle_since: float
    transactions: int
    is_tainted: bool
    close_reason: str | None
    bucket: int
    def has_owner(self) -> bool: ...
    def owner_id(self) -> int | None: ...
    def is_starting(self) -> bool: ...
    def prepared_count(self) -> int: ...
    def begin_cancel(self) -> None: ...
    def end_cancel(self, taken: bool) -> None: ...

def decode_error(body: bytes) -> SqlError: ...
