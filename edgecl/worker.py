"""Start, watch and end the worker process of a learning round."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.errors import BadInput, BudgetError, StateError

if TYPE_CHECKING:
    from edgecl.job import Job

COMMAND = (sys.executable, "-m", "edgecl.training.round")
GRACE = 0.5     # seconds that a worker has to end by itself after its time, and again after being asked to
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Large blocks go back to the system at once: what is resident is what is used. glibc would else raise both by itself.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**18), "MALLOC_MMAP_THRESHOLD_": str(2**18), "MALLOC_ARENA_MAX": "1"}

Watch = Callable[[dict[str, float]], None]


def run(folder: Path, job: Job, watch: Watch | None = None) -> dict[str, Any]:
    """What the worker answers for the job in a folder. watch: called with each line of progress.

    Raises BadInput or BudgetError where it refuses, StateError where it dies.
    """
    if find_spec("torch") is None:
        raise BadInput("learning rounds need torch", "pip install 'edgecl[train]'")
    environment = {**os.environ, **dict.fromkeys(ONE_THREAD, str(job.threads)), **MALLOC}
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen([*COMMAND, os.fspath(folder)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=errors, text=True, env=environment)
        timers = [threading.Timer(job.seconds + GRACE, child.send_signal, [signal.SIGTERM]),
                  threading.Timer(job.seconds * 1.05 + 2 * GRACE, child.kill)]
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
    return _answer(folder, child.returncode, last)


def _answer(folder: Path, status: int, last: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "result.json").read_text("utf-8"))
    except (OSError, ValueError):
        why = f"was killed by signal {-status}" if status < 0 else f"ended with status {status} ({last})"
        raise StateError(f"the worker of the round {why}", "nothing has changed; give it more --time or --memory, or "
                         "look at what else this machine runs") from None
    if "refused" in found:
        raise BudgetError(found["refused"]["what"], found["refused"]["cure"])
    return found
