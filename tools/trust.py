#!/usr/bin/env python3
"""Measures whether answers can be trusted, on real data: accuracy, confidence, class figures, unknown samples, quotas.

    python tools/trust.py [--grocery FOLDER] [--cifar FOLDER] [--wisdm FOLDER] [--cache FOLDER] [--parts a,b,c,d,e,f]
                          [--quick] [--results FILE.json] [--before FILE.json] [--against FOLDER] [--out FILE.md]

a: accuracy and trust by set and samples per class; b: differences between draws of recordings' numbers and orders of
classes; c: unknown samples; d: accuracy by quota; e: a class `nothing`; f: processor time. Tables are printed as
Markdown, and also written to --out. Digits and smartwatch recordings come from installed packages.

--grocery, --cifar: folders of {train,test}/CLASS/*.jpg; --wisdm: a folder of data.npz, windows with session_train, and
streams/test/CLASS/*.csv; --results: measurements to keep, each is made once; --before: those of another commit, which
each table shows beside its own; --against: another checkout, whose processor time is measured in turn.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

import trust_states as states
from trust_measures import accuracy_and_trust, costs, differences, drawn, first, strangers
from trust_sets import Set, all_sets

from edgecl.evaluation import datasets

PER_CLASS = (None, 20, 10, 5, 2, 1)
DRAWS = 3               # of samples, in a; of classes, in c
MAIN = ("grocery_store", "cifar10", "digits", "watch 168", "watch 672", "watch 2688", "wisdm51 168", "wisdm51 672",
        "wisdm51 2688")
FEWER = {"watch 168", "watch 2688", "wisdm51 168", "wisdm51 2688"}     # all samples and 20 per class only
SPREAD = (("grocery_store", 1_000_000), ("cifar10", 4_000_000), ("cifar10", 250_000), ("digits", 4_000_000),
          ("digits", 30_000), ("watch 672", 4_000_000), ("watch 672", 400_000), ("wisdm51 672", 600_000))
CLASSES = {"grocery_store": (1, 2, 3, 5, 10, 30, 60), "cifar10": (1, 2, 3, 5), "digits": (1, 2, 3, 5),
           "watch 672": (1, 2, 3, 5), "wisdm51 672": (1, 2, 3, 5, 10)}
TAUGHT_OF_EACH = (5, 20, 60)
Values = dict[str, Any]


class Results:
    """Measurements by name: read from a file if it has them, else made, and written at once."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.of: dict[str, Values] = json.loads(path.read_text("utf-8")) if path and path.exists() else {}

    def __call__(self, name: str, make: Callable[..., Values], *given: Any) -> Values:
        """The measurement of this name: what `make` finds for what is given."""
        if name not in self.of:
            self.of[name] = make(*given)
            print(name, file=sys.stderr, flush=True)
            if self.path:
                self.path.write_text(json.dumps(self.of, indent=0), "utf-8")
        return self.of[name]


# measuring ----------------------------------------------------------------------------------------


def measure_accuracy(sets: dict[str, Set], results: Results, draws: int) -> None:
    for name in (each for each in MAIN if each in sets):
        data = sets[name]
        for count in PER_CLASS:
            if name in FEWER and count not in (None, 20):
                continue
            if count is None:
                results(f"a {name} all first", accuracy_and_trust, data, first(data, None))
                continue
            if not data.with_sessions:
                results(f"a {name} {count} first", accuracy_and_trust, data, first(data, count))
            for seed in range(draws):
                results(f"a {name} {count} {seed}", accuracy_and_trust, data, drawn(data, count, seed))


def measure_differences(sets: dict[str, Set], results: Results, quick: bool) -> None:
    draws, orders = (3, 2) if quick else (24, 10)
    for name, limit in SPREAD:
        if name in sets:
            ways = draws, orders
            results(f"b {name} {limit}", differences, sets[name], first(sets[name], None), ways, limit)


def measure_strangers(sets: dict[str, Set], results: Results, draws: int) -> None:
    for name, counts in CLASSES.items():
        for count in counts if name in sets else ():
            for per_class in TAUGHT_OF_EACH:
                for seed in range(draws):
                    results(f"c {name} {count} {per_class} {seed}",
                            strangers, sets[name], count, per_class, seed)


