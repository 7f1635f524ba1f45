#!/usr/bin/env python3
"""Accuracy against bytes: learners that keep only an exemplar buffer, for every codec and head.

    python tools/accuracy_per_byte.py [--grocery FOLDER] [--cache FOLDER] [--quick] [--out docs]

Writes docs/bytes.md and docs/bytes.svg. FOLDER holds {train,test}/<class>/*.jpg of the Grocery Store Dataset.
"""
from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

os.environ.update({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})

import numpy as np

from edgecl.evaluation import datasets, demo
from edgecl.exemplars.buffer import Buffer
from edgecl.exemplars.codebook import Codebook, codebook_sizes
from edgecl.exemplars.codecs import KINDS_OF_CODEC, Codec, Float32, codec_of
from edgecl.exemplars.product_quantiser import AMPLE_PER_CLASS, EXEMPLARS_PER_CLASS
from edgecl.exemplars.stored import StoredSample, pack, packed_bytes
from edgecl.heads.solvers import KINDS, PROJECTED_BELOW, PROJECTION_LENGTH, solve
from edgecl.learner import Learner
from edgecl.learning.knowledge import Knowledge
from edgecl.samples import Sample, sample_keys
from edgecl.settings import Settings, parse_size
from edgecl.sources import class_folders, read, stack
from edgecl.sources.spec import Spec
from edgecl.state.quota import segment_bytes
from edgecl.statistics.form import Form
from edgecl.statistics.transform import FeatureTransform

SIZES = ("16KB", "64KB", "256KB", "1MB", "4MB")
SEEDS = 3
AUTOMATIC = "automatic"


class Part(NamedTuple):
    """Samples of one class: features [n, d], keys [n], and the samples themselves [n, ...], or None."""

    features: np.ndarray
    keys: list[int]
    samples: np.ndarray | None = None


@dataclass(frozen=True)
class Task:
    """One data set. power: of its transform; again: computes features of decoded samples."""

    name: str
    kind: str
    shape: tuple[int, ...]
    power: float
    train: dict[str, Part]
    x_test: np.ndarray
    y_test: np.ndarray
    again: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def dimension(self) -> int:
        return self.x_test.shape[1]

    @property
    def transforms(self) -> list[FeatureTransform]:
        plain = FeatureTransform(self.dimension, self.dimension, self.power)
        transformed = FeatureTransform(self.dimension, PROJECTION_LENGTH, self.power, projected=True)
        return [plain, transformed] if self.dimension < PROJECTED_BELOW else [plain]

    @property
    def codecs(self) -> list[str]:
        return [name for name, kinds in KINDS_OF_CODEC.items() if self.kind in kinds and name != "auto"]

    @property
    def heads(self) -> list[str]:
        return [name for name, kind in KINDS.items()
                if any(transform.projected == kind.projected for transform in self.transforms)]


class Cell(NamedTuple):
    """The result of one buffer: accuracy of each head, exemplars kept, bytes written."""

    accuracy: dict[str, float]
    exemplars: int
    written: int


# data ---------------------------------------------------------------------------------------------


def digits() -> Task:
    data = datasets.digits()
    train = {name: data.x_train[data.y_train == i] for i, name in enumerate(data.class_names)}
    return Task("digits", "feature", (64,), 1.0, {name: Part(x, sample_keys(x)) for name, x in train.items()},
                data.x_test, np.array(data.class_names)[data.y_test])


def watch() -> Task:
    """Windows of six people to learn from and of four others to test on, as in `edgecl demo`."""
    with tempfile.TemporaryDirectory() as name:
        folder = demo.write_recordings(Path(name) / "out")[0]
        spec = Spec(rate=demo.watch_rate(folder), window=demo.WINDOW, hop=demo.HOP)
        settings = Settings(backbone="rocket", quota=demo.QUOTA, rate=spec.rate, window=spec.window, hop=spec.hop)
        learner = Learner.create(Path(name) / "state", settings, stack(read(folder / "train", spec), 256))
        samples = {part: {each.name: demo.windows(each, spec) for each in class_folders(folder / part)}
                   for part in ("train", "test")}
        assert learner.foundation is not None
        power, again = learner.foundation.power, learner.sessions.backbone().features
        train = {label: _part(found, again) for label, found in samples["train"].items()}
        test = {label: _part(found, again).features for label, found in samples["test"].items()}
    return Task("watch_dataset", "window", samples["train"]["ER"][0].data.shape, power, train,
                np.concatenate(list(test.values())), np.repeat(list(test), [*map(len, test.values())]), again)


