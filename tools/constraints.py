#!/usr/bin/env python3
"""Measures constraints on weights and gradients as `edgecl bench` does, and writes the tables of docs/constraints.md.

    python tools/constraints.py run OUT [--only fashion,digits,watch] [--seeds 0,1,2] [--method si,si+er]
    python tools/constraints.py peer OUT --peer PYTHON --peer-script FILE [--seeds 0,1,2] [--method si]
    python tools/constraints.py strengths OUT [--seeds 100,101]
    python tools/constraints.py write OUT docs/constraints.md

run: each method alone and with er's memory, on Fashion-MNIST and digits in 5 steps of 2 classes (single-head, and the
same network with answers limited to the classes of the step), and on watch_dataset with new people in each step. peer:
our method and the peer's of the same name alternately, on Fashion-MNIST. strengths: the runs that the strengths were
chosen by, on images of Fashion-MNIST's training part that no other run reads, with their own class orders. Runs whose
result is in OUT are not repeated. write: puts the tables between the marks of the page.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ.update(THREADS)

import numpy as np  # noqa: E402  (the threads must be set before)

from edgecl.evaluation.bench import BenchJob, prepare, run_one, write_json  # noqa: E402
from edgecl.evaluation.datasets import Split, fashion  # noqa: E402
from edgecl.evaluation.scenarios import ScenarioStep  # noqa: E402
from edgecl.rounds.method import FOLDER  # noqa: E402
from edgecl.settings import format_size  # noqa: E402
from edgecl.training.bench.one_seed import Learns, judge, session_settings  # noqa: E402

Result = dict[str, Any]
ALONE = ("l2", "ewc", "ewc-offline", "si", "mas", "rwalk", "gem", "agem")
WEIGHTS = {"fashion": 93_322, "digits": 64 * 256 + 256 + 256 * 128 + 128 + 129 * 10, "watch": 27_000}
EXEMPLARS = {"fashion": 200 * 784 + 160, "digits": 100 * 256 + 160, "watch": 60 * 3600 + 300}
SETTINGS: dict[str, dict[str, Any]] = {
    "fashion": {"per_class": 1000, "multi_head": True}, "digits": {"epochs": 5, "multi_head": True},
    "watch": {"scenario": "ni", "epochs": 5}}
PEERS = {"gem": "GEM", "agem": "AGEM", "si": "SynapticIntelligence", "mas": "MAS", "rwalk": "RWalk",
         "ewc": "EWC_online", "finetune": "Naive", "er": "Replay"}
STRENGTHS = (0.1, 0.3, 1)


def with_er(method: str, folder: Path) -> str:
    """A file with the parts of a method and er's memory."""
    lines = (FOLDER / f"{method}.toml").read_text("utf-8").splitlines()
    kept = [line for line in lines if not line.startswith(("memory", "each"))]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{method}+er.toml"
    path.write_text("\n".join([kept[0], 'memory = "reservoir"', *kept[1:]]) + "\n", "utf-8")
    return str(path)


def room(method: str, data: str) -> int:
    """Bytes for exemplars; for gem, plus those of the gradients of four tasks."""
    return EXEMPLARS[data] + (4 * 4 * WEIGHTS[data] if "gem" in method and "agem" not in method else 0)


def jobs(data: str, seeds: Sequence[int], out: Path) -> list[BenchJob]:
    methods = ["finetune", *ALONE, "er", *(with_er(method, out / "methods") for method in ALONE), "joint"]
    return [BenchJob(method, data, memory=room(Path(method).stem, data), seed=seed, **SETTINGS[data])
            for seed in seeds for method in methods]


def measure(options: argparse.Namespace) -> None:
    """Run in this process what `edgecl bench` does in one per run, except for peak memory."""
    for data in options.only:
        path = options.out / f"{data}.json"
        results: list[Result] = json.loads(path.read_text("utf-8")) if path.exists() else []
        there = {(result["method"], result["seed"]) for result in results}
        for job in jobs(data, options.seeds, options.out):
            method = Path(job.method).stem
            if (method, job.seed) not in there and (options.method is None or method in options.method):
                results.append({**timed(job), "method": method})
                print(json.dumps({name: results[-1][name] for name in (
                    "method", "data", "seed", "average_incremental_accuracy", "final_accuracy", "task_aware_accuracy",
                    "samples_per_second")}), flush=True)
                write_json(path, results)


