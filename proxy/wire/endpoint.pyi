from asyncio import AbstractEventLoop
from collections.abc import Callable

class Endpoint:
    fd: int
    received_bytes: int
    sent_bytes: int

class Reactor:
    def __init__(self, loop: AbstractEventLoop, on_failure: Callable[[Endpoint, Exception], None]) -> None: ...
    def stop(self) -> None: ...
    def run_ready(self) -> None: ...
