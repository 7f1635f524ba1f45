"""The algebra of `edgecl.heads.out_of_fold`: products of whitened samples and class means without some samples."""
from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.statistics.symmetric import Factor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.statistics.covariance import Metric, PooledCovariance

    Floats = NDArray[np.float64]

LEAST = 1e-9    # of what a sample leaves of a direction if it is taken out: less is rounding


class Left(NamedTuple):
    """See `OutOfFold`: own [j], inner [j, C] and squares [j, C] of the judging rows, ridge [j, C] or None, and which
    classes are gone for all of them, int64."""

    own: Floats
    inner: Floats
    squares: Floats
    ridge: Floats | None
    gone: NDArray[np.int64]


class Smoother:
    """Ridge as a linear smoother of its training samples: Z = A Y, where A_ij is 1 / N + plus_i . plus_j less
    minus_i . minus_j. With A = (f / (1 - e)) S_e + M^T n M of the centred means M [C, d], what is factored is C x C or
    d x d, the smaller of the two."""

    def __init__(self, pooled: PooledCovariance, means: Floats, e: float) -> None:
        """means: whitened by S_e, [C, r]."""
        self.counts, self.share, self.few = pooled.counts, pooled.share, len(means) <= means.shape[1]
        self.scale = max(pooled.freedom, 1) / (1 - e)
        scaled = np.sqrt(self.counts)[:, None] * means
        inner = scaled @ scaled.T if self.few else scaled.T @ scaled
        inner.flat[::len(inner) + 1] += self.scale
        self.factor = Factor(inner, 1.0, 0.0)
        self.means = scaled if self.few else self.factor.forward(means.T)

    def __call__(self, x: Floats, inner: Floats) -> Smoothed:
        """For whitened samples x [n, r] with the inner products [n, C] with the means."""
        if self.few:
            root = np.sqrt(self.counts)
            r = self.factor.forward((inner * root).T)
            logits = self.factor.backward(r.copy()).T * root
            logits += self.share
            size = self.scale ** -0.5
            return Smoothed(logits, x * size, r.T * size, 1 / float(self.counts.sum()))
        q = self.factor.forward(x.T)
        return Smoothed((q.T @ self.means) * self.counts + self.share, q.T, None, 1 / float(self.counts.sum()))


class Smoothed(NamedTuple):
    """The logits of training samples [n, C], and the parts of their hat matrix, see `Smoother`."""

    logits: Floats
    plus: Floats
    minus: Floats | None
    constant: float

    def part(self, mine: slice) -> Smoothed:
        """Some of these samples."""
        return self._replace(logits=self.logits[mine], plus=self.plus[mine],
                             minus=None if self.minus is None else self.minus[mine])

    def hat(self, places: NDArray[np.int64]) -> Floats:
        """A [..., k, k] of the samples `places` [..., k]."""
        plus = self.plus[places]
        found = plus @ plus.swapaxes(-1, -2) + self.constant
        if self.minus is not None:
            minus = self.minus[places]
            found -= minus @ minus.swapaxes(-1, -2)
        return np.asarray(found, np.float64)

    def without(self, places: NDArray[np.int64], classes: NDArray[np.int64], at: NDArray[np.int64]) -> Floats:
        """The logits [..., j, C] of the samples places[..., at] if all of `places` [..., k] are left out; classes:
        their true ones."""
        left = -self.hat(places)
        left += np.eye(left.shape[-1])
        rows = np.take_along_axis(inverted(left), at[..., None], -2)
        gap = -self.logits[places]
        np.put_along_axis(gap, classes[..., None], np.take_along_axis(gap, classes[..., None], -1) + 1, -1)
        found = -(rows @ gap)
        own = np.take_along_axis(classes, at, -1)[..., None]
        np.put_along_axis(found, own, np.take_along_axis(found, own, -1) + 1, -1)
        return np.asarray(found, np.float64)