def measure_states(options: argparse.Namespace, results: Results, parts: str) -> None:
    wisdm = options.wisdm and datasets.npz(options.wisdm / "data.npz")
    if "d" in parts:
        for quota in states.QUOTAS:
            results(f"d watch {quota}", states.windows_by_quota, datasets.watch_windows(), quota)
            if wisdm:
                results(f"d wisdm51 {quota}", states.windows_by_quota, wisdm, quota)
            if options.grocery:
                photos = all_sets({"grocery_store": options.grocery}, options.cache, "grocery")["grocery_store"]
                given = photos.x, photos.y, photos.test_x, photos.test_y, quota
                results(f"d grocery_store {quota}", states.vectors_by_quota, *given)
    if "e" in parts and wisdm:
        for seed in range(1 if options.quick else 3):
            results(f"e wisdm51 {seed}", states.nothing, wisdm, options.wisdm / "streams" / "test", seed)


def measure_costs(options: argparse.Namespace, results: Results) -> None:
    """Processor time of this checkout and of another, in turn."""
    here = Path(__file__).resolve().parents[1]
    checkouts = {"here": here, **({"other": options.against.resolve()} if options.against else {})}
    for turn in range(1 if options.quick else 3):
        for name, checkout in checkouts.items():
            results(f"f {name} {turn}", _costs_of, checkout, options)


def _costs_of(checkout: Path, options: argparse.Namespace) -> Values:
    command = [sys.executable, __file__, "--grocery", str(options.grocery), "--cache", str(options.cache), "--cost"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(checkout)}, check=True, capture_output=True)
    values: Values = json.loads(done.stdout)
    return values


# tables -------------------------------------------------------------------------------------------


def middle(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return median(found) if found else None


def shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}" if digits >= 0 else f"{value:.3f}"


def cell(now: float | None, before: float | None, other: bool, digits: int = 1) -> str:
    """A value, or "before → now"."""
    return f"{shown(before, digits)} → {shown(now, digits)}" if other else shown(now, digits)


def table_of_accuracy(now: Results, before: Results | None) -> str:
    columns = (("accuracy", "accuracy, %", 1), ("ece", "calibration error", -1), ("sure", "wrong and over 0.9, %", 1),
               ("figure", "error of class figures", -1), ("refused", "known refused, %", 1))
    lines = [f"| set, samples per class | {' | '.join(title for _, title, _ in columns)} | head |",
             f"|---|{'---:|' * len(columns)}---|"]
    for name in MAIN:
        for count in ("all", "20", "10", "5", "2", "1"):
            for what, ends in (("first", ["first"]), ("drawn", [str(seed) for seed in range(DRAWS)])):
                keys = [f"a {name} {count} {end}" for end in ends]
                found = [now.of[key] for key in keys if key in now.of]
                if not found:
                    continue
                old = [before.of[key] for key in keys if before and key in before.of]
                cells = [cell(middle(each[column] for each in found), middle(each[column] for each in old),
                              before is not None, digits) for column, _, digits in columns]
                kinds = " ".join(sorted({each["kind"] for each in found}))
                title = name if count == "all" else f"{name}, {count}" + (" (the first)" if what == "first" else "")
                lines.append(f"| {title} | {' | '.join(cells)} | {kinds} |")
    return "\n".join(lines)


