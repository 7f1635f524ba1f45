"""Counters and histograms of a daemon, in Prometheus' sense: they only rise."""
from __future__ import annotations

import threading
from bisect import bisect_left
from typing import Any

INFERENCE_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)   # seconds
LEARNING_BOUNDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """Number of values up to each bound, their sum, and their count."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds, self._counts, self._sum, self._lock = bounds, [0] * (len(bounds) + 1), 0.0, threading.Lock()

    def add(self, value: float) -> None:
        """Count a value."""
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def to_json(self) -> dict[str, Any]:
        """{buckets: [[le, cumulative count]], sum, count}; the last le is "+Inf"."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        buckets: list[list[Any]] = []
        running = 0
        for bound, count in zip((*self._bounds, "+Inf"), counts):
            running += count
            buckets.append([bound, running])
        return {"buckets": buckets, "sum": total, "count": running}


class Counters:
    """The counters of one service."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.learned, self.rounds = 0, dict.fromkeys(("accepted", "refused", "failed"), 0)
        self.inference, self.learning = Histogram(INFERENCE_BOUNDS), Histogram(LEARNING_BOUNDS)

    def count_learned(self, samples: int, seconds: float) -> None:
        """Count a committed `learn`."""
        with self._lock:
            self.learned += samples
        self.learning.add(seconds)

    def count_round(self, verdict: str) -> None:
        """Count a round that has ended: accepted, refused or failed."""
        with self._lock:
            self.rounds[verdict] += 1
