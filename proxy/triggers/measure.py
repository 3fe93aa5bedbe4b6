"""What one call used: CPU, memory above the baseline, bytes read and written, wall time.

One call at a time per process. Descriptors of /proc stay open, so that a measurement costs about 20 us in all. A
quantity that the platform does not tell is None, never zero.

- CPU: all threads of the process, and children that the function waited for.
- Memory: the highest resident size during the call, above the resident size before it, times the wall time. A call that
  is content with memory its process already holds has zero.
- I/O: bytes of all read and write calls (rchar + wchar of /proc/self/io: exact, where the kernel's count of blocks is
  page-granular and misses what the page cache answers), the event's own SQL included.
- Network: not measured yet, so unknown.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time

import msgspec

PAGE_BYTES = resource.getpagesize()
STATUS_BYTES_MAX = 4096
STATM_BYTES_MAX = 128
IO_BYTES_MAX = 512
RESET_PEAK = b"5"  # proc(5): /proc/pid/clear_refs


class Usage(msgspec.Struct, frozen=True):
    """What one call used; None where it is unknown."""

    cpu_s: float
    memory_byte_s: float | None
    io_bytes: float | None
    network_bytes: float | None
    wall_s: float
    memory_bytes_peak: int | None  # above the baseline


class Meter:
    """Measures the calls of this process, one after the other. Owns descriptors of /proc until `close`."""

    def __init__(self) -> None:
        self._clear_refs = _open("/proc/self/clear_refs", os.O_WRONLY)
        self._status = _open("/proc/self/status", os.O_RDONLY)
        self._statm = _open("/proc/self/statm", os.O_RDONLY)  # a third of the cost of status
        self._io = _open("/proc/self/io", os.O_RDONLY)
        self._started_ns = self._cpu_ns = self._memory_bytes = 0
        self._io_bytes: int | None = None
        self._io_bytes_own = 0  # what reading /proc adds to every call
        if not self._can_reset_peak():
            self._close_one("_clear_refs")
        self.start()
        self._io_bytes_own = int(self.stop().io_bytes or 0)

    def start(self) -> int:
        """Begin a call; the resident bytes before it, 0 when unknown."""
        self._memory_bytes = 0
        if self._clear_refs is not None:
            os.write(self._clear_refs, RESET_PEAK)
            self._memory_bytes = self._read_resident()
        self._io_bytes = self._read_io()
        self._cpu_ns = _cpu_ns()
        self._started_ns = time.perf_counter_ns()
        return self._memory_bytes

    def stop(self) -> Usage:
        """End the call that `start` began."""
        wall_s = (time.perf_counter_ns() - self._started_ns) * 1e-9
        cpu_s = (_cpu_ns() - self._cpu_ns) * 1e-9
        io_bytes = self._read_io()
        peak: int | None = None
        if self._clear_refs is not None:
            peak = max(self._read_peak() - self._memory_bytes, 0)
        return Usage(
            cpu_s=cpu_s,
            memory_byte_s=None if peak is None else peak * wall_s,
            io_bytes=None
            if io_bytes is None or self._io_bytes is None
            else float(max(io_bytes - self._io_bytes - self._io_bytes_own, 0)),
            network_bytes=None,
            wall_s=wall_s,
            memory_bytes_peak=peak,
        )

    def close(self) -> None:
        """Give the descriptors back."""
        for name in ("_clear_refs", "_status", "_statm", "_io"):
            self._close_one(name)

    def _read_peak(self) -> int:
        """VmHWM in bytes."""
        if self._status is None:
            return 0
        text = os.pread(self._status, STATUS_BYTES_MAX, 0)
        start = text.find(b"VmHWM:")
        return int(text[start + 6 : text.index(b"kB", start)]) * 1024 if start >= 0 else 0

    def _read_resident(self) -> int:
        """Resident bytes now."""
        if self._statm is None:
            return 0
        return int(os.pread(self._statm, STATM_BYTES_MAX, 0).split(None, 2)[1]) * PAGE_BYTES

    def _read_io(self) -> int | None:
        """Bytes read and written by system calls so far."""
        if self._io is None:
            return None
        words = os.pread(self._io, IO_BYTES_MAX, 0).split(None, 4)
        return int(words[1]) + int(words[3])

    def _can_reset_peak(self) -> bool:
        if self._clear_refs is None or self._status is None or self._statm is None:
            return False
        try:
            os.write(self._clear_refs, RESET_PEAK)
        except OSError:
            return False
        return self._read_peak() > 0

    def _close_one(self, name: str) -> None:
        descriptor = getattr(self, name)
        if descriptor is not None:
            os.close(descriptor)
            setattr(self, name, None)


def resident_bytes(pid: int) -> int:
    """Resident bytes of another process; 0 when it is gone or the platform does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * PAGE_BYTES
    return 0


def _open(path: str, flags: int) -> int | None:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError:
        return None


def _cpu_ns() -> int:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time_ns() + int((children.ru_utime + children.ru_stime) * 1e9)
