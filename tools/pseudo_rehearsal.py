#!/usr/bin/env python
"""Compares pseudo-rehearsal with exemplars: accuracy against bytes kept, and ablations of each mechanism.

    python tools/pseudo_rehearsal.py --data digits [--sizes 16KB,64KB] [--epochs 5] [--per-class N] [--steps 5]
        [--seeds 0,1,2] [--ablate] [--runs FOLDER]
    python tools/pseudo_rehearsal.py --write [--runs FOLDER] [--out docs]
    python tools/pseudo_rehearsal.py --pictures [--out docs]

The first form runs `edgecl bench` jobs and keeps their results as FOLDER/DATA.json (--data: a name or an .npz file);
results of the same settings that are already there are not run again. The second writes pseudo-rehearsal.svg and prints
the tables of pseudo-rehearsal.md from these results; the third writes dgr-samples.svg, samples from dgr's generator
after each step of the digits, with and without its own replay.
"""
from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from edgecl.evaluation.bench import BenchJob, Failed, method_file, run_one, write_json
from edgecl.settings import format_size, parse_size

SIZED = ("er", "icarl", "statistics", "fetril", "latent", "dgr", "fearnet")
MARKS = {"finetune": ".", "ncm": "x", "slda": "+", "ranpac": "^", "joint": "s"}
FIXED = tuple(MARKS)        # --memory has no effect on them
ABLATIONS = {       # name -> method, key in its file, new value
    "statistics, moving": ("statistics", "pace", "0.02"),
    "statistics, moving, no map": ("statistics", "pace|moves", '0.02|"none"'),
    "statistics, moving, means alone": ("statistics", "pace|moves", '0.02|"means"'),
    "statistics, diagonal": ("statistics", "rank", "0"),
    "statistics, full covariance": ("statistics", "rank", "100000"),    # as far as the bytes allow
    "latent, floats": ("latent", "bits", "32"),
    "latent, product codes": ("latent", "bits", "2"),
    "dgr, generator without replay": ("dgr", "recalls", "false"),
    "fearnet, without sleep": ("fearnet", "sleep", "0")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--sizes", default="16KB,64KB")
    parser.add_argument("--methods", default=",".join((*SIZED, *FIXED)))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--per-class", type=int)
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument("--fixed", action="store_true", help="no ablation of moving layers, as vectors have none below")
    parser.add_argument("--runs", type=Path, default=Path("pseudo-rehearsal-runs"))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--pictures", action="store_true")
    options = parser.parse_args()
    if options.pictures:
        pictures(options.out)
    elif options.write:
        write(options.runs, options.out)
    else:
        measure(options)


def measure(options: argparse.Namespace) -> None:
    place = options.runs / f"{Path(options.data).stem}.json"
    kept: list[dict[str, Any]] = json.loads(place.read_text("utf-8")) if place.exists() else []
    done = [entry["wanted"] for entry in kept]
    with tempfile.TemporaryDirectory() as folder:
        for name, size, job in jobs(options, Path(folder)):
            wanted = [name, size, {**asdict(job), "method": name}]
            if wanted in done:
                continue
            try:
                result = run_one(job, lambda step: None)
            except Failed as error:
                print(f"{name} at {size}: {error}", file=sys.stderr)
                continue
            kept.append({"wanted": wanted, "result": result})
            print(f"{name:34} {size:>6} seed {job.seed}: {result['final_accuracy']:.3f}, "
                  f"{format_size(result['memory_bytes'])}", flush=True)
            write_json(place, kept)


def jobs(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, BenchJob]]:
    """Name, size and job, seeds outermost, so that an interrupted campaign has complete seeds."""
    methods, sizes = options.methods.split(","), options.sizes.split(",")
    wanted = [(name, name, size) for name in methods for size in (sizes if name in SIZED else sizes[:1])]
    wanted += [(name, ablated(name, folder), size) for name, (base, _, _) in ABLATIONS.items()
               for size in sizes if options.ablate and base in methods and not ("moving" in name and options.fixed)]
    for seed in map(int, options.seeds.split(",")):
        for name, method, size in wanted:
            yield name, size, BenchJob(method, options.data, steps=options.steps, memory=parse_size(size), seed=seed,
                                  epochs=options.epochs, per_class=options.per_class)


