"""Lists of values that shards have made of a group, put together."""

def check_merge_arrays(
    parts: list[bytes],
    binary: bool,
    oid: int,
    delimiter: bytes | None,
    keys: list[tuple[list[bytes], bool, int, int, bool, bool]],
) -> bytes | None: ...
