"""One method and seed of `edgecl bench`, in a process of its own: a job as JSON on stdin, JSON lines on stdout.

    {"step": 1, "of": 5, "accuracy": 0.9}      after each step
    {"result": {...}}                          with edgecl.evaluation.bench.RESULT_FIELDS, at the end
    {"refused": {"what": "...", "cure": "..."}}    instead, if it can't be done
"""
from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgecl.errors import EdgeclError
from edgecl.evaluation import metrics
from edgecl.evaluation.bench import BenchJob, Tell, prepare
from edgecl.evaluation.scenarios import ONLINE_BATCH, ScenarioStep, seen_classes
from edgecl.samples import kind_of
from edgecl.training.bench.options import RunOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.evaluation.datasets import Split

BACKBONES = {"image": "cnn", "window": "tcn", "feature": "mlp"}    # if none is named
TEST_BLOCK = 256        # test samples asked at once: their copies count in the peak
UNKNOWN_CLASS = -1      # the answer to a sample whose class has not been taught: always wrong


class Learns(Protocol):
    """What is judged: `edgecl.training.bench.session.MethodRun`."""

    @property
    def nbytes(self) -> int:
        """All that is kept between rounds besides the served network."""

    def learn(self, x: NDArray[Any], y: NDArray[np.int64]) -> None:
        """One round."""

    def predict(self, x: NDArray[Any], among: Sequence[int] | None = None) -> NDArray[np.int64]:
        """int64 classes [n]."""


def serve(session: Callable[[], Callable[..., Learns]]) -> int:
    """Read a job, run it, report. session: gives the class; called only when the data are in memory, since torch's
    import and a whole data set being unpacked would add up in the peak."""
    job = BenchJob(**json.load(sys.stdin))
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)      # whatever else prints, prints on stderr

    def tell(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=channel, flush=True)

    try:
        split, steps = prepare(job)
        settings = session_settings(job, split)
        rounds = [(split.x_train[step.train], split.y_train[step.train]) for step in steps]
        split = replace(split, x_train=split.x_train[:0].copy(), y_train=split.y_train[:0].copy())
        result = judge(session()(**settings), job, rounds, split, steps, tell)
    except EdgeclError as error:
        tell({"refused": {"what": error.what, "cure": error.cure}})
        return 1
    tell({"result": {**result, "peak_rss_bytes": peak_rss()}})
    return 0


def session_settings(job: BenchJob, split: Split) -> dict[str, Any]:
    """The arguments of `MethodRun` for a job."""
    options = RunOptions(job.epochs, job.batch or (ONLINE_BATCH if job.scenario == "online" else 32), job.rate,
                         blocks=job.blocks)
    return {"method": job.method, "network": job.backbone or BACKBONES[kind_of(split.x_train)],
            "input_shape": split.x_train.shape[1:], "dtype": split.x_train.dtype.name, "memory": job.memory,
            "seed": job.seed, "options": options}


def judge(session: Learns, job: BenchJob, rounds: list[tuple[NDArray[Any], NDArray[np.int64]]], split: Split,
          steps: Sequence[ScenarioStep], tell: Tell) -> dict[str, Any]:
    """Teach the steps in order and test after each; all of the result but the peak memory of the process.

    rounds: the training samples and classes of each step, taken from the list as they are taught, since what was taught
    needs no more memory; split: has the test samples.

    memory_bytes: the most that was kept after any step; samples_per_second: new samples, by the seconds of `learn`
    alone; task_aware_matrix: the matrix with the task known, None without job.multi_head; units_used:
    see `MethodRun.usage`, None without sub-networks. tell: called after each step with {"step", "of",
    "accuracy"}.
    """
    matrix: list[list[float]] = []
    over_seen: list[float] = []
    aware: list[list[float]] = []
    kept, seconds, tests = 0, 0.0, [step.test for step in steps]
    for number in range(1, len(steps) + 1):
        x, y = rounds.pop(0)
        started = time.perf_counter()
        session.learn(x, y)
        seconds += time.perf_counter() - started
        kept = max(kept, int(session.nbytes))
        seen = seen_classes(steps[:number])
        known = np.flatnonzero(np.isin(split.y_test, seen))
        answers = np.full(len(split.y_test), UNKNOWN_CLASS, np.int64)
        answers[known] = predicted(session, split.x_test, known)
        if job.multi_head:
            aware.append([metrics.accuracy(split.y_test[step.test], predicted(session, split.x_test, step.test,
                                                                              step.classes))
                          for step in steps[:number]] + [0.0] * (len(steps) - number))
        matrix.append(metrics.accuracy_row(split.y_test, answers, tests))
        over_seen.append(metrics.step_accuracy(split.y_test, answers, seen))
        tell({"step": number, "of": len(steps), "accuracy": over_seen[-1]})
    return {"method": job.method, "data": job.data, "scenario": job.scenario, "seed": job.seed,
            "classes": len(split.class_names), "steps": len(steps), "accuracy_matrix": matrix,
            "step_accuracy": over_seen, "average_incremental_accuracy": metrics.average_incremental_accuracy(over_seen),
            "final_accuracy": over_seen[-1], "forgetting": metrics.forgetting(matrix),
            "task_aware_accuracy": metrics.task_aware_accuracy(aware[-1]) if aware else None,
            "task_aware_matrix": aware or None, "units_used": getattr(session, "usage", dict)() or None,
            "memory_bytes": kept, "train_seconds": seconds,
            "samples_per_second": sum(len(step.train) for step in steps) / seconds}


def predicted(session: Learns, x: NDArray[Any], rows: NDArray[np.int64],
              among: Sequence[int] | None = None) -> NDArray[np.int64]:
    """The session's answers [n] to these rows of x."""
    return np.concatenate([session.predict(x[rows[start:start + TEST_BLOCK]], among)
                           for start in range(0, len(rows), TEST_BLOCK)])


def peak_rss() -> int:
    """The peak resident bytes of this process. getrusage would give its parent's if those were more."""
    status = Path("/proc/self/status").read_text("ascii", "replace")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def _session() -> Callable[..., Learns]:
    from edgecl.training.bench.session import MethodRun

    return MethodRun


if __name__ == "__main__":
    sys.exit(serve(_session))
