"""The one classifying loop: takes the samples of all sources in turn, and has each classified."""
from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from edgecl.errors import EdgeclError

if TYPE_CHECKING:
    from edgecl.runtime.source_threads import SourceThread
    from edgecl.samples import Sample

WAIT_SECONDS = 1.0   # without a sample; then the heartbeat is due

log = logging.getLogger("edgecl")


class Loop:
    """Classifies what the sources offer. classify: answers one sample; raises EdgeclError if it does not fit the state;
    heartbeat: called after each classified sample and while there is none, so not by a loop that hangs or fails at
    every sample."""

    def __init__(self, classify: Callable[[SourceThread, Sample], None],
                 heartbeat: Callable[[], None] = lambda: None) -> None:
        self._classify, self._heartbeat, self._there = classify, heartbeat, threading.Condition()
        self._sources: tuple[SourceThread, ...] = ()
        self._turn, self._stopping = 0, False

    def follow(self, sources: Iterable[SourceThread]) -> None:
        """The sources from now on."""
        with self._there:
            self._sources = tuple(sources)

    def offer(self, source: SourceThread, sample: Sample) -> None:
        """Let a sample wait for its turn. From any thread; never waits."""
        with self._there:
            source.enqueue(sample)
            self._there.notify()

    def take(self, timeout: float) -> tuple[SourceThread, Sample] | None:
        """The next sample, from each source in turn; None if none comes in time or the loop stops."""
        with self._there:
            if not self._there.wait_for(lambda: self._stopping or self._next(), timeout) or self._stopping:
                return None
            source = self._next()
            assert source is not None
            self._turn = (self._sources.index(source) + 1) % len(self._sources)
            return source, source.dequeue()

    def _next(self) -> SourceThread | None:
        order = (*self._sources[self._turn:], *self._sources[:self._turn])
        return next((source for source in order if source.waiting), None)

    def stop(self) -> None:
        """Let `run` return after the present sample."""
        with self._there:
            self._stopping = True
            self._there.notify_all()

    def run(self) -> None:
        """Classify until `stop`."""
        while not self._stopping:
            self.step(WAIT_SECONDS)

    def step(self, timeout: float) -> bool:
        """Classify one sample. False if none came within `timeout` seconds."""
        taken = self.take(timeout)
        if taken is None:
            self._heartbeat()
            return False
        source, sample = taken
        try:
            self._classify(source, sample)
            source.classified()
        except EdgeclError as error:  # a sample that does not fit the state: the fault of that source
            source.failed(str(error))
        except Exception:  # the outermost loop: one bad sample must not end the daemon; the watchdog sees many
            log.exception("a sample of %s could not be classified", source.name)
            return True
        self._heartbeat()
        return True
