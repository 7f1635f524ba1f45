#!/usr/bin/env python3
"""The figures that edgecl promises for its learning rounds, measured: target, measured value, ratio, verdict.

    python tools/bench_rounds.py [--json] [--quick] [--seeds 0,1,2] [--methods er,ewc]
                                 [--peer PYTHON --peer-script FILE]

Speed is compared with a bare torch loop in this file: the same network (channels last), the same uint8 tensors, one
thread, SGD in place, no clipping, no bookkeeping, no memory, no penalty. It makes the same passes as edgecl, which are
counted by a hook in an untimed run: the steps; further batches that go forward and backward (EWC's Fisher information,
for which the bare loop only computes mean gradients, not those per sample); and samples that only go forward (old
outputs of LwF and iCaRL, features for herding and for exemplar means), which the bare loop takes 256 at a time.
edgecl's side is all of `MethodRun.learn`. Both run alternately in one process, and their processor times are compared,
which other work on the machine disturbs least; medians of the ratio over seeds and repeats.

Memory: peak resident bytes of the process in which `edgecl bench` runs a method, the largest over the seeds.

The peer, if given: its script is called with --strategy, --data, --seed, --lr, --mem and --threads, and prints a JSON
object with samples_per_s and peak_rss_mb. Its processes and ours alternate.

Data: Fashion-MNIST in 5 steps of 2 classes, the first 1,000 images per class, if Debian's dataset-fashion-mnist is
installed; else digits, for which there are no targets. Exits with 1 if a target is missed.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ.update(THREADS)

import torch  # noqa: E402  (the threads must be set before)
from bench_core import Figure, show  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from edgecl.evaluation.bench import BenchJob, prepare, run_one  # noqa: E402
from edgecl.evaluation.datasets import FASHION, Split  # noqa: E402
from edgecl.evaluation.scenarios import ScenarioStep  # noqa: E402
from edgecl.training.bench.one_seed import session_settings  # noqa: E402
from edgecl.training.bench.session import MethodRun  # noqa: E402

MIN_SPEED, MAX_RSS = 0.85, 300e6      # relative to the bare loop; bytes
PEERS = {"finetune": ("Naive", 0.0), "er": ("Replay", 1.3), "ewc": ("EWC_online", 2.0), "lwf": ("LwF", 0.0),
         "icarl": ("ICaRL", 0.0)}    # method -> the peer's strategy, and our target speed relative to it
EXEMPLARS = 200
RATE, MOMENTUM = 0.02, 0.9
EVALUATION_BATCH = 256                # samples at a time, which suits the bare loop best


@dataclass
class Passes:
    """The passes of a round: samples of each step, of each further pass forward and backward, and of all passes that
    only go forward."""

    steps: list[int] = field(default_factory=list)
    graded: list[int] = field(default_factory=list)
    looked: int = 0

    def count(self, body: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
        if body.training:
            self.steps.append(len(given[0]))
        elif out.requires_grad:
            self.graded.append(len(given[0]))
        else:
            self.looked += len(given[0])


def clock(action: Callable[[], object]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


class Bare:
    """The networks `cnn` and `mlp` and a training loop, written as one would without edgecl."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.images = len(shape) == 3
        if self.images:
            self.body = nn.Sequential(
                nn.Conv2d(shape[2], 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
                nn.Conv2d(64, 64, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(64), nn.ReLU())
            self.body(torch.zeros(1, shape[2], *shape[:2]))
            self.body = self.body.to(memory_format=torch.channels_last)
        else:
            self.body = nn.Sequential(nn.Linear(shape[0], 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU())
        self.head: nn.Module = nn.Identity()

    def __call__(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.permute(0, 3, 1, 2).float().sub_(127.5).div_(127.5) if self.images else x))

    def parameters(self) -> list[nn.Parameter]:
        return [*self.body.parameters(), *self.head.parameters()]

    def learn(self, x: Tensor, y: Tensor, classes: int, passes: Passes) -> None:
        self.head = nn.Linear(self.body[-2].out_features, classes)
        weights = self.parameters()
        values, speeds = [w.detach() for w in weights], [torch.zeros_like(w) for w in weights]
        order = torch.cat([torch.randperm(len(x)) for _ in range(-(-sum(passes.steps) // len(x)))])
        for rows in order[:sum(passes.steps)].split(passes.steps):
            loss = F.cross_entropy(self(x.index_select(0, rows)), y.index_select(0, rows))
            for value, speed, gradient in zip(values, speeds, torch.autograd.grad(loss, weights)):
                value.sub_(speed.mul_(MOMENTUM).add_(gradient), alpha=RATE)
        for rows in order[:sum(passes.graded)].split(passes.graded) if passes.graded else ():
            torch.autograd.grad(F.cross_entropy(self(x[rows]), y[rows]), weights)
        with torch.inference_mode():
            for rows in (torch.arange(passes.looked) % len(x)).split(EVALUATION_BATCH) if passes.looked else ():
                self(x[rows])


# measurements -----------------------------------------------------------------------------------


def counted(job: BenchJob, split: Split, steps: Sequence[ScenarioStep]) -> list[Passes]:
    """The passes of each round, counted in a warm-up run."""
    session, found = MethodRun(**session_settings(job, split)), []
    for step in steps:
        found.append(Passes())
        hook = session.network.body.register_forward_hook(found[-1].count)
        session.learn(split.x_train[step.train], split.y_train[step.train])
        hook.remove()
    bare = Bare(split.x_train.shape[1:])
    bare_rounds(bare, split, steps, found)
    ours, theirs = (sum(p.numel() for p in each.parameters()) for each in (session.network, bare))
    assert ours == theirs, (ours, theirs)
    return found


def bare_rounds(bare: Bare, split: Split, steps: Sequence[ScenarioStep], passes: Sequence[Passes]) -> float:
    seconds, classes = 0.0, 0
    for step, each in zip(steps, passes):
        x, y = torch.from_numpy(split.x_train[step.train]), torch.from_numpy(split.y_train[step.train])
        classes = max(classes, int(y.max()) + 1)
        seconds += clock(lambda x=x, y=y, n=classes, each=each: bare.learn(x, y, n, each))
    return seconds


def our_rounds(session: MethodRun, split: Split, steps: Sequence[ScenarioStep]) -> float:
    seconds = 0.0
    for step in steps:
        x, y = split.x_train[step.train], split.y_train[step.train]
        seconds += clock(lambda x=x, y=y: session.learn(x, y))
    return seconds


def speeds(jobs: dict[str, list[BenchJob]], repeats: int, promised: bool) -> list[Figure]:
    """Each method and seed compared with the bare loop making the same passes."""
    split, steps = prepare(next(iter(jobs.values()))[0])
    shape, samples = split.x_train.shape[1:], sum(len(step.train) for step in steps)
    passes = {method: counted(mine[0], split, steps) for method, mine in jobs.items()}
    times: dict[str, list[tuple[float, float]]] = {method: [] for method in jobs}
    for _ in range(repeats):
        for method, mine in jobs.items():
            for job in mine:
                torch.manual_seed(job.seed)
                sides = [lambda job=job: our_rounds(MethodRun(**session_settings(job, split)), split, steps),
                         lambda method=method: bare_rounds(Bare(shape), split, steps, passes[method])]
                if len(times[method]) % 2:      # so that neither always comes second
                    bare, ours = sides[1](), sides[0]()
                else:
                    ours, bare = sides[0](), sides[1]()
                times[method].append((ours, bare))
    figures = []
    for method, found in times.items():
        ratios = sorted(bare / ours for ours, bare in found)
        trained, graded, looked = (sum(what) for what in zip(*(
            (sum(each.steps), sum(each.graded), each.looked) for each in passes[method])))
        note = f"{samples / median(ours for ours, _ in found):,.0f} new samples/s, bare " \
               f"{samples / median(bare for _, bare in found):,.0f}; {ratios[0]:.3f} to {ratios[-1]:.3f}; passes: " \
               f"{trained:,} trained on, {graded:,} more back, {looked:,} forward only"
        ratio = median(ratios)
        figures.append(Figure(f"{method}, relative to a bare loop", f">= {MIN_SPEED} x" if promised else "-",
                              f"{ratio:.3f} x", MIN_SPEED / ratio if promised else 0.0, note))
    return figures


def beside(jobs: dict[str, list[BenchJob]], peer: Sequence[str], promised: bool) -> list[Figure]:
    """The processes of `edgecl bench`: their peak memory, and their speed compared with the peer's."""
    figures, compared = [], []
    for method, mine in jobs.items():
        strategy, least = PEERS[method]
        ours: list[dict[str, Any]] = []
        theirs: list[dict[str, Any]] = []
        for job in mine:
            ours.append(run_one(job, lambda _: None))
            if peer:
                theirs.append(run_peer(peer, strategy, job))
        most = max(result["peak_rss_bytes"] for result in ours)
        finals = ", ".join(f"{result['final_accuracy']:.4f}" for result in ours)
        figures.append(Figure(f"{method}, peak memory", f"<= {MAX_RSS / 1e6:.0f} MB" if promised else "-",
                              f"{most / 1e6:.0f} MB", most / MAX_RSS if promised else 0.0,
                              f"final accuracies {finals}"))
        if peer:
            speed, peers = (median(rates) for rates in ([result["samples_per_second"] for result in ours],
                                                        [result["samples_per_s"] for result in theirs]))
            ratio = median(our["samples_per_second"] / their["samples_per_s"] for our, their in zip(ours, theirs))
            note = f"{speed:,.0f} to {peers:,.0f} new samples/s; the peer peaks at " \
                   f"{max(result['peak_rss_mb'] for result in theirs) * 1.048576:.0f} MB"
            asked = f">= {least} x" if least and promised else "-"
            compared.append(Figure(f"{method}, relative to the peer's {strategy}", asked, f"{ratio:.2f} x",
                                   least / ratio if promised else 0.0, note))
    return figures + compared


def run_peer(peer: Sequence[str], strategy: str, job: BenchJob) -> dict[str, Any]:
    command = [*peer, "--strategy", strategy, "--data", job.data, "--seed", str(job.seed), "--lr", str(RATE), "--mem",
               str(EXEMPLARS), "--threads", "1"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


# -------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object per figure")
    parser.add_argument("--quick", action="store_true", help="one seed, three repeats")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(PEERS), help=f"of {','.join(PEERS)}")
    parser.add_argument("--peer", metavar="PYTHON", help="a Python interpreter with the peer installed")
    parser.add_argument("--peer-script", metavar="FILE", type=Path, help="the script that runs the peer")
    options = parser.parse_args()
    methods, seeds = options.methods.split(","), [int(seed) for seed in options.seeds.split(",")]
    if unknown := set(methods) - set(PEERS):
        parser.error(f"unknown methods: {', '.join(sorted(unknown))}")
    if (options.peer is None) != (options.peer_script is None):
        parser.error("give both --peer and --peer-script")
    torch.set_num_threads(1)
    fashion = FASHION.is_dir()
    size = 28 * 28 if fashion else 64 * 4
    print(time.strftime("%Y-%m-%d"), "Fashion-MNIST" if fashion else
          "using digits, which have no targets (for Fashion-MNIST: apt-get install dataset-fashion-mnist)",
          file=sys.stderr)
    jobs = {method: [BenchJob(method, "fashion" if fashion else "digits", memory=EXEMPLARS * size + 10 * 16, seed=seed,
                         per_class=1000) for seed in (seeds[:1] if options.quick else seeds)] for method in methods}
    peer = [options.peer, str(options.peer_script)] if options.peer else []
    return show([*speeds(jobs, 3, fashion), *beside(jobs, peer, fashion)], options.json)


if __name__ == "__main__":
    sys.exit(main())