def grocery(folder: Path, cache: Path) -> Task:
    """The official parts of the Grocery Store Dataset."""
    photos, features, y = {}, {}, {}
    with tempfile.TemporaryDirectory() as name:
        learner = Learner.create(Path(name) / "state", Settings(backbone="efficientnet-lite0"))
        again = learner.sessions.backbone().features
    for part in ("train", "test"):
        stored, seen = cache / f"grocery_{part}.npz", cache / f"grocery_{part}_photos.npy"
        if not (stored.exists() and (part == "test" or seen.exists())):
            samples = [item for each in class_folders(folder / part) for item in read(each, Spec(), each.name)
                       if isinstance(item, Sample)]
            cache.mkdir(parents=True, exist_ok=True)
            np.save(seen, np.stack([sample.data for sample in samples]))
            if not stored.exists():
                np.savez(stored, x=again(np.load(seen, mmap_mode="r")), y=np.array([s.label for s in samples]))
        with np.load(stored) as file:
            features[part], y[part] = file["x"], file["y"]
        photos[part] = np.load(seen, mmap_mode="r") if part == "train" else None
    keys = np.array(sample_keys(features["train"]))
    mine = {str(label): y["train"] == label for label in np.unique(y["train"])}
    train = {label: Part(features["train"][m], keys[m].tolist(), photos["train"][m]) for label, m in mine.items()}
    return Task("grocery_store", "image", (224, 224, 3), 0.5, train, features["test"], y["test"], again)


def _part(samples: list[Sample], features: Callable[[np.ndarray], np.ndarray]) -> Part:
    data = np.stack([sample.data for sample in samples])
    keys = sample_keys(data, [sample.group for sample in samples], sessions=[sample.session for sample in samples])
    return Part(features(data), keys, data)


# one buffer ---------------------------------------------------------------------------------------


def fill(task: Task, codec: str, limit: int, seed: int) -> Knowledge:
    """A learner that has learned class by class, in an order given by the seed, and keeps only the samples that fit
    into a buffer of `limit` bytes; codebooks are made when the product would make them."""
    made_of = codec_of(codec, task.kind, task.shape, task.power)
    known = Knowledge(task.transforms[:1], Form(True), Buffer(limit, segment_bytes(limit), "reservoir", made_of))
    for label in np.random.default_rng(seed).permutation(sorted(task.train)):
        part = task.train[str(label)]
        inputs = None if made_of.input is None or part.samples is None else encoded(task, codec, str(label))
        known.add(str(label), [salted(key, seed) for key in part.keys], part.features, inputs)
        if len(known.exemplars()) < len(known.stored):
            sizes = codebook_sizes(codec, limit, task.dimension, len(known.labels), known.buffer.codebook)
            made = Codebook.make(known.stored, sizes, task.power, len(known.labels), seed) if sizes else None
            known.buffer = replace(known.buffer, codebook=made[0]) if made else known.buffer
        known.stored = known.exemplars()
    return known


def salted(key: int, seed: int) -> int:
    """Another key for each seed; those of samples of one recording still share their upper half."""
    upper, lower = (int.from_bytes(blake2b(repr((seed, half)).encode(), digest_size=4).digest(), "big")
                    for half in (key >> 32, key))
    return (upper >> 1) << 32 | lower


ENCODED: dict[tuple[str, str, str], list[bytes]] = {}
AGAIN: dict[tuple[str, bytes], np.ndarray] = {}


def encoded(task: Task, codec: str, label: str) -> list[bytes]:
    made_of, samples = codec_of(codec, task.kind, task.shape, task.power).input, task.train[label].samples
    assert made_of is not None and samples is not None
    if (task.name, codec, label) not in ENCODED:
        ENCODED[task.name, codec, label] = [made_of.encode(sample) for sample in samples]
    return ENCODED[task.name, codec, label]


def remembered(task: Task, known: Knowledge) -> Knowledge:
    """A learner that knows only the kept exemplars, as decoded; samples go through the backbone again."""
    made_of, rows = known.buffer.codec.input, sorted(known.stored, key=lambda row: (row.label, row.key))
    if made_of is not None and task.again is not None:
        new = {}
        for row in rows:
            new[task.name, blake2b(row.input, digest_size=16).digest()] = row.input
        for key in new.keys() - AGAIN.keys():
            AGAIN[key] = task.again(made_of.decode(new[key])[None])[0]
        rows = [row._replace(feature=AGAIN[key]) for row, key in zip(rows, new)]
    only = Knowledge(task.transforms, Form(True), Buffer(2 ** 60, 2 ** 60, "reservoir", Codec(Float32())))
    for label in sorted({row.label for row in rows}):
        mine = [row for row in rows if row.label == label]
        only.add(label, [row.key for row in mine], np.stack([row.feature for row in mine]))
    only.stored = rows
    return only


