"""The fault matrix: what was killed while buckets move, where, what clients saw, what the data said afterwards.

Tests of moves record one row each (`Case.record`). `python -m tests.support.fault_matrix` (`make fault-matrix`) runs
them and writes tests/fault/MATRIX.md. In any other run a row must be as the document has it: the same victim, place and
data, and clients that saw nothing but what it says.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.support.moving import Mover, MovingWorld
from tests.support.verified import assert_verified

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "tests" / "fault" / "MATRIX.md"
FILES = (
    "tests/fault/test_moves_killed.py", "tests/fault/test_moves_cut.py", "tests/fault/test_moves_network.py",
    "tests/fault/test_move_killed.py",
)  # fmt: skip
WRITING = "FORESHARD_FAULT_MATRIX"  # environment: the folder for fragments of a run that writes the document
NOBODY = "no clients"
NONE = "nothing"
ENDED = "connections ended"
# Not the SQLSTATE that a client happened to get, but what it means: which of them it is, is a matter of moments.
LOST = {"08000", "08003", "08006", "57P01", "57P02", "57P03"}
HEADINGS = ("killed or cut", "where", "clients saw", "the data afterwards", "test")
HEAD = """# What dies while buckets move

Written by `make fault-matrix`, which runs the tests of the last column; by hand nothing is changed here. Those tests
fail when a run differs from its row, or when clients see anything that it does not name.

- *Clients* insert, update, read (one row, and a scattered sum) all the time in both protocols, and keep ledgers of what
  they were told; the next thing they are told, and all rows at the end, must agree with those. *nothing*: no error,
  no connection lost, only waiting. *connections ended*: 08006, 57P01, 57P02, 57P03, a closed connection, or none to be
  had for a while; they connect again and go on.
- *The data*: rows that clients know of and that are not there, rows that are there twice, findings of
  `foreshard verify` (every row on the shard that owns its bucket, and more), the states in which the moves ended, which
  processes the supervisor has started again.

"""


@dataclass(frozen=True)
class Row:
    """One line of the document."""

    case: str
    victim: str
    where: str
    seen: list[str]
    data: str
    figures: dict[str, Any] = field(default_factory=dict)  # of one run: not in the document

    def line(self) -> str:
        seen = ", ".join(self.seen)
        return f"| {self.victim} | {self.where} | {seen} | {self.data} | `{self.case}` |"


class Case:
    """A test that records its row."""

    def __init__(self, name: str) -> None:
        self.name = name

    def record(self, victim: str, where: str, seen: Iterable[str], data: str, **figures: Any) -> None:
        """What has come of it; fails where the document says otherwise, unless it is being written."""
        row = Row(self.name, victim, where, sorted(seen) or [NONE], data, figures)
        folder = os.environ.get(WRITING)
        if folder:
            path = Path(folder) / f"{re.sub('[^a-z0-9]+', '-', self.name)}.json"
            path.write_text(json.dumps(asdict(row)))
            return
        known = read_document().get(self.name)
        assert known is not None, f"{self.name} is not in {DOCUMENT.name}: make fault-matrix"
        assert (row.victim, row.where, row.data) == (known.victim, known.where, known.data), (row, known)
        worse = set(row.seen) - {*known.seen, NONE}
        assert not worse, f"clients saw {worse}, of which {DOCUMENT.name} knows nothing: {figures}"

    def record_moves(self, victim: str, where: str, world: MovingWorld, seen: Iterable[str] = ()) -> None:
        """The row of a world that was checked and verified; `seen` is what others were told than its clients."""
        clients = world.clients
        states = Counter(str(state[4]) for state in world.new_states())
        data = f"lost {world.lost}, doubled {world.doubled}, verify clean, moves {' and '.join(sorted(states))}"
        if restarted := world.restarted():
            data += f"; started again: {', '.join(restarted)}"
        self.record(
            victim, where, seen_by(clients) | set(seen), data, moves=dict(states),
            errors=dict(sum((client.errors for client in clients), Counter())),
            cuts=sum(client.cuts for client in clients),
            acts=sum(client.acts for client in clients), slowest_s=max(client.slowest_s for client in clients),
        )  # fmt: skip


def end_moves(
    case: Case, world: MovingWorld, victim: str, where: str, *, may_break: bool = True, seen: Iterable[str] = ()
) -> None:
    """The clients were told the truth, nothing is lost, every move was made; the row of that."""
    world.check(may_break=may_break)
    assert {state[4] for state in world.states()} == {"done"}
    assert_verified(world.proxies[0].configuration)
    case.record_moves(victim, where, world, seen)


def seen_by(clients: Iterable[Mover]) -> set[str]:
    """What clients were told beside answers, in the document's words."""
    seen = set()
    for client in clients:
        codes = {error.split()[0] for error in client.errors}
        if client.cuts > sum(client.errors.values()) or codes & LOST:
            seen.add(ENDED)
        seen |= {f"refused ({code})" for code in codes - LOST}
    return seen


def read_document() -> dict[str, Row]:
    """The rows of the committed document, by test."""
    found = {}
    for line in DOCUMENT.read_text().splitlines() if DOCUMENT.exists() else ():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == len(HEADINGS) and cells[-1].startswith("`"):
            case = cells[4].strip("`")
            assert case not in found, f"{case} is there twice"
            found[case] = Row(case, cells[0], cells[1], cells[2].split(", "), cells[3])
    return found


def write_document(rows: Sequence[Row]) -> None:
    """In the order of the tests; what clients saw in earlier runs is kept."""
    known = read_document()
    lines = [HEAD + f"| {' | '.join(HEADINGS)} |", "|" + "---|" * len(HEADINGS)]
    for row in rows:
        seen = set(row.seen) | set(known[row.case].seen if row.case in known else ())
        lines.append(Row(row.case, row.victim, row.where, sorted(seen - {NONE}) or [NONE], row.data).line())
    DOCUMENT.write_text("\n".join(lines) + "\n")


def case_names() -> list[str]:
    """The tests that have a row, as pytest collects them."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *FILES], cwd=ROOT, capture_output=True, text=True, check=True)
    return [line.rpartition("/")[2].replace(".py::", "::") for line in done.stdout.splitlines() if "::" in line]


def main() -> int:
    """Run the tests and write the document; words are more arguments of pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "-q", *FILES, *sys.argv[1:]]
        status = subprocess.run(command, cwd=ROOT, env={**os.environ, WRITING: folder}, check=False).returncode
        found = {(row := Row(**json.loads(path.read_text()))).case: row for path in Path(folder).glob("*.json")}
    for row in found.values():
        print(row.case, ", ".join(row.seen), row.figures)
    known = read_document() | found  # arguments may have chosen some of the tests
    rows = [known[name] for name in case_names() if name in known]
    if status == 0:
        write_document(rows)
    return status


if __name__ == "__main__":
    sys.exit(main())
