"""The gate: whether a round's candidate may replace what serves. Every check says what it measured and its bound."""
from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.backbone import Backbone
from edgecl.errors import BackboneError

if TYPE_CHECKING:
    from edgecl.knowledge import Judgement

PARITY = 1e-4       # largest difference between the two runtimes, relative to the largest feature
SLOWER = 1.25       # times the time a sample of the backbone that serves, both
CALL = 1e-3         # seconds longer: what less takes does not count
LARGER = 1.10       # times its bytes, or
ADDED = 8 * 10**6   # as many bytes more: an adapter
TURNS = 9           # of each backbone, one after the other


class Check(NamedTuple):
    """One check: its name, what was found and what it may be, and whether that is so."""

    name: str
    found: str
    passed: bool


@dataclass(frozen=True)
class Bounds:
    """max_regression: of the held-back accuracy of a class, or one held-back sample where that is more."""

    max_regression: float = 0.1


BOUNDS = Bounds()


def check_file(candidate: bytes, sha256: str, serving: bytes, samples: np.ndarray, expected: np.ndarray) -> list[Check]:
    """Digest, form, size, parity and latency of a candidate. samples [n, ...]: prepared; expected [n, d]: their
    features as the worker computed them. What comes after a failed check is not looked at."""
    digest = hashlib.sha256(candidate).hexdigest()
    checks = [Check("digest", digest[:16], digest == sha256),
              Check("size", f"{len(candidate)} bytes, {len(serving)} before",
                    len(candidate) <= max(LARGER * len(serving), len(serving) + ADDED))]
    if not all(check.passed for check in checks):
        return checks
    try:
        new, old = Backbone(candidate), Backbone(serving)
    except BackboneError as error:
        return [*checks, Check("form", error.what, False)]
    alike = (new.info.kind, new.info.input_shape, new.info.dimension) == (
        old.info.kind, old.info.input_shape, old.info.dimension)
    checks.append(Check("form", f"{new.info.kind} {list(new.info.input_shape)} -> {new.info.dimension}", alike))
    if not alike:
        return checks
    found = new.features(samples)
    largest = max(float(np.abs(expected).max(initial=0)), 1e-30)
    difference = float(np.abs(found - expected).max(initial=0)) / largest
    checks.append(Check("parity", f"{difference:.1e}, {PARITY:.0e} allowed",
                        found.shape == expected.shape and bool(np.isfinite(found).all()) and difference <= PARITY))
    ratio = _latency(new, old, samples[:1])
    return [*checks, Check("latency", f"{ratio:.2f} times that before, {SLOWER} allowed", ratio <= SLOWER)]


def _latency(new: Backbone, old: Backbone, sample: np.ndarray) -> float:
    """The ratio of the median times of one sample, taken by turns, each with CALL added."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for turn in range(2 * TURNS + 2):
        begun = time.perf_counter()
        (new, old)[turn % 2].features(sample)
        seconds[turn % 2].append(time.perf_counter() - begun)
    return (median(seconds[0][1:]) + CALL) / (median(seconds[1][1:]) + CALL)


def check_accuracy(before: Judgement, after: Judgement, bounds: Bounds) -> list[Check]:
    """Accuracy on held-back samples: of all classes alike it must have risen, or the loss fallen at the same accuracy,
    and no class may have lost more than `max_regression`."""
    classes = sorted(set(before.accuracy) & set(after.accuracy))
    if not classes:
        return [Check("accuracy", "no class has held-back samples", False)]
    was, now = (float(np.mean([each.accuracy[name] for name in classes])) for each in (before, after))
    better = now > was + 1e-9 or (now > was - 1e-9 and (after.loss or 0.0) < (before.loss or 0.0))
    lost = {name: (before.accuracy[name], after.accuracy[name]) for name in classes
            if before.accuracy[name] - after.accuracy[name] > max(
                bounds.max_regression, 1 / min(before.held[name], after.held[name])) + 1e-3}
    worst = ", ".join(f"{name} {100 * a:.0f} % -> {100 * b:.0f} %" for name, (a, b) in list(lost.items())[:5])
    return [Check("accuracy", f"{100 * was:.1f} % -> {100 * now:.1f} % on held-back samples", better),
            Check("regression", worst or f"no class lost more than {100 * bounds.max_regression:.0f} % or one sample",
                  not lost)]
