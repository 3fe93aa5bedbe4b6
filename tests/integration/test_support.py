"""The test suite's own shards: gone when the test process is, however it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.waiting import is_running, wait_until

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys
from tests.support.postgres import TestInstances
instances = TestInstances()
print(instances.folder, *instances._cluster.pids().values(), flush=True)
sys.stdin.read()
"""


def test_shards_end_with_a_test_process_that_was_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as holder:
        assert holder.stdout is not None
        folder, *pids = holder.stdout.readline().split()
        assert len(pids) == 3
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        os.kill(holder.pid, signal.SIGKILL)
    wait_until(lambda: not Path(folder).exists())
    assert not any(is_running(int(pid)) for pid in pids)
