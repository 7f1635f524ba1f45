"""The thread that changes a state: it learns, forgets, goes back and runs rounds; told is what is on the disk."""
from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from edgecl.errors import BudgetError, EdgeclError, StateError
from edgecl.rounds.board import Readings, read
from edgecl.rounds.limits import Need, may_run
from edgecl.rounds.process import trim
from edgecl.rounds.run import ASKED
from edgecl.runtime.round_process import RoundProcess
from edgecl.runtime.state_view import View, new_samples, view_of
from edgecl.runtime.triggers import PageHinkley, Policy, Situation, StartRound, Wait, decide

if TYPE_CHECKING:
    from edgecl.learner import Learner
    from edgecl.learning.serving import Serving
    from edgecl.rounds.limits import Verdict
    from edgecl.runtime.counters import Counters
    from edgecl.runtime.settings import DaemonSettings

T = TypeVar("T")
TICK = 0.5               # seconds between two looks at a running round
OUTSIDE = 2.0            # ... at what other processes do to the state
LOOK = 10.0              # ... at the machine, and at whether a round is due
WAITING = 64             # jobs
WAITING_BYTES = 64 * 10**6   # of taught samples that wait; past these teaching is refused, never dropped
KEPT = 2.0               # seconds after its last work that class statistics stay in memory
NICE = 5                 # of this thread: the loop goes first

log = logging.getLogger("edgecl")


@dataclass
class WriteRequest:
    """Work for the writer. nbytes: of the samples that it holds."""

    work: Callable[[Learner], Any]
    changes: bool
    nbytes: int
    done: Future[Any]


