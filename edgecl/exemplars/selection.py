"""Which stored samples stay in the exemplar buffer, and which of them no learning round may be tuned on.

All of it is a function of the stored samples and the statistics, computed each time it is needed, so nothing can go
stale and a reopened state decides as it did before. In the class-balanced reservoir, the rank of a sample in its class
is that of its hash: each class keeps a uniform random part of all its samples, in any order of arrival and without a
counter that could be lost, and the buffers of two boards merge into that of a single board.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

GROUP_SHIFT = 32            # the high bits of a key name the recording or session,
OWN_BITS = 2 ** 32 - 1      # the low bits the sample
MIN_NORM = np.float32(1e-30)
# Successive samples of a recording whose features have a smaller cosine distance than this show one scene: about a
# tenth of the mean squared distance of two samples of a class, see docs/design.md.
NEAR_DUPLICATE = {"image": 0.03, "window": 0.001, "feature": 0.01}
BY_RECORDING_ONE_IN = 4     # one sample in four is kept by its recording
HELD_BACK_MIN_ONE_IN = 16   # at least one sample in sixteen is held back ...
HELD_BACK_MAX_ONE_IN = 5    # ... and at most one in five,
ENOUGH_HELD_BACK = 40       # while all classes together hold back fewer than this


class Shared(NamedTuple):
    """What several samples share in the buffer: of, which of it each sample has, int64 [n]; sizes: bytes of each, int64
    [m]."""

    of: NDArray[np.int64]
    sizes: NDArray[np.int64]


def admitted(labels: Sequence[str] | NDArray[np.int64], ranks: NDArray[np.int64], sizes: NDArray[np.int64], room: int,
             shared: Shared | None = None) -> NDArray[np.bool_]:
    """Which samples a buffer of `room` bytes keeps, bool [n]: in each class those with the lowest ranks, and of each
    class equally many bytes as far as it has them (ties by name), so the largest class gives up what does not fit.

    labels [n]: names, or numbers in the order of the names; ranks int64 [n]; sizes: bytes of each sample, int64 [n];
    shared: what comes on top.
    """
    names, codes = np.unique(np.asarray(labels), return_inverse=True)
    order = np.lexsort((ranks, codes))
    first = np.searchsorted(codes[order], np.arange(len(names)))
    before = np.r_[0, np.cumsum(sizes[order])]
    level = np.empty(len(labels), np.int64)  # bytes of the class up to this sample
    level[order] = before[1:] - before[first][codes[order]]
    keep = np.zeros(len(labels), bool)
    fair = np.lexsort((codes, level))
    taken = sizes[fair]
    if shared is not None:
        which, begins = np.unique(shared.of[fair], return_index=True)
        taken[begins] += shared.sizes[which]  # with the first sample that has it
    keep[fair[np.cumsum(taken) <= room]] = True
    return keep


def reservoir(keys: NDArray[np.int64], spare: NDArray[np.bool_],
              classes: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """The rank of each sample within its class, int64 [n]: three by their own hash (near-duplicates last), then one by
    its recording, and so on. Of the m that stay, the first m / 4 `by_recording` have no gaps, which leaves whole
    recordings to judge on, and the others are drawn from all recordings. What stays decides among itself as all did.

    keys int64 [n]; spare bool [n]: near-duplicates; classes int64 [n], None if there is only one.
    """
    classes = np.zeros(len(keys), np.int64) if classes is None else classes
    whole = _places(by_recording(keys, spare, classes), classes)
    own = _places(np.lexsort((keys, _behind(keys, spare), classes)), classes)
    return np.minimum(BY_RECORDING_ONE_IN * whole, own + own // (BY_RECORDING_ONE_IN - 1) + 1)


def by_recording(keys: NDArray[np.int64], spare: NDArray[np.bool_], classes: NDArray[np.int64]) -> NDArray[np.intp]:
    """The order of samples [n] by class, and in each class by recording, near-duplicates last. A recording has a hash
    of its first sample in that order, so that its length and its number don't matter; that sample is the last of the
    recording to go."""
    own = _behind(keys, spare)
    return np.lexsort((keys, own, recording_hashes(keys, spare, classes), classes))


def recording_hashes(keys: NDArray[np.int64], spare: NDArray[np.bool_],
                     classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The hash of each sample's recording in its class, int64 [n]; see `by_recording`."""
    own, groups = _behind(keys, spare), keys >> GROUP_SHIFT
    order = np.lexsort((own, groups, classes))
    new = np.r_[True, (np.diff(groups[order]) != 0) | (np.diff(classes[order]) != 0)][:len(order)]
    hashes = np.empty(len(keys), np.int64)
    hashes[order] = _mixed(own[order[new]])[np.cumsum(new) - 1]
    return hashes


