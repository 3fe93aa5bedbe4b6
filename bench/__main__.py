"""Run benches by name, or all of them."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import time
from pathlib import Path

import bench
from bench import RESULTS, Failed, Options, report


def discover() -> list[str]:
    """Names of all benches: the subpackages."""
    return sorted(found.name for found in pkgutil.iter_modules(bench.__path__) if found.ispkg)


def run_bench(name: str, options: Options) -> Path:
    """Run one bench and write its result; answers the JSON file's path. Failed with what must not have been."""
    result = importlib.import_module(f"bench.{name}").run(options)
    path = report.write_result(name, result, options)
    if result.get("failures"):
        raise Failed("\n".join(result["failures"]))
    return path


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    names = discover()
    parser = argparse.ArgumentParser(prog="python -m bench", description="Foreshard's benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all when left out")
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes, figures mean little")
    parser.add_argument("--seed", type=int, default=1, help="first seed (default 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON and figures (default bench/results)")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.names) - set(names))
    if unknown:
        parser.error(f"no bench is called {', '.join(unknown)}; there are {', '.join(names)}")
    options = Options(small=chosen.small, seed=chosen.seed, out=chosen.out)
    options.out.mkdir(parents=True, exist_ok=True)
    print(report.header(options))
    status = 0
    for name in chosen.names or names:
        print(f"\n== {name} ==", flush=True)
        started = time.monotonic()
        try:
            shown = str(run_bench(name, options))
        except Failed as error:
            shown, status = f"FAILED: {error}", 1
        print(f"{time.monotonic() - started:.1f} s; {shown}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
