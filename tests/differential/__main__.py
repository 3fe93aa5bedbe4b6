"""`python -m tests.differential`: random scripts on one PostgreSQL and through Foreshard over four shards."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.differential.report import Tally
from tests.differential.sides import open_world
from tests.differential.suite import Options, run


def main() -> int:
    """The command; exit code 1 when anything differed."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="first seed (default 1)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds (default 1)")
    parser.add_argument("--statements", type=int, default=500, help="statements per seed (default 500)")
    parser.add_argument("--seconds", type=float, default=0.0, help="begin no further seed after so many seconds")
    parser.add_argument("--shrink", type=float, default=60.0, help="seconds for shortening a script that fails (60)")
    parser.add_argument("--keep-going", action="store_true", help="go on with the next seed after a difference")
    parser.add_argument("--verify", action="store_true", help="end with foreshard verify")
    parser.add_argument("--json", type=Path, help="write the counts there")
    chosen = parser.parse_args()
    options = Options(
        chosen.seed, chosen.seeds, chosen.statements, chosen.seconds, chosen.shrink, keep_going=chosen.keep_going
    )
    tally, found = Tally(), ""
    with tempfile.TemporaryDirectory(prefix="foreshard-differential-") as folder, open_world(Path(folder)) as world:
        try:
            run(world, options, tally)
        except AssertionError:
            pass
        finally:
            found = world.verify() if chosen.verify else ""
    print("\n".join(tally.lines()))
    for mismatch in tally.mismatches:
        print(f"\nDIFFERENT: {mismatch}")
    if found:
        print(f"\nforeshard verify:\n{found}")
    if chosen.json:
        chosen.json.write_text(json.dumps(tally.as_json() | {"verify": found}, indent=1))
    return 1 if tally.mismatches or found else 0


if __name__ == "__main__":
    sys.exit(main())