def table_of_differences(now: Results, before: Results | None) -> str:
    lines = ["| set, bytes of exemplars | accuracy over draws, % | answers that differ, % | accuracy over orders, % "
             "| answers that differ, % |", "|---|---:|---:|---:|---:|"]
    for name, limit in SPREAD:
        found = [each.of.get(f"b {name} {limit}") for each in (before, now) if each]
        if found[-1] is None:
            continue
        cells = []
        for what in ("draws", "orders"):
            cells.append(" → ".join("-" if one is None else
                                    f"{100 * one[f'{what} lowest']:.1f} to {100 * one[f'{what} highest']:.1f}"
                                    for one in found))
            cells.append(" → ".join("-" if one is None else f"{100 * one[f'{what} other answers']:.1f}"
                                    for one in found))
        lines.append(f"| {name}, {limit:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def averaged(results: Results | None, name: str, count: int, per_class: int, score: str) -> dict[str, float] | None:
    """The mean over draws of one cell of `strangers`."""
    found = [values[score] for key, values in (results.of.items() if results else ())
             if key.rsplit(" ", 1)[0] == f"c {name} {count} {per_class}"]
    return {part: mean(each[part] for each in found if part in each) for part in found[0]} if found else None


def table_of_strangers(now: Results, before: Results | None) -> str:
    lines = ["| set, classes x samples | known refused | near | far | frames or constants | near, max-softmax | near, "
             "kNN |", "|---|---:|---:|---:|---:|---:|---:|"]
    for name, counts in CLASSES.items():
        for count in counts:
            for per_class in TAUGHT_OF_EACH:
                mine = averaged(now, name, count, per_class, "edgecl")
                if mine is None:
                    continue
                old = averaged(before, name, count, per_class, "edgecl")
                others = [averaged(now, name, count, per_class, score) or {} for score in ("max-softmax", "kNN")]
                cells = [cell(_part(mine, part), _part(old, part), before is not None, 0) for part in
                         ("known", "near", "far", "nothing")]
                cells += [shown(each.get("near"), 0) for each in others]
                lines.append(f"| {name}, {count} x {per_class} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _part(values: dict[str, float] | None, part: str) -> float | None:
    if values is None or part != "nothing":
        return None if values is None else values.get(part)
    return values.get("frames", values.get("constants"))


def table_of_quotas(now: Results, before: Results | None) -> str:
    lines = [f"| set | {' | '.join(states.QUOTAS)} |", f"|---|{'---:|' * len(states.QUOTAS)}"]
    for name in ("watch", "wisdm51", "grocery_store"):
        cells = []
        for quota in states.QUOTAS:
            mine, old = (each.of.get(f"d {name} {quota}") if each else None for each in (now, before))
            cells.append(cell(mine["accuracy"], old["accuracy"] if old else None, before is not None)
                         + f" ({mine['features']})" if mine else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_nothing(now: Results, before: Results | None) -> str:
    ways = ("without", "with")
    found = {way: [values[way] for key, values in now.of.items() if key.startswith("e ")] for way in ways}
    old = {way: [values[way] for key, values in before.of.items() if key.startswith("e ")] if before else []
           for way in ways}
    lines = ["| | without `nothing` | with |", "|---|---:|---:|"]
    for row in found["with"][0] if found["with"] else ():
        share = row.startswith(("known", "strange", "recordings"))
        cells = []
        for way in ways:
            values = [middle(each[row] for each in some_) for some_ in (old[way], found[way])]
            texts = ["-" if value is None else f"{100 * value:.1f} %" if share else f"{value:.1f}" for value in values]
            cells.append(" → ".join(texts) if before else texts[1])
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_costs(now: Results) -> str:
    lines = ["| | judging and solving, processor seconds | one answer of the head, ms |", "|---|---:|---:|"]
    for name in ("here", "other"):
        found = [values for key, values in now.of.items() if key.startswith(f"f {name} ")]
        if found:
            lines.append(f"| {name} | {min(each['judge'] for each in found):.2f} | "
                         f"{1000 * min(each['answer'] for each in found):.3f} |")
    return "\n".join(lines)


TITLES = {"a": "Accuracy and trust", "b": "Order and numbers", "c": "Unknown", "d": "Quotas", "e": "A class `nothing`",
          "f": "Processor time"}


def tables(now: Results, before: Results | None) -> str:
    """All tables, as Markdown."""
    made = {"a": table_of_accuracy(now, before), "b": table_of_differences(now, before),
            "c": table_of_strangers(now, before), "d": table_of_quotas(now, before),
            "e": table_of_nothing(now, before), "f": table_of_costs(now)}
    return "\n\n".join(f"## {TITLES[part]}\n\n{text}" for part, text in made.items()
                       if any(key.startswith(f"{part} ") for key in now.of)) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("grocery", "cifar", "wisdm", "results", "before", "against", "out"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "edgecl-features")
    parser.add_argument("--parts", default="a,b,c,d,e,f")
    parser.add_argument("--quick", action="store_true", help="one draw")
    parser.add_argument("--only", default="", help="sets whose name starts with this")
    parser.add_argument("--cost", action="store_true", help="print this checkout's processor time on photos and end")
    options = parser.parse_args()
    parts, now = options.parts.split(","), Results(options.results)
    folders = {"grocery_store": options.grocery, "cifar10": options.cifar, "wisdm51": options.wisdm}
    sets = all_sets(folders, options.cache, "grocery" if options.cost else options.only) \
        if options.cost or {*"abc"} & {*parts} else {}
    if options.cost:
        data = sets["grocery_store"]
        print(json.dumps(costs(data, first(data, None))))
        return 0
    draws = 1 if options.quick else DRAWS
    if "a" in parts:
        measure_accuracy(sets, now, draws)
    if "c" in parts:
        measure_strangers(sets, now, draws)
    if "b" in parts:
        measure_differences(sets, now, options.quick)
    measure_states(options, now, parts)
    if "f" in parts and options.grocery:
        measure_costs(options, now)
    text = tables(now, Results(options.before) if options.before else None)
    print(text)
    if options.out:
        options.out.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
