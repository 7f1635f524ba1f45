"""Carries class statistics over to a changed backbone: h' ~ A h + b_c, estimated from samples with both features."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.errors import StateError
from edgecl.statistics.class_statistics import ClassStatistics, check_features
from edgecl.statistics.covariance import oas_shrinkage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

PENALTIES = np.geomspace(1e-12, 1e2, 43)  # relative to the strongest direction: from a free map to scaling and shift
NEGLIGIBLE = 1e-12                        # relative to the strongest direction: weaker ones are rounding


class Pairs(NamedTuple):
    """Samples of one class before and after: old float32 [m, d], new float32 [m, d']; contained bool [m]: whether the
    statistics contain the sample exactly as in `old`, so that it can be subtracted (not if it was stored lossily)."""

    old: NDArray[np.float32]
    new: NDArray[np.float32]
    contained: NDArray[np.bool_]


@dataclass(frozen=True)
class Drift:
    """h' = A h + b + u_c + noise. weight: A float64 [d', d]; offset: b [d']; own: u_c [d'] of the classes with pairs;
    noise: covariance of the residuals within classes, float64 [d', d']."""

    weight: NDArray[np.float64]
    offset: NDArray[np.float64]
    own: dict[str, NDArray[np.float64]]
    noise: NDArray[np.float64]

    @classmethod
    def between(cls, pairs: Mapping[str, Pairs]) -> Drift:
        """The drift estimated from the pairs of all classes.

        One ridge regression: A is shrunk towards s I, the best scaling (0 if d' is not d), and u_c towards 0, so that a
        class with pairs also moves with them (the nested error model of Battese, Harter & Fuller 1988). The penalty
        comes from generalised cross-validation (Golub, Heath & Wahba 1979). The noise is that of leave-one-out
        residuals, since plain ones are 0 with more features than pairs, and is shrunk towards a sphere, since m pairs
        show at most m of its directions. Raises StateError if there is not a single pair.
        """
        labels = sorted(label for label, both in pairs.items() if len(both.old))
        if not labels:
            raise StateError("no stored sample shows how the features have changed",
                             "keep exemplars, or create the state again")
        counts = [len(pairs[label].old) for label in labels]
        m, codes = sum(counts), np.repeat(np.arange(len(labels)), counts)
        x = np.concatenate([pairs[label].old for label in labels]).astype(np.float64)
        y = np.concatenate([pairs[label].new for label in labels]).astype(np.float64)
        x_mean, y_mean, share = x.mean(0), y.mean(0), np.bincount(codes) / m
        x, y = x - x_mean, y - y_mean
        alike, size = x.shape == y.shape, float(np.vdot(x, x))
        scaling = (float(np.vdot(x, y)) / size if size else 1.0) if alike else 0.0
        gap, each = y - scaling * x if alike else y, np.sqrt(size / m)  # a class weighs as much as all features
        inputs = np.hstack([x, each * (np.eye(len(labels))[codes] - share)])

        values, left = _left_vectors(inputs)
        along = left.T @ gap
        power = (along ** 2).sum(1)
        outside = max(float(np.vdot(gap, gap)) - float(power.sum()), 0.0)
        penalties = PENALTIES * values.max(initial=0)
        kept = values / (values + penalties[:, None])  # [penalties, directions]
        free = np.maximum(m - 1 - kept.sum(1), 0.0)
        score = ((1 - kept) ** 2 @ power + outside) / np.maximum(free, NEGLIGIBLE) ** 2
        best = int(np.argmin(np.where(free > 1e-6 * m, score, np.inf)))  # else 0 / 0: no degrees of freedom left

        solved = inputs.T @ (left @ (along / (values + penalties[best])[:, None]))
        weight = solved[:x.shape[1]].T + scaling * np.eye(y.shape[1], x.shape[1])
        own = each * solved[x.shape[1]:]
        leverage = 1 / m + left ** 2 @ kept[best]
        gap = (gap - left @ (kept[best][:, None] * along)) / np.maximum(1 - leverage, 1e-6)[:, None]
        return cls(weight, y_mean - weight @ x_mean - share @ own, dict(zip(labels, own)), _noise(gap, codes))

    def shift(self, label: str) -> NDArray[np.float64]:
        """b + u_c of a class, float64 [d']."""
        return self.offset + self.own.get(label, 0)


def moved(old: ClassStatistics, pairs: Mapping[str, Pairs]) -> ClassStatistics:
    """Statistics of the new features: exact for contained samples of `pairs`, estimated (`Drift`) for the rest.

    If all samples are contained, nothing is estimated. A second moment kept as a diagonal and a rank can't be split and
    is transformed as a whole; even then, means are exact for contained samples. Raises BadInput if features can't be
    summed, StateError if there are no pairs to estimate from or a class has fewer samples than are contained.
    """
    for label, both in pairs.items():
        check_features(label, both.old)
        check_features(label, both.new)
    exact = {label: both for label, both in pairs.items() if both.contained.any()}
    second_moment = old.moment is not None
    if not old.residual and old.counts == {label: int(both.contained.sum()) for label, both in exact.items()}:
        first = next(iter(exact.values()), None)
        found = ClassStatistics(np.zeros(old.dimension) if first is None else first.new[0], second_moment)
    else:
        drift, rest = Drift.between(pairs), old.copy()
        shifts = {label: drift.shift(label) for label in old.counts}
        if old.diagonal is not None:
            for label, both in exact.items():
                x, y = (rows[both.contained].astype(np.float64) for rows in both[:2])
                missed = (y - x @ drift.weight.T - shifts[label]).sum(0)
                shifts[label] = shifts[label] + missed / old.counts[label]
            return rest.affine(drift.weight, shifts, drift.noise)
        for label, both in exact.items():
            rest.remove(label, both.old[both.contained])
        found = rest.affine(drift.weight, shifts, drift.noise)
    for label, both in exact.items():
        found.add(label, both.new[both.contained])
    return found.about_its_mean(second_moment)


def _left_vectors(inputs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Squared singular values [r] and left singular vectors [m, r] of [m, k], from the smaller of the two products."""
    tall = len(inputs) > inputs.shape[1]
    values, vectors = np.linalg.eigh(inputs.T @ inputs if tall else inputs @ inputs.T)
    there = values > NEGLIGIBLE * values[-1]
    values, vectors = values[there], vectors[:, there]
    return values, inputs @ (vectors / np.sqrt(values)) if tall else vectors


def _noise(residuals: NDArray[np.float64], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The covariance within classes of residuals [m, d'], about 0 if every class has only one, float64 [d', d']."""
    counts = np.bincount(codes)
    freedom = len(codes) - len(counts)
    if freedom:
        sums = np.zeros((len(counts), residuals.shape[1]))
        np.add.at(sums, codes, residuals)
        residuals = residuals - (sums / counts[:, None])[codes]
    noise: NDArray[np.float64] = residuals.T @ residuals / (freedom or len(codes))
    e, trace = oas_shrinkage(noise, freedom), float(np.trace(noise))
    noise *= 1 - e
    noise.flat[::len(noise) + 1] += e * trace / len(noise)
    return noise
