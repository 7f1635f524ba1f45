"""Measurements of tools/trust.py, kept by name, and their tables as Markdown."""
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

PER_CLASS = (None, 20, 10, 5, 2, 1)
COUNTS = tuple("all" if count is None else str(count) for count in PER_CLASS)
DRAWS = 3               # of samples, in a; of classes, in c
MAIN = ("grocery_store", "cifar10", "digits", "watch 168", "watch 672", "watch 2688", "wisdm51 168", "wisdm51 672",
        "wisdm51 2688")
FEWER = {"watch 168", "watch 2688", "wisdm51 168", "wisdm51 2688"}     # all samples and 20 per class only
SPREAD = (("grocery_store", 1_000_000), ("cifar10", 4_000_000), ("cifar10", 250_000), ("digits", 4_000_000),
          ("digits", 30_000), ("watch 672", 4_000_000), ("watch 672", 400_000), ("wisdm51 672", 600_000))
CLASSES = {"grocery_store": (1, 2, 3, 5, 10, 30, 60), "cifar10": (1, 2, 3, 5), "digits": (1, 2, 3, 5),
           "watch 672": (1, 2, 3, 5), "wisdm51 672": (1, 2, 3, 5, 10)}
TAUGHT_OF_EACH = (5, 20, 60)
SHRUNK = ("grocery_store", "cifar10", "watch 168", "watch 672", "watch 1344", "watch 2688", "wisdm51 168",
          "wisdm51 672", "wisdm51 1344", "wisdm51 2688")
QUOTAS = ("400KB", "2MB", "8MB", "64MB")
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
        for count in COUNTS:
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


