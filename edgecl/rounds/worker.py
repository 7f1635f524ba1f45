"""Start, watch and end the worker process of a learning round."""
from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.errors import BadInput, BudgetError, StateError

if TYPE_CHECKING:
    from edgecl.rounds.job import Job

COMMAND = (sys.executable, "-m", "edgecl.training.worker.main")
GRACE = 0.5     # seconds that a worker has to end after its time, and again once it is asked to
LONGER = 1.05   # times its time after which it is killed, beside twice those
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Large blocks go back to the system at once, so that the resident size is what is used; glibc raises both otherwise.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**18), "MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_ARENA_MAX": "1"}

Watch = Callable[[dict[str, float]], None]


def run(folder: Path, job: Job, watch: Watch | None = None) -> dict[str, Any]:
    """What the worker answers for the job in a folder. watch: called with each line of progress.

    Raises BadInput without torch, BudgetError if it refuses or is late, StateError if it dies.
    """
    if find_spec("torch") is None:
        raise BadInput("learning rounds need torch", "pip install 'edgecl[train]'")
    environment = {**os.environ, **dict.fromkeys(ONE_THREAD, str(job.threads)), **MALLOC}
    with tempfile.TemporaryFile("w+") as errors:
        begun = time.monotonic()
        child = subprocess.Popen([*COMMAND, os.fspath(folder)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=errors, text=True, env=environment)
        timers = [threading.Timer(job.seconds + GRACE, child.terminate),
                  threading.Timer(LONGER * job.seconds + 2 * GRACE, child.kill)]
        try:
            for timer in timers:
                timer.daemon = True
                timer.start()
            assert child.stdout is not None
            for line in child.stdout:
                if watch and line.startswith("{") and line.endswith("}\n"):
                    watch(json.loads(line))
            child.wait()
        finally:
            for timer in timers:
                timer.cancel()
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        errors.seek(0)
        last = ([line.strip() for line in errors if line.strip()] or ["no message"])[-1][:200]
    return _answer(folder, job, child.returncode, time.monotonic() - begun, last)


def _answer(folder: Path, job: Job, status: int, seconds: float, last: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    except (OSError, ValueError):
        if status < 0 and seconds > job.seconds:
            raise BudgetError(f"the worker of the round was not done after {seconds:.0f} s, as it takes only the time "
                              "that other programs leave", f"give --time {math.ceil(2 * seconds)}s or more") from None
        why = f"was killed by signal {-status}" if status < 0 else f"ended with status {status} ({last})"
        raise StateError(f"the worker of the round {why}", "nothing has changed; give it more --time or --memory, or "
                         "see what else this machine runs") from None
    if "refused" in found:
        raise BudgetError(found["refused"]["what"], found["refused"]["cure"])
    return found
