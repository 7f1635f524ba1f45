"""The gate: whether a round's candidate may replace what serves. Each check reports its measurement and its bound."""
from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.backbones.session import Backbone
from edgecl.errors import BackboneError

if TYPE_CHECKING:
    from edgecl.learning.judging import Judgement

PARITY = 1e-4       # largest difference between the two runtimes, relative to the largest feature
SLOWER = 1.25       # times the time per sample of the backbone that serves, or
SLOWER_BY = 1e-3        # seconds more: an adapter behind a backbone that does nothing
LARGER = 1.10       # times its bytes, or
LARGER_BY = 8 * 10**6   # as many bytes more: an adapter
FEWEST_LOST = 3         # left-out samples of a class that must be lost before it counts as worse
LATENCY_RUNS = 9           # of each backbone, in turn


class Check(NamedTuple):
    """One check: its name, what was found and what it may be, and whether that is so."""

    name: str
    found: str
    passed: bool


@dataclass(frozen=True)
class Bounds:
    """max_regression: of the accuracy of a class, if that is FEWEST_LOST of its left-out samples or more."""

    max_regression: float = 0.1


BOUNDS = Bounds()


def check_file(candidate: bytes, sha256: str, serving: bytes, samples: np.ndarray, expected: np.ndarray) -> list[Check]:
    """Digest, size, form, parity and latency of a candidate. samples [n, ...]: prepared; expected [n, d]: their
    features as the worker computed them. Checks after a failed one are not made."""
    digest = hashlib.sha256(candidate).hexdigest()
    checks = [Check("digest", digest[:16], digest == sha256),
              Check("size", f"{len(candidate)} bytes, {len(serving)} before",
                    len(candidate) <= max(LARGER * len(serving), len(serving) + LARGER_BY))]
    if not all(check.passed for check in checks):
        return checks
    old = Backbone(serving)
    try:
        new = Backbone(candidate)
    except (BackboneError, ValueError, TypeError, KeyError) as error:  # its metadata is JSON
        return [*checks, Check("form", str(error)[:200], False)]
    alike = (new.info.kind, new.info.input_shape, new.info.dimension) == (
        old.info.kind, old.info.input_shape, old.info.dimension)
    checks.append(Check("form", f"{new.info.kind} {list(new.info.input_shape)} -> {new.info.dimension}", alike))
    if not alike:
        return checks
    checks.append(_parity(new, samples, expected))
    if not checks[-1].passed:
        return checks
    after, before = _latency(new, old, samples[:1])
    return [*checks, Check("latency", f"{after / before:.2f} times that before, {SLOWER} allowed",
                           after <= max(SLOWER * before, before + SLOWER_BY))]


def _parity(new: Backbone, samples: np.ndarray, expected: np.ndarray) -> Check:
    """Whether both runtimes agree, and on numbers."""
    try:
        found = new.features(samples)
    except Exception as error:  # ONNX Runtime raises its own C++-bound classes; the shape may be another than declared
        return Check("parity", str(error).splitlines()[0][:200], False)
    if found.shape != expected.shape or not len(found):
        return Check("parity", f"features {list(found.shape)}, {list(expected.shape)} expected", False)
    largest = max(float(np.abs(expected).max()), 1e-30)
    difference = float(np.abs(found - expected).max()) / largest
    return Check("parity", f"{difference:.1e}, {PARITY:.0e} allowed", difference <= PARITY)  # False for NaN


def _latency(new: Backbone, old: Backbone, sample: np.ndarray) -> tuple[float, float]:
    """The median seconds of one sample by each, taken by turns."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for turn in range(2 * LATENCY_RUNS + 2):
        begun = time.perf_counter()
        (new, old)[turn % 2].features(sample)
        seconds[turn % 2].append(time.perf_counter() - begun)
    return median(seconds[0][1:]), max(median(seconds[1][1:]), 1e-9)


def check_accuracy(before: Judgement, after: Judgement, bounds: Bounds) -> list[Check]:
    """The same samples by both, left out of either head, which no backbone was tuned on. Over all classes alike, the
    log loss must have fallen, and the accuracy not by more than its standard error: of a few dozen samples, the loss
    tells more. No class may have lost `max_regression`, as far as its samples can tell: two of one burst of photos
    can't."""
    classes = sorted(before.judged)
    if not classes or before.loss is None or after.loss is None:
        return [Check("accuracy", "no class has samples that can be left out", False)]
    was_of, now_of = ({name: right / of for name, (right, of) in each.judged.items()} for each in (before, after))
    pairs = {name: (was_of[name], now_of.get(name, 0.0)) for name in classes}
    count = {name: before.judged[name][1] for name in classes}
    was, now = (float(each) for each in np.mean([*pairs.values()], axis=0))
    error = math.sqrt(was * (1 - was) * sum(1 / count[name] for name in classes)) / len(classes)
    better = after.loss < before.loss and now >= was - error - 1e-9
    lost = {name: (a, b) for name, (a, b) in pairs.items() if a - b > bounds.max_regression + 1e-3
            and (name not in after.judged or (a - b) * count[name] > FEWEST_LOST - 0.5)}
    worst = ", ".join(f"{name} {100 * a:.0f} % -> {100 * b:.0f} %" for name, (a, b) in list(lost.items())[:5])
    return [Check("accuracy", f"{100 * was:.1f} % -> {100 * now:.1f} % on {sum(count.values())} "
                  f"{before.on}, log loss {before.loss:.3f} -> {after.loss:.3f}", better),
            Check("regression", worst or f"no class lost more than {100 * bounds.max_regression:.0f} %", not lost)]
