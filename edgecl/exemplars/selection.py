"""The exemplar buffer: which stored samples stay in its bytes, and which of them are held back.

All of it is a function of the stored samples and the statistics, computed anew whenever it is asked for, so that
nothing can go stale and a reopened state decides as the one that was closed. In the class-balanced reservoir, a
sample's rank in its class is that of its hash: every class keeps a uniform random part of all its samples without a
counter that could be lost, whatever the order, and two boards' buffers merge into the one of a single board.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

GROUP_SHIFT = 32   # a key's high bits name the recording, its low bits the sample
NEAR = 0.1         # of the mean squared distance of two samples of a class: closer ones in a row are one scene. Frames
                   # of a slow pan have 0.04 to 0.16, photos of one product over 0.23, half-overlapping windows over 0.1
WHOLE = 4          # one sample in four is kept by its recording
LEAST_SHARE = 16   # one sample in sixteen is held back at least ...
MOST_SHARE = 5     # ... and one in five at most,
WANTED = 40        # as long as all classes together hold back fewer than this


def admitted(labels: Sequence[str], ranks: NDArray[np.int64], sizes: NDArray[np.int64], room: int) -> NDArray[np.bool_]:
    """Which samples a buffer of `room` bytes keeps, bool [n]: in each class those of the smallest ranks, and in every
    class the same bytes as far as it has them (ties by name): what does not fit is taken from the largest class.

    ranks [n]; sizes: bytes of each sample [n].
    """
    names, codes = np.unique(np.asarray(labels, np.str_), return_inverse=True)
    order = np.lexsort((ranks, codes))
    first = np.searchsorted(codes[order], np.arange(len(names)))
    before = np.r_[0, np.cumsum(sizes[order])]
    level = np.empty(len(labels), np.int64)  # bytes of the class up to this sample
    level[order] = before[1:] - before[first][codes[order]]
    keep = np.zeros(len(labels), bool)
    fair = np.lexsort((codes, level))
    keep[fair[np.cumsum(sizes[fair]) <= room]] = True
    return keep


def reservoir(keys: NDArray[np.int64], spare: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The rank of each of a class's samples [n]: three by their own hash, without near-duplicates as far as there are
    others, then one by the hash of its recording, and so on. So of the m that stay, the first m / 4 by key are without
    gaps, which gives whole recordings to judge by, and the others are drawn from all recordings."""
    by_recording, by_sample = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
    by_recording[np.argsort(keys)] = np.arange(len(keys))
    by_sample[np.lexsort((keys, keys & 0xFFFFFFFF, spare))] = np.arange(len(keys))
    return np.minimum(WHOLE * by_recording, by_sample + by_sample // (WHOLE - 1) + 1)


def herding(features: NDArray[np.float32], mean: NDArray[np.float64], count: int | None = None) -> NDArray[np.int64]:
    """The rank of each of a class's samples [n, d]: greedily, the next is the one with which the mean of those chosen
    so far comes nearest to the class mean [d], which is that of all samples ever learned (Rebuffi et al. 2017,
    algorithm 4). Features and mean are L2-normalised. The order is that of a longer list cut short.

    count: how many are chosen at most, None for all; the rank of the others is n.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-30)
    target = mean / max(float(np.linalg.norm(mean)), 1e-30)
    ranks = np.full(len(unit), len(unit), np.int64)
    gap = unit @ target
    inner = np.zeros(len(unit))  # of each sample and the sum of the chosen
    for k in range(min(len(unit), len(unit) if count is None else count)):
        # argmin |(k + 1) target - total - f|^2, all f being of length 1
        score = (k + 1) * gap - inner
        score[ranks < k] = -np.inf
        best = int(np.argmax(score))
        ranks[best] = k
        inner += unit @ unit[best]
    return ranks


def margins(features: NDArray[np.float64], own: int, means: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far samples [n, d] of class `own` lie from the border to the nearest other class mean of [C, d]; >= 0."""
    if len(means) < 2:
        return np.zeros(len(features))
    others = np.delete(means, own, 0)
    apart = np.maximum(np.linalg.norm(others - means[own], axis=1), 1e-30)
    size = (others ** 2).sum(1) - (means[own] ** 2).sum()
    return np.asarray(np.abs((size - 2 * features @ (others - means[own]).T) / (2 * apart)).min(1))


def near_duplicates(h: NDArray[np.float32], spread: float) -> NDArray[np.bool_]:
    """Which samples [n, d], in the order in which they came, are the same frame as the last one that is none: those
    closer than NEAR of `spread`, the mean squared distance of two samples of one class."""
    spare = np.zeros(len(h), bool)
    last = 0
    for i in range(1, len(h)):
        gap = h[i] - h[last]
        spare[i] = float(gap @ gap) < NEAR * spread
        last = last if spare[i] else i
    return spare


def held_back(features: NDArray[np.float32], keys: Sequence[int], count: int, classes: int) -> NDArray[np.int64]:
    """Indices of a class's exemplars [n, d], in the order of their keys, that no head is learned from: they judge it.

    count: all samples of the class; classes: of the learner. One sample in sixteen, or up to one in five while few are
    held back in all; whole recordings where there are several, but no more than a quarter of the class; otherwise those
    that lie furthest along its main direction of variation. Windows overlap and photos come in bursts, so random ones
    have near-copies among the rest and say that everything is right (measured: 0.97 held back against 0.69 on the
    official test part of grocery_store); another recording, or the far end, is like a new session.
    """
    wanted = max(count // LEAST_SHARE, min(count // MOST_SHARE, -(-WANTED // max(classes, 1))))
    wanted = min(wanted, len(features), count - 1)
    if wanted < 1:
        return np.zeros(0, np.int64)
    groups = np.asarray(keys, np.int64) >> GROUP_SHIFT
    ends = np.flatnonzero(np.r_[groups[1:] != groups[:-1], True]) + 1
    whole = ends if len(features) == count else ends[ends <= (len(features) - 1) // WHOLE]  # see `reservoir`
    if len(whole) >= 2 and len(features) >= 2 * len(ends):
        picked: list[int] = []
        for start, end in zip((0, *whole), whole):
            if len(picked) < wanted and len(picked) + end - start <= count / 4:
                picked.extend(range(start, end))
        if picked:
            return np.array(picked, np.int64)
    exact = features.astype(np.float64)
    centred = exact - exact.mean(0)
    direction = centred[int(np.argmax((centred ** 2).sum(1)))]
    for _ in range(8):  # power iteration
        direction = centred.T @ (centred @ direction)
        direction /= np.linalg.norm(direction) + 1e-30
    along = centred @ direction
    along *= np.sign((along ** 3).sum()) or 1.0
    return np.sort(np.argsort(-along, kind="stable")[:wanted])
