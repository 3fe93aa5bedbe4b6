"""Shared state between processes: a reader sees a whole map and a whole model while another process changes them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from foreshard._core.shared import SharedState

EPOCHS = 20  # seen by the reader, which a busy machine runs in turns with the writer
DEADLINE_S = 60.0
WRITER = """
import sys
from foreshard._core.shared import SharedState
state = SharedState.open(sys.argv[1])
print("ready", flush=True)
number = 0
while True:
    number += 1
    value = float(number)
    state.set_bucket_map([number % 2] * 4096, number)
    state.set_profile(0, [[value] * 4] * 4, [0] * 4, [1e18] * 4, [value] * 4, number, number)
"""


def test_a_reader_never_sees_half_a_change(tmp_path: Path) -> None:
    state = SharedState.create(tmp_path / "state", 2, 1)
    with subprocess.Popen([sys.executable, "-c", WRITER, state.path], stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            check_reads(state)
        finally:
            writer.kill()


def check_reads(state: SharedState) -> None:
    """Read both over and over, until enough changes have been seen."""
    epochs = set()
    deadline = time.monotonic() + DEADLINE_S
    while len(epochs) < EPOCHS:
        assert time.monotonic() < deadline
        epoch, owners = state.bucket_map()
        if epoch:
            assert owners.min() == owners.max() == epoch % 2
            epochs.add(epoch)
        profile = state.profile(0)
        assert profile.weights == [[float(profile.version)] * 4] * 4
        # The hot path does not wait for an interrupted writer: its words are valid, perhaps of two versions.
        assert all(cost >= 0 and cost % 1 == 0 for cost in state.predict(0, [1, 1, 1, 1]))
