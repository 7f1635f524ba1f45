"""Teaching and measuring for tools/trust.py, by the product's own code: what is known, its judgement, its ONNX head."""
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from trust_sets import Set  # sets the threads, so it comes before edgecl

from edgecl.exemplars.buffer import Buffer
from edgecl.exemplars.codebook import Codebook, codebook_sizes
from edgecl.exemplars.codecs import codec_of
from edgecl.heads.onnx_head import HeadSession, build_head
from edgecl.heads.solvers import PROJECTED_BELOW, PROJECTION_LENGTH, solve
from edgecl.learning.knowledge import Knowledge
from edgecl.settings import Settings
from edgecl.state.quota import segment_bytes
from edgecl.statistics.form import Form
from edgecl.statistics.transform import FeatureTransform

ALL_SHRINKAGES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BINS = 10           # of the expected calibration error
SURE = 0.9
PASSES = 7          # over the features, to time a head


@dataclass(frozen=True)
class Taught:
    """What was learned, its head as it is served, and what is shown of each class. figures: class -> accuracy as shown,
    only of classes that have one; seconds: of processor time that judging and solving took."""

    classes: np.ndarray
    session: HeadSession
    figures: dict[int, float]
    kind: str
    shrinkage: float | None
    seconds: float

    def answers(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(probabilities [n, C], whether each sample is unknown [n]) of features [n, d]."""
        probabilities, novelty = self.session.session.run(["probabilities", "novelty"],
                                                          {"input": np.ascontiguousarray(x, np.float32)})
        above = self.session.unknown_above
        return probabilities, np.zeros(len(x), bool) if above is None else novelty > above


def learned(data: Set, rows: np.ndarray, order: Sequence[int] | None = None, draw: int = 0,
            limit: int = Settings().exemplars) -> Knowledge:
    """What is known after these training samples, one class after another, of a state with the product's defaults.

    rows: places of the samples; order: of the classes; draw: of the numbers that recordings get; limit: bytes of the
    exemplar buffer.
    """
    transforms = [FeatureTransform(data.x.shape[1], data.x.shape[1], data.power)]
    form = Form(True)
    if data.x.shape[1] < PROJECTED_BELOW:
        transforms.append(FeatureTransform(data.x.shape[1], PROJECTION_LENGTH, data.power, projected=True))
        form = Form(True, None, PROJECTION_LENGTH)
    buffer = Buffer(limit, segment_bytes(limit), "reservoir", codec_of("auto", data.kind, data.shape, data.power))
    known = Knowledge(transforms, form, buffer, photos=data.kind == "image")
    for label in np.unique(data.y[rows]) if order is None else order:
        mine = rows[data.y[rows] == label]
        known.add(f"{label:04d}", _keys(data, mine, draw), data.x[mine])
        if not known.all_fit:
            sizes = codebook_sizes("auto", limit, data.x.shape[1], len(known.labels), known.buffer.codebook)
            made = Codebook.make(known.stored, sizes, data.power, len(known.labels), 0) if sizes else None
            known.buffer = replace(known.buffer, codebook=made[0]) if made else known.buffer
        known.stored = known.exemplars()
    return known


def teach(data: Set, rows: np.ndarray, order: Sequence[int] | None = None, draw: int = 0,
          limit: int = Settings().exemplars) -> Taught:
    """The same, judged, and its head as it is served; see `learned`."""
    known = learned(data, rows, order, draw, limit)
    begun = time.process_time()
    judgement = known.judge("auto")
    seconds = time.process_time() - begun
    assert judgement.head is not None
    figures = {int(label): value for label, value in judgement.accuracy.items()}
    return Taught(np.unique(data.y[rows]), HeadSession(build_head(judgement.head)), figures, judgement.head.kind,
                  judgement.head.shrinkage, seconds)


def _keys(data: Set, rows: np.ndarray, draw: int) -> list[int]:
    """Keys: 31 bits of the recording, or of the sample itself, by the draw, and 32 bits of the sample."""
    keys = []
    for row in rows:
        own = int.from_bytes(blake2b(data.x[row].tobytes(), digest_size=4).digest(), "big")
        session = data.sessions[row]
        name = f"{draw} person {session}" if session >= 0 else f"{draw} sample {row}"
        keys.append(int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "big") >> 1 << 32 | own)
    return keys


# which samples ------------------------------------------------------------------------------------


def first(data: Set, per_class: int | None, classes: np.ndarray | None = None) -> np.ndarray:
    """The first samples of each class, in the order of the files."""
    return np.concatenate([np.flatnonzero(data.y == c)[:per_class]
                           for c in (np.unique(data.y) if classes is None else classes)])


def drawn(data: Set, per_class: int, seed: int, classes: np.ndarray | None = None) -> np.ndarray:
    """Samples of each class at random, in the order of the files."""
    rng = np.random.default_rng([seed, per_class])
    return np.concatenate([np.sort(rng.permutation(np.flatnonzero(data.y == c))[:per_class])
                           for c in (np.unique(data.y) if classes is None else classes)])


def some(data: Set, per_class: int, seed: int, classes: np.ndarray | None = None) -> np.ndarray:
    """As people teach: of photos and vectors the first, which resemble each other, of windows some of every person."""
    return drawn(data, per_class, seed, classes) if data.with_sessions else first(data, per_class, classes)


# measures -----------------------------------------------------------------------------------------


def accuracy_and_trust(data: Set, rows: np.ndarray, draw: int = 0) -> dict[str, Any]:
    """accuracy, ece, sure: share of all answers that are wrong with a confidence over SURE; figure: mean difference of
    the figure shown for a class and its test accuracy; figures: how many are shown; refused: share of test samples that
    are called unknown; kind and shrinkage of the head."""
    taught = teach(data, rows, draw=draw)
    inside = np.isin(data.test_y, taught.classes)
    truth = np.searchsorted(taught.classes, data.test_y[inside])
    probabilities, unknown = taught.answers(data.test_x[inside])
    hit, confidence = probabilities.argmax(1) == truth, probabilities.max(1)
    places = {int(label): place for place, label in enumerate(taught.classes)}
    errors = [abs(figure - hit[truth == places[label]].mean()) for label, figure in taught.figures.items()
              if (truth == places[label]).any()]
    return {"accuracy": float(hit.mean()), "ece": calibration_error(confidence, hit),
            "sure": float((~hit & (confidence > SURE)).mean()), "figure": float(np.mean(errors)) if errors else None,
            "figures": len(errors), "refused": float(unknown.mean()), "kind": taught.kind,
            "shrinkage": taught.shrinkage}


def shrinkages(data: Set, rows: np.ndarray) -> dict[str, float | None]:
    """formula: the analytic shrinkage; used: the one that is served; accuracies of SLDA at both; and the best accuracy
    over all of ALL_SHRINKAGES, which the product can't know, with its shrinkage."""
    known = learned(data, rows)
    head, pooled, transform = known.judge("auto").head, known.plain.pooled(), known.transforms[0]
    assert head is not None
    truth = np.array([f"{label:04d}" for label in data.test_y])

    def accuracy(e: float) -> float:
        solved = solve("slda", replace(pooled, penalty=e), transform)
        return float((np.array(solved.labels)[solved.logits(transform(data.test_x)).argmax(1)] == truth).mean())

    used = float(head.shrinkage or 0)
    best = max(ALL_SHRINKAGES, key=accuracy)
    return {"formula": pooled.shrinkage, "accuracy at it": accuracy(pooled.shrinkage), "used": used,
            "accuracy": accuracy(used), "best": best, "best accuracy": accuracy(best)}


def calibration_error(confidence: np.ndarray, hit: np.ndarray) -> float:
    """The expected calibration error in BINS bins of equal width (Guo et al. 2017)."""
    of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return float(sum(abs(hit[of == b].mean() - confidence[of == b].mean()) * (of == b).mean()
                     for b in range(BINS) if (of == b).any()))


def strangers(data: Set, count: int, per_class: int, seed: int) -> dict[str, dict[str, float]]:
    """Who is called unknown after `count` classes, drawn by the seed: shares of known and of strange samples, by
    edgecl, by its head alone, which does not see what is blank, and by two usual scores whose threshold accepts the
    same share of the known test samples."""
    rng = np.random.default_rng(100 * count + per_class + 7 * seed)
    classes = np.sort(rng.permutation(np.unique(data.y))[:count])
    rows = some(data, per_class, seed, classes)
    taught = teach(data, rows)
    inside = np.isin(data.test_y, classes)
    groups = {"known": data.test_x[inside], "near": data.test_x[~inside]} | data.strangers
    groups = {name: x for name, x in groups.items() if len(x)}
    answers = {name: taught.answers(x) for name, x in groups.items()}
    transform = FeatureTransform(data.x.shape[1], data.x.shape[1], data.power)
    stored = _unit(transform(data.x[rows]))
    scores = {"edgecl": {name: (unknown | data.blank.get(name, False)).astype(float)
                         for name, (_, unknown) in answers.items()},
              "head": {name: unknown.astype(float) for name, (_, unknown) in answers.items()},
              "max-softmax": {name: 1 - p.max(1) for name, (p, _) in answers.items()},
              "kNN": {name: 1 - (_unit(transform(x)) @ stored.T).max(1) for name, x in groups.items()}}
    refused = float(scores["edgecl"]["known"].mean())
    told = {}
    for score, of in scores.items():
        limit = 0.5 if score in ("edgecl", "head") else float(np.quantile(of["known"], 1 - refused))
        told[score] = {name: float((values > limit).mean()) for name, values in of.items()}
    return told


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def differences(data: Set, rows: np.ndarray, ways: tuple[int, int], limit: int) -> dict[str, float]:
    """ways: how many draws of recordings' numbers, and orders of classes. Over each: lowest and highest accuracy, test
    samples whose answer is not the same every time, and the largest difference of a probability."""
    found: dict[str, float] = {}
    rng = np.random.default_rng(0)
    classes = np.unique(data.y[rows])
    truth = np.searchsorted(classes, data.test_y)
    for name, tries in (("draws", [(None, draw) for draw in range(ways[0])]),
                        ("orders", [(rng.permutation(classes).tolist(), 0) for _ in range(ways[1])])):
        every = [teach(data, rows, order, draw, limit).answers(data.test_x) for order, draw in tries]
        accuracies = [float((p.argmax(1) == truth).mean()) for p, _ in every]
        said = np.stack([np.where(unknown, -1, p.argmax(1)) for p, unknown in every])
        found |= {f"{name} lowest": min(accuracies), f"{name} highest": max(accuracies),
                  f"{name} other answers": float((said != said[0]).any(0).mean()),
                  f"{name} difference": float(max(np.abs(p - every[0][0]).max() for p, _ in every))}
    return found


def costs(data: Set, rows: np.ndarray) -> dict[str, float]:
    """Processor seconds of judging and solving, and of a head's answer to one sample, each the lowest of some tries."""
    tries = [teach(data, rows) for _ in range(3)]
    x = data.test_x[:256]
    serving = []
    for _ in range(PASSES):
        begun = time.process_time()
        for each in x:
            tries[0].session.session.run(["probabilities", "novelty"], {"input": each[None]})
        serving.append((time.process_time() - begun) / len(x))
    return {"judge": min(each.seconds for each in tries), "answer": min(serving)}
