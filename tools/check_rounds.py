#!/usr/bin/env python3
"""Checks that learning rounds keep to their memory and time, and survive kills: two tables.

    tools/check_rounds.py [--settings 20] [--kills 100] [--seed 0] [--small]

Settings: a random network, method, batch, memory and time, on a fresh state or after an earlier round. The processes of
each round are watched from outside: the peak resident bytes of each must not exceed 1.05 x the memory, and the whole
round must not exceed 1.05 x the time + 1 s. If a round is refused, it is run again with the values that the refusal
names, which must suffice. --small: synthetic networks only.

Kills: SIGKILL to the worker, to its trunk or to the process that started the round, at random moments before there is a
candidate. Every byte of the state must be as before, no process may be left, and the next round must clear the folder.
Exits with 1 if any of this fails.
"""
from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

from round_states import conv_backbone, taught, teach, window_backbone  # noqa: E402
from vector_states import tree  # noqa: E402

from edgecl.errors import BudgetError, EdgeclError  # noqa: E402
from edgecl.learner import Learner  # noqa: E402
from edgecl.results import RoundResult  # noqa: E402
from edgecl.rounds import gate, worker  # noqa: E402
from edgecl.rounds.run import RoundRequest, workshop  # noqa: E402
from edgecl.settings import parse_seconds  # noqa: E402

OVER, LATE = 1.05, 1.0      # limit as a multiple of memory and time; extra seconds
REFUSALS = 3                # of one setting, each followed by the values that the last one named
LOOK = 0.02                 # seconds between two looks at the processes; the kernel records their peaks
TRUNK_LOOK = 0.005          # the same while waiting to kill a trunk, which lives only briefly
WORKER = "edgecl.training.worker.main"
METHODS = ("first-session", "finetune", "joint", "er", "lwf", "ewc", "icarl")


def vision(name: str) -> bytes:
    """A torchvision network with random weights, created by a separate process."""
    code = ("import sys, torch; from pathlib import Path; from edgecl.training.networks.export_vision import *\n"
            "torch.manual_seed(0); made = FeatureExtractor(sys.argv[1])\n"
            "for name, t in made.network.state_dict().items():\n"     # equal weights would be stored once
            "    t.dim() == 1 and t.uniform_(0.5, 1.5) if 'var' in name or 'weight' in name else "
            "t.dim() == 1 and t.uniform_(-0.2, 0.2)\n"
            "export(made, sys.argv[1], Path(sys.argv[2]))")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.onnx")
        subprocess.run([sys.executable, "-c", code, name, path], check=True, capture_output=True)
        return path.read_bytes()


def lite0() -> bytes:
    from edgecl.backbones.lite0 import build_lite0

    return build_lite0()


NETWORKS = {  # name -> its file, samples per class, codec, whether it is synthetic
    "conv": (conv_backbone, 40, "raw", True),
    "conv, wide": (lambda: conv_backbone((32, 64, 128, 256, 512), 64), 40, "raw", True),
    "conv, large maps": (lambda: conv_backbone((16, 16, 24, 32), 128, kernel=5), 30, "jpeg", True),
    "waves": (lambda: window_backbone((64, 128, 128), 256), 60, "raw", True),
    "waves, delta16": (lambda: window_backbone((32, 64, 96, 128), 512), 40, "delta16", True),
    "conv, features": (conv_backbone, 200, "int8-feature", True),
    "lite0": (lite0, 25, "jpeg", False),
    "mobilenet": (lambda: vision("mobilenet_v3_small"), 25, "jpeg", False),
    "resnet18": (lambda: vision("resnet18"), 20, "jpeg", False)}


@dataclass(frozen=True)
class Setting:
    """The settings of one round. later: whether it follows an earlier one."""

    network: str
    method: str
    batch: int
    memory: int
    seconds: float
    later: bool


def draw(random_: random.Random, network: str) -> Setting:
    later = random_.random() < 0.5 and NETWORKS[network][2] != "int8-feature"     # one round only
    method = random_.choice(METHODS[1:] if later else METHODS)
    return Setting(network, method, random_.choice((8, 16, 32, 64)), int(random_.uniform(250e6, 600e6)),
                   round(random_.uniform(6, 20), 1), later)


