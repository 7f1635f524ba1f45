"""How a worker confines itself: priority, memory that it must not pass, and what its work will take. Without torch."""
from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgecl.backbones.surgery import Anatomy, Cut

TORCH = 262 * 10**6         # resident with torch, numpy and onnx loaded and a first pass done, measured with torch 2.13
LIVE = 2.6                  # times the activations above a cut: they, their gradients, and what a layer works with
WEIGHTS = 4                 # of the learned weights: they, gradient, speed, and their copy in the file
HARD = 1.03                 # times the memory: where allocations fail
SLACK = 0.97                # of the memory: where batches begin to be cut into smaller pieces
PDEATHSIG = 1               # of prctl


def step_back() -> None:
    """Take only time that no one else wants, and end with the parent."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)
    with suppress(OSError):
        os.nice(19)
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def status(*names: str) -> list[int]:
    """Bytes that /proc/self/status tells: VmRSS, VmHWM, VmData, ..."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines())
    return [1024 * int(lines[name].split()[0]) for name in names]


def peak_rss() -> int:
    """The most resident bytes that this process has had."""
    return status("VmHWM")[0]


def forget_peak() -> None:
    """Let `peak_rss` begin anew, where the kernel allows it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def limit(memory: int) -> None:
    """Let allocations fail that would take the process past `memory` resident bytes."""
    resident, data = status("VmRSS", "VmData")
    most = data + max(int(HARD * memory) - resident, 0)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def per_sample(anatomy: Anatomy, cut: Cut) -> float:
    """Bytes that one sample more takes in a pass above a cut."""
    return LIVE * 4 * anatomy.live(cut)


def forecast(anatomy: Anatomy, cut: Cut, samples: int) -> int:
    """Bytes at the peak of a round above a cut, one sample a pass; samples: those whose activations are held."""
    kept = samples * cut.values * (2 if len(cut.shape) == 3 else 4)
    return math.ceil(TORCH + WEIGHTS * 4 * cut.weights + 2 * kept + per_sample(anatomy, cut))


class Watch:
    """Reads the resident size all the time. tight: whether it has come close to what is allowed since last asked."""

    def __init__(self, memory: int) -> None:
        self.memory, self._close = memory, False
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self._close |= status("VmRSS")[0] > SLACK * self.memory
            time.sleep(0.02)

    def tight(self) -> bool:
        """Asked once a step."""
        close, self._close = self._close, False
        return close
