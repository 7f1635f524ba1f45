"""A learning round in a process of its own, so that serving never waits for it.

Run as `python -m edgecl.runtime.round_process`.
"""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgecl.errors import EdgeclError
from edgecl.rounds.process import end_with_parent, run_when_idle

COMMAND = (sys.executable, "-m", "edgecl.runtime.round_process")
GRACE_SECONDS = 30.0       # beyond its time; then the process is killed
MOST_ANSWER = 2 ** 20      # characters


class RoundProcess:
    """A running round. Its answer is that of `Learner.round` as a dict, or {"error": {what, cure}}."""

    def __init__(self, state: Path, request: dict[str, Any]) -> None:
        self._answer = tempfile.TemporaryFile("w+")
        self._until, self._why = time.monotonic() + request["seconds"] + GRACE_SECONDS, ""
        self._child = subprocess.Popen([*COMMAND, os.fspath(state), json.dumps(request)], stdin=subprocess.DEVNULL,
                                       stdout=self._answer, start_new_session=True)

    def poll(self) -> dict[str, Any] | None:
        """The answer; None while the round runs."""
        if self._child.poll() is None:
            if time.monotonic() > self._until:
                self.stop("it did not end in its time")
            return None
        self._answer.seek(0)
        text = self._answer.read(MOST_ANSWER)
        self._answer.close()
        with suppress(ValueError):
            found: dict[str, Any] = json.loads(text)
            return found
        why = self._why or f"its process ended with status {self._child.returncode}"
        return {"error": {"what": f"the round was stopped: {why}", "cure": "nothing has changed; try again later"}}

    def stop(self, why: str = "the daemon is stopping") -> None:
        """Kill the round and its worker; the state stays as it was. why: for the answer."""
        self._why = self._why or why
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()


def main(state: str, text: str) -> int:
    """Run one round as requested, and print the answer."""
    run_when_idle()
    end_with_parent()
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[variable] = "1"
    from edgecl.learner import Learner
    from edgecl.rounds.gate import Bounds
    from edgecl.rounds.run import RoundRequest

    request = json.loads(text)
    bounds = Bounds(request.pop("max_regression")) if "max_regression" in request else Bounds()
    try:
        with closing(Learner.open(Path(state))) as learner:
            answer: dict[str, Any] = asdict(learner.round(RoundRequest(**request, bounds=bounds)))
    except EdgeclError as error:
        answer = {"error": {"type": type(error).__name__, "what": error.what, "cure": error.cure}}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
