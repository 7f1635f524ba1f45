#!/usr/bin/env python3
"""Measures whether answers can be trusted, on real data: accuracy, confidence, class figures, unknown samples, quotas.

    python tools/trust.py [--grocery FOLDER] [--cifar FOLDER] [--wisdm FOLDER] [--cache FOLDER] [--parts a,b,c,d,e,f,g]
                          [--quick] [--results FILE.json] [--before FILE.json] [--against FOLDER] [--docs FOLDER]

a: accuracy and trust by set and samples per class; b: differences between draws of recordings' numbers and orders of
classes; c: unknown samples; d: accuracy by quota; e: a class `nothing`; f: processor time; g: shrinkage. Tables are
printed as Markdown, or written into --docs: all into trust.md, and some between the marks of unknown.md and design.md.
Digits and smartwatch recordings come from installed packages.

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
from pathlib import Path

import trust_states as states
from trust_measures import accuracy_and_trust, costs, differences, drawn, first, shrinkages, strangers
from trust_sets import Set, all_sets
from trust_tables import (
    CLASSES,
    DRAWS,
    FEWER,
    MAIN,
    PAGE,
    PER_CLASS,
    QUOTAS,
    SHRUNK,
    SPREAD,
    TAUGHT_OF_EACH,
    Results,
    Values,
    between,
    table_in_short,
    table_of_nothing,
    table_of_strangers,
    tables,
)

from edgecl.evaluation import datasets

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


def measure_shrinkages(sets: dict[str, Set], results: Results) -> None:
    for name in (each for each in SHRUNK if each in sets):
        results(f"g {name}", shrinkages, sets[name], first(sets[name], None))


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
        for quota in QUOTAS:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("grocery", "cifar", "wisdm", "results", "before", "against", "docs"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "edgecl-features")
    parser.add_argument("--parts", default="a,b,c,d,e,f,g")
    parser.add_argument("--quick", action="store_true", help="one draw")
    parser.add_argument("--only", default="", help="sets whose name starts with this")
    parser.add_argument("--cost", action="store_true", help="print this checkout's processor time on photos and end")
    options = parser.parse_args()
    parts, now = options.parts.split(","), Results(options.results)
    folders = {"grocery_store": options.grocery, "cifar10": options.cifar, "wisdm51": options.wisdm}
    sets = all_sets(folders, options.cache, "grocery" if options.cost else options.only) \
        if options.cost or {*"abcg"} & {*parts} else {}
    if options.cost:
        data = sets["grocery_store"]
        print(json.dumps(costs(data, first(data, None))))
        return 0
    draws = 1 if options.quick else DRAWS
    if "a" in parts:
        measure_accuracy(sets, now, draws)
    if "c" in parts:
        measure_strangers(sets, now, draws)
    if "g" in parts:
        measure_shrinkages(sets, now)
    if "b" in parts:
        measure_differences(sets, now, options.quick)
    measure_states(options, now, parts)
    if "f" in parts and options.grocery:
        measure_costs(options, now)
    text = tables(now, Results(options.before) if options.before else None)
    print(text)
    if options.docs:
        (options.docs / "trust.md").write_text(PAGE + tables(now, None), "utf-8")
        for name, parts_of in (("unknown", {"strangers": table_of_strangers(now, None, whole=False),
                                            "nothing": table_of_nothing(now, None)}),
                               ("design", {"trust": table_in_short(now)})):
            page = options.docs / f"{name}.md"
            written = page.read_text("utf-8")
            for part, made in parts_of.items():
                written = between(written, part, made)
            page.write_text(written, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
