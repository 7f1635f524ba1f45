"""The stored samples that a sample is nearest to, in the metric that finds strangers: one product of 8-bit
integers with each of them, as ONNX.

Photos are compared by their direction alone; anything else in units of the deviation within classes. If there are more
numbers than are compared quickly, all samples are compared along the principal axes of the stored ones, and by the
length of what is left beside these, and the CANDIDATES that are nearest so are compared as they are.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.backbones.model_writer import ModelWriter
from edgecl.backbones.session import open_session
from edgecl.heads.head import LARGE_CHUNK, NearestRow, chunks, rounded
from edgecl.heads.onnx_head import apart, powers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgecl.statistics.transform import FeatureTransform

NEAREST = 3             # stored samples that are found for each sample,
CANDIDATES = 12         # of so many that are the nearest along the axes
MOST_NUMBERS = {True: 2 ** 21, False: 2 ** 18}  # of stored photos, and of anything else, that are compared as they are,
AXES_NUMBERS = {True: 2 ** 19, False: 2 ** 18}  # or of them and of the axes, if there are more: a few per cent of the
                        # time of a photo; more of a window's, whose backbone takes a hundredth of that
FEWEST_AXES, MOST_AXES = 48, 256
AXES_FROM = 2000        # stored samples that the principal axes are found from
SPARE_AXES = 8          # found beside those that are kept, so that these are true
FARTHEST = 1e6          # squared distance, in those of stored samples: no number is beyond it
SHRINKAGE = 0.1         # of the variance of each feature towards that of all


class Axes(NamedTuple):
    """Principal axes of stored samples. centre: what they are about, float32 [d]; map: float32 [d, k]."""

    centre: NDArray[np.float32]
    map: NDArray[np.float32]

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Positions along the axes, and the length of the rest: float32 [n, k + 1] of x float32 [n, d]."""
        x = x - self.centre
        along = x @ self.map
        rest = np.sqrt(np.maximum((x * x).sum(1) - (along * along).sum(1), np.float32(0)))
        return np.concatenate([along, rest[:, None]], 1)


