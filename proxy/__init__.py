"""The Foreshard proxy: sessions, pools, routing, triggers and control."""

import os

if __name__ != "foreshard.proxy":
    raise ImportError(f"import this package as foreshard.proxy, not as {__name__}")

# NumPy's arrays here are small: threads of its linear algebra would only cost each process 0.15 s of CPU at its start.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
