"""When a label counts: only after several equal answers in a row."""
from __future__ import annotations

DEBOUNCE = 3   # equal answers in a row, as in Frigate


class Debounce:
    """Tells when the label of a source changes. times: equal labels in a row that make a change; 0: every label
    counts."""

    def __init__(self, times: int = DEBOUNCE) -> None:
        self._times, self._run = times, 0
        self._last: object = object()
        self._stable: object = object()

    def __call__(self, label: object) -> bool:
        """Take the next label (None: unknown). True if it is the new stable label."""
        self._run = self._run + 1 if label == self._last else 1
        self._last = label
        if self._times and (self._run < self._times or label == self._stable):
            return False
        self._stable = label
        return True
