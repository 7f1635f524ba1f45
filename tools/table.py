#!/usr/bin/env python3
"""Compares methods on one protocol over several seeds in a Markdown table; finished runs are read from JSON lines.

    python tools/table.py [--data fashion] [--ablation] [--epochs 1] [--seeds 0,1,2] [--methods er,bic] [--rates 0.02]
                          [--out FILE.jsonl]
                          [--peer PYTHON --peer-script FILE]

Fashion-MNIST: 5 steps of 2 classes, the first 1,000 images per class, the bytes of 200 exemplars; digits and watch: 5
steps, the bytes of 100 and of 60. With several rates, each method is shown at the one with the best median final
accuracy. --ablation: er alone, and with each part that balances new against old. The peer, if given, runs its strategy
of the same name at the same rates, alternating with ours: it draws its 1,000 images per class by the seed, and has 200
exemplars whatever else it keeps.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

from edgecl.errors import EdgeclError
from edgecl.evaluation.bench import BenchJob, method_file, run_one
from edgecl.rounds.method import read_method
from edgecl.settings import format_size

STRATEGIES = {"finetune": "Naive", "er": "ReplayReservoirBal", "lwf": "LwF", "icarl": "ICaRL", "der++": "DERpp",
              "gdumb": "GDumb", "er-ace": "ER_ACE", "bic": "BiC", "gss": "GSS_greedy"}
MEMORY = {"fashion": 200 * 784 + 160, "digits": 100 * 256 + 160, "watch": 60 * 3600 + 300}
EXEMPLAR_COUNT = {"fashion": 200, "digits": 100}
Result = dict[str, Any]


PARTS = {"er": "", "er+fine-tuning": 'balance = "fine-tuning"\npasses = 5\nslower = 10\nafresh = false\n',
         "er+bias-correction": 'balance = "bias-correction"\n', "er+rectified": 'balance = "rectified"\n',
         "er+alignment": 'balance = "alignment"\n', "er+positive": 'constraint = "positive-weights"\n',
         "er+positive+alignment": 'constraint = "positive-weights"\nbalance = "alignment"\n',
         "er+cosine": 'head = "cosine"\n', "er+cosine+imprinting": 'head = "cosine"\nbalance = "imprinting"\n',
         "er+temperature": 'balance = "temperature"\n', "er+asymmetric": 'head = "asymmetric"\n'}


def ablated(folder: Path) -> list[str]:
    """A file of er with each part."""
    base = method_file("er").read_text("utf-8")
    for name, lines in PARTS.items():
        (folder / f"{name}.toml").write_text(base + lines, "utf-8")
    return [str(folder / f"{name}.toml") for name in PARTS]


def ours(method: str, options: argparse.Namespace, seed: int, rate: float) -> Result:
    job = BenchJob(method, options.data, memory=MEMORY[options.data], seed=seed, epochs=options.epochs, rate=rate,
              per_class=1000 if options.data == "fashion" else None)
    return {"by": "edgecl", "rate": rate, "epochs": options.epochs, **run_one(job, lambda _: None)} | {
        "job": asdict(job), "method": Path(method).stem}


def theirs(method: str, options: argparse.Namespace, seed: int, rate: float) -> Result:
    command = [options.peer, str(options.peer_script), "--strategy", STRATEGIES[method], "--data", options.data,
               "--seed", str(seed), "--lr", str(rate), "--epochs", str(options.epochs), "--mem",
               str(EXEMPLAR_COUNT[options.data]), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"by": "peer", "method": method, "rate": rate, "epochs": options.epochs, "data": options.data,
                "seed": seed, "failed": done.stderr.splitlines()[-1:]}
    found = json.loads(done.stdout.splitlines()[-1])
    return {"by": "peer", "method": method, "rate": rate, "epochs": options.epochs, "data": options.data, "seed": seed,
            "average_incremental_accuracy": found["avg_incremental_acc"], "final_accuracy": found["final_acc"],
            "forgetting": found["forgetting"], "train_seconds": found["train_s"], "memory_bytes": None}


def place(result: Result) -> tuple[Any, ...]:
    return tuple(result[name] for name in ("by", "method", "data", "epochs", "rate", "seed"))


def table(results: list[Result]) -> list[str]:
    """One row per method, at its best rate, in order of final accuracy."""
    by: dict[tuple[str, str], dict[Any, list[Result]]] = {}
    for result in results:
        if "failed" not in result:
            by.setdefault((result["method"], result["by"]), {}).setdefault(result["rate"], []).append(result)

    def middle(mine: list[Result], name: str) -> float:
        return median(result[name] for result in mine)

    rows = []
    for (method, side), rates in by.items():
        rate, mine = max(rates.items(), key=lambda item: middle(item[1], "final_accuracy"))
        finals = sorted(result["final_accuracy"] for result in mine)
        kept = mine[0]["memory_bytes"]
        rows.append((middle(mine, "final_accuracy"), [
            method if side == "edgecl" else f"{method} (peer)", f"{rate:g}",
            f"{middle(mine, 'average_incremental_accuracy'):.3f}",
            f"{median(finals):.3f} ({finals[0]:.3f} to {finals[-1]:.3f})", f"{middle(mine, 'forgetting'):.3f}",
            "" if kept is None else format_size(kept), f"{middle(mine, 'train_seconds'):.1f}", str(len(mine))]))
    head = ["method", "rate", "average", "final (range)", "forgetting", "kept", "seconds", "seeds"]
    lines = [head, ["---"] * len(head), *(cells for _, cells in sorted(rows, key=lambda row: -row[0]))]
    return ["| " + " | ".join(line) + " |" for line in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion", choices=MEMORY)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default="finetune,er,er-ace,der++,gdumb,gss,icarl,ucir,podnet,eeil,bic,il2m,wa")
    parser.add_argument("--rates", default="", help="rates separated by commas; default: each method's own")
    parser.add_argument("--out", type=Path, help="file that results are read from and added to")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("--peer-script", metavar="FILE", type=Path)
    options = parser.parse_args()
    lines = options.out.read_text("utf-8").splitlines() if options.out and options.out.exists() else []
    kept = {place(result): result for result in map(json.loads, lines)}
    rates = [float(rate) for rate in options.rates.split(",")] if options.rates else []
    wanted, scratch = [], tempfile.TemporaryDirectory()
    for method in ablated(Path(scratch.name)) if options.ablation else options.methods.split(","):
        for rate in rates or [read_method(method).training["rate"]]:
            for seed in map(int, options.seeds.split(",")):
                for by, run in (("edgecl", ours), ("peer", theirs)):
                    if by == "peer" and not (options.peer and method in STRATEGIES):
                        continue
                    key = (by, Path(method).stem, options.data, options.epochs, rate, seed)
                    if key not in kept:
                        try:
                            kept[key] = run(method, options, seed, rate)
                        except EdgeclError as error:
                            kept[key] = {**dict(zip(("by", "method", "data", "epochs", "rate", "seed"), key)),
                                         "failed": str(error)}
                        if options.out:
                            with options.out.open("a", encoding="utf-8") as file:
                                file.write(json.dumps(kept[key]) + "\n")
                        print(*key, kept[key].get("average_incremental_accuracy"), kept[key].get("final_accuracy"),
                              kept[key].get("failed", ""), file=sys.stderr, flush=True)
                    wanted.append(kept[key])
    print("\n".join(table(wanted)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
