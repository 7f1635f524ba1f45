#!/usr/bin/env python3
"""The long protocol: 32 x 32 colour images, `resnet32`, 10 steps, 2,000 exemplars, the papers' epochs and schedules.

    python tools/bench_cifar.py FILE.npz OUT.jsonl [--methods icarl,bic] [--seeds 0] [--share 1] [--per-class N]
                                [--steps 10] [--exemplars 2000] [--batch 128]

FILE.npz contains x_train, y_train, x_test, y_test (uint8 [n, 32, 32, 3]); results already in OUT.jsonl are not run
again. --share and --per-class reduce the protocol: the share of the epochs (at least one), and the training images per
class; then reduce --exemplars as well, and --batch, with which the rates scale (Goyal et al. 2017). The table says what
was run. Images are not augmented, while the papers mirror and crop.

Epochs, rate, milestones, factor, decay: iCaRL (Rebuffi et al. 2017, section 4), EEIL (Castro et al. 2018, section 4),
BiC (Wu et al. 2019, section 5), UCIR (Hou et al. 2019, section 4.1), WA (Zhao et al. 2020, section 4.1), PODNet
(Douillard et al. 2020, section 4.1, but with the milestones of UCIR instead of a cosine); the others as BiC.
"""
from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
from pathlib import Path

from table import Result, place, table

from edgecl.evaluation.bench import BenchJob, method_file, run_one

LONG = (250, 0.1, (0.4, 0.6, 0.8), 10, 2e-4)
SCHEDULES = {"icarl": (70, 0.02, (0.7, 0.9), 5, 1e-5), "eeil": (40, 0.1, (0.25, 0.5, 0.75), 10, 1e-4), "bic": LONG,
             "wa": LONG, "ucir": (160, 0.1, (0.5, 0.75), 10, 5e-4), "podnet": (160, 0.1, (0.5, 0.75), 10, 5e-4)}
BATCH = 128


def scheduled(method: str, folder: Path, batch: int) -> tuple[str, int, float]:
    """A file of the method with its paper's schedule; its epochs and rate, for batches of this size."""
    epochs, rate, milestones, factor, decay = SCHEDULES.get(method, LONG)
    rate *= batch / BATCH
    kept = [line for line in method_file(method).read_text("utf-8").splitlines()
            if not re.match(r"(rate|milestones|factor|decay) =", line)]
    path = folder / f"{method}.toml"
    path.write_text("\n".join([*kept, f"rate = {rate}", f"milestones = {list(milestones)}", f"factor = {factor}",
                               f"decay = {decay}"]) + "\n", "utf-8")
    return str(path), epochs, rate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="FILE.npz")
    parser.add_argument("out", metavar="OUT.jsonl", type=Path)
    parser.add_argument("--methods", default="finetune,er,icarl,eeil,bic,wa,ucir,podnet,der++,er-ace,il2m,joint")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--per-class", type=int)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--exemplars", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=BATCH)
    options = parser.parse_args()
    lines = options.out.read_text("utf-8").splitlines() if options.out.exists() else []
    kept = {(*place(result), result["reduced"]): result for result in map(json.loads, lines)}
    wanted: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        for method in options.methods.split(","):
            path, published, rate = scheduled(method, Path(folder), options.batch)
            epochs = max(math.ceil(options.share * published), 1)
            for seed in map(int, options.seeds.split(",")):
                reduced = (f"{options.steps} steps, {options.exemplars} exemplars, {options.per_class or 'all'} a "
                           f"class, batches of {options.batch}")
                key = ("edgecl", method, options.data, epochs, rate, seed, reduced)
                if key not in kept:
                    job = BenchJob(path, options.data, steps=options.steps, memory=options.exemplars * 3072 + 100 * 16,
                              seed=seed, epochs=epochs, batch=options.batch, backbone="resnet32",
                              per_class=options.per_class)
                    kept[key] = run_one(job, lambda told: print(told, file=sys.stderr, flush=True)) | {
                        "by": "edgecl", "method": method, "epochs": epochs, "rate": rate, "reduced": reduced}
                    with options.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(kept[key]) + "\n")
                wanted.append(kept[key])
    print(f"{Path(options.data).name}: {reduced}; {options.share:g} of the papers' epochs, seeds {options.seeds}\n")
    print("\n".join(table(wanted)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