def own_hashes(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The hash of each sample itself, int64 [n]."""
    return keys & OWN_BITS


def _behind(keys: NDArray[np.int64], spare: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The own hash of each sample, near-duplicates behind all others, int64 [n]."""
    return own_hashes(keys) + (spare.astype(np.int64) << GROUP_SHIFT)


def _mixed(hashes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Other 32 bits for the low 32 bits of each number, one to one, in an unrelated order (MurmurHash3's finaliser)."""
    bits = own_hashes(hashes).astype(np.uint32)
    bits = (bits ^ bits >> np.uint32(16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ bits >> np.uint32(13)) * np.uint32(0xC2B2AE35)
    return (bits ^ bits >> np.uint32(16)).astype(np.int64)


def _places(order: NDArray[np.intp], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each sample in its class, int64 [n], in an order that goes through one class after the other."""
    places = np.empty(len(order), np.int64)
    numbers = np.arange(len(order))
    first = np.r_[True, np.diff(classes[order]) != 0][:len(order)]
    places[order] = numbers - np.maximum.accumulate(np.where(first, numbers, 0))
    return places


def herding(features: NDArray[np.float32], mean: NDArray[np.float64], count: int | None = None) -> NDArray[np.int64]:
    """The rank of each sample [n, d] of a class, int64 [n], by herding (Rebuffi et al. 2017, algorithm 4): the next
    sample is the one that brings the mean of those chosen so far closest to the class mean [d] of all samples ever
    learned. Features and mean are L2-normalised. A shorter list is the beginning of a longer one.

    count: rank at most this many, None for all; the others get rank n.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-30)
    target = mean / max(float(np.linalg.norm(mean)), 1e-30)
    ranks = np.full(len(unit), len(unit), np.int64)
    gap = unit @ target
    inner = np.zeros(len(unit))  # of each sample and the sum of the chosen
    for k in range(min(len(unit), len(unit) if count is None else count)):
        # argmin |(k + 1) target - total - f|^2, since all f have length 1
        score = (k + 1) * gap - inner
        score[ranks < k] = -np.inf
        best = int(np.argmax(score))
        ranks[best] = k
        inner += unit @ unit[best]
    return ranks


def margins(features: NDArray[np.float64], own: int, means: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distance, float64 [n], of samples [n, d] from the border between class `own` and the nearest other class.
    means: of all classes [C, d]."""
    if len(means) < 2:
        return np.zeros(len(features))
    others = np.delete(means, own, 0)
    apart = np.maximum(np.linalg.norm(others - means[own], axis=1), 1e-30)
    size = (others ** 2).sum(1) - (means[own] ** 2).sum()
    return np.asarray(np.abs((size - 2 * features @ (others - means[own]).T) / (2 * apart)).min(1))


def near_duplicates(features: NDArray[np.float32], recordings: NDArray[np.int64], kind: str) -> NDArray[np.bool_]:
    """Which samples, in order of arrival, nearly repeat the last one of their recording that is not a near-duplicate,
    bool [n]. It does not depend on any other sample.

    features: float32 [n, d]; recordings: int64 [n]; kind: of the samples, one of NEAR_DUPLICATE.
    """
    spare = np.zeros(len(features), bool)
    _, which, sizes = np.unique(recordings, return_inverse=True, return_counts=True)
    several = np.flatnonzero(sizes[which] > 1)
    unit = features[several]
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), MIN_NORM)
    last: dict[int, NDArray[np.float32]] = {}
    for place, recording, here in zip(several.tolist(), which[several].tolist(), unit):
        gap = here - last.setdefault(recording, here)
        spare[place] = here is not last[recording] and float(gap @ gap) < 2 * NEAR_DUPLICATE[kind]
        if not spare[place]:
            last[recording] = here
    return spare


def held_back(features: NDArray[np.float32], keys: Sequence[int] | NDArray[np.int64], count: int,
              classes: int) -> NDArray[np.int64]:
    """Indices of the exemplars of a class [n, d], sorted by recording, that no learning round is tuned on, so that they
    can judge the backbone.

    count: all samples of the class; classes: number of classes. One sample in sixteen, or up to one in five while few
    are held back in total: whole recordings if there are several, but at most a quarter of the class; otherwise the
    samples furthest along its main direction of variation. Windows overlap and photos come in bursts, so random samples
    would have near-copies among the rest and overestimate accuracy (measured on grocery_store: 0.97 held back, 0.69 on
    its official test part); another recording, or the far end, resembles a new session.
    """
    share = min(count // HELD_BACK_MAX_ONE_IN, -(-ENOUGH_HELD_BACK // max(classes, 1)))
    wanted = min(max(count // HELD_BACK_MIN_ONE_IN, share), len(features), count - 1)
    if wanted < 1:
        return np.zeros(0, np.int64)
    groups = np.asarray(keys, np.int64) >> GROUP_SHIFT
    ends = np.flatnonzero(np.r_[groups[1:] != groups[:-1], True]) + 1
    complete = len(features) == count   # else see `reservoir`
    whole = ends if complete else ends[ends <= (len(features) - 1) // BY_RECORDING_ONE_IN]
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
