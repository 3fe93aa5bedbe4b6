"""The compiled, sans-I/O heart of Foreshard: bytes in, decisions and bytes out."""

if __name__ != "foreshard._core":
    raise ImportError(f"import this package as foreshard._core, not as {__name__}")