def bytes_on_disk(known: Knowledge) -> int:
    """Bytes of the files of the buffer, as written."""
    rows = [row._replace(id=i, generation=0) for i, row in
            enumerate(sorted(known.stored, key=lambda row: (row.label, row.key)))]
    buffer, book = known.buffer, known.buffer.codebook

    def parts(some: list[StoredSample]) -> list:
        return [([row for row in some if bool(row.coded) == coded], buffer.common if coded else buffer.codec.feature)
                for coded in (False, True)]

    count = -(-packed_bytes(parts(rows)) // buffer.segment) if rows else 0
    pieces = [rows[len(rows) * i // count:len(rows) * (i + 1) // count] for i in range(count)]
    return sum(len(pack(parts(piece))) for piece in pieces) + (book.length if book else 0)


def measure(task: Task, codec: str, limit: int, seed: int) -> Cell:
    """Fill a buffer and test every head solved from it; for "auto", the head that the product chooses."""
    known, heads = fill(task, codec, limit, seed), [AUTOMATIC] if codec == "auto" else task.heads
    written, only = bytes_on_disk(known), remembered(task, known)
    assert written <= limit, f"{task.name} {codec}: {written} bytes of {limit}"
    if not only.labels:
        return Cell(dict.fromkeys(heads, 0.0), 0, written)
    return Cell({head: tested(task, only, head) for head in heads}, len(only.stored), written)


def tested(task: Task, only: Knowledge, head: str) -> float:
    """The accuracy of a kind of head, or of the automatic choice, which does not see test samples."""
    kind = head
    if head == AUTOMATIC:
        chosen = only.judge("auto").head
        assert chosen is not None
        kind = chosen.kind
    transform = next(transform for transform in task.transforms if transform.projected == KINDS[kind].projected)
    answer = solve(kind, only.statistics[transform].pooled(), transform).logits(transform(task.x_test)).argmax(1)
    return float((np.array(only.labels)[answer] == task.y_test).mean())


# the page -----------------------------------------------------------------------------------------

Table = dict[tuple[str, str], list[tuple[float, int]]]  # (codec, head) -> accuracy and exemplars at each size
COLOURS = {"raw": "#6c7a89", "jpeg": "#9b2d86", "delta16": "#c08a00", "int8-feature": "#b3541e", "pq": "#3d5a98"}
RULE = f"""**The rule of `codec = "auto"`.** Features are kept as int8, one byte per number, as long as the buffer has
room for all of them or for {AMPLE_PER_CLASS} per class. Beyond that, a product quantiser takes over, with codes as long
as {EXEMPLARS_PER_CLASS} exemplars per class allow, from 1/4 to 2 bits per number; its codebook counts as bytes, and if
it would take two thirds of the buffer or more, int8 stays. The first codebook is made from four classes, the next when
there are four times as many. The reason: while samples are few, one more is worth more than the precision of each. A
photo takes 10 to 100 times the bytes of its feature, a window twice as many, and under a frozen backbone neither adds
to accuracy: they are for those who want to change the backbone one day.
"""


def tabulate(task: Task, sizes: tuple[str, ...], seeds: int, say: Callable[[str], None]) -> Table:
    """The mean of every cell over the seeds."""
    table: Table = {}
    for codec in [*task.codecs, "auto"]:
        for size in sizes:
            cells = [measure(task, codec, parse_size(size), seed) for seed in range(seeds)]
            kept = round(float(np.mean([cell.exemplars for cell in cells])))
            for head in cells[0].accuracy:
                value = float(np.mean([cell.accuracy[head] for cell in cells]))
                table.setdefault((codec, head), []).append((100 * value, kept))
        say(f"{task.name}: {codec}")
    return table


def best_of(table: Table) -> list[float]:
    """The accuracy of the best row at each size, without the automatic choice."""
    return [max(cells) for cells in zip(*([a for a, _ in row] for (codec, _), row in table.items() if codec != "auto"))]


def section(name: str, table: Table, sizes: tuple[str, ...]) -> str:
    """One data set as Markdown."""
    best, lines = best_of(table), [f"| codec, head | {' | '.join(sizes)} |", f"|---|{'---:|' * len(sizes)}"]
    for (codec, head), row in table.items():
        cells = [f"**{a:.1f}** ({n:,})" if f"{a:.1f}" == f"{top:.1f}" and codec != "auto" else f"{a:.1f} ({n:,})"
                 if n else "–" for (a, n), top in zip(row, best)]
        lines.append(f"| {'**automatic**' if codec == 'auto' else f'{codec}, {head}'} | {' | '.join(cells)} |")
    return f"## {name}\n\n" + "\n".join(lines) + "\n"


def verdict(tables: dict[str, Table], sizes: tuple[str, ...]) -> str:
    """A sentence that lists where the automatic choice is more than a point below the best row."""
    short = [f"{name} at {size} ({a:.1f} against {top:.1f})" for name, table in tables.items() for size, (a, _), top
             in zip(sizes, table["auto", AUTOMATIC], best_of(table)) if top - a > 1]
    return "The automatic choice is within 1 point of the best row at every size" + \
        (f", except {', '.join(short)}." if short else ".")


def plot(tables: dict[str, Table], sizes: tuple[str, ...], path: Path) -> None:
    """One panel per data set, with one line per codec and its best head; the automatic choice is a thick line."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "edgecl", "font.size": 10})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(tables), figsize=(3.6 * len(tables), 3.7), squeeze=False)
    x, drawn = [parse_size(size) for size in sizes], {}
    for axes, (name, table) in zip(panels[0], tables.items()):
        drawn[AUTOMATIC] = axes.plot(x, [a for a, _ in table["auto", AUTOMATIC]], color="#0b6e4f", linewidth=7,
                                     alpha=0.35, solid_capstyle="round")[0]
        for codec, colour in COLOURS.items():
            rows = [row for (made_of, _), row in table.items() if made_of == codec]
            if rows:
                drawn[codec] = axes.plot(x, [max(row[i][0] for row in rows) for i in range(len(x))], color=colour,
                                         marker="o", markersize=4, linewidth=1.6)[0]
        axes.set(xscale="log", xticks=x, xticklabels=sizes, title=name, ylim=(0, 102), xlabel="bytes of exemplars")
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    panels[0][0].set_ylabel("accuracy, %")
    names = [AUTOMATIC, *(codec for codec in COLOURS if codec in drawn)]
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.legend([drawn[n] for n in names], names, loc="lower center", ncols=len(names), frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def page(tables: dict[str, Table], sizes: tuple[str, ...], seeds: int) -> str:
    missing = "" if "grocery_store" in tables else "\n`grocery_store` is left out: its photos were not available.\n"
    return f"""# Accuracy against bytes

A learner learns class by class and keeps only its exemplar buffer: after each class, only what fits into the bytes
stays. At the end, every kind of head is solved from the decoded exemplars alone (samples go through the backbone
again) and tested on unseen samples: one digit in four, four people who were not recorded for training, the official
test part of grocery_store. Bytes are those of the files as written, including the codebook. Accuracy in % is the mean
over {seeds} seeds, which determine the order of the classes and the ranks of the samples; the number of exemplars is
in brackets, the best row for each size in bold. (edgecl itself also keeps class statistics, which need no exemplars:
its own accuracy is higher.)

**Automatic** is `codec = "auto"` and `head = "auto"`: the kind of head is chosen as the product does, by its
answers to exemplars that are left out of it, without any test sample.

{verdict(tables, sizes)}
{missing}
{RULE}
![accuracy against bytes](bytes.svg)

{chr(10).join(section(name, table, sizes) for name, table in tables.items())}
Made by `tools/accuracy_per_byte.py --grocery FOLDER`: {{train,test}}/CLASS/*.jpg of the Grocery Store Dataset.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grocery", type=Path, help="the photos; without them, their rows are left out")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "edgecl-features")
    parser.add_argument("--quick", action="store_true", help="one seed, the three smaller sizes")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs")
    options = parser.parse_args()
    sizes, seeds = (SIZES[:3], 1) if options.quick else (SIZES, SEEDS)
    tables = {}
    for load in (digits, watch, *([lambda: grocery(options.grocery, options.cache)] if options.grocery else [])):
        task = load()
        tables[task.name] = tabulate(task, sizes, seeds, print)
    plot(tables, sizes, options.out / "bytes.svg")
    (options.out / "bytes.md").write_text(page(tables, sizes, seeds), "utf-8")
    print(verdict(tables, sizes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