def table_in_short(now: Results) -> str:
    """Accuracy and calibration error of drawn samples, by set and samples per class."""
    counts = [name for name in COUNTS if name != "1"]
    lines = [f"| set | {' | '.join(f'{count} of each' if count != 'all' else 'all' for count in counts)} |",
             f"|---|{'---:|' * len(counts)}"]
    for name in MAIN:
        cells = []
        for count in counts:
            found = [now.of[key] for end in ("first", *map(str, range(DRAWS))) if (key := f"a {name} {count} {end}")
                     in now.of and (count == "all" or end != "first")]
            cells.append("-" if not found else f"{shown(middle(each['accuracy'] for each in found), 1)}; "
                         f"{shown(middle(each['ece'] for each in found), -1)}; "
                         f"{shown(middle(each['figure'] for each in found), -1)}")
        if any(each != "-" for each in cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
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


def averaged(results: Results | None, names: Iterable[str], counts: Iterable[int], per_class: int,
             score: str) -> dict[str, float] | None:
    """The mean of `strangers` over draws of these sets, numbers of classes and samples per class."""
    cells = {f"c {name} {count} {per_class}" for name in names for count in counts}
    found = [values[score] for key, values in (results.of.items() if results else ()) if key.rsplit(" ", 1)[0] in cells]
    parts = {PARTS.get(part, part) for each in found for part in each}
    return {part: mean(value for each in found for name, value in each.items() if PARTS.get(name, name) == part)
            for part in parts} if found else None


PARTS = {"frames": "nothing", "constants": "nothing"}      # shown in one column
PHOTOS, WINDOWS = ("grocery_store", "cifar10"), ("watch 672", "wisdm51 672")
SUMS = (("photos, 1 class", PHOTOS, (1,)), ("photos, 2 or 3", PHOTOS, (2, 3)), ("photos, 5 or 10", PHOTOS, (5, 10)),
        ("photos, 30 or 60", PHOTOS, (30, 60)), ("digits, 1 to 5", ("digits",), (1, 2, 3, 5)),
        ("windows, 1 class", WINDOWS, (1,)), ("windows, 2 or 3", WINDOWS, (2, 3)),
        ("windows, 5 or 10", WINDOWS, (5, 10)))


def table_of_strangers(now: Results, before: Results | None, whole: bool = True) -> str:
    """One row for each cell of CLASSES and TAUGHT_OF_EACH, or the means of SUMS."""
    lines = ["| set, classes x samples | known refused | near | far | frames or constants | near, max-softmax | near, "
             "kNN |", "|---|---:|---:|---:|---:|---:|---:|"]
    rows = [(name, (name,), (count,)) for name, counts in CLASSES.items() for count in counts] if whole else SUMS
    for title, names, counts in rows:
        for per_class in TAUGHT_OF_EACH:
            mine = averaged(now, names, counts, per_class, "edgecl")
            if mine is None:
                continue
            old = averaged(before, names, counts, per_class, "edgecl") or {}
            others = [averaged(now, names, counts, per_class, score) or {} for score in ("max-softmax", "kNN")]
            cells = [cell(mine.get(part), old.get(part), before is not None, 0) for part in
                     ("known", "near", "far", "nothing")]
            cells += [shown(each.get("near"), 0) for each in others]
            first_cell = f"{title}, {counts[0]} x {per_class}" if whole else f"{title}, {per_class} of each"
            lines.append(f"| {first_cell} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_quotas(now: Results, before: Results | None) -> str:
    lines = [f"| set | {' | '.join(QUOTAS)} |", f"|---|{'---:|' * len(QUOTAS)}"]
    for name in ("watch", "wisdm51", "grocery_store"):
        cells = []
        for quota in QUOTAS:
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


def table_of_shrinkages(now: Results) -> str:
    lines = ["| set | e of the formula | accuracy at it | e used | accuracy | best e | accuracy |",
             "|---|---:|---:|---:|---:|---:|---:|"]
    for name in SHRUNK:
        if mine := now.of.get(f"g {name}"):
            cells = [f"{mine[key]:.3f}" for key in ("formula", "accuracy at it", "used", "accuracy", "best",
                                                    "best accuracy")]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


TITLES = {"a": "Accuracy and trust", "b": "Order and numbers", "c": "Unknown", "d": "Quotas", "e": "A class `nothing`",
          "f": "Processor time", "g": "Shrinkage"}


PAGE = """# How far answers can be trusted

Measured by `tools/trust.py` on real data, with the product's own statistics, judgement and exported head, at its
defaults (64 MB, of which 4 MB for exemplars); medians of three draws of the samples, means of three draws of the
taught classes. Photos: the official parts of grocery_store, 81 classes, and 60 photos of each class of cifar10;
digits: scikit-learn's, a quarter for testing. Windows: smartwatches on people who were not taught, seglearn's
watch_dataset and 18 activities of WISDM (UCI 507), by `rocket` of so many features.

*Calibration error*: expected, in ten bins. *Wrong and over 0.9*: of all answers. *Error of class figures*: mean
difference of the accuracy that `edgecl classes` shows, and the accuracy on the test part. *Known refused*: test
samples of taught classes that are called unknown. *(the first)*: the first samples of each class in the order of
their files, often of one burst or one writer; otherwise they are drawn at random. Groceries are tested in other shops
than they were taught in, which no figure can foresee.

"""


def tables(now: Results, before: Results | None) -> str:
    """All tables, as Markdown."""
    made = {"a": table_of_accuracy(now, before), "b": table_of_differences(now, before),
            "c": table_of_strangers(now, before), "d": table_of_quotas(now, before),
            "e": table_of_nothing(now, before), "f": table_of_costs(now), "g": table_of_shrinkages(now)}
    return "\n\n".join(f"## {TITLES[part]}\n\n{text}" for part, text in made.items()
                       if any(key.startswith(f"{part} ") for key in now.of)) + "\n"


def between(page: str, part: str, text: str, tool: str = "trust") -> str:
    """The page with another text between the marks of a part."""
    begin, end = f"<!-- {part}: tools/{tool}.py writes it -->\n", f"<!-- end of {part} -->"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n\n{end}{rest.partition(end)[2]}"
