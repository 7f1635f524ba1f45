"""When a learning round is due: a pure function of what is known, so that any day of a robot can be replayed."""
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from edgecl.rounds.limits import Verdict
from edgecl.settings import counted


@dataclass(frozen=True)
class Policy:
    """When a daemon starts rounds by itself. wanted: False for never; samples: taught since the last round; idle:
    seconds without teaching; pause: seconds since the last round, whatever its verdict."""

    wanted: bool = True
    samples: int = 100
    idle: float = 60.0
    pause: float = 3600.0


@dataclass(frozen=True)
class Situation:
    """What is known now. able: learning rounds can run here (torch is installed); classes: known ones; new_samples:
    taught since the last round; drifted: confidence has fallen (`PageHinkley`); running: a round is running;
    since_taught, since_round: seconds, None for never; verdict: whether the machine has room for a round
    (`limits.may_run`)."""

    able: bool
    classes: int
    new_samples: int
    drifted: bool
    running: bool
    since_taught: float | None
    since_round: float | None
    verdict: Verdict


class StartRound(NamedTuple):
    """A round is due, and why."""

    why: str


class Wait(NamedTuple):
    """No round is due, and why not."""

    reason: str


def decide(now: Situation, policy: Policy) -> StartRound | Wait:
    """Whether to start a round. After drift one new sample is enough; with none there is nothing to learn from."""
    if not policy.wanted:
        return Wait('rounds are off: set rounds = "idle"')
    if now.running:
        return Wait("a round is running")
    if not now.able:
        return Wait("learning rounds need torch: pip install 'edgecl[train]'")
    if now.classes < 2:
        return Wait("a round needs two classes")
    if now.new_samples < (1 if now.drifted else policy.samples):
        return Wait("confidence has fallen, but nothing was taught since the last round: name frames on the review list"
                    if now.drifted else
                    f"{counted(now.new_samples, 'sample')} taught since the last round; a round needs {policy.samples}")
    if now.since_taught is not None and now.since_taught < policy.idle:
        return Wait(f"taught {now.since_taught:.0f} s ago; a round waits for {policy.idle:.0f} s without teaching")
    if now.since_round is not None and now.since_round < policy.pause:
        return Wait(f"the last round ended {now.since_round:.0f} s ago; the next may start after {policy.pause:.0f} s")
    if not now.verdict:
        return Wait(str(now.verdict.reasons[0]))
    return StartRound("confidence has fallen" if now.drifted else f"{counted(now.new_samples, 'sample')} taught")


class PageHinkley:
    """Detects a fall of the mean of a signal (Page 1954; with a tolerance as Mouss et al. 2004, section 3).

    min_instances: values before the first alarm; delta: tolerated fall of the mean; threshold: of the sum of
    mean - x - delta, less its minimum.
    """

    def __init__(self, min_instances: int = 50, delta: float = 0.02, threshold: float = 8.0) -> None:
        self._min_instances, self._delta, self._threshold = min_instances, delta, threshold
        self.reset()

    def reset(self) -> None:
        """Start over, with the alarm off."""
        self._count, self._mean, self._sum, self._lowest = 0, 0.0, 0.0, 0.0
        self.fallen = False

    def add(self, value: float) -> bool:
        """Take a value. True while the alarm is on: until `reset`."""
        self._count += 1
        self._mean += (value - self._mean) / self._count
        self._sum += self._mean - value - self._delta
        self._lowest = min(self._lowest, self._sum)
        if self._count >= self._min_instances and self._sum - self._lowest > self._threshold:
            self.fallen = True
        return self.fallen
