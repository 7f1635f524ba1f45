#!/usr/bin/env python3
"""Measures whether wrong labels are found, on real data: `edgecl samples --suspicious` after some labels were changed.

    python tools/suspicious.py [--grocery FOLDER] [--cifar FOLDER] [--cache FOLDER] [--seeds N] [--docs FOLDER]
                               [--picture FILE.png] [--cost N]

Of the training part of each set, 5 % of the labels are changed to another class at random: of single samples, or of
whole recordings (five photos in a row, or all windows of a person and an activity). Tables are printed as Markdown, or
written into --docs between the marks of suspicious.md. Digits and smartwatch recordings come from installed packages.

--grocery, --cifar: folders of {train,test}/CLASS/*.jpg; --picture: the photos of --grocery that are the most suspicious
with the labels as they came; --cost: seconds of processor time for a state of so many samples with 1,280 features.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from trust_measures import learned, teach
from trust_sets import Set, all_sets
from trust_tables import between

from edgecl.learning.advice import JudgedSamples
from edgecl.learning.suspicious import Evidence, suspicions
from edgecl.learning.suspicious import margins_of as margins_of_evidence

SHARE = 0.05        # of the labels that are changed
IN_A_ROW = 5        # photos or vectors that are changed together
MOST_OF_ONE = 20    # windows of one recording
SHOWN, COLUMNS, SIDE, LINE = 24, 6, 144, 30     # photos in the picture, in a row, and pixels
SETS = ("grocery_store", "cifar10", "digits", "watch 672")


def mistakes(data: Set, seed: int, together: bool) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which SHARE are changed to another class at random, int64 [n], and which are, bool [n]."""
    rng, y, wrong = np.random.default_rng(seed), data.y.copy(), np.zeros(len(data.y), bool)
    classes = np.unique(y)
    while wrong.sum() < round(SHARE * len(y)):
        one = int(rng.integers(len(y)))
        mine = np.array([one])
        if together:
            mine = np.flatnonzero(data.sessions == data.sessions[one]) if data.with_sessions else \
                np.arange(one, min(one + IN_A_ROW, len(y)))
        mine = mine[(data.y[mine] == data.y[one]) & ~wrong[mine]][:MOST_OF_ONE]
        y[mine] = rng.choice(classes[classes != data.y[one]])
        wrong[mine] = True
    return y, wrong


def suspicious(data: Set) -> tuple[np.ndarray, list[int], dict[int, int]]:
    """(places of the training samples from the worst on, those that are listed, place -> the class it looks like)."""
    known = learned(data, np.arange(len(data.y)), limit=2 ** 27)
    order = np.argsort(data.y, kind="stable")   # in which they were taught
    assert len(known.stored) == len(order)
    known.stored = [row._replace(id=number, generation=0) for number, row in enumerate(known.stored)]
    evidence = Evidence.of(known)
    margins = margins_of_evidence(evidence).of
    listed = suspicions(evidence)
    worst = order[np.argsort(np.where(np.isfinite(margins), margins, np.inf), kind="stable")]
    return worst, [int(order[each.place]) for each in listed], {
        int(order[each.place]): int(each.looks_like) for each in listed if each.looks_like is not None}


def accuracy(data: Set, rows: np.ndarray) -> float:
    """On the test part, after these training samples."""
    taught = teach(data, rows)
    said = taught.classes[taught.answers(data.test_x)[0].argmax(1)]
    return float((said == data.test_y).mean())


def measured(data: Set, seeds: int, together: bool) -> list[str]:
    """One row of the table: means over the seeds."""
    found = []
    every = np.arange(len(data.y))
    for seed in range(seeds):
        y, wrong = mistakes(data, seed, together)
        noisy = replace(data, y=y)
        worst, listed, like = suspicious(noisy)
        first, count = worst[:wrong.sum()], max(len(listed), 1)
        right = [like[place] == data.y[place] for place in listed if wrong[place] and place in like]
        found.append((wrong[first].mean(), len(listed), wrong[listed].sum() / count, wrong[listed].sum() / wrong.sum(),
                      np.mean(right or [0]), accuracy(noisy, every), accuracy(noisy, np.setdiff1d(every, first)),
                      accuracy(noisy, np.setdiff1d(every, listed))))
    worst_share, listed_, precision, recall, named, left, without, without_listed = np.mean(found, 0)
    return [f"{data.name}{', recordings' if together else ''}", f"{len(data.y):,}", f"{worst_share:.2f}",
            f"{listed_:.0f}", f"{precision:.2f}", f"{recall:.2f}", f"{named:.2f}",
            f"{100 * accuracy(data, every):.1f}", f"{100 * left:.1f}", f"{100 * without:.1f}",
            f"{100 * without_listed:.1f}"]


