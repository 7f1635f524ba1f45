"""When a label counts: once the answers have brought enough evidence for it."""
from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgecl.results import Prediction

DEBOUNCE = 3        # sure answers that make a label stable
SURE = 0.7          # confidence from which an answer is sure; chosen on people who are neither taught nor tested
UNKNOWN = 0.6       # of an answer "unknown", which counts half, since it is wrong more often; chosen likewise


class Debounce:
    """Tells when the label of a source changes: a cumulative sum of evidence for each label (Page 1954).

    An answer of confidence p is evidence of log(p / (1 - p)), in units of an answer of confidence SURE. It is added to
    the sum of its own label, one unit at most, and taken off that of every other label. No sum is below 0, and a label
    is stable once its sum is `times`: after so many sure answers in a row, or after more that are not; a doubtful one
    in between takes little away. With 0 every answer counts.
    """

    def __init__(self, times: int = DEBOUNCE) -> None:
        self._times = times
        self._sums: dict[object, float] = {}
        self._stable: object = object()
        self._lock = threading.Lock()

    def __call__(self, label: object, confidence: float = 1.0) -> bool:
        """Take the next label (None: unknown) and its confidence. True if it is the new stable label."""
        with self._lock:
            return self._take(label, confidence)

    def rename(self, old: object, new: object) -> None:
        """What was said of one label counts for another one from now on."""
        with self._lock:
            if old in self._sums:
                self._sums[new] = max(self._sums.pop(old), self._sums.get(new, 0.0))
            self._stable = new if self._stable == old else self._stable

    def _take(self, label: object, confidence: float) -> bool:
        """See `__call__`."""
        odds = max(confidence, 1e-9) / max(1 - confidence, 1e-9)
        evidence = max(math.log(odds) / math.log(SURE / (1 - SURE)), 0.0)
        total = min(self._sums.get(label, 0.0) + min(evidence, 1.0), self._times)
        self._sums = {other: each - evidence for other, each in self._sums.items() if each > evidence}
        self._sums[label] = total
        if self._times and (total < self._times - 1e-6 or label == self._stable):
            return False
        self._stable = label
        return True


def evidence_of(answer: Prediction) -> tuple[str | None, float]:
    """The label (None: unknown) and the confidence of an answer, for `Debounce`."""
    if not answer.unknown:
        return answer.label, answer.confidence
    return None, UNKNOWN if answer.label is not None else answer.confidence
