"""Random scripts answer through Foreshard over four shards as one PostgreSQL answers them.

A bounded run: `FORESHARD_DIFFERENTIAL_S` seconds of scripts (10 unless it is set), from seed
`FORESHARD_DIFFERENTIAL_SEED` (1) on. Longer ones by `python -m tests.differential`, which also shortens the script that
ended in a difference.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.differential.report import Tally
from tests.differential.sides import open_world
from tests.differential.suite import Options, run

SECONDS = float(os.environ.get("FORESHARD_DIFFERENTIAL_S", "10"))
SEED = int(os.environ.get("FORESHARD_DIFFERENTIAL_SEED", "1"))
STATEMENTS = 400
SEEDS_MAX = 10_000
REFUSED_SHARE_MAX = 0.02  # of 41,553 statements 0.9 % were


def test_random_scripts_answer_as_one_postgres_and_few_of_them_are_refused(tmp_path: Path) -> None:
    tally = Tally()
    with open_world(tmp_path) as world:
        run(world, Options(SEED, SEEDS_MAX, STATEMENTS, SECONDS, shrink_s=10.0), tally)
        found = world.verify()
    print("\n".join(tally.lines()))
    assert found == ""
    assert tally.refused_share < REFUSED_SHARE_MAX, "\n".join(tally.lines())
