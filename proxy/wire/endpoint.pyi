from asyncio import AbstractEventLoop
from collections.abc import Callable

class Endpoint:
    fd: int
    received_at: float
    sent_at: float
    received_bytes: int
    sent_bytes: int

class Listener(Endpoint):
    def __init__(self, reactor: Reactor, fd: int, callback: Callable[[], None]) -> None: ...
    def pause(self, paused: bool) -> None: ...
    def stop(self) -> None: ...

class Reactor:
    now: float
    is_hasty: bool
    def __init__(self, loop: AbstractEventLoop, on_failure: Callable[[Endpoint, Exception], None]) -> None: ...
    def stop(self) -> None: ...
    def run_ready(self) -> None: ...
