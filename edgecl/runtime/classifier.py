"""The way of a frame through the daemon: sample, prediction, stable label, review list, event."""
from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgecl.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from edgecl.learning.serving import Serving
    from edgecl.learning.why import Explainer
    from edgecl.results import Prediction
    from edgecl.runtime.counters import Histogram
    from edgecl.runtime.events import Hub
    from edgecl.runtime.review import Review
    from edgecl.runtime.source_threads import SourceThread
    from edgecl.runtime.triggers import PageHinkley
    from edgecl.samples import Sample


class Classifier:
    """Answers samples with the generation that serves now. `swap` replaces it between two samples."""

    def __init__(self, state: Path, hub: Hub, seconds: Histogram, drift: PageHinkley, review: Review) -> None:
        """seconds: counts the duration of each answer about a source; drift: takes its confidence."""
        self._state, self._hub, self._seconds, self._drift, self._review = state, hub, seconds, drift, review
        self.serving: Serving | None = None

    def swap(self, serving: Serving | None) -> None:
        """What answers from now on; None: nothing is known."""
        self.serving = serving

    def classify(self, source: SourceThread, sample: Sample) -> None:
        """Answer a sample of a source. Raises BadInput if it does not fit the state."""
        serving = self.serving   # once: a swap may come at any time
        if serving is None:
            return
        (answer,), (feature,) = serving.predict(sample.data[None], [source.name])
        self._seconds.add(answer.milliseconds / 1000)
        self._drift.add(answer.confidence)
        said, changed = source.answered(answer)
        self._review.see(answer, sample.data, feature, serving.backbone_name)
        if self._hub.heard:
            self._hub.say({"type": "prediction", **answer.to_json(), "stable": said.stable, "changed": changed})

    def predict(self, batch: np.ndarray, explaining: tuple[Serving, Explainer] | None = None) -> Iterator[Prediction]:
        """An answer for each sample of a batch [n, ...], one by one. explaining: of `Sessions.explaining`, to add why.
        Raises BadInput, StateError."""
        serving, explain = explaining or (self.serving, None)
        if serving is None:
            raise StateError(f"{self._state} has learned nothing yet", "teach it with `edgecl learn --class NAME ...`")
        for sample in batch:
            yield from serving.predict(sample[None], (), explain)[0]
