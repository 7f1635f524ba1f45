"""The thread that changes a state: learns, forgets, goes back, runs rounds. It replies only after the commit."""
from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from edgecl.errors import BudgetError, EdgeclError, StateError
from edgecl.rounds.process import trim
from edgecl.runtime.round_schedule import RoundSchedule
from edgecl.runtime.state_view import View, view_of
from edgecl.settings import short_names

if TYPE_CHECKING:
    from edgecl.learner import Learner
    from edgecl.learning.serving import Serving
    from edgecl.runtime.counters import Counters
    from edgecl.runtime.settings import DaemonSettings

T = TypeVar("T")
TICK_SECONDS = 0.5           # between two looks at a running round,
OUTSIDE_SECONDS = 2.0        # ... at changes by other processes,
CHECK_SECONDS = 10.0         # ... at the machine, and at whether a round is due
MOST_WAITING = 64            # requests
WAITING_BYTES = 64 * 10**6   # of taught samples that wait; past these teaching is refused, never dropped
BURST_SECONDS = 1.0          # of requests that come one after the other, before what they changed serves
KEPT_SECONDS = 2.0           # that class statistics stay in memory after the last request
NICE = 5                     # of this thread: the loop goes first

log = logging.getLogger("edgecl")


@dataclass
class WriteRequest:
    """Work for the writer. changes: whether it changes the state; nbytes: of the samples that it holds; brief: whether
    what was done before it can wait for it; report: makes the answer of the result, once that serves."""

    work: Callable[[Learner], Any]
    changes: bool
    nbytes: int
    done: Future[Any]
    brief: bool
    report: Callable[[Any], Any]