class Removed:
    """Some whitened samples x [b, r] of `classes` [b] that are taken out or judge, with what all of them share."""

    def __init__(self, x: Floats, classes: NDArray[np.int64], metric: Metric, pooled: PooledCovariance,
                 smoother: Smoother | None) -> None:
        self.x, self.classes, self.metric, self.counts = x, classes, metric, pooled.counts
        self.inner = x @ metric.means.T
        self.lengths = np.einsum("br,br->b", x, x)
        self.own = self.inner[np.arange(len(x)), classes]       # of each sample and the mean of its class
        some, self._of = np.unique(classes, return_inverse=True)
        self._gram = metric.means[some] @ metric.means.T
        self.ridge = smoother(x, self.inner) if smoother else None
        self._products: Floats | None = None

    def multiply(self) -> None:
        """Multiply all samples with each other now: it takes less than set by set if the sets overlap."""
        self._products = self.x @ self.x.T

    def part(self, start: int, end: int) -> Removed:
        """Some of these samples, with what is known of them."""
        found, mine = copy(self), slice(start, end)
        found.x, found.classes, found.inner, found._of = self.x[mine], self.classes[mine], self.inner[mine], \
            self._of[mine]
        found.lengths, found.own = self.lengths[mine], self.own[mine]
        found.ridge = self.ridge.part(mine) if self.ridge else None
        return found

    def to_means(self, places: NDArray[np.int64]) -> Floats:
        """The inner products [..., C] of samples, less the mean of their class, with all means."""
        found = self.inner[places]
        found -= self._gram[self._of[places]]
        return found

    def without_each(self, rows: NDArray[np.int64], out: NDArray[np.int64]) -> Left:
        """Each of `rows` [j] without its own samples out [j, k], all of its class, which keeps some."""
        y, k, at = self.classes[rows], out.shape[1], np.arange(len(rows))
        own, inner = self.lengths[rows], self.inner[rows]
        squares = np.repeat(self.metric.squares[None], len(rows), 0)
        if not k:
            return Left(own, inner, squares, None if self.ridge is None else self.ridge.logits[rows], NOTHING)
        left, length = 1 / (self.counts[y] - k), self.metric.squares[y]
        theirs = self.own[out]      # [j, k]
        if k == 1 and (out[:, 0] == rows).all():
            u, gram = (own - theirs[:, 0])[:, None], (own - 2 * theirs[:, 0] + length)[:, None, None]
        else:
            if self._products is None:
                x = self.x[out]
                gram, u = x @ x.swapaxes(1, 2), np.einsum("jkr,jr->jk", x, self.x[rows])
                del x
            else:
                gram = self._products[out[:, :, None], out[:, None]]
                u = self._products[out, rows[:, None]]
            gram -= theirs[:, None] + theirs[:, :, None] - length[:, None, None]
            u -= self.own[rows][:, None]
        v = self.to_means(out)
        squares[at, y] += left ** 2 * gram.sum((1, 2)) - 2 * left * v[at, :, y].sum(1)
        inner[at, y] -= left * u.sum(1)
        v[at, :, y] -= left[:, None] * gram.sum(2)
        if weight := self.metric.weight:
            gram *= -weight
            gram -= 1 / self.counts[y][:, None, None]
            gram += np.eye(k)
            if k == 1:
                q, v = weight / np.maximum(gram[:, 0], LEAST), v[:, 0]
                inner += (q * u) * v
                own += (q * u * u)[:, 0]
                v *= v
                v *= q
                squares += v
            else:
                w = weight * inverted(gram)
                wu = np.einsum("jkl,jl->jk", w, u)
                inner += np.einsum("jk,jkc->jc", wu, v)
                own += np.einsum("jk,jk->j", wu, u)
                squares += np.einsum("jkc,jkc->jc", w @ v, v)
        self._scale(own, inner, squares, k)
        ridge = None
        if self.ridge is not None:
            place = np.argmax(out == rows[:, None], 1)[:, None]
            ridge = self.ridge.without(out, self.classes[out], place)[:, 0]
        return Left(own, inner, squares, ridge, NOTHING)

    def without_all(self, rows: NDArray[np.int64]) -> Left:
        """The samples `rows` [j] without all the samples that are here, of any classes."""
        metric, k, y = self.metric, len(self.x), self.classes
        gone = np.bincount(y, minlength=len(self.counts))
        used = np.flatnonzero(gone)
        rest = (self.counts - gone)[used]
        lost = used[rest <= 0]
        left = np.where(rest > 0, 1 / np.maximum(rest, 1), 0)
        place = np.searchsorted(used, y)
        apart = self.x - metric.means[y]
        by_class = np.argsort(place, kind="stable")
        sums = np.add.reduceat(apart[by_class], np.searchsorted(place[by_class], np.arange(len(used))))
        means, moved = metric.means, -left[:, None] * sums
        if metric.weight and k > self.x.shape[1]:
            centred = np.concatenate([apart, np.sqrt(left)[:, None] * sums])
            scatter = centred.T @ centred
            scatter *= -metric.weight
            scatter.flat[::len(scatter) + 1] += 1
            whole = means.copy()
            whole[used] += moved
            x, whole = np.split(inverse_root(scatter, np.concatenate([self.x[rows], whole]).T).T, [len(rows)])
            own, inner = np.einsum("jr,jr->j", x, x), x @ whole.T
            squares = np.repeat(np.einsum("cr,cr->c", whole, whole)[None], len(rows), 0)
        else:
            own, inner = self.lengths[rows], self.inner[rows]
            inner[:, used] += self.x[rows] @ moved.T
            single = metric.squares.copy()
            single[used] += np.einsum("cr,cr->c", 2 * means[used] + moved, moved)
            if metric.weight:
                v, gram = self.to_means(np.arange(k)), apart @ apart.T
                u = gram[:, rows] + v[:, y[rows]]
                v[:, used] += apart @ moved.T
                gram *= -metric.weight
                gram -= (place[:, None] == place) * np.where(rest > 0, 1 / self.counts[used], 0)[place]
                gram.flat[::k + 1] += 1
                half = inverse_root(gram, np.concatenate([u, v], 1))
                half *= np.sqrt(metric.weight)
                of_rows, of_means = half[:, :len(rows)], half[:, len(rows):]
                inner += of_rows.T @ of_means
                own += np.einsum("kj,kj->j", of_rows, of_rows)
                single += np.einsum("kc,kc->c", of_means, of_means)
            squares = np.repeat(single[None], len(rows), 0)
        self._scale(own, inner, squares, k - len(lost))
        ridge = None if self.ridge is None else self.ridge.without(np.arange(k), y, rows)
        return Left(own, inner, squares, ridge, lost)

    def _scale(self, own: Floats, inner: Floats, squares: Floats, freedom: int) -> None:
        """S_e has lost so many degrees of freedom."""
        if self.metric.weight:
            scale = max(self.metric.freedom - freedom, 1) / max(self.metric.freedom, 1)
            own *= scale
            inner *= scale
            squares *= scale


NOTHING = np.zeros(0, np.int64)


def inverted(a: Floats) -> Floats:
    """The inverse of positive definite matrices [..., k, k]; eigenvalues below LEAST, which only rounding makes, count
    as that."""
    try:
        np.linalg.cholesky(a)
        return np.asarray(np.linalg.inv(a), np.float64)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(a)
        return np.asarray((vectors / np.maximum(values, LEAST)[..., None, :]) @ vectors.swapaxes(-1, -2), np.float64)


def inverse_root(a: Floats, b: Floats) -> Floats:
    """R^T b [r, n] of b [r, n], where R R^T is the inverse of a positive definite a [r, r]; as `inverted`. The lower
    triangle of a is lost."""
    try:
        return Factor(a, 1.0, 0.0).forward(b)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(a, "U")
        return np.asarray((vectors / np.sqrt(np.maximum(values, LEAST))).T @ b, np.float64)
