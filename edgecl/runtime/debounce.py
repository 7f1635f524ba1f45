"""When a label counts: once the answers have brought enough evidence for it."""
from __future__ import annotations

import math

DEBOUNCE = 3        # sure answers that make a label stable
SURE = 0.9          # confidence of an answer that counts as one


class Debounce:
    """Tells when the label of a source changes: a cumulative sum of evidence for each label (Page 1954).

    An answer of confidence p is log(p / (1 - p)) of evidence for its label and as much against every other one, in
    units of an answer of confidence SURE; for a label it counts as one unit at most. A sum is never below 0, and a label
    is stable once its sum comes to `times`: after so many sure answers in a row, or more unsure ones. With 0 every label
    counts.
    """

    def __init__(self, times: int = DEBOUNCE) -> None:
        self._times = times
        self._sums: dict[object, float] = {}
        self._stable: object = object()

    def __call__(self, label: object, confidence: float = 1.0) -> bool:
        """Take the next label (None: unknown) and its confidence. True if it is the new stable label."""
        odds = confidence / max(1 - confidence, 1e-9)
        evidence = max(math.log(max(odds, 1e-9)) / math.log(SURE / (1 - SURE)), 0.0)
        for_it = min(self._sums.get(label, 0.0) + min(evidence, 1.0), self._times)
        self._sums = {other: total - evidence for other, total in self._sums.items() if total > evidence}
        self._sums[label] = for_it
        if self._times and (for_it < self._times - 1e-9 or label == self._stable):
            return False
        self._stable = label
        return True
