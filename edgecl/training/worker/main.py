"""The worker of a learning round: `python -m edgecl.training.worker.main FOLDER`, a job in, a candidate out.

It limits itself before it loads anything large, reports its progress in lines of JSON, and on SIGTERM or at the end of
its time exports what it has learned so far. The frozen trunk runs in a process before it, so that ONNX Runtime and
torch are never in memory together. What lies in the folder: see `edgecl.rounds.job`.
"""
from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from edgecl.errors import BudgetError, EdgeclError
from edgecl.rounds.job import Job, Stored, answer
from edgecl.rounds.method import read_method
from edgecl.rounds.process import end_with_parent
from edgecl.training.worker import forecast, limits
from edgecl.training.worker.limits import Stop

if TYPE_CHECKING:
    from edgecl.backbones.cut import Cut

FAILED = 1      # exit status
POLL_SECONDS = 0.02     # seconds between two looks at the process of the trunk


def main(folder: Path) -> int:
    job = Job.read(folder)
    stop, peak = Stop(job.seconds), limits.Peak()
    limits.step_back()
    try:
        cut, blocks = choose(folder, job)
        prepare_activations(folder, job, cut, stop)
        from edgecl.training.worker.tune import tune

        answer(folder, **tune(folder, job, cut, stop, peak, tell), **blocks, peak_rss_bytes=peak())
    except EdgeclError as error:
        refuse(folder, error)
    except (MemoryError, RuntimeError) as error:
        if not limits.out_of_memory(error):
            raise
        refuse(folder, too_small(job))
    return 0


def tell(**values: float) -> None:
    """A line of progress."""
    print(json.dumps(values), flush=True)


def refuse(folder: Path, error: EdgeclError) -> None:
    """Write the refusal as the answer."""
    answer(folder, refused={"what": error.what, "cure": error.cure})


def too_small(job: Job) -> BudgetError:
    """The refusal if memory runs out outside a step."""
    return BudgetError(f"{job.memory} bytes of memory were too small", f"give --memory {int(1.1 * job.memory)} or more")


def choose(folder: Path, job: Job) -> tuple[Cut, dict[str, int]]:
    """The lowest cut above which the memory suffices; how many blocks are tuned, and how many were asked for.
    Raises BudgetError if there is none."""
    from edgecl.backbones.adapters import ADAPTER_INPUT
    from edgecl.backbones.cut import Anatomy

    content = (folder / "backbone.onnx").read_bytes()
    anatomy, samples = Anatomy(content), len(Stored.read(folder, inputs=False).column)
    method = read_method(job.method, job.own_code)
    cuts = anatomy.cuts() if job.codec else [anatomy.cut_at(ADAPTER_INPUT)]
    able = cuts[cuts.index(anatomy.cut(job.blocks)):] if job.codec else cuts
    inputs = (folder / "samples.npz").stat().st_size
    size = forecast.RoundSize(samples, job.batch, rounds_before(folder), job.known)
    least = [max(forecast.memory(anatomy, cut, len(content), method, size),
                 forecast.trunk_memory(len(content), inputs)) for cut in able]
    for place, cut in enumerate(able):
        if least[place] <= job.memory:
            return cut, {"blocks": len(able) - place, "wished_blocks": len(able)}
    raise BudgetError(f"a round on {samples} samples takes {min(least)} bytes of memory at least, {job.memory} are "
                      "allowed", f"give --memory {min(least)} or more")


def rounds_before(folder: Path) -> int:
    """How many rounds were completed, by what the last one kept."""
    import numpy as np

    path = folder / "before.npz"
    if not path.exists():
        return 0
    with np.load(path, allow_pickle=False) as kept:
        return int(kept["rounds"])


def prepare_activations(folder: Path, job: Job, cut: Cut, stop: Stop) -> None:
    """Write activations.npy and probes_in.npy, see `trunk.run`, in a child process. Raises BudgetError; exits if the
    child has failed."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = FAILED
        try:
            end_with_parent()
            from edgecl.training.worker.trunk import run

            run(folder, job, cut, stop.left)
            status = 0
        except EdgeclError as error:
            refuse(folder, error)
        except Exception as error:      # ONNX Runtime's classes have no common public base
            if limits.out_of_memory(error):
                refuse(folder, too_small(job))
            else:
                traceback.print_exc()
        finally:
            os._exit(status)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if stop.asked:
            os.kill(child, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    if stop.asked:
        raise BudgetError("the round was stopped before it learned anything",
                          f"start it again, or give --time {math.ceil(2 * job.seconds)}s or more")
    if ended[1] != 0:       # the child has written why
        sys.exit(0 if (folder / "result.json").exists() else FAILED)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
