"""The worker of a learning round: `python -m edgecl.training.round FOLDER`, a job in, a candidate out; see `edgecl.job`.

It limits itself before it loads anything large, tells its progress in lines of JSON, and answers a SIGTERM or the end of
its time with what it has learned so far. The frozen trunk runs in a process before it, so that ONNX Runtime and torch
are never in memory together.
"""
from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edgecl.errors import BudgetError, EdgeclError
from edgecl.job import Job, Stored, answer
from edgecl.training import confines

if TYPE_CHECKING:
    from edgecl.backbones.surgery import Anatomy, Cut


class Stop:
    """Whether the round was asked to end, or its time is over."""

    def __init__(self, seconds: float) -> None:
        self.begun, self.seconds, self.asked, self.tail = time.monotonic(), seconds, False, 0.0
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True

    @property
    def left(self) -> float:
        """Seconds."""
        return self.begun + self.seconds - time.monotonic()


def main(folder: Path) -> int:
    job, stop = Job.read(folder), None
    confines.step_back()
    stop = Stop(job.seconds)
    try:
        anatomy, cut = choose(folder, job)
        prepare_activations(folder, job, cut, stop)
        from edgecl.training.tuning import tune

        answer(folder, **tune(folder, job, anatomy, cut, stop, tell))
    except EdgeclError as error:
        answer(folder, refused={"what": error.what, "cure": error.cure}, peak_rss_bytes=confines.peak_rss())
    return 0


def tell(**values: float) -> None:
    """A line of progress."""
    print(json.dumps(values), flush=True)


def choose(folder: Path, job: Job) -> tuple[Anatomy, Cut]:
    """The backbone, and the lowest cut that the memory is likely to allow: freezing from below. Raises BudgetError."""
    from edgecl.backbones.surgery import ADAPTER_INPUT, Anatomy

    anatomy, samples = Anatomy((folder / "backbone.onnx").read_bytes()), Stored.read(folder)
    if not job.codec:
        return anatomy, anatomy.cut_at(ADAPTER_INPUT)
    lowest, cuts = anatomy.cut(job.blocks), anatomy.cuts()
    above = [cut for cut in cuts[cuts.index(lowest):]]
    needs = [confines.forecast(anatomy, cut, len(samples.column)) for cut in above]
    for cut, need in zip(above, needs):
        if need <= job.memory:
            return anatomy, cut
    raise BudgetError(f"a round on {len(samples.column)} samples takes {min(needs)} bytes of memory at least, "
                      f"{job.memory} are allowed", f"give --memory {min(needs)} or more")


def prepare_activations(folder: Path, job: Job, cut: Cut, stop: Stop) -> None:
    """Write activations.npy and, exact, probes_in.npy, by a child process. Raises EdgeclError."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            from edgecl.training.trunk import run

            run(folder, job, cut, stop)
            status = 0
        except EdgeclError as error:
            answer(folder, refused={"what": error.what, "cure": error.cure}, peak_rss_bytes=confines.peak_rss())
            status = 3
        except MemoryError:
            status = 4
        finally:
            os._exit(status)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if stop.asked:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    if status == 0:
        return
    (folder / "activations.npy").unlink(missing_ok=True)
    refusal = folder / "result.json"
    if refusal.exists():
        told = json.loads(refusal.read_text("utf-8"))["refused"]
        raise BudgetError(told["what"], told["cure"])
    if stop.asked:
        raise BudgetError("the round was stopped before it learned anything", "start it again")
    raise BudgetError(f"the frozen part of the backbone does not fit into {job.memory} bytes of memory",
                      "give --memory more")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