def ablated(name: str, folder: Path) -> str:
    """The file of a method with changed numbers."""
    base, keys, values = ABLATIONS[name]
    changed = dict(zip(keys.split("|"), values.split("|")))
    lines = method_file(base).read_text("utf-8").splitlines()
    path = folder / f"{name.replace(', ', '-').replace(' ', '-')}.toml"
    path.write_text("\n".join(f"{key} = {changed[key]}" if (key := line.partition(" = ")[0]) in changed else line
                              for line in lines) + "\n", "utf-8")
    return str(path)


def write(runs: Path, out: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    tables = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(runs.glob("*.json"))}
    figure, axes = pyplot.subplots(1, len(tables), figsize=(5 * len(tables), 4), squeeze=False, layout="constrained")
    for axis, (data, kept) in zip(axes[0], tables.items()):
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for entry in kept:
            name, size = entry["wanted"][:2]
            groups.setdefault((name, "" if name in FIXED else size), []).append(entry["result"])
        sizes = sorted({size for _, size in groups if size}, key=parse_size)
        print(f"\n### {data}\n\n| method | {' | '.join(sizes)} |\n|---|{'---|' * len(sizes)}")
        for name in dict.fromkeys(name for name, _ in sorted(groups)):
            fixed = {sizes[0]: groups.get((name, ""), [])}
            print(f"| {name} | {' | '.join(cell(groups.get((name, each), fixed.get(each, []))) for each in sizes)} |")
        for place, name in enumerate((*SIZED, *FIXED)):
            points = sorted((median(r["memory_bytes"] for r in results), median(r["final_accuracy"] for r in results))
                            for (of, _), results in groups.items() if of == name)
            if points and points[0][0]:
                axis.plot(*zip(*points), MARKS.get(name, "o-"), label=name, color="k" if name in MARKS else f"C{place}")
        axis.set(xscale="log", xlabel="bytes kept", ylabel="final accuracy", title=data)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(out / "pseudo-rehearsal.svg", metadata={"Date": None})


def cell(results: list[dict[str, Any]]) -> str:
    """Median and range of the final accuracy, and bytes kept; the number of seeds if it is not three."""
    if not results:
        return ""
    final = [result["final_accuracy"] for result in results]
    spread = f" ({min(final):.3f} to {max(final):.3f})" if len(final) > 1 else ""
    seeds = "" if len(final) == 3 else f", seeds: {len(final)}"
    return f"{median(final):.3f}{spread}, {format_size(median(result['memory_bytes'] for result in results))}{seeds}"


def pictures(out: Path) -> None:
    """Rows are steps, columns one sample of each class known by then; with replay on the left, without on the right."""
    import matplotlib
    import numpy as np

    from edgecl.evaluation.datasets import digits
    from edgecl.training.bench.options import RunOptions
    from edgecl.training.bench.session import MethodRun
    from edgecl.training.memory.generator import GenerativeReplay

    matplotlib.use("svg")
    from matplotlib import pyplot

    data = digits()
    figure, axes = pyplot.subplots(5, 20, figsize=(10, 2.8))
    with tempfile.TemporaryDirectory() as folder:
        for half, method in enumerate(("dgr", ablated("dgr, generator without replay", Path(folder)))):
            learner = MethodRun(method, "mlp", (64,), "float32", 32_000, 0, RunOptions(epochs=5))
            for step in range(5):
                rows = np.isin(data.y_train, [2 * step, 2 * step + 1])
                learner.learn(data.x_train[rows], data.y_train[rows])
                memory = learner.parts.memory
                assert isinstance(memory, GenerativeReplay)
                made, of = memory.generated(400, np.random.default_rng(step))
                first = {int(column): i for i, column in reversed(list(enumerate(of)))}
                for column in range(10):
                    axis = axes[step][10 * half + column]
                    axis.axis("off")
                    if column in first:
                        axis.imshow(1 - made[first[column]].reshape(8, 8), cmap="gray", vmin=0, vmax=1)
    figure.suptitle("after each step: generator with its own replay (left), without (right)", fontsize=9)
    figure.savefig(out / "dgr-samples.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
