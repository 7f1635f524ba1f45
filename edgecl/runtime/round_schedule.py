"""Learning rounds of one state: when one is due, the one that runs, and the last result."""
from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from edgecl.errors import StateError
from edgecl.rounds.board import Readings, read
from edgecl.rounds.limits import Need, may_run
from edgecl.rounds.run import ASKED
from edgecl.runtime.round_process import RoundProcess
from edgecl.runtime.state_view import new_samples
from edgecl.runtime.triggers import PageHinkley, Policy, Situation, StartRound, Wait, decide

if TYPE_CHECKING:
    from edgecl.learner import Learner
    from edgecl.rounds.limits import Verdict
    from edgecl.runtime.counters import Counters
    from edgecl.runtime.settings import DaemonSettings

DEFAULT_SECONDS, DEFAULT_MEMORY = 60.0, 400 * 10**6   # of a round, if the settings set no limit
MOST_DURATIONS = 32                                   # rounds whose duration is remembered

log = logging.getLogger("edgecl")


class RoundSchedule:
    """Starts and watches rounds; for the writer's thread, except where noted. report: takes each start and verdict."""

    def __init__(self, learner: Learner, settings: DaemonSettings, counters: Counters,
                 report: Callable[[dict[str, Any]], None]) -> None:
        self._learner, self._settings, self._counters, self._report = learner, settings, counters, report
        self.drift, self.readings = PageHinkley(), Readings()
        self.plan: StartRound | Wait = Wait("the daemon has just started")
        self.result: dict[str, Any] | None = None
        self.durations: dict[int, float] = {}   # generation of a round -> seconds
        self._process: RoundProcess | None = None
        self._reporting = False                 # a round has ended, and its result is not published yet
        self._asked = False                     # by a person
        self._taught: float | None = None
        self._ended: float | None = None

    def reload(self, settings: DaemonSettings) -> None:
        """Other settings from now on. From any thread."""
        self._settings = settings

    def count_teaching(self) -> None:
        """Something was taught now, or the daemon starts: a robot that has just started is not idle."""
        self._taught = time.monotonic()

    @property
    def running(self) -> bool:
        """True while a round's process runs. From any thread."""
        return self._process is not None

    def outcome(self) -> dict[str, Any]:
        """See `Service.round_result`. From any thread."""
        return {"running": self.running or self._reporting, "result": self.result}

    def verdict(self) -> Verdict:
        """Whether the machine had room for a round at the last reading. From any thread."""
        limits = self._settings.limits
        if self._asked:
            limits = replace(limits, load=ASKED.load)
        return may_run(self.readings, limits, Need(limits.memory or 0, limits.time or 0.0, limits.threads),
                       self.running)

    def check(self) -> None:
        """Read the machine, stop a round that it has no room for, and start one if it is due."""
        now = time.monotonic()
        self.readings = read()
        since_taught, since_round = (None if at is None else now - at for at in (self._taught, self._ended))
        if self._process is not None:
            verdict = self.verdict()
            if not verdict:
                self._process.stop(str(verdict.reasons[0]))
        classes, settings = self._learner.store.newest.detail.get("classes", 0), self._settings
        self.plan = decide(
            Situation(find_spec("torch") is not None, classes, new_samples(self._learner), self.drift.fallen,
                      self.running, since_taught, since_round, self.verdict()),
            Policy(settings.rounds == "idle", settings.round_samples, settings.round_idle, settings.round_pause))

    def begin_if_due(self) -> None:
        """Start a round if the last `check` found it due."""
        if isinstance(self.plan, StartRound):
            log.info("a learning round starts: %s", self.plan.why)
            self.begin()

    def begin(self, method: str | None = None, seconds: float | None = None, memory: int | None = None,
              asked: bool = False, **request: Any) -> None:
        """Start a round's process. asked: by a person, so that it may run beside other programs. Raises StateError if a
        round is running."""
        if self._process is not None:
            raise StateError("a learning round is running already", "wait for its verdict, see `edgecl history`")
        limits = self._settings.limits
        self._process = RoundProcess(self._learner.store.path, {
            "method": method or self._settings.round_method, "seconds": seconds or limits.time or DEFAULT_SECONDS,
            "memory": memory or limits.memory or DEFAULT_MEMORY, "threads": limits.threads, **request})
        self.result, self._asked = None, asked
        self._report({"state": "started", "method": method})

    def poll(self, publish: Callable[[], None]) -> None:
        """If the round has ended: publish the state, then report the verdict."""
        found = self._process.poll() if self._process is not None else None
        if found is None:
            return
        self._reporting = True
        self._process, self._ended, self._asked = None, time.monotonic(), False
        verdict = "failed" if "error" in found else "accepted" if found["accepted"] else "refused"
        self._counters.count_round(verdict)
        log.info("the learning round has ended: %s", found["error"]["what"] if "error" in found else verdict)
        try:
            publish()
        finally:
            if "seconds" in found:
                self._remember(found)
            self._report({"state": "ended", "verdict": verdict, **found})
            self.result, self._reporting = found, False

    def _remember(self, found: dict[str, Any]) -> None:
        generation = found["generation"]
        if generation is None:  # refused: its row in the history is the newest one
            generation = self._learner.store.generations()[-1].id
        self.durations[generation] = round(found["seconds"], 1)
        while len(self.durations) > MOST_DURATIONS:
            del self.durations[min(self.durations)]

    def stop(self) -> None:
        """Stop the round that runs. From any thread."""
        if (running := self._process) is not None:
            running.stop()
