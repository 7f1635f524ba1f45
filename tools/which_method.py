#!/usr/bin/env python3
"""Writes docs/which-method.md, which method suits which board, from results of `edgecl bench`.

    python tools/which_method.py RESULTS.json...

Each RESULTS.json was written by `edgecl bench --multi-head --out FOLDER`; `--run OUT` creates them first, for all
methods.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from edgecl.rounds.method import Method, method_names, read_method
from edgecl.settings import format_size

PAGE = Path(__file__).resolve().parents[1] / "docs/which-method.md"
RUNS = {"digits": ["--data", "digits", "--epochs", "3", "--seeds", "0,1,2"],
        "fashion": ["--data", "fashion", "--per-class", "200", "--epochs", "2", "--seeds", "0,1,2"]}
MORE = {"gem"}      # methods that get 2 MB, since bench refuses them with its usual 200 KB
ACTIVATIONS = {"latent", "fearnet"}     # memories of activations inside a network
BOUNDS = {"joint", "finetune"}      # upper and lower bound for the others


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*")
    parser.add_argument("--run", type=Path, metavar="OUT", help="run every method; results already in OUT are kept")
    options = parser.parse_args()
    files = list(options.results)
    for name, given in RUNS.items() if options.run else ():
        for memory, methods in (("200KB", set(method_names()) - MORE), ("2MB", MORE)):
            out = options.run / f"{name}-{memory}"
            subprocess.run([sys.executable, "-m", "edgecl.cli", "bench", "--method", ",".join(sorted(methods)),
                            "--memory", memory, "--multi-head", "--out", str(out), *given], check=False)
            files.append(out / "results.json")
    results = [result for file in files for result in json.loads(file.read_text("utf-8"))]
    if not results:
        parser.error("no results; give results.json files of `edgecl bench --out`, or --run OUT")
    PAGE.write_text(page(results), "utf-8")
    return 0


def page(results: list[dict[str, Any]]) -> str:
    """Markdown: what each method needs, then a table for each data set and scenario, most accurate first."""
    settings: dict[tuple[str, str, int], dict[str, list[dict[str, Any]]]] = {}
    for result in results:
        of = settings.setdefault((Path(result["data"]).stem, result["scenario"], result["steps"]), {})
        of.setdefault(Path(result["method"]).stem, []).append(result)
    known = [name for name in dict.fromkeys(name for of in settings.values() for name in of) if name in method_names()]
    text = [PREFACE, "## Which to take\n\n" + "\n".join(best(of, title(key)) for key, of in settings.items()),
            "## What each needs\n\n| method | keeps | samples kept | answers need | `edgecl round` |\n"
            "|---|---|---|---|---|\n" + "\n".join(
                f"| `{name}` | {' | '.join(needs(read_method(name)))} |" for name in sorted(known))]
    for key, of in settings.items():
        rows = sorted(of.items(), key=lambda item: -middle(item[1], "final_accuracy"))
        text.append(f"## {title(key)}\n\n"
                    "| method | final accuracy | task known | bytes kept | seconds | peak memory | seeds |\n"
                    "|---|---:|---:|---:|---:|---:|---:|\n" + "\n".join(row(name, mine) for name, mine in rows))
    return "\n\n".join(text) + "\n"


def title(key: tuple[str, str, int]) -> str:
    return f"{key[0]}, {key[1]}, {key[2]} steps"


def middle(results: list[dict[str, Any]], name: str) -> float:
    """The median over seeds."""
    return float(median(result[name] for result in results))


def row(name: str, mine: list[dict[str, Any]]) -> str:
    aware = "" if mine[0]["task_aware_accuracy"] is None else f"{middle(mine, 'task_aware_accuracy'):.3f}"
    return (f"| `{name}` | {middle(mine, 'final_accuracy'):.3f} | {aware} | "
            f"{format_size(int(middle(mine, 'memory_bytes')))} | {middle(mine, 'train_seconds'):.1f} | "
            f"{format_size(int(middle(mine, 'peak_rss_bytes')))} | {len(mine)} |")


def best(of: dict[str, list[dict[str, Any]]], where: str) -> str:
    """One line: the most accurate method for each size of memory that gains accuracy."""
    chosen: list[tuple[int, float, str]] = []
    for name, mine in of.items():
        if name not in BOUNDS:
            chosen.append((int(middle(mine, "memory_bytes")), middle(mine, "final_accuracy"), name))
    useful = max(share for _, share, _ in chosen) / 2
    front = [one for one in sorted(chosen) if one[1] >= useful and not any(
        other[0] <= one[0] and other[1] >= one[1] and other != one for other in chosen)]
    return f"- {where}: " + ", ".join(f"`{name}` for {format_size(size)} ({share:.3f})" for size, share, name in front)


def needs(method: Method) -> tuple[str, str, str, str]:
    """The row of one method: what it keeps, whether that is samples, what its answers need, and `edgecl round`."""
    kept = [name for kind in ("memory", "constraint", "plasticity") for name in method.parts[kind]]
    samples = any("exemplars" in part.gives for _, part in method.rows()) or method.parts["memory"][0] in ACTIVATIONS
    asks = f"the task, or its rule ({method.parts['task_rule'][0]})" if method.plastic else "nothing"
    refused = any(row.bench_only for _, row in method.rows())
    rounds = "no" if refused else {"none": "no", "first": "the first only", "all": "yes"}[method.tuned]
    return ", ".join(name for name in kept if name not in ("none", "nothing")) or "nothing", \
        "yes" if samples else "no", asks, rounds


PREFACE = """# Which method for which board

Every method of `edgecl methods` on the same data, by `edgecl bench`: medians over seeds. Bytes are all that is kept
between steps besides the served network; seconds are those of training on a machine that also had other work, so they
only show an order; peak memory is that of the whole process. With the task known, answers are limited to its classes.
`joint` is the bound that keeps all data, `finetune` the one that keeps nothing. `ncm`, `slda` and `ranpac` have no
round: they are the heads of `edgecl learn` and need no training. Methods had 200 KB; `gem`, whose gradients don't fit
into that, had 2 MB. Made by `tools/which_method.py`.

**In short**: take what `edgecl learn` does, unless the backbone is to be tuned. Then: may samples be kept?
`first-session`, or of those that go on learning `er-ace`, `der++`, `ucir` or `gdumb`; more data sets:
[methods.md](methods.md). If not: `statistics` ([pseudo-rehearsal.md](pseudo-rehearsal.md),
[privacy.md](privacy.md)). Penalties on weights (`ewc`, `si`, `mas`, `rwalk`) and sub-networks need to know the task
([constraints.md](constraints.md), [plasticity.md](plasticity.md))."""


if __name__ == "__main__":
    sys.exit(main())
