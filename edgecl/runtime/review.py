"""The review list: a few frames that fit no known class well, for a person to name; no two alike."""
from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecl.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.results import Prediction

MOST_ENTRIES, MOST_BYTES = 24, 4 * 10**6   # the oldest are dropped
PAUSE_SECONDS = 1.0                        # between two entries of one source
FEATURE_WEIGHT = 1 / 256                   # of one frame in the running mean and spread of features
NEAR_DUPLICATE = 0.1                       # of the mean squared distance between two frames: closer ones are alike


class ReviewEntry(NamedTuple):
    """A frame on the list. feature: float32 [d]; at: monotonic seconds."""

    number: int
    answer: Prediction
    data: np.ndarray
    feature: NDArray[np.float32]
    at: float


class Review:
    """The list; any thread may use it. below: frames with less confidence are put on it."""

    def __init__(self, below: float) -> None:
        self._below = below
        self._entries: list[ReviewEntry] = []
        self._number, self._lock = 0, threading.Lock()
        self._last: dict[str, float] = {}
        self._mean: NDArray[Any] | None = None
        self._spread = 0.0

    def reload(self, below: float) -> None:
        """Another confidence from now on."""
        self._below = below

    def see(self, answer: Prediction, data: np.ndarray, feature: NDArray[np.float32]) -> None:
        """Take a classified frame, and put it on the list if it belongs there. Frames closer than NEAR_DUPLICATE of the
        mean squared distance between two frames are alike."""
        if self._mean is None or self._mean.shape != feature.shape:
            self._mean, self._spread = feature.copy(), 0.0
        gap = feature - self._mean
        self._spread += FEATURE_WEIGHT * (2 * float(gap @ gap) - self._spread)
        self._mean += FEATURE_WEIGHT * gap
        now = time.monotonic()
        strange = answer.unknown and answer.label is not None   # `nothing` and a black picture need no name
        uncertain = strange or answer.confidence < self._below
        if not uncertain or now - self._last.get(answer.source, -PAUSE_SECONDS) < PAUSE_SECONDS:
            return
        with self._lock:
            near = NEAR_DUPLICATE * self._spread
            if any(e.feature.shape == feature.shape and float(((e.feature - feature) ** 2).sum()) <= near
                   for e in self._entries):
                return
            self._last[answer.source] = now
            self._number += 1
            self._entries.append(ReviewEntry(self._number, answer, data, feature.copy(), now))
            while len(self._entries) > MOST_ENTRIES or sum(e.data.nbytes for e in self._entries) > MOST_BYTES:
                self._entries.pop(0)

    def to_json(self) -> list[dict[str, Any]]:
        """The list, newest first."""
        now = time.monotonic()
        with self._lock:
            return [{"id": e.number, "source": e.answer.source, "label": e.answer.label,
                     "confidence": e.answer.confidence, "unknown": e.answer.unknown,
                     "age_seconds": round(now - e.at, 1)} for e in reversed(self._entries)]

    def get(self, number: int) -> ReviewEntry:
        """An entry. Raises BadInput if it is not on the list."""
        with self._lock:
            found = next((e for e in self._entries if e.number == number), None)
        if found is None:
            raise BadInput(f"frame {number} is not on the review list",
                           "it was named or dismissed, or newer frames took its place")
        return found

    def discard(self, number: int) -> None:
        """Take an entry off the list, if it is there."""
        with self._lock:
            self._entries = [e for e in self._entries if e.number != number]
