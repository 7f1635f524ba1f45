#!/usr/bin/env python3
"""Compares sub-networks with separate networks, er and slda, and writes docs/plasticity.md.

    python tools/plasticity.py OUT [--seeds 0,1,2]

Runs `edgecl bench` for each setting and task rule; results already in OUT are not run again.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgecl.evaluation.bench import BenchJob, prepare
from edgecl.rounds.method import FOLDER, method_names, read_method
from edgecl.rounds.parts import PARTS

PAGE = Path(__file__).resolve().parents[1] / "docs/plasticity.md"
SETTINGS: dict[str, dict[str, Any]] = {     # name -> arguments of bench
    "digits, 5 x 2, mlp, 3 epochs": {"data": "digits", "backbone": "mlp", "epochs": 3},
    "Fashion-MNIST, 5 x 2, 1,000 images a class, cnn, 1 epoch": {"data": "fashion", "per_class": 1000,
                                                                "backbone": "cnn", "epochs": 1},
    "watch, 3 steps, tcn, 3 epochs": {"data": "watch", "backbone": "tcn", "epochs": 3, "steps": 3},
    "watch, 7 steps, tcn, 1 epoch": {"data": "watch", "backbone": "tcn", "epochs": 1, "steps": 7}}
RULES = [rule for rule in PARTS["task_rule"] if rule != "none"]
ORDER = ["packnet", "lottery", "clnp", "cpg", "pathnet", "den"]
COMPARED_METHODS = ["er", "slda"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rules", default="", metavar="TEXT",
                        help="try other rules only in settings whose name has TEXT")
    options = parser.parse_args()
    plastic = [name for name in ORDER if name in method_names() and read_method(name).plastic]
    page = [PREFACE]
    for title, given in SETTINGS.items():
        results = bench(options.out, given, options.seeds, [*plastic, *COMPARED_METHODS])
        if options.rules in title:
            results |= bench(options.out, given, options.seeds.split(",")[0], with_rules(options.out, plastic))
        separate = [apart(given, int(seed)) for seed in options.seeds.split(",")]
        page.append(section(title, plastic, results, separate))
        PAGE.write_text("\n\n".join(page) + "\n", "utf-8")
    PAGE.write_text("\n\n".join([*page, exports(plastic)]) + "\n", "utf-8")
    return 0


def with_rules(out: Path, methods: list[str]) -> list[str]:
    """A .toml file for each method with each rule."""
    made = []
    for name in methods:
        text, own = (FOLDER / f"{name}.toml").read_text("utf-8"), read_method(name).parts["task_rule"][0]
        for rule in (rule for rule in RULES if rule != own):
            path = out / "methods" / f"{name}.{rule}.toml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace(f'task_rule = "{own}"', f'task_rule = "{rule}"'), "utf-8")
            made.append(str(path))
    return made


def bench(out: Path, given: dict[str, Any], seeds: str, methods: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Method -> its results from `edgecl bench`."""
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    done = subprocess.run([sys.executable, "-m", "edgecl.cli", "bench", "--method", ",".join(methods), "--seeds", seeds,
                           "--multi-head", "--json", "--out", str(out), *words], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    found: dict[str, list[dict[str, Any]]] = {}
    for line in done.stdout.splitlines():
        result = json.loads(line)
        found.setdefault(Path(result["method"]).name.removesuffix(".toml"), []).append(result)
    return found


def apart(given: dict[str, Any], seed: int) -> tuple[float, int]:
    """A separate network for each task: the mean accuracy, and the bytes of all but the first."""
    from edgecl.training.bench.one_seed import session_settings
    from edgecl.training.bench.session import MethodRun

    job = BenchJob("finetune", seed=seed, **given)
    split, steps = prepare(job)
    right, size = [], 0
    for step in steps:
        learner = MethodRun(**session_settings(job, split))
        learner.learn(split.x_train[step.train], split.y_train[step.train])
        right.append(float((learner.predict(split.x_test[step.test]) == split.y_test[step.test]).mean()))
        size = sum(weight.nbytes for weight in learner.network.parameters())
    return sum(right) / len(right), (len(steps) - 1) * size


def section(title: str, plastic: list[str], results: dict[str, list[dict[str, Any]]],
            separate: list[tuple[float, int]]) -> str:
    return f"## {title}, {len(separate)} seed{'s' * (len(separate) > 1)}\n\n{table(plastic, results, separate)}"


def table(plastic: list[str], results: dict[str, list[dict[str, Any]]], separate: list[tuple[float, int]]) -> str:
    """A Markdown table of medians over the seeds."""
    lines = ["| method | task known | forgotten, task known | " + " | ".join(f"by {rule}" for rule in RULES)
             + " | bytes kept | seconds |", "|---|" + "---:|" * (4 + len(RULES))]
    for name in plastic:
        if name not in results:
            lines.append(f"| `{name}` | refused |" + " |" * (3 + len(RULES)))
            continue
        first, own = results[name], read_method(name).parts["task_rule"][0]
        by_rule = [results.get(name if rule == own else f"{name}.{rule}") for rule in RULES]
        shares = " | ".join(middle(mine, "final_accuracy") if mine else "" for mine in by_rule)
        lines.append(f"| `{name}` | {middle(first, 'task_aware_accuracy')} | {max(map(lost, first)):.3f} | {shares}"
                     f" | {middle(first, 'memory_bytes', '{:,.0f}')} | {middle(first, 'train_seconds', '{:.1f}')} |")
    lines.append(f"| separate networks | {median(share for share, _ in separate):.3f} | 0.000 |"
                 + " |" * len(RULES) + f" {separate[0][1]:,} | |")
    for name in COMPARED_METHODS:
        if found := results.get(name):
            lines.append(f"| `{name}` | {middle(found, 'task_aware_accuracy')} | {max(map(lost, found)):.3f} | "
                         + f"{middle(found, 'final_accuracy')} (no rule) |" + " |" * (len(RULES) - 1)
                         + f" {middle(found, 'memory_bytes', '{:,.0f}')} | "
                         + f"{middle(found, 'train_seconds', '{:.1f}')} |")
    return "\n".join(lines)


def exports(methods: list[str]) -> str:
    """A Markdown table of size and latency of each method's exported file, and of one network without tasks."""
    from edgecl.backbones.onnx_runtime import onnxruntime
    from edgecl.training.bench.options import RunOptions
    from edgecl.training.bench.session import MethodRun

    split, steps = prepare(BenchJob("finetune", "digits"))
    sessions, sizes = {}, {}
    for name in ["finetune", *methods]:
        learner = MethodRun(name, "mlp", split.x_train.shape[1:], "float32", 500_000, 0, RunOptions(epochs=3))
        for step in steps:
            learner.learn(split.x_train[step.train], split.y_train[step.train])
        model = learner.export()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        sessions[name], sizes[name] = onnxruntime.InferenceSession(model, options), len(model)
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for place in range(300):        # alternately, so that other work slows them equally
        x = np.ascontiguousarray(split.x_test[place:place + 1])
        for name, runtime in sessions.items():
            begun = time.perf_counter()
            runtime.run(None, {"input": x})
            taken[name].append(time.perf_counter() - begun)
    plain = sizes["finetune"]
    rows = [f"| `{name}` | {sizes[name]:,} | {sizes[name] / plain:.2f} | {1e6 * median(taken[name]):.0f} |"
            for name in sessions]
    return EXPORTS.format(count=len(steps)) + "\n".join(rows)


EXPORTS = """## The exported file

One graph with the sub-networks of {count} tasks and the rule (digits, mlp, 3 epochs), beside the one network of
`finetune`. Units that a task of `clnp` or `pathnet` does not use are removed; weights that the sub-networks of the
others share are written once, with a byte per weight that says which have it. Microseconds per sample on one thread:
medians of 300, measured alternately.

| method | bytes | times one network | microseconds |
|---|---:|---:|---:|
"""


def lost(result: dict[str, Any]) -> float:
    """Forgetting with the task known."""
    from edgecl.evaluation.metrics import forgetting

    return forgetting(result["task_aware_matrix"])


def middle(results: list[dict[str, Any]], name: str, form: str = "{:.3f}") -> str:
    return form.format(median(result[name] for result in results))


PREFACE = """# Sub-networks: growing, choosing and masking

`packnet`, `lottery`, `clnp`, `cpg`, `pathnet` and `den` give each round a sub-network of its own, which later rounds
do not change. They need to know the task. If it is not given, a rule infers it (`task_rule` in the method's file):
`entropy` takes the most confident sub-network; `nearest-mean` the one in whose features the sample is closest to a
class mean, relative to the usual distance there; `ncm` the task of the nearest class mean in the first task's features.
A state serves one network without a task id, so `edgecl round` refuses these methods.

Made by `tools/plasticity.py` from the results of `edgecl bench`: medians over seeds (of other rules than the
method's own: only the first seed), final accuracies; forgetting
is the maximum over seeds. Bytes are masks, owners, grown units, and the biases and normalisation of each task, without
the served network. Separate networks, one per task, are trained for as many epochs; their bytes are those of all but
the first. `packnet` goes through its samples twice as often, `cpg` and `pathnet` four times, `lottery` eight times. If
each step is one class (watch, 7 steps), a known task leaves nothing to distinguish.

With the task known, all stay within two points of separate networks, at a five-hundredth to a half of their bytes.
Without it, finding the right sub-network is harder than finding the class: no rule comes close to `slda`."""


if __name__ == "__main__":
    sys.exit(main())
