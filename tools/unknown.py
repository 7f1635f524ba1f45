#!/usr/bin/env python3
"""Measures how well untaught classes are recognised: edgecl's distance compared with the usual scores, on real data.

    python tools/unknown.py [--grocery FOLDER] [--cache FOLDER] [--quick] [--out docs]

Writes docs/unknown.md. FOLDER holds {train,test}/<class>/*.jpg of the Grocery Store Dataset.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import accuracy_per_byte as data  # sets the threads, so it comes before numpy
import numpy as np

from edgecl.exemplars.buffer import Buffer
from edgecl.exemplars.codecs import codec_of
from edgecl.heads.head import ACCEPTED_SHARE, Head
from edgecl.learning.knowledge import Knowledge
from edgecl.settings import Settings
from edgecl.state.quota import segment_bytes
from edgecl.statistics.covariance import PooledCovariance, solve_positive
from edgecl.statistics.form import Form

DRAWS = 5
TAUGHT = {"grocery_store": 60, "digits": 7, "watch_dataset": 5}
MINE = "edgecl (relative Mahalanobis in logit space)"


class Draw(NamedTuple):
    """Result of one draw of taught classes. scores: name -> (share of untaught called unknown, AUROC), with 95 % of the
    known test samples accepted; product: (known accepted, untaught called unknown) at edgecl's own threshold, or None.
    """

    scores: dict[str, tuple[float, float]]
    product: tuple[float, float] | None


def teach(task: data.Task, labels: list[str]) -> Knowledge:
    """A learner with the product's defaults that knows these classes."""
    limit = Settings().exemplars
    buffer = Buffer(limit, segment_bytes(limit), "reservoir", codec_of("auto", task.kind, task.shape, task.power))
    known = Knowledge(task.transforms, Form(True), buffer)
    for label in labels:
        known.add(label, task.train[label].keys, task.train[label].features)
    known.stored = known.exemplars()
    return known


def scores(head: Head, pooled: PooledCovariance, known: Knowledge, x: np.ndarray) -> dict[str, np.ndarray]:
    """Every score of features x [n, d]; larger means less familiar."""
    h, plain = head.transform(x), known.transforms[0]
    logits = head.logits(h)
    soft = logits / head.temperature
    top = soft.max(1)
    spread = np.exp(soft - top[:, None]).sum(1)
    near = _mahalanobis(plain(x), pooled, pooled.shrunk(pooled.shrinkage))
    total = pooled.shrunk(pooled.shrinkage) + (pooled.means.T * pooled.share) @ pooled.means
    far = _squared(plain(x) - pooled.centre, total)
    unit, kept = (_unit(plain(each)) for each in (x, np.stack([row.feature for row in known.stored])))
    found = {MINE: head.novelty.distance(logits)} if head.novelty else {}
    return found | {"max-softmax (calibrated)": spread, "max-logit": -logits.max(1), "energy": -top - np.log(spread),
                    "Mahalanobis (feature space)": near, "relative Mahalanobis (feature space)": near - far,
                    "cosine to the nearest exemplar": -(unit @ kept.T).max(1)}


def _mahalanobis(h: np.ndarray, pooled: PooledCovariance, covariance: np.ndarray) -> np.ndarray:
    centred = h - pooled.centre
    white = solve_positive(covariance, pooled.means.T)
    return _squared(centred, covariance) + ((pooled.means * white.T).sum(1) - 2 * centred @ white).min(1)


def _squared(centred: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    return np.einsum("nd,dn->n", centred, solve_positive(covariance, centred.T))


def _unit(h: np.ndarray) -> np.ndarray:
    return h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-30)


