from foreshard._core.errors import SqlError
from foreshard.proxy.wire.backend import Backend, Owner
from foreshard.proxy.wire.pool import Hub

class Session(Owner):
    hub: Hub
    parameters: tuple[tuple[str, str], ...]
    links: list[Backend]
    active: Backend | None
    explicit: bool
    failed: bool
    pinned: str | None
    transactions: int

def failed_transaction() -> SqlError: ...