class StateWriter:
    """Owns the learner. publish: called in the writer's thread after each change, with what serves from then on (None
    before anything was taught); report: takes each start and verdict of a round."""

    def __init__(self, learner: Learner, settings: DaemonSettings, counters: Counters,
                 publish: Callable[[View, Serving | None], None], report: Callable[[dict[str, Any]], None]) -> None:
        self.learner, self._publish = learner, publish
        self.rounds = RoundSchedule(learner, settings, counters, report)
        self._requests: queue.Queue[WriteRequest | None] = queue.Queue(MOST_WAITING)
        self._held: WriteRequest | None = None  # taken from the queue, to be done next
        self._bytes, self._lock = 0, threading.Lock()
        self._stop = threading.Event()
        self._keep_until: float | None = time.monotonic()
        self._published, self._said = (-1, -1), list[str]()
        self.lost = ""      # why the state can't be used any more
        self.chore: Callable[[bool], None] = lambda last: None  # now and then in this thread, and once at the end
        self._next_check = self._next_outside = 0.0
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    # from any thread ----------------------------------------------------------------------------

    def start(self) -> None:
        """Publish what the state holds, then take requests. Raises StateError."""
        self.refresh()
        self.rounds.count_teaching()
        self._check_rounds()
        self._thread.start()

    def submit(self, work: Callable[[Learner], T], changes: bool = True, nbytes: int = 0,
               brief: bool = False, report: Callable[[T], Any] = lambda result: result) -> Future[Any]:
        """Have work done in the writer's thread; its result comes once a change is on the disk and serves, as `report`
        tells it then. Raises BudgetError if too much waits, StateError if the daemon is stopping."""
        request = WriteRequest(work, changes, nbytes, Future(), brief, report)
        with self._lock:
            if self._stop.is_set():
                raise stopping()
            if self._bytes + nbytes > WAITING_BYTES and self._bytes:
                raise _busy()
            try:
                self._requests.put_nowait(request)
            except queue.Full:
                raise _busy() from None
            self._bytes += nbytes
        return request.done

    @property
    def stopping(self) -> bool:
        """True once work must end, even unfinished."""
        return self._stop.is_set()

    def stop(self, timeout: float) -> bool:
        """Refuse new and waiting requests, and stop the round. True if the thread has ended in that time."""
        with self._lock:
            self._stop.set()
        with suppress(queue.Full):
            self._requests.put_nowait(None)
        if self._thread.ident is not None:
            self._thread.join(timeout)
            self.rounds.stop()  # if the thread is late: the round must not outlive it
        else:
            self.learner.close()
        return not self._thread.is_alive()

    # in its own ---------------------------------------------------------------------------------

    def _run(self) -> None:
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            while not self._stop.is_set():
                request, self._held = self._held, None
                with suppress(queue.Empty):
                    request = request or self._requests.get(timeout=TICK_SECONDS)
                try:
                    if request is not None:
                        self._do_burst(request)
                    self._tick()
                except Exception:  # the outermost loop of this thread
                    log.exception("the writer has failed at its own work")
        finally:
            self.rounds.stop()
            waiting = [self._held]
            while not self._requests.empty():
                waiting.append(self._requests.get_nowait())
            for request in waiting:
                if request is not None:
                    request.done.set_exception(stopping())
            with suppress(EdgeclError):
                self.chore(True)
            with suppress(EdgeclError):
                self.learner.close()

    def _do_burst(self, request: WriteRequest | None) -> None:
        """Do a request and the brief ones that wait behind it, each committed by itself; what they have changed is
        solved and published once, then all are answered."""
        until, changed = time.monotonic() + BURST_SECONDS, list[tuple[WriteRequest, Any]]()
        while request is not None:
            try:
                result = request.work(self.learner)
                if request.changes:
                    changed.append((request, result))
                else:
                    request.done.set_result(request.report(result))
            except BaseException as error:  # it belongs to the caller
                request.done.set_exception(error)
            with self._lock:
                self._bytes -= request.nbytes
            request = None
            if time.monotonic() < until and not self._stop.is_set():
                with suppress(queue.Empty):
                    request = self._requests.get_nowait()
            if request is not None and not request.brief:
                request, self._held = None, request
        self._keep_until = time.monotonic() + KEPT_SECONDS
        if changed:
            self._answer(changed)

    def _answer(self, changed: list[tuple[WriteRequest, Any]]) -> None:
        """Publish what some requests have changed, then answer them."""
        try:
            self.rounds.count_teaching()
            self.refresh()
        except BaseException as error:
            for request, _ in changed:
                request.done.set_exception(error)
            return
        for request, result in changed:
            try:
                request.done.set_result(request.report(result))
            except BaseException as error:
                request.done.set_exception(error)

    def _tick(self) -> None:
        now = time.monotonic()
        if self._keep_until is not None and now >= self._keep_until:
            self._keep_until = None
            self.learner.release()
            trim()
        self.rounds.poll(self.refresh)
        if now >= self._next_outside:
            self._next_outside = now + OUTSIDE_SECONDS
            self._look_outside()
        if now >= self._next_check:
            self._check_rounds()
            self.rounds.begin_if_due()
            self.chore(False)

    def _look_outside(self) -> None:
        """Follow what other processes have done to the state; say it once if it can't be used any more."""
        try:
            store = self.learner.store
            store.used_bytes()      # no generation tells that the folder is gone
            if self._generations() != self._published:
                self.refresh()
            if store.database.damage and store.writable:
                store.tidy(patience=0)      # which writes the database again
                if not store.database.damage:
                    self.refresh()
            lost = ""
        except StateError as error:
            lost = str(error)
        if lost and lost != self.lost:
            log.error("%s", short_names(lost))
        self.lost = lost

    def _check_rounds(self) -> None:
        self._next_check = time.monotonic() + CHECK_SECONDS
        self.rounds.check()

    def _generations(self) -> tuple[int, int]:
        """The current and the newest generation."""
        newest = self.learner.store.generations()[-1:]
        return self.learner.store.current, newest[0].id if newest else 0

    def refresh(self) -> None:
        """Publish what the state holds now."""
        learner = self.learner
        self._published = self._generations()
        serving = None
        if learner.store.newest.detail.get("classes"):
            try:
                serving = learner.serving()
            except StateError as error:  # no generation is intact: what served goes on
                log.error("%s", short_names(str(error)))
        warnings = learner.store.damage() if serving is None else serving.warnings
        for line in warnings:
            if line not in self._said:
                log.warning("%s", short_names(line))
        self._said = warnings
        self.rounds.drift.reset()
        self._publish(view_of(learner, warnings), serving)


def stopping() -> StateError:
    """The error for work that the end of the daemon has cut off."""
    return StateError("the daemon is stopping", "nothing was saved; try again when it runs")


def _busy() -> BudgetError:
    return BudgetError("too many requests are waiting", "nothing was saved; try again in a few seconds")
