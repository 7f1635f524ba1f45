"""The one classifying loop: a sample of any source in, an answer out; sources take turns."""
from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from edgecl.errors import EdgeclError

if TYPE_CHECKING:
    from edgecl.runtime.source_threads import SourceThread
    from edgecl.samples import Sample

WAIT = 1.0   # seconds without a sample after which it looks up

log = logging.getLogger("edgecl")


class Loop:
    """Takes what sources offer, and has the service of each answer. heartbeat: called when a sample was classified, and
    while there is none to classify; a loop that hangs or fails at each sample is silent."""

    def __init__(self, heartbeat: Callable[[], None] = lambda: None) -> None:
        self._heartbeat, self._there = heartbeat, threading.Condition()
        self._feeds: tuple[SourceThread, ...] = ()
        self._turn, self._stopping = 0, False

    def follow(self, feeds: Iterable[SourceThread]) -> None:
        """The sources from now on."""
        with self._there:
            self._feeds = tuple(feeds)

    def offer(self, feed: SourceThread, sample: Sample) -> None:
        """Let a sample wait for its turn; where as many wait as may, the oldest of that source goes, and is counted."""
        with self._there:
            while len(feed.waiting) >= feed.capacity(sample.data):
                feed.waiting.popleft()
                feed.dropped += 1
            feed.waiting.append(sample)
            self._there.notify()

    def take(self, timeout: float) -> tuple[SourceThread, Sample] | None:
        """The next sample, from each source in turn; None where none came in time, or the loop stops."""
        with self._there:
            if not self._there.wait_for(lambda: self._stopping or self._next(), timeout) or self._stopping:
                return None
            feed = self._next()
            assert feed is not None
            self._turn = (self._feeds.index(feed) + 1) % len(self._feeds)
            return feed, feed.waiting.popleft()

    def _next(self) -> SourceThread | None:
        order = (*self._feeds[self._turn:], *self._feeds[:self._turn])
        return next((feed for feed in order if feed.waiting), None)

    def stop(self) -> None:
        """Let `run` return after the sample that it is at."""
        with self._there:
            self._stopping = True
            self._there.notify_all()

    def run(self) -> None:
        """Classify until `stop`."""
        while not self._stopping:
            self.step(WAIT)

    def step(self, timeout: float) -> bool:
        """Classify one sample; whether there was one."""
        taken = self.take(timeout)
        if taken is None:
            self._heartbeat()
            return False
        feed, sample = taken
        try:
            feed.service.classify(feed, sample)
            feed.frames += 1
        except EdgeclError as error:  # a sample of another form than the state's: that source's fault
            feed.error = str(error)
        except Exception:  # the outermost loop: one bad sample must not end the daemon; the watchdog sees many
            log.exception("a sample of %s could not be classified", feed.name)
            return True
        self._heartbeat()
        return True
