LITERAL_INTEGER: int
LITERAL_NUMERIC: int
LITERAL_STRING: int
LITERAL_ESCAPE: int
LITERAL_DOLLAR: int
LITERAL_BITS: int
LITERAL_UNICODE: int
LITERAL_CONTINUED: int

def lift(sql: bytes) -> tuple[bytes, list[tuple[int, int, int]], bool]: ...
