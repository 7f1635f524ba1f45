"""One source of a daemon: the thread that reads it, its newest samples, and restarts with growing pauses."""
from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.errors import EdgeclError
from edgecl.runtime.answer import Answer
from edgecl.runtime.debounce import Debounce, evidence_of
from edgecl.samples import Refusal, Sample

if TYPE_CHECKING:
    import numpy as np

    from edgecl.results import Prediction
    from edgecl.runtime.events import Event
    from edgecl.runtime.settings import SourceSettings
    from edgecl.sources.spec import Item, Spec

QUEUED_PHOTOS, QUEUED_WINDOWS = 1, 16    # samples that wait for the loop, unless the settings say otherwise
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0   # seconds before a restart; doubled after each failure
STEADY_SECONDS = 10.0                    # without a failure; then failures are counted from zero again

Read = Callable[[], "Iterator[Item]"]


class Ring:
    """The newest samples of a source, in at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes, self._lock = limit, 0, threading.Lock()
        self._kept = deque[tuple[float, Sample]]()

    def put(self, sample: Sample, now: float) -> None:
        """Keep a sample; drop the oldest ones past the limit."""
        with self._lock:
            self._kept.append((now, sample))
            self._bytes += sample.data.nbytes
            while self._bytes > self._limit and len(self._kept) > 1:  # the last one is shown on the page
                self._bytes -= self._kept.popleft()[1].data.nbytes

    def since(self, moment: float) -> list[Sample]:
        """The samples after a moment of the monotonic clock, oldest first."""
        with self._lock:
            return [sample for came, sample in self._kept if came >= moment]

    @property
    def newest(self) -> np.ndarray | None:
        """The data of the last sample; None before the first."""
        with self._lock:
            return self._kept[-1][1].data if self._kept else None


class SourceThread:
    """A source while the daemon runs."""

    def __init__(self, settings: SourceSettings, spec: Callable[[], Spec], say: Callable[[Event], None],
                 offer: Callable[[SourceThread, Sample], None], read: Read | None = None,
                 pause: float = FIRST_PAUSE) -> None:
        """spec: how the state takes samples, asked at each start; say: takes the source's events; offer: takes each
        sample, and never waits; read: opens the source (default: what its uri names); pause: seconds before the first
        restart."""
        self.settings, self._spec, self._say, self._offer, self._pause = settings, spec, say, offer, pause
        self._read = read or self._open
        self.ring, self._queue = Ring(settings.keep), deque[Sample]()
        self.alive, self.error = False, ""
        self.frames = self.dropped = self.restarts = 0
        self.latest: Answer | None = None
        self.stable: Prediction | None = None   # the answer that made the present label stable
        self._debounce = Debounce(settings.debounce)
        self._link: tuple[dict[str, int], Mapping[str, int]] = {}, {}   # counts of closed links, and of the open one
        self._gap = 0.0
        self._last = self._taken = float("-inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"source {settings.name}", daemon=True)

    @property
    def name(self) -> str:
        """The name in answers and commands."""
        return self.settings.name

    @property
    def serial_frames(self) -> dict[str, int]:
        """Frames of a device's link by result ("accepted", "corrupt", ...), over all restarts; {} without a link."""
        before, now = self._link
        return {result: count + before.get(result, 0) for result, count in now.items()}

    def start(self) -> None:
        """Start reading."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading; the thread ends with the next sample, or at once if it pauses."""
        self._stop.set()

    def join(self, timeout: float) -> bool:
        """Wait for the thread. True if it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def to_json(self) -> dict[str, Any]:
        """The entry in `Service.info`."""
        late = time.monotonic() - self._last > max(5.0, 10 * self._gap)
        return {"name": self.name, "uri": self.settings.uri, "alive": self.alive, "restarts": self.restarts,
                "fps": round(1 / self._gap, 2) if self._gap and not late else 0.0, "error": self.error}

    # called by the loop -------------------------------------------------------------------------

    def enqueue(self, sample: Sample) -> None:
        """Let a sample wait; drop the oldest if the queue is full."""
        capacity = self.settings.queue or (QUEUED_PHOTOS if sample.data.dtype.kind == "u" else QUEUED_WINDOWS)
        while len(self._queue) >= capacity:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(sample)

    def dequeue(self) -> Sample:
        """Take the sample that has waited longest."""
        return self._queue.popleft()

    @property
    def waiting(self) -> int:
        """Samples that wait."""
        return len(self._queue)

    def classified(self) -> None:
        """Count a sample that the loop is done with."""
        self.frames += 1

    def failed(self, error: str) -> None:
        """Show why a sample could not be classified."""
        self.error = error

    def answered(self, prediction: Prediction) -> tuple[Answer, bool]:
        """Take the prediction for a sample; the answer, and whether it makes another label stable."""
        changed = self._debounce(*evidence_of(prediction))
        if changed:
            self.stable = prediction
        stable = None if self.stable is None or self.stable.unknown else self.stable.label
        self.latest = Answer(prediction, stable, time.monotonic())
        return self.latest, changed

    def rename(self, old: str, new: str) -> Prediction | None:
        """A class has another name; the answer that made it the stable label, if it is that."""
        self._debounce.rename(old, new)
        stable, latest = self.stable, self.latest
        if latest is not None and latest.prediction.label == old:
            self.latest = latest._replace(prediction=replace(latest.prediction, label=new),
                                          stable=new if latest.stable == old else latest.stable)
        if stable is None or stable.label != old:
            return None
        self.stable = replace(stable, label=new)
        return None if stable.unknown else self.stable

    # in its own thread --------------------------------------------------------------------------

    def _open(self) -> Iterator[Item]:
        from edgecl.sources import read

        return read(Path(self.settings.uri), self._spec(), watch=self._watch)

    def _watch(self, counts: Mapping[str, int]) -> None:
        self._link = self.serial_frames, counts

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            begun = time.monotonic()
            ended = self._follow()
            if self._stop.is_set():
                return
            failures = 1 if time.monotonic() - begun > STEADY_SECONDS else failures + 1
            over = failures > self.settings.restarts
            if over and not ended:
                self.error = f"given up after {failures - 1} restarts: {self.error}"
            self._report(False)
            if ended or over:
                return
            self._stop.wait(min(self._pause * 2 ** (failures - 1), LONGEST_PAUSE))
            self.restarts += 1

    def _follow(self) -> bool:
        """Read until the source ends or fails. True if it has come to its end."""
        try:
            items = self._read()
            try:
                for item in items:
                    if self._stop.is_set():
                        return True
                    self._take(item)
            finally:
                close = getattr(items, "close", None)
                if close:
                    close()
        except EdgeclError as error:
            self.error = str(error)
        except Exception as error:  # from a driver or a library: the source is restarted, the daemon goes on
            self.error = f"{type(error).__name__}: {error}"
        else:
            from edgecl.sources import endless

            if not endless(Path(self.settings.uri)):
                self.error = ""
                return True
            self.error = "the source has ended"
        return False

    def _take(self, item: Item) -> None:
        if isinstance(item, Refusal):
            self.error = item.reason
            return
        now = time.monotonic()
        if self.settings.fps and now - self._taken < 0.9 / self.settings.fps:
            return
        self._taken = now
        if self._last > 0:
            gap = now - self._last
            self._gap = 0.9 * self._gap + 0.1 * gap if self._gap else gap
        self._last = now
        if not self.alive:
            self.error = ""
            self._report(True)
        self.ring.put(item, now)
        self._offer(self, item)

    def _report(self, alive: bool) -> None:
        self.alive = alive
        self._say({"type": "source", **self.to_json()})