class Timed:
    """A run whose learning is measured in processor seconds."""

    def __init__(self, session: Learns) -> None:
        self.session, self.seconds = session, 0.0
        self.predict = session.predict

    @property
    def nbytes(self) -> int:
        return self.session.nbytes

    def learn(self, x: np.ndarray, y: np.ndarray) -> None:
        begun = time.process_time()
        self.session.learn(x, y)
        self.seconds += time.process_time() - begun


@lru_cache(1)
def prepared(job: BenchJob) -> tuple[Split, list[ScenarioStep]]:
    """The data and steps of jobs that differ only in their method."""
    return prepare(job)


def timed(job: BenchJob) -> Result:
    """The result of `edgecl bench`, computed in this process, but with samples per processor second, which other work
    on the machine disturbs least. The peer's script reports the same figure."""
    from edgecl.training.bench.session import MethodRun

    split, steps = prepared(replace(job, method="finetune", memory=0))
    rounds = [(split.x_train[step.train], split.y_train[step.train]) for step in steps]
    session = Timed(MethodRun(**session_settings(job, split)))
    result = judge(session, job, rounds, split, steps, lambda step: None)
    return {**result, "samples_per_second": sum(len(step.train) for step in steps) / session.seconds}


def child(options: argparse.Namespace) -> None:
    """One run of `timed`, of the job on stdin."""
    print(json.dumps(timed(BenchJob(**json.load(sys.stdin)))))


def compare(options: argparse.Namespace) -> None:
    """Our run and the peer's alternately for each seed, each in its own process."""
    path = options.out / "peer.json"
    results: list[Result] = json.loads(path.read_text("utf-8")) if path.exists() else []
    for seed in options.seeds:
        for method, strategy in PEERS.items():
            if (any((result["method"], result["seed"]) == (method, seed) for result in results)
                    or (options.method is not None and method not in options.method)):
                continue
            job = BenchJob(method, "fashion", memory=room(method, "fashion"), seed=seed, per_class=1000)
            ours = json.loads(subprocess.run([sys.executable, __file__, "child", "."], text=True, check=True,
                                             input=json.dumps(asdict(job)), stdout=subprocess.PIPE).stdout)
            command = [options.peer, str(options.peer_script), "--strategy", strategy, "--data", "fashion", "--seed",
                       str(seed), "--lr", "0.02", "--threads", "1"]
            theirs = json.loads(subprocess.run(command, capture_output=True, text=True, check=True,
                                               env={**os.environ, **THREADS}).stdout.splitlines()[-1])
            theirs["samples_per_s"] = theirs["train_samples"] / theirs["train_cpu_s"]
            results.append({"method": method, "seed": seed, "strategy": strategy, "ours": ours, "theirs": theirs})
            print(method, seed, [round(value, 3) for value in (
                ours["average_incremental_accuracy"], theirs["avg_incremental_acc"], ours["final_accuracy"],
                theirs["final_acc"], ours["samples_per_second"] / theirs["samples_per_s"])], flush=True)
            write_json(path, results)


def strengths(options: argparse.Namespace) -> None:
    """Task-aware accuracy by strength, on images 1,000 to 2,000 of each class, tested on the next 500."""
    options.out.mkdir(parents=True, exist_ok=True)
    npz, every, results = options.out / "held.npz", fashion(), []
    places = [np.flatnonzero(every.y_train == label) for label in range(10)]
    train, test = (np.sort(np.concatenate([own[part] for own in places])) for part in (slice(1000, 2000),
                                                                                      slice(2000, 2500)))
    np.savez(npz, x_train=every.x_train[train], y_train=every.y_train[train], x_test=every.x_train[test],
             y_test=every.y_train[test])
    for method in ("finetune", "l2", "ewc", "si", "mas", "rwalk"):
        for value in STRENGTHS if method != "finetune" else (0,):
            text = re.sub(r"^importance = \S+", f"importance = {value}",
                          (FOLDER / f"{method}.toml").read_text("utf-8"), flags=re.M)
            path = options.out / "methods" / f"{method}-{value}.toml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
            found = [run_one(BenchJob(str(path), str(npz), seed=seed, multi_head=True, order="seeded"),
                             lambda step: None) for seed in options.seeds]
            results.append({"method": method, "importance": value,
                            "task_aware_accuracy": [result["task_aware_accuracy"] for result in found]})
            print(results[-1], flush=True)
    write_json(options.out / "strengths.json", results)


