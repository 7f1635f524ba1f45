"""Frames that nothing known fits well, for a person to name: few, and no two alike."""
from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecl.errors import BadInput
from edgecl.exemplars.selection import NEAR_DUPLICATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.results import Prediction

ENTRIES, BYTES = 24, 4 * 10**6   # at most; the oldest go first
PAUSE = 1.0                      # seconds between two of one source
WEIGHT = 1 / 256                 # of one frame in the running mean and spread of features


class ReviewEntry(NamedTuple):
    """A frame on the list. feature float32 [d]; at: monotonic seconds."""

    number: int
    source: str
    said: Prediction
    data: np.ndarray
    feature: NDArray[np.float32]
    at: float


class Review:
    """The list. below: the confidence under which a frame comes on it."""

    def __init__(self, below: float) -> None:
        self.below = below
        self._entries: list[ReviewEntry] = []
        self._number, self._lock = 0, threading.Lock()
        self._last: dict[str, float] = {}
        self._mean: NDArray[Any] | None = None
        self._spread = 0.0

    def see(self, source: str, said: Prediction, data: np.ndarray, feature: NDArray[np.float32]) -> None:
        """A frame was classified: put it on the list where it belongs there. Near-duplicates, as in `exemplars`, are
        those closer than NEAR_DUPLICATE of the mean squared distance of two frames that came."""
        if self._mean is None or self._mean.shape != feature.shape:
            self._mean, self._spread = feature.copy(), 0.0
        gap = feature - self._mean
        self._spread += WEIGHT * (2 * float(gap @ gap) - self._spread)
        self._mean += WEIGHT * gap
        now = time.monotonic()
        if not (said.unknown or said.confidence < self.below) or now - self._last.get(source, -PAUSE) < PAUSE:
            return
        with self._lock:
            near = NEAR_DUPLICATE * self._spread
            if any(e.feature.shape == feature.shape and float(((e.feature - feature) ** 2).sum()) <= near
                   for e in self._entries):
                return
            self._last[source] = now
            self._number += 1
            self._entries.append(ReviewEntry(self._number, source, said, data, feature.copy(), now))
            while len(self._entries) > ENTRIES or sum(e.data.nbytes for e in self._entries) > BYTES:
                self._entries.pop(0)

    def to_json(self) -> list[dict[str, Any]]:
        """The list, the newest first."""
        now = time.monotonic()
        with self._lock:
            return [{"id": e.number, "source": e.source, "label": e.said.label, "confidence": e.said.confidence,
                     "unknown": e.said.unknown, "age_seconds": round(now - e.at, 1)} for e in reversed(self._entries)]

    def get(self, number: int) -> ReviewEntry:
        """An entry. Raises BadInput where there is none of that number."""
        with self._lock:
            found = next((e for e in self._entries if e.number == number), None)
        if found is None:
            raise BadInput(f"frame {number} is not on the review list", "it was named, or newer ones took its place")
        return found

    def discard(self, number: int) -> None:
        """Take an entry off the list, where it is there."""
        with self._lock:
            self._entries = [e for e in self._entries if e.number != number]