class Spy(threading.Thread):
    """Peak resident bytes of each process of a round, watched from outside."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[int, int] = {}
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(LOOK):
            for pid in processes(os.getpid()):
                with suppress(OSError):
                    text = Path(f"/proc/{pid}/status").read_text()
                    if found := re.search(r"VmHWM:\s+(\d+) kB", text):
                        self.peaks[pid] = max(self.peaks.get(pid, 0), 1024 * int(found[1]))


def processes(parent: int) -> list[int]:
    """The worker of a process, followed by its trunk."""
    found = []
    with suppress(OSError):
        for child in (int(pid) for task in Path(f"/proc/{parent}/task").iterdir()
                      for pid in (task / "children").read_text().split()):
            if WORKER in Path(f"/proc/{child}/cmdline").read_text():
                found += [child, *processes(child)]
    return found


def prepare(network: str, setting: Setting | None, folder: Path) -> Path:
    """A state with four classes, or with two classes, a round, and two more."""
    make, each, codec, _ = NETWORKS[network]
    later = setting is not None and setting.later
    learner = taught(folder, make(), each, 2 if later else 4, codec=codec)
    if setting is not None and later:
        strict, gate.check_accuracy = gate.check_accuracy, lambda *_: []    # accept the round in any case
        try:
            learner.round(RoundRequest(setting.method, 200, 1_500_000_000, epochs=1))
        finally:
            gate.check_accuracy = strict
        for number in (2, 3):
            teach(learner, number, each)
    learner.close()
    return folder / "state"


def measure(state: Path, setting: Setting) -> tuple[RoundResult | BudgetError, float, int]:
    """The outcome of a round, its seconds, and the peak resident bytes of its largest process."""
    learner, spy = Learner.open(state), Spy()
    spy.start()
    begun = time.monotonic()
    try:
        found: RoundResult | BudgetError = learner.round(RoundRequest(setting.method, setting.seconds, setting.memory,
                                                          batch=setting.batch))
    except BudgetError as error:
        found = error
    taken = time.monotonic() - begun
    spy.done.set()
    spy.join()
    learner.close()
    return found, taken, max(spy.peaks.values(), default=0)


def granted(setting: Setting, refusal: BudgetError) -> Setting | None:
    """The same settings with the values that the refusal names; None if it names none."""
    if found := re.search(r"--memory (\d+)", refusal.cure):
        return replace(setting, memory=int(found[1]))
    if found := re.search(r"--time (\w+)", refusal.cure):
        return replace(setting, seconds=parse_seconds(found[1]))
    return None


def check_setting(setting: Setting, folder: Path) -> bool:
    """Run one setting, and if it is refused, again with the values that the refusal names; whether all limits held."""
    state = prepare(setting.network, setting, folder)
    good, wished, refusals = True, setting, 0
    while True:
        shutil.copytree(state, folder / "copy")
        found, taken, peak = measure(folder / "copy", setting)
        shutil.rmtree(folder / "copy")
        memory, late = peak / setting.memory, taken - setting.seconds
        within = memory <= OVER and late <= (OVER - 1) * setting.seconds + LATE
        refused = isinstance(found, BudgetError)
        again = granted(setting, found) if isinstance(found, BudgetError) else None
        refusals += refused
        within &= not refused or (again is not None and refusals <= REFUSALS)
        good &= within
        what = found.what[:70] if isinstance(found, BudgetError) else \
            f"{found.steps}/{found.planned_steps} steps, {found.blocks}/{found.wished_blocks} blocks"
        name = f"{'' if within else '!'}{wished.network}"
        print(f"{name:17}{setting.method:14}{'later' if setting.later else 'first':6}{setting.batch:4}"
              f"{setting.memory / 1e6:8.1f} MB{peak / 1e6:8.1f} MB{memory:7.3f}{setting.seconds:7.1f} s{taken:7.1f} s"
              f"{os.getloadavg()[0]:6.1f}  {'refused: ' * refused}{what}", flush=True)
        if again is None or refusals > REFUSALS:
            return good
        setting = again


# kills --------------------------------------------------------------------------------------------


def begin(state: Path) -> subprocess.Popen[bytes]:
    """A process that runs a round on a state."""
    code = ("import sys; from edgecl.learner import Learner; from edgecl.rounds import worker\n"
            "from edgecl.rounds.run import RoundRequest; worker.COMMAND = tuple(sys.argv[2:])\n"
            "Learner.open(sys.argv[1]).round(RoundRequest('er', 20))")
    return subprocess.Popen([sys.executable, "-c", code, state, *worker.COMMAND], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)


def kill(state: Path, whom: str, moment: float) -> str:
    """Kill one process of a round some seconds after its worker has started: unchanged | changed | left | missed."""
    before, parent = tree(state), begin(state)
    begun: float | None = None
    while parent.poll() is None:
        mine = processes(parent.pid)
        if mine and begun is None:
            begun = time.monotonic()
        if begun is not None and time.monotonic() - begun >= moment and not candidate(state):
            found = {"parent": [parent.pid], "worker": mine[:1], "trunk": mine[1:2]}[whom]
            with suppress(ProcessLookupError):
                for victim in found:
                    os.kill(victim, signal.SIGKILL)
            if found:
                break
        time.sleep(TRUNK_LOOK if whom == "trunk" else LOOK)
    else:
        return "missed"
    parent.wait()
    until = time.monotonic() + 60
    while any(map(alive, mine)):
        if time.monotonic() > until:
            return "left"
        time.sleep(LOOK)
    return "unchanged" if tree(state) == before else "changed"


def alive(pid: int) -> bool:
    with suppress(OSError):
        return WORKER in Path(f"/proc/{pid}/cmdline").read_text()     # empty if it has ended
    return False


def candidate(state: Path) -> bool:
    """Whether a worker has sent its result: then it is done, and the state may change."""
    return any(state.parent.glob(f".{state.name}-round-*/result.json"))


def check_kills(kills: int, seed: int, folder: Path) -> dict[str, Counter[str]]:
    """Outcomes by the process that was killed."""
    state, random_ = prepare("conv", None, folder), random.Random(seed)
    begun, parent = time.monotonic(), begin(copy(state))
    while parent.poll() is None:
        time.sleep(LOOK)
    length = time.monotonic() - begun
    outcomes: dict[str, Counter[str]] = {whom: Counter() for whom in ("worker", "trunk", "parent")}
    while sum(count for found in outcomes.values() for what, count in found.items() if what != "missed") < kills:
        whom = min(outcomes, key=lambda whom: outcomes[whom].total() - outcomes[whom]["missed"])
        moment = random_.uniform(0, 0.1 if whom == "trunk" else 0.5) * length
        outcomes[whom][kill(copy(state), whom, moment)] += 1
    for path in state.parent.glob(".copy-round-*"):
        outcomes["parent"]["folders left"] += path.is_dir()
    with workshop(state.with_name("copy")):
        pass
    outcomes["parent"]["folders left after the next"] = len(list(state.parent.glob(".copy-round-*")))
    return outcomes


def copy(state: Path) -> Path:
    """A copy of the state as it was before the kills."""
    path = state.with_name("copy")
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(state, path)
    return path


def main() -> int:
    """Print both tables; returns 1 if a check failed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--settings", type=int, default=20, metavar="N")
    options.add_argument("--kills", type=int, default=100, metavar="N")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--small", action="store_true")
    given = options.parse_args()
    good = run(given.settings, given.kills, given.seed, given.small)
    return 0 if good else 1


def run(settings: int, kills: int, seed: int, small: bool) -> bool:
    """Whether all limits held."""
    random_, good = random.Random(seed), True
    names = [name for name, about in NETWORKS.items() if about[3] or not small]
    if settings:
        print(f"{'network':17}{'method':14}{'round':6}{'batch':>4}{'allowed':>9}{'peak':>11}{'ratio':>9}{'time':>8}"
              f"{'taken':>9}{'load':>6}")
    for number in range(settings):
        with tempfile.TemporaryDirectory() as folder:
            try:
                good &= check_setting(draw(random_, names[number % len(names)]), Path(folder))
            except EdgeclError as error:
                print(f"!{names[number % len(names)]}: {error}")
                good = False
    if kills:
        with tempfile.TemporaryDirectory() as folder:
            outcomes = check_kills(kills, seed, Path(folder))
        for whom, found in outcomes.items():
            print(f"killed {whom:8}" + ", ".join(f"{what} {count}" for what, count in sorted(found.items())))
        total = sum(outcomes.values(), Counter[str]())
        good &= not total["changed"] and not total["left"] and not total["folders left after the next"]
    return good


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