# the page -----------------------------------------------------------------------------------------


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (columns, ["---"] * len(columns), *rows)]


def middle(mine: Sequence[Result], name: str) -> str:
    """The median, and the range if there is one."""
    values = sorted(float(result[name]) for result in mine)
    return f"{median(values):.3f}" + f" ({values[0]:.3f}-{values[-1]:.3f})" * (len(values) > 1)


def by_method(results: Sequence[Result]) -> Iterator[tuple[str, list[Result]]]:
    order = ["finetune", *ALONE, "er", *(f"{method}+er" for method in ALONE), "joint"]
    for method in sorted({result["method"] for result in results}, key=order.index):
        yield method, [result for result in results if result["method"] == method]


def scenario(data: str, results: Sequence[Result]) -> list[str]:
    known = bool(SETTINGS[data].get("multi_head"))
    return markdown(["method", "average", "final", *["final, step known"] * known, "forgetting", "kept", "seeds"], [
        [f"`{method}`", middle(mine, "average_incremental_accuracy"), middle(mine, "final_accuracy"),
         *[middle(mine, name) for name in ["task_aware_accuracy"] * known], middle(mine, "forgetting"),
         format_size(max(result["memory_bytes"] for result in mine)),
         str(len(mine))] for method, mine in by_method(results)])


def against(results: Sequence[Result]) -> list[str]:
    rows = []
    for method, mine in by_method(results):
        def both(ours: str, theirs: str, mine: list[Result] = mine) -> str:
            return (f"{median(each['ours'][ours] for each in mine):.3f} / "
                    f"{median(each['theirs'][theirs] for each in mine):.3f}")

        ratio = median(each["ours"]["samples_per_second"] / each["theirs"]["samples_per_s"] for each in mine)
        gap = median(each["ours"]["average_incremental_accuracy"] - each["theirs"]["avg_incremental_acc"]
                     for each in mine)
        rows.append([f"`{method}`", mine[0]["strategy"], both("average_incremental_accuracy", "avg_incremental_acc"),
                     both("final_accuracy", "final_acc"), f"{gap:+.3f}", f"{ratio:.2f}",
                     str(sum(each["theirs"]["diverged_at_step"] is not None for each in mine)), str(len(mine))])
    return markdown(["method", "peer", "average, ours / peer's", "final", "median difference", "samples by second of "
                     "the processor, ours by the peer's", "peer's runs that diverged", "seeds"], rows)


def chosen(results: Sequence[Result]) -> list[str]:
    return markdown(["method", "importance", "step known, mean"], [
        [f"`{each['method']}`", f"{each['importance']:g}" if each["method"] != "finetune" else "",
         f"{np.mean(each['task_aware_accuracy']):.3f}"] for each in results])


def write(options: argparse.Namespace) -> None:
    page = options.page.read_text("utf-8")
    makers = {"fashion": lambda found: scenario("fashion", found), "digits": lambda found: scenario("digits", found),
              "watch": lambda found: scenario("watch", found), "peer": against, "strengths": chosen}
    for name, make in makers.items():
        source = options.out / f"{name}.json"
        if source.exists():
            lines = make(json.loads(source.read_text("utf-8")))
            page, count = re.subn(rf"(<!-- {name} -->\n).*?(<!-- end -->)",
                                  lambda found, lines=lines: found[1] + "\n".join(lines) + "\n" + found[2], page,
                                  flags=re.S)
            if not count:
                sys.exit(f"{options.page} has no place for {name}; add a line <!-- {name} --> and a line <!-- end -->")
    options.page.write_text(page, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "peer", "strengths", "write", "child"))
    parser.add_argument("out", type=Path)
    parser.add_argument("page", type=Path, nargs="?", default=Path("docs/constraints.md"))
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SETTINGS))
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--method", type=lambda text: text.split(","), help="only these, such as si,si+er")
    parser.add_argument("--peer")
    parser.add_argument("--peer-script", type=Path)
    options = parser.parse_args()
    options.seeds = options.seeds or ([100, 101] if options.what == "strengths" else [0, 1, 2])
    if options.what == "peer" and not (options.peer and options.peer_script):
        parser.error("`peer` needs --peer and --peer-script")
    {"run": measure, "peer": compare, "strengths": strengths, "write": write,
     "child": child}[options.what](options)


if __name__ == "__main__":
    main()
