class ReplyReader:
    rows: list[bytes]
    description: bytes | None
    tag: bytes | None
    is_suspended: bool
    error: bytes | None
    others: list[bytes]
    rows_size: int
    def take_in(self, data: bytes) -> None: ...
