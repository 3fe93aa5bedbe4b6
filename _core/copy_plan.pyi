from enum import IntEnum

class CopyForm(IntEnum):
    COPY_TEXT = 0
    COPY_CSV = 1
    COPY_BINARY = 2

class CopyPlan:
    form: int
    is_from: bool
    has_header: bool
    delimiter: int
    quote: int
    escape: int
    null: bytes
    default: bytes | None
    fields: tuple[tuple[int, bool, bool], ...]
    own: int
    generates: bool
    is_placed: bool
    is_everywhere: bool
    moments: tuple[int, ...]
    follows: bool
    def __init__(
        self,
        form: int,
        *,
        is_from: bool,
        has_header: bool = ...,
        delimiter: bytes = ...,
        quote: bytes = ...,
        escape: bytes = ...,
        null: bytes | None = ...,
        default: bytes | None = ...,
        fields: tuple[tuple[int, bool, bool], ...] = ...,
        own: int = ...,
        generates: bool = ...,
        is_placed: bool = ...,
        is_everywhere: bool = ...,
        moments: tuple[int, ...] = ...,
        follows: bool = ...,
    ) -> None: ...