class NearestSamples:
    """Finds the nearest of some stored samples. bytes: of memory that it holds."""

    def __init__(self, features: Sequence[NDArray[np.float32]], classes: NDArray[np.int64],
                 transform: FeatureTransform, photos: bool) -> None:
        """features: of the stored samples, at least one, float32 [d] each; classes: a number for each, int64 [n];
        transform: without a projection."""
        metric = _Metric(features, classes, transform, photos)
        model = _model(metric, transform)
        self._session, self._scale, self.bytes = open_session(model), 2 * metric.size, len(model)
        self._whole: _Whole | None = None
        if metric.axes is not None:
            self._whole = _Whole(metric.whole())
            self.bytes += self._whole.row.rows.nbytes

    def __call__(self, features: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The places of the NEAREST stored samples (of all, if there are fewer), int64 [n, k], the nearest first, and
        how similar each is, float64 [n, k], of features float32 [n, d]: 1 the same, 0 as two stored samples that have
        nothing in common, -1 or less far away. Of photos it is the cosine."""
        if self._whole is None:
            places, distances = self._session.run(["places", "distances"], {"input": features})
        else:
            places, distances = self._whole.nearest(*self._session.run(["units", "places"], {"input": features}))
        apart = np.maximum(distances, 0).astype(np.float64) / self._scale
        return places, 1 - np.nan_to_num(apart, nan=FARTHEST).clip(max=FARTHEST)


class _Metric:
    """The metric of stored samples, and the samples in it. row: these, as integers; size: their mean squared length."""

    def __init__(self, features: Sequence[NDArray[np.float32]], classes: NDArray[np.int64],
                 transform: FeatureTransform, photos: bool) -> None:
        self._features, self._transform, self.photos = features, transform, photos
        n, d = len(features), transform.source
        self.centre: NDArray[np.float32] | None = None
        self.weight: NDArray[np.float32] | None = None
        if not photos:
            self.centre, self.weight = self._units(classes)
        self.axes: Axes | None = None
        zero, one = self.centre, self.weight
        if n * d > MOST_NUMBERS[photos]:
            wanted = min(max(AXES_NUMBERS[photos] // (n + d), FEWEST_AXES), MOST_AXES)
            if wanted < min(n, d):
                self.axes = self._principal(wanted)
                zero, one = np.zeros(wanted + 1, np.float32), np.ones(wanted + 1, np.float32)
        self.row = self._rows(zero, one)
        self.size = 1.0 if photos else float(self.row.squares.mean()) or 1.0

    def whole(self) -> NearestRow:
        """The samples as they are, not along axes."""
        axes, self.axes = self.axes, None
        try:
            return self._rows(self.centre, self.weight)
        finally:
            self.axes = axes

    def _rows(self, centre: NDArray[np.float32] | None, weight: NDArray[np.float32] | None) -> NearestRow:
        parts = [rounded(self._compared(part), centre, weight) for part in self._parts()]
        return NearestRow(np.concatenate([rows for rows, _ in parts]),
                          np.concatenate([lengths[:, 0] for _, lengths in parts]), centre, weight, 0.0)

    def h(self, places: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Transformed features of some stored samples, float32 [k, d]."""
        some = self._features[places] if isinstance(places, slice) else [self._features[i] for i in places.tolist()]
        return self._transform(np.stack(some))

    def _parts(self) -> list[slice]:
        return list(chunks(len(self._features), self._transform.source, LARGE_CHUNK))

    def _units(self, classes: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Centre and weight of `NearestRow`: the mean of all, and one over the deviation within classes."""
        count, d = np.bincount(classes), self._transform.source
        sums, squares = np.zeros((len(count), d)), np.zeros(d)
        for part in self._parts():
            h = self.h(part).astype(np.float64)
            np.add.at(sums, classes[part], h)
            squares += (h * h).sum(0)
        centre, n = sums.sum(0) / len(classes), len(classes)
        total = np.maximum(squares / n - centre ** 2, 0)
        means = sums / np.maximum(count, 1)[:, None]
        within = np.maximum(squares - count @ means ** 2, 0) / max(n - np.count_nonzero(count), 1)
        variance = within if within.mean() > 1e-9 * (squares.mean() / n) else total
        mean = float(variance.mean())
        if mean <= 1e-9 * float(squares.mean() / n):     # all are the same
            return np.zeros(d, np.float32), np.ones(d, np.float32)
        variance = (1 - SHRINKAGE) * variance + SHRINKAGE * mean
        return centre.astype(np.float32), (variance ** -0.5).astype(np.float32)

    def in_units(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Samples of the transformed features x, float32 [n, d]."""
        if self.centre is None or self.weight is None:
            return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.float32(1e-30))
        return (x - self.centre) * self.weight

    def _compared(self, part: slice) -> NDArray[np.float32]:
        h = self.h(part)
        return h if self.axes is None else self.axes(self.in_units(h))

    def _principal(self, k: int) -> Axes:
        """The first k principal axes by one subspace iteration (Halko et al. 2011), turned at random, so that none of
        them needs a wider range of integers than the others."""
        rng, n = np.random.default_rng(0), len(self._features)
        x = self.in_units(self.h(np.arange(min(n, AXES_FROM)) * n // min(n, AXES_FROM)))
        centre = x.mean(0)
        x -= centre
        found = np.linalg.qr(x.T @ (x @ rng.standard_normal((x.shape[1], k + SPARE_AXES), np.float32)))[0]
        along = x @ found
        best = np.linalg.eigh(along.T @ along)[1][:, ::-1][:, :k]
        turn = np.linalg.qr(rng.standard_normal((best.shape[1], best.shape[1])))[0]
        return Axes(centre, (found @ best @ turn).astype(np.float32))


class _Whole:
    """Stored samples as they are, of which candidates are compared."""

    def __init__(self, row: NearestRow) -> None:
        self.row, self._squares = row, row.squares.astype(np.float32)

    def nearest(self, x: NDArray[np.float32],
                candidates: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The places of the NEAREST of some candidates [n, k] and their squared distances, of samples x float32 [n, d]
        in the units of the rows."""
        along = np.empty(candidates.shape, np.float32)
        for part in chunks(len(x), candidates.shape[1] * x.shape[1], LARGE_CHUNK):
            rows = self.row.rows[candidates[part]].astype(np.float32)
            along[part] = np.matmul(rows, x[part, :, None])[:, :, 0]
        apart = self._squares[candidates] - 2 * self.row.length[candidates] * along
        each, best = np.arange(len(x))[:, None], apart.argsort(1, kind="stable")[:, :NEAREST]
        return candidates[each, best], apart[each, best] + np.einsum("nd,nd->n", x, x)[:, None]


def _model(metric: _Metric, transform: FeatureTransform) -> bytes:
    """From features float32 [n, d] to places int64 [n, k] and squared distances float32 [n, k], the nearest first; with
    axes, to the samples in the units of the rows float32 [n, d] as well."""
    g = ModelWriter()
    x, units = powers(g, "input", transform.power), "units" if metric.axes is not None else None
    if metric.axes is not None and metric.photos:
        length = g.node("ReduceL2", [x], axes=[1], keepdims=1)
        x = g.node("Div", [x, g.node("Max", [length, g.weight("shortest_photo", np.array(1e-30, np.float32))])], units)
    elif metric.centre is not None and metric.weight is not None:
        x = g.node("Sub", [x, g.weight("row_centre", metric.centre)])
        x = g.node("Mul", [x, g.weight("row_weight", metric.weight)], units)
    if metric.axes is not None:
        x = g.node("Sub", [x, g.weight("centre", metric.axes.centre)])
        along = g.node("MatMul", [x, g.weight("axes", metric.axes.map)])
        whole, told = (g.node("ReduceSumSquare", [each], axes=[1], keepdims=1) for each in (x, along))
        rest = g.node("Max", [g.node("Sub", [whole, told]), g.weight("none", np.array(0, np.float32))])
        x = g.node("Concat", [along, g.node("Sqrt", [rest])], axis=1)
    found = apart(g, metric.row, x)
    k = min(NEAREST if metric.axes is None else CANDIDATES, len(metric.row.rows))
    g.node("TopK", [found, g.weight("k", np.array([k], np.int64))], "distances", "places", axis=1, largest=0)
    outputs: dict[str, tuple[str, list[int | str]]] = {
        "places": ("int64", ["n", k]), "distances": ("float32", ["n", k])}
    if units:
        outputs[units] = "float32", ["n", transform.source]
    return g.model("edgecl_nearest", {"input": ("float32", ["n", transform.source])}, outputs, {})
