"""The Foreshard proxy: sessions, pools, routing, triggers and control."""

if __name__ != "foreshard.proxy":
    raise ImportError(f"import this package as foreshard.proxy, not as {__name__}")

__version__ = "0.1.0"
