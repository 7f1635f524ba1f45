#!/usr/bin/env python3
"""How long predictions take while a round runs on the same state, against the same process when nothing does.

    tools/serve_during_round.py [--phases 6] [--seconds 12] [--pause 0.02] [--small]

This process predicts one photo after another with one thread, `pause` seconds between two, as beside a camera. Phases
without a round and phases with one (another process's `Learner.round`, gate included) alternate; a busy
phase is as long as its round. What is promised is the ratio of the p99 of all busy to that of all idle predictions. The
load beside it says what else the machine did. Exits 1 above 1.5.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np  # noqa: E402
from helpers_rounds import conv_backbone, taught  # noqa: E402

from edgecl.learner import Learner  # noqa: E402
from edgecl.profiling import sandbox  # noqa: E402

MOST = 1.5
ROUND = ("import sys; from edgecl.learner import Learner; from edgecl.rounds.run import RoundRequest\n"
         "from edgecl.errors import EdgeclError\n"
         "try:\n    request = RoundRequest('er', float(sys.argv[2]), 600_000_000, epochs=1000)\n"
         "    found = Learner.open(sys.argv[1]).round(request)\n"
         "    print(f'{found.steps} steps, accepted: {found.accepted}')\n"
         "except EdgeclError as error:\n    print(error)\n")


def phase(learner: Learner, photos: np.ndarray, pause: float, seconds: float,
          state: Path | None) -> tuple[list[float], str]:
    """Milliseconds of each prediction, alone for that long or until a round on the state is over; what that says."""
    worker = subprocess.Popen([sys.executable, "-c", ROUND, state, str(seconds)], stdout=subprocess.PIPE,
                              text=True) if state else None
    found, until, number = [], time.monotonic() + seconds, 0
    while worker.poll() is None if worker else time.monotonic() < until:
        begun = time.perf_counter()
        learner.predict(photos[number % len(photos)][None])
        found.append(1000 * (time.perf_counter() - begun))
        number += 1
        time.sleep(pause)
    return found, worker.communicate()[0].strip() if worker else ""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--phases", type=int, default=6, metavar="N", help="in all, half of them busy")
    options.add_argument("--seconds", type=float, default=12.0, metavar="S", help="of each")
    options.add_argument("--pause", type=float, default=0.02, metavar="S", help="between two predictions")
    options.add_argument("--small", action="store_true", help="a small made-up network instead of efficientnet-lite0")
    given = options.parse_args()
    from edgecl.backbones.lite0 import build_lite0

    with tempfile.TemporaryDirectory() as folder:
        learner = taught(Path(folder), conv_backbone() if given.small else build_lite0(), 25, codec="jpeg")
        photos = sandbox.samples(*sandbox.shape_of(learner), 20, 7)
        phase(learner, photos, 0.0, 1.0, None)
        times: dict[str, list[float]] = {"idle": [], "busy": []}
        print(f"{'phase':8}{'predictions':>12}{'p50':>10}{'p99':>10}{'load':>7}")
        for number in range(given.phases):
            kind = ("idle", "busy")[number % 2]
            found, said = phase(learner, photos, given.pause, given.seconds,
                                learner.store.path if kind == "busy" else None)
            times[kind] += found
            print(f"{kind:8}{len(found):12}{np.percentile(found, 50):7.2f} ms{np.percentile(found, 99):7.2f} ms"
                  f"{os.getloadavg()[0]:7.2f}  {said[:90]}", flush=True)
        ratios = [np.percentile(times["busy"], q) / np.percentile(times["idle"], q) for q in (50, 99)]
        learner.close()
    print(f"busy / idle: p50 {ratios[0]:.2f}, p99 {ratios[1]:.2f} (asked: {MOST}); {os.cpu_count()} processors")
    return 0 if ratios[1] <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