HEAD = ["set", "samples", "of the worst 5 %, wrong", "listed", "of these, wrong", "of the wrong ones, listed",
        "right class named", "accuracy: right labels", "wrong ones left in", "without the worst 5 %",
        "without those listed"]


def table(rows: list[list[str]], head: list[str]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def of_clean(sets: dict[str, Set]) -> Iterator[list[str]]:
    for data in sets.values():
        listed = suspicious(data)[1]
        yield [data.name, f"{len(data.y):,}", str(len(listed)), f"{100 * len(listed) / len(data.y):.1f}"]


def picture(data: Set, folder: Path, out: Path) -> None:
    """The most suspicious photos with the labels as they came: each over its class, and over the one it looks like."""
    from PIL import Image, ImageDraw

    from edgecl.images import read_image

    files = [(name, file) for name in data.names if (folder / "train" / name).is_dir()
             for file in sorted((folder / "train" / name).iterdir())]
    worst, _, like = suspicious(data)
    rows = -(-SHOWN // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIDE, rows * (SIDE + LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, place in enumerate(worst[:SHOWN].tolist()):
        x, y = number % COLUMNS * SIDE, number // COLUMNS * (SIDE + LINE)
        name, file = files[place]
        sheet.paste(Image.fromarray(read_image(file, SIDE, SIDE)), (x, y))
        draw.text((x + 2, y + SIDE + 1), name[:23], "black")
        draw.text((x + 2, y + SIDE + 15), f"? {data.names[like[place]][:21]}" if place in like else "-", "firebrick")
    sheet.save(out)


def cost(count: int) -> dict[str, float]:
    """Processor seconds for a state of so many samples of 50 classes: what the writer's thread copies for it, the
    suspicious samples, and the advice."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(50), -(-count // 50))[:count]
    x = np.abs(rng.normal(size=(count, 1280)) + rng.normal(size=(50, 1280))[y]).astype(np.float32)
    data = Set("cost", "feature", (1280,), 0.5, x, y, np.full(count, -1), x[:1], y[:1], [*map(str, range(50))])
    known = learned(data, np.arange(count), limit=2 ** 28)
    known.stored = [row._replace(id=number, generation=0) for number, row in enumerate(known.stored)]
    begun = time.process_time()
    evidence = Evidence.of(known)
    taken = time.process_time()
    suspicions(evidence)
    told = time.process_time()
    JudgedSamples(0, known.stored, known.kept().columns, known.statistics, True, "slda").advice()
    return {"evidence": taken - begun, "suspicions": told - taken, "advice": time.process_time() - told}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("grocery", "cifar", "docs", "picture"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "edgecl-features")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cost", type=int)
    options = parser.parse_args()
    if options.cost:
        print(cost(options.cost))
        return 0
    every = all_sets({"grocery_store": options.grocery, "cifar10": options.cifar}, options.cache)
    sets = {name: every[name] for name in SETS if name in every}
    if options.picture and options.grocery:
        picture(sets["grocery_store"], options.grocery, options.picture)
        return 0
    parts = {"wrong": table([measured(data, options.seeds, together) for together in (False, True)
                             for data in sets.values()], HEAD),
             "clean": table([*of_clean(sets)], ["set", "samples", "listed", "%"])}
    print("\n".join(parts.values()))
    if options.docs:
        page = options.docs / "suspicious.md"
        written = page.read_text("utf-8")
        for part, made in parts.items():
            written = between(written, part, made, "suspicious")
        page.write_text(written, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
