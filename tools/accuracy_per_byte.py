#!/usr/bin/env python3
"""Accuracy against bytes: learners that remember nothing but an exemplar buffer, for every codec and head.

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

import numpy as np  # noqa: E402  (the threads must be set before)

from edgecl.budget import Form, segment_bytes  # noqa: E402
from edgecl.codebook import Codebook, wanted  # noqa: E402
from edgecl.codec import FITS, Codec, Float32, codec_of  # noqa: E402
from edgecl.config import Settings, parse_size  # noqa: E402
from edgecl.evaluation import datasets, demo  # noqa: E402
from edgecl.heads import KINDS, PROJECTED, PROJECTED_BELOW, solve  # noqa: E402
from edgecl.knowledge import Buffer, Knowledge  # noqa: E402
from edgecl.learner import Learner  # noqa: E402
from edgecl.lift import Lift  # noqa: E402
from edgecl.records import Row, pack, packed_bytes  # noqa: E402
from edgecl.samples import Sample, sample_keys  # noqa: E402
from edgecl.sources import Spec, class_folders, read, stack  # noqa: E402

SIZES = ("16KB", "64KB", "256KB", "1MB", "4MB")
SEEDS = 3
AUTOMATIC = "automatic"


class Part(NamedTuple):
    """Samples of one class: features [n, d], keys [n], and the samples themselves [n, ...] where there are any."""

    features: np.ndarray
    keys: list[int]
    samples: np.ndarray | None = None


@dataclass(frozen=True)
class Task:
    """One data set. power: of its lift; again: what makes features of decoded samples."""

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
    def lifts(self) -> list[Lift]:
        plain = Lift(self.dimension, self.dimension, self.power)
        lifted = Lift(self.dimension, PROJECTED, self.power, projected=True)
        return [plain, lifted] if self.dimension < PROJECTED_BELOW else [plain]

    @property
    def codecs(self) -> list[str]:
        return [name for name, kinds in FITS.items() if self.kind in kinds and name != "auto"]

    @property
    def heads(self) -> list[str]:
        return [name for name, kind in KINDS.items() if any(lift.projected == kind.lifted for lift in self.lifts)]


class Cell(NamedTuple):
    """What one buffer came to: accuracy of each head, exemplars kept, bytes written."""

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
    """Windows of six people to learn from and of four others to test with, as `edgecl demo` has them."""
    with tempfile.TemporaryDirectory() as name:
        folder = demo.write_recordings(Path(name) / "out")[0]
        spec = Spec(rate=demo.watch_rate(folder), window=demo.WINDOW, hop=demo.HOP)
        settings = Settings(backbone="rocket", quota=demo.QUOTA, rate=spec.rate, window=spec.window, hop=spec.hop)
        learner = Learner.create(Path(name) / "state", settings, stack(read(folder / "train", spec), 256))
        samples = {part: {each.name: demo.windows(each, spec) for each in class_folders(folder / part)}
                   for part in ("train", "test")}
        assert learner.foundation is not None
        power, again = learner.foundation.power, learner._backbone().features
        train = {label: _part(found, again) for label, found in samples["train"].items()}
        test = {label: _part(found, again).features for label, found in samples["test"].items()}
    return Task("watch_dataset", "window", samples["train"]["ER"][0].data.shape, power, train,
                np.concatenate(list(test.values())), np.repeat(list(test), [*map(len, test.values())]), again)


def grocery(folder: Path, cache: Path) -> Task:
    """The official parts of the Grocery Store Dataset."""
    photos, features, y = {}, {}, {}
    with tempfile.TemporaryDirectory() as name:
        learner = Learner.create(Path(name) / "state", Settings(backbone="efficientnet-lite0"))
        again = learner._backbone().features
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
    train = {str(label): Part(features["train"][y["train"] == label], sample_keys(features["train"][y["train"] == label]),
                              photos["train"][y["train"] == label]) for label in np.unique(y["train"])}
    return Task("grocery_store", "image", (224, 224, 3), 0.5, train, features["test"], y["test"], again)


def _part(samples: list[Sample], features: Callable[[np.ndarray], np.ndarray]) -> Part:
    data = np.stack([sample.data for sample in samples])
    return Part(features(data), sample_keys(data, [sample.group for sample in samples]), data)


# one buffer ---------------------------------------------------------------------------------------


def fill(task: Task, codec: str, limit: int, seed: int) -> Knowledge:
    """A learner that was taught class by class, in an order by the seed, and of whose samples only those stay that a
    buffer of `limit` bytes keeps; the codebook is made when the journal would make it."""
    made_of = codec_of(codec, task.kind, task.shape, task.power)
    known = Knowledge(task.lifts[:1], Form(True), Buffer(limit, segment_bytes(limit), "reservoir", made_of))
    for label in np.random.default_rng(seed).permutation(sorted(task.train)):
        part = task.train[str(label)]
        inputs = None if made_of.input is None or part.samples is None else encoded(task, codec, str(label))
        known.add(str(label), [salted(key, seed) for key in part.keys], part.features, inputs)
        if len(known.exemplars()) < len(known.stored):
            sizes = wanted(codec, limit, task.dimension, len(known.labels), known.buffer.codebook)
            made = Codebook.make(known.stored, sizes, task.power, len(known.labels), seed) if sizes else None
            known.buffer = replace(known.buffer, codebook=made[0]) if made else known.buffer
        known.stored = known.exemplars()
    return known


def salted(key: int, seed: int) -> int:
    """Another key, of which samples of one recording still share the upper half."""
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
    """A learner that knows the kept exemplars alone, as they are decoded; samples go through the backbone again."""
    made_of, rows = known.buffer.codec.input, sorted(known.stored, key=lambda row: (row.label, row.key))
    if made_of is not None and task.again is not None:
        new = {}
        for row in rows:
            new[task.name, blake2b(row.input, digest_size=16).digest()] = row.input
        for key in new.keys() - AGAIN.keys():
            AGAIN[key] = task.again(made_of.decode(new[key])[None])[0]
        rows = [row._replace(feature=AGAIN[key]) for row, key in zip(rows, new)]
    only = Knowledge(task.lifts, Form(True), Buffer(2 ** 60, 2 ** 60, "reservoir", Codec(Float32())))
    for label in sorted({row.label for row in rows}):
        mine = [row for row in rows if row.label == label]
        only.add(label, [row.key for row in mine], np.stack([row.feature for row in mine]))
    only.stored = rows
    return only


def bytes_on_disk(known: Knowledge) -> int:
    """Bytes of the files that hold the buffer, as they are written."""
    rows = [row._replace(id=i, generation=0) for i, row in
            enumerate(sorted(known.stored, key=lambda row: (row.label, row.key)))]
    buffer, book = known.buffer, known.buffer.codebook

    def parts(some: list[Row]) -> list:
        return [([row for row in some if bool(row.coded) == coded], buffer.common if coded else buffer.codec.feature)
                for coded in (False, True)]

    count = -(-packed_bytes(parts(rows)) // buffer.segment) if rows else 0
    pieces = [rows[len(rows) * i // count:len(rows) * (i + 1) // count] for i in range(count)]
    return sum(len(pack(parts(piece))) for piece in pieces) + (book.length if book else 0)


def measure(task: Task, codec: str, limit: int, seed: int) -> Cell:
    """Fill a buffer and test every head that is solved from it; of "auto", the head that the product chooses."""
    known = fill(task, codec, limit, seed)
    written, only = bytes_on_disk(known), remembered(task, known)
    assert written <= limit, f"{task.name} {codec}: {written} bytes of {limit}"
    if not only.labels:
        return Cell(dict.fromkeys([*task.heads, AUTOMATIC], 0.0), 0, written)
    heads = [AUTOMATIC] if codec == "auto" else task.heads
    return Cell({head: tested(task, only, head) for head in heads}, len(only.stored), written)


def tested(task: Task, only: Knowledge, head: str) -> float:
    """The accuracy of a kind of head, or of the automatic choice: no test sample takes part in it."""
    kind = head
    if head == AUTOMATIC:
        chosen = only.judge("auto").head
        assert chosen is not None
        kind = chosen.kind
    lift = next(lift for lift in task.lifts if lift.projected == KINDS[kind].lifted)
    answer = solve(kind, only.statistics[lift].pooled(), lift).logits(lift(task.x_test)).argmax(1)
    return float((np.array(only.labels)[answer] == task.y_test).mean())
