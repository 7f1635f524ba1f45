"""The sources of one state: which there are, what they show, and what they count."""
from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edgecl.errors import BadInput
from edgecl.samples import Sample

if TYPE_CHECKING:
    import numpy as np

    from edgecl.results import Prediction
    from edgecl.runtime.source_threads import SourceThread

LONGEST_LOOK_BACK = 3600.0   # seconds of `learn_last`


class SourceSet:
    """The source threads of one state; any thread may ask. `follow` replaces all of them at once."""

    def __init__(self) -> None:
        self.threads: tuple[SourceThread, ...] = ()
        self._recordings = itertools.count(1)

    def follow(self, threads: Iterable[SourceThread]) -> None:
        """The sources from now on."""
        self.threads = tuple(threads)

    def to_json(self) -> list[dict[str, Any]]:
        """[{name, uri, alive, restarts, fps, error}]."""
        return [source.to_json() for source in self.threads]

    def latest(self) -> dict[str, dict[str, Any]]:
        """See `Service.latest`."""
        now = time.monotonic()
        return {source.name: {"label": said.prediction.label, "confidence": said.prediction.confidence,
                              "unknown": said.prediction.unknown, "milliseconds": said.prediction.milliseconds,
                              **({"reason": said.prediction.reason} if said.prediction.reason else {}),
                              "age_seconds": round(now - said.at, 3), "stable": said.stable}
                for source in self.threads if (said := source.latest) is not None}

    def rename(self, old: str, new: str) -> list[Prediction]:
        """A class has another name: the stable answers that have it now."""
        return [answer for source in self.threads if (answer := source.rename(old, new)) is not None]

    def newest(self, name: str) -> np.ndarray | None:
        """The last sample of a source; None before the first. Raises BadInput for an unknown source."""
        return self._pick(name).ring.newest

    def last(self, seconds: float, name: str | None) -> list[Sample]:
        """The samples of the last seconds, as one recording. name: None for the only source. Raises BadInput."""
        if not (math.isfinite(seconds) and 0 < seconds <= LONGEST_LOOK_BACK):
            raise BadInput(f"the last {seconds} seconds", f"give more than 0 and at most {LONGEST_LOOK_BACK:g} seconds")
        source = self._pick(name)
        shown = source.ring.since(time.monotonic() - seconds)
        if not shown:
            raise BadInput(f"{source.name} showed nothing in the last {seconds:g} s",
                           f"check the source: {source.error}" if source.error else "wait until it shows something")
        recording = f"{source.name}#{next(self._recordings)}"
        return [Sample(each.data, source.name, recording, at=each.at, unit=each.unit) for each in shown]

    def totals(self) -> dict[str, dict[str, Any]]:
        """What `Service.counters` says of the sources."""
        return {"frames_total": {source.name: source.frames for source in self.threads},
                "dropped_total": {source.name: source.dropped for source in self.threads},
                "restarts_total": {source.name: source.restarts for source in self.threads},
                "serial_frames_total": {source.name: found for source in self.threads
                                        if (found := source.serial_frames)}}

    def _pick(self, name: str | None) -> SourceThread:
        found = [source for source in self.threads if name is None or source.name == name]
        if len(found) == 1:
            return found[0]
        names = ", ".join(source.name for source in self.threads) or "none"
        raise BadInput("this daemon has several sources" if found else
                       "this daemon has no source" if name is None else f"no source is called {name!r}",
                       f"name one with --source; there are: {names}")
