"""The limits that a worker sets itself: idle time only, and no more memory than allowed. Without torch."""
from __future__ import annotations

import os
import resource
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgecl.rounds.process import end_with_parent, run_when_idle, trim

if TYPE_CHECKING:
    from collections.abc import Callable

FAILING_SHARE = 1.02    # of the memory: allocations beyond it fail
PLANNED_SHARE = 0.97    # of the memory: forecasts must fit into it, and beyond it batches are cut into pieces
LOOK_SECONDS = 0.01     # seconds between two looks at the resident size
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "bad allocation",
         "Failed to allocate")


def step_back() -> None:
    """Take only time that no other process wants, and end with the parent."""
    end_with_parent()
    with suppress(OSError):
        os.nice(19)
    run_when_idle()


def status(*names: str) -> list[int]:
    """Bytes in /proc/self/status: VmRSS, VmHWM, VmData, ..."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines())
    return [1024 * int(lines[name].split()[0]) for name in names]


class Peak:
    """The peak resident bytes of this process."""

    def __init__(self) -> None:
        self._earlier = 0

    def __call__(self) -> int:
        self._earlier = max(self._earlier, status("VmHWM")[0])
        return self._earlier

    def raised_by(self, work: Callable[[], object]) -> int | None:
        """How far some work raises the resident size while it runs; None if the kernel does not say."""
        self()
        before = status("VmRSS")[0]
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            before = -1
        work()
        return max(status("VmHWM")[0] - before, 0) if before >= 0 else None


def limit(memory: int) -> None:
    """Make allocations fail that would take the process past `memory` resident bytes. Memory that is reserved but
    untouched so far, such as stacks and the workspace of BLAS, does not count."""
    data, anonymous, files = status("VmData", "RssAnon", "RssFile")
    most = max(int(FAILING_SHARE * memory) - files, 0) + max(data - anonymous, 0)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def out_of_memory(error: Exception) -> bool:
    """Whether that is why something failed, in Python, torch or ONNX Runtime."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)


class Watch:
    """Polls the resident size. tight: whether it has come close to the limit since the last call."""

    def __init__(self, memory: int) -> None:
        self._most, self._close = int(PLANNED_SHARE * memory), False
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self._close |= status("VmRSS")[0] > self._most
            time.sleep(LOOK_SECONDS)

    def tight(self) -> bool:
        """Called once per step; freed memory is given back to the system."""
        close, self._close = self._close, False
        trim()
        return close


class Stop:
    """Whether the round was asked to end, and how much of its time is left."""

    def __init__(self, seconds: float) -> None:
        self.begun, self.seconds, self.asked = time.monotonic(), seconds, False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True

    @property
    def left(self) -> float:
        """Seconds."""
        return self.begun + self.seconds - time.monotonic()