def auroc(known: np.ndarray, strange: np.ndarray) -> float:
    """The share of (known, untaught) pairs that a score ranks correctly."""
    order = np.sort(known)
    below, up_to = (np.searchsorted(order, strange, side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(known))


def draw(task: data.Task, labels: list[str]) -> Draw:
    """Learn these classes and score the test samples of all classes."""
    known = teach(task, labels)
    head = known.judge("auto").head
    assert head is not None
    inside = np.isin(task.y_test, labels)
    transform = head.transform
    found = scores(head, known.plain.pooled(), known, task.x_test)
    told = {}
    for name, values in found.items():
        limit = np.quantile(values[inside], ACCEPTED_SHARE)
        told[name] = float((values[~inside] > limit).mean()), auroc(values[inside], values[~inside])
    product = None
    if head.novelty is not None and np.isfinite(head.novelty.threshold):
        flagged = head.novelty.distance(head.logits(transform(task.x_test))) > head.novelty.threshold
        product = 1 - float(flagged[inside].mean()), float(flagged[~inside].mean())
    return Draw(told, product)


def draws(task: data.Task, count: int) -> list[Draw]:
    """Different random draws of taught classes."""
    rng, taught = np.random.default_rng(0), set()
    while len(taught) < count:
        taught.add(tuple(sorted(map(str, rng.permutation(sorted(task.train))[:TAUGHT[task.name]]))))
    return [draw(task, list(labels)) for labels in sorted(taught)]


def ranged(values: list[float], percent: bool) -> str:
    """Mean and range as text."""
    digits, factor = (0, 100) if percent else (2, 1)
    mean, low, high = (f"{factor * v:.{digits}f}" for v in (np.mean(values), min(values), max(values)))
    return f"{mean}{' %' if percent else ''} ({low}–{high})"


def page(found: dict[str, list[Draw]]) -> str:
    """The whole page, as Markdown."""
    names = list(next(iter(found.values()))[0].scores)
    titles = [f"{name}, {TAUGHT[name]} taught, {untaught} not" for name, untaught in
              (("grocery_store", 21), ("digits", 3), ("watch_dataset", 2)) if name in found]
    rows = [f"| score | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}"]
    for name in names:
        cells = ["; AUROC ".join(ranged([one.scores[name][i] for one in each if name in one.scores], not i)
                                  for i in (0, 1)) for each in found.values()]
        rows.append(f"| {f'**{name}**' if name == MINE else name} | {' | '.join(cells)} |")
    own = []
    for name, each in found.items():
        told = [found.product for found in each if found.product]
        if told:
            own.append(f"| {name} | {ranged([k for k, _ in told], True)} | {ranged([u for _, u in told], True)} |")
    return f"""# Unknown samples

How many samples of untaught classes are called unknown when {ACCEPTED_SHARE:.0%} of the known test samples are still
accepted, and the area under the ROC curve: mean and range over {DRAWS} draws of the taught classes, on official test
photos, test digits and people who were not recorded for training. Here, the threshold of each score is set on the
known test samples, so that scores are comparable.

{chr(10).join(rows)}

edgecl's distance is the relative Mahalanobis distance (Ren et al. 2021) in the space of the head's logits: C x C
numbers in the exported head. Softmax, logit and energy are those of the same head at its calibrated temperature; the
Mahalanobis distances use the shared shrunk covariance of the features, D x D numbers; the nearest exemplar is the
nearest of all that the buffer keeps.

**The product itself** sets its threshold on held-back samples, without any test sample. They come from recordings that
no head has seen, or from the far end of their class, and so are less familiar than most known samples: the threshold
is on the lenient side, most of all where it accepts nearly everything.

| | known accepted | untaught called unknown |
|---|---|---|
{chr(10).join(own)}

Made by `tools/unknown.py --grocery FOLDER`.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grocery", type=Path, help="the photos; without them, their column is left out")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "edgecl-features")
    parser.add_argument("--quick", action="store_true", help="one draw")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs")
    options = parser.parse_args()
    tasks = [data.grocery(options.grocery, options.cache)] if options.grocery else []
    found = {task.name: draws(task, 1 if options.quick else DRAWS) for task in [*tasks, data.digits(), data.watch()]}
    (options.out / "unknown.md").write_text(page(found), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