class StateWriter:
    """Owns the learner. publish: called after each change, in the writer's thread, with what serves from now on (None
    before anything was taught); told: called with each verdict of a round."""

    def __init__(self, learner: Learner, settings: DaemonSettings, counters: Counters,
                 publish: Callable[[View, Serving | None], None], told: Callable[[dict[str, Any]], None]) -> None:
        self.learner, self.settings, self._counters = learner, settings, counters
        self._publish, self._told = publish, told
        self.drift, self.readings = PageHinkley(), Readings()
        self.plan: StartRound | Wait = Wait("the daemon has just started")
        self.round_result: dict[str, Any] | None = None
        self.settling = False       # a round is over, and what it left is not shown yet
        self._round: RoundProcess | None = None
        self._asked = False
        self._jobs: queue.Queue[WriteRequest | None] = queue.Queue(WAITING)
        self._bytes, self._lock = 0, threading.Lock()
        self._stop = threading.Event()
        self._taught: float | None = None
        self._busy_until: float | None = time.monotonic()
        self._rounded: float | None = None
        self._seen = (-1, -1)
        self._next_look = self._next_outside = 0.0
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    # from any thread ----------------------------------------------------------------------------

    def start(self) -> None:
        """Publish what the state holds, then take work."""
        self.refresh()
        self._taught = time.monotonic()  # a robot that has just started is not idle
        self._look()
        self._thread.start()

    def submit(self, work: Callable[[Learner], T], changes: bool = True, nbytes: int = 0) -> Future[T]:
        """Have work done in the writer's thread; its result is there once a change is on the disk and serves. Raises
        BudgetError where too much waits."""
        job = WriteRequest(work, changes, nbytes, Future())
        with self._lock:
            if self._stop.is_set():
                raise stopping()
            if self._bytes + nbytes > WAITING_BYTES and self._bytes:
                raise _busy()
            try:
                self._jobs.put_nowait(job)
            except queue.Full:
                raise _busy() from None
            self._bytes += nbytes
        return job.done

    @property
    def stopping(self) -> bool:
        """Whether work is to end now, unfinished."""
        return self._stop.is_set()

    @property
    def round_running(self) -> bool:
        """Whether a round's process runs."""
        return self._round is not None

    def verdict(self) -> Verdict:
        """Whether the machine has room for a round now, by the last readings."""
        limits = self.settings.limits
        if self._asked:
            limits = replace(limits, load=ASKED.load)
        return may_run(self.readings, limits, Need(limits.memory or 0, limits.time or 0.0, limits.threads),
                       self.round_running)

    def stop(self, timeout: float) -> bool:
        """Take no more work, end the round; whether the thread has ended in that time. What waited is refused."""
        with self._lock:
            self._stop.set()
        with suppress(queue.Full):
            self._jobs.put_nowait(None)
        if self._thread.ident is not None:
            self._thread.join(timeout)
            if (running := self._round) is not None:  # the thread is late: the round must not outlive it
                running.stop()
        else:
            self.learner.close()
        return not self._thread.is_alive()

    # in its own ---------------------------------------------------------------------------------

    def _run(self) -> None:
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            while not self._stop.is_set():
                try:
                    job = self._jobs.get(timeout=TICK)
                except queue.Empty:
                    job = None
                try:
                    if job is not None:
                        self._do(job)
                    self._tick()
                except Exception:  # the outermost loop of this thread
                    log.exception("the writer has failed at something it does by itself")
        finally:
            if self._round is not None:
                self._round.stop()
            while not self._jobs.empty():
                if (left := self._jobs.get_nowait()) is not None:
                    left.done.set_exception(stopping())
            with suppress(EdgeclError):
                self.learner.close()

    def _do(self, job: WriteRequest) -> None:
        try:
            result = job.work(self.learner)
            if job.changes:
                self._taught = time.monotonic()
                self.refresh()
        except BaseException as error:  # it is the caller's, and goes there
            job.done.set_exception(error)
        else:
            job.done.set_result(result)
        finally:
            self._busy_until = time.monotonic() + KEPT
            with self._lock:
                self._bytes -= job.nbytes

    def _tick(self) -> None:
        now = time.monotonic()
        if self._busy_until is not None and now >= self._busy_until:
            self._busy_until = None
            self.learner.release()
            trim()
        if self._round is not None:
            self._watch(self._round)
        if now >= self._next_outside:
            self._next_outside = now + OUTSIDE
            if self._mark() != self._seen:
                self.refresh()
        if now >= self._next_look:
            self._look()
            if isinstance(self.plan, StartRound):
                log.info("a learning round begins: %s", self.plan.why)
                self.begin_round()

    def _mark(self) -> tuple[int, int]:
        newest = self.learner.store.generations()[-1:]
        return self.learner.store.current, newest[0].id if newest else 0

    def refresh(self) -> None:
        """Publish what the state holds now."""
        learner = self.learner
        self._seen = self._mark()
        serving = None
        if learner.store.newest.detail.get("classes"):
            try:
                serving = learner.serving()
            except StateError as error:  # nothing intact: what served goes on
                log.error("%s", error)
        if serving is not None:
            for line in serving.warnings:
                log.warning("%s; an older generation answers, `edgecl rollback` repairs the state", line)
        self.drift.reset()
        self._publish(view_of(learner, serving.warnings if serving else []), serving)

    def _look(self) -> None:
        """Read the machine, and decide on a round."""
        now = time.monotonic()
        self._next_look = now + LOOK
        self.readings = read()
        since_taught, since_round = (None if at is None else now - at for at in (self._taught, self._rounded))
        if self._round is not None:
            verdict = self.verdict()
            if not verdict:
                self._round.stop(str(verdict.reasons[0]))
        classes = self.learner.store.newest.detail.get("classes", 0)
        self.plan = decide(
            Situation(find_spec("torch") is not None, classes, new_samples(self.learner), self.drift.fallen,
                      self._round is not None, since_taught, since_round, self.verdict()),
            Policy(self.settings.rounds == "idle", self.settings.round_samples, self.settings.round_idle,
                   self.settings.round_pause))

    def begin_round(self, method: str | None = None, seconds: float | None = None, memory: int | None = None,
                    asked: bool = False, **request: Any) -> None:
        """Start a round's process. asked: by a person, so that it runs beside other programs. Raises StateError where
        one runs."""
        if self._round is not None:
            raise StateError("a learning round runs already", "wait for its verdict, see `edgecl history`")
        limits = self.settings.limits
        self._round = RoundProcess(self.learner.store.path, {
            "method": method or self.settings.round_method, "seconds": seconds or limits.time or 60.0,
            "memory": memory or limits.memory or 400 * 10**6, "threads": limits.threads, **request})
        self.round_result, self._asked = None, asked
        self._told({"state": "started", "method": method})

    def _watch(self, running: RoundProcess) -> None:
        found = running.poll()
        if found is None:
            return
        self.settling = True
        self._round, self._rounded, self._asked = None, time.monotonic(), False
        verdict = "failed" if "error" in found else "accepted" if found["accepted"] else "refused"
        self._counters.count_round(verdict)
        log.info("the learning round has ended: %s", found["error"]["what"] if "error" in found else verdict)
        self.refresh()
        self._told({"state": "ended", "verdict": verdict, **found})
        self.round_result, self.settling = found, False


def stopping() -> StateError:
    """The daemon ends before this was done."""
    return StateError("the daemon is stopping", "nothing of this was kept; try again when it runs")


def _busy() -> BudgetError:
    return BudgetError("too much waits to be learned", "nothing of this was kept; try again in a few seconds")
