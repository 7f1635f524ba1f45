"""One source of a daemon: a thread that reads it, what it saw last, and restarts with growing pauses."""
from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.errors import EdgeclError
from edgecl.runtime.answer import Answer
from edgecl.samples import Refusal, Sample
from edgecl.sources.streams import Debounce

if TYPE_CHECKING:
    import numpy as np

    from edgecl.runtime.service import Service
    from edgecl.runtime.settings import SourceSettings
    from edgecl.sources.spec import Item

PHOTOS, WINDOWS = 1, 16           # samples that wait for the loop
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0   # seconds before a restart: twice as long each time
STEADY = 10.0                     # seconds without a failure after which it counts from none again

Read = Callable[[], "Iterator[Item]"]


class Ring:
    """The newest samples of a source, in at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes, self._lock = limit, 0, threading.Lock()
        self._kept = deque[tuple[float, "np.ndarray"]]()

    def put(self, data: np.ndarray, now: float) -> None:
        """Keep a sample; the oldest go."""
        with self._lock:
            self._kept.append((now, data))
            self._bytes += data.nbytes
            while self._bytes > self._limit and len(self._kept) > 1:  # the last one is shown on the page
                self._bytes -= self._kept.popleft()[1].nbytes

    def since(self, moment: float) -> list[np.ndarray]:
        """The samples that came after a moment of the monotonic clock, the oldest first."""
        with self._lock:
            return [data for at, data in self._kept if at >= moment]

    @property
    def newest(self) -> np.ndarray | None:
        """The last sample."""
        with self._lock:
            return self._kept[-1][1] if self._kept else None

    @property
    def span(self) -> float:
        """Seconds between the oldest and the newest sample."""
        with self._lock:
            return self._kept[-1][0] - self._kept[0][0] if self._kept else 0.0


class SourceThread:
    """A source while the daemon runs."""

    def __init__(self, settings: SourceSettings, service: Service, offer: Callable[[SourceThread, Sample], None],
                 read: Read | None = None, pause: float = FIRST_PAUSE) -> None:
        """offer: takes each sample, and never waits; read: opens the source, by default what its uri names; pause:
        seconds before the first restart."""
        self.settings, self.service, self._offer, self._pause = settings, service, offer, pause
        self._read = read or self._open
        self.ring, self.waiting = Ring(settings.keep), deque[Sample]()
        self.alive, self.error = False, ""
        self.frames = self.dropped = self.restarts = self.refused = 0
        self.latest: Answer | None = None
        self.changed = Debounce(settings.debounce)
        self.stable: str | None = None
        self._gap = 0.0
        self._last = self._taken = float("-inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"source {settings.name}", daemon=True)

    @property
    def name(self) -> str:
        """As it stands in answers."""
        return self.settings.name

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Read no more; the thread ends with the next sample, or now where it pauses."""
        self._stop.set()

    def join(self, timeout: float) -> bool:
        """Wait for the thread; whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def to_json(self) -> dict[str, Any]:
        """For `Service.info`."""
        late = time.monotonic() - self._last > max(5.0, 10 * self._gap)
        return {"name": self.name, "uri": self.settings.uri, "alive": self.alive, "restarts": self.restarts,
                "fps": round(1 / self._gap, 2) if self._gap and not late else 0.0, "error": self.error}

    def capacity(self, data: np.ndarray) -> int:
        """Samples like this one that may wait."""
        return self.settings.queue or (PHOTOS if data.dtype.kind == "u" else WINDOWS)

    def _open(self) -> Iterator[Item]:
        from edgecl.sources import read

        return read(Path(self.settings.uri), self.service.spec)

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            begun = time.monotonic()
            ended = self._follow()
            if self._stop.is_set():
                return
            failures = 1 if time.monotonic() - begun > STEADY else failures + 1
            over = failures > self.settings.restarts
            if over and not ended:
                self.error = f"given up after {failures - 1} restarts: {self.error}"
            self._tell(False)
            if ended or over:
                return
            self._stop.wait(min(self._pause * 2 ** (failures - 1), LONGEST_PAUSE))
            self.restarts += 1

    def _follow(self) -> bool:
        """Read until the source ends or fails; whether it has come to its end."""
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
        except Exception as error:  # of a driver or a library: the source is restarted, the daemon goes on
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
            self.refused += 1
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
            self._tell(True)
        self.ring.put(item.data, now)
        self._offer(self, item)

    def _tell(self, alive: bool) -> None:
        self.alive = alive
        self.service.hub.say({"type": "source", **self.to_json()})
