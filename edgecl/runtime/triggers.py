"""When a learning round is due: a pure function of what is known, so that any day of a robot can be replayed."""
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from edgecl.rounds.limits import Verdict

ALLOWED, ALARM, LEAST = 0.02, 8.0, 50   # Page-Hinkley: tolerated fall of the mean, sum that alarms, answers before it


@dataclass(frozen=True)
class Policy:
    """When a daemon runs rounds by itself. wanted: whether at all; samples: taught since the last round; idle: seconds
    without teaching; pause: seconds after the last round, whatever came of it."""

    wanted: bool = True
    samples: int = 100
    idle: float = 60.0
    pause: float = 3600.0


@dataclass(frozen=True)
class Situation:
    """What is known at a moment. able: whether learning rounds can run here (torch is installed); classes: known;
    new_samples: taught since the last round; drifted: confidence has fallen (`PageHinkley`); running: a round runs;
    since_taught, since_round: seconds, None for never; verdict: what `limits.may_run` says of heat, battery, load,
    memory."""

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
    """None is due now, and why not."""

    reason: str


def decide(now: Situation, policy: Policy) -> StartRound | Wait:
    """Whether to start a round. Drift makes any new sample enough; without one a round has nothing to go by."""
    if not policy.wanted:
        return Wait('rounds are off: set rounds = "idle"')
    if now.running:
        return Wait("a round runs")
    if not now.able:
        return Wait("learning rounds need torch: pip install 'edgecl[train]'")
    if now.classes < 2:
        return Wait("a round needs two classes")
    if now.new_samples < (1 if now.drifted else policy.samples):
        return Wait("confidence has fallen, and nothing was taught since the last round: name frames of the review list"
                    if now.drifted else f"{now.new_samples} samples were taught since the last round, {policy.samples} "
                    "make one due")
    if now.since_taught is not None and now.since_taught < policy.idle:
        return Wait(f"taught {now.since_taught:.0f} s ago, a round waits for {policy.idle:.0f} s without")
    if now.since_round is not None and now.since_round < policy.pause:
        return Wait(f"the last round ended {now.since_round:.0f} s ago, the next may start after {policy.pause:.0f} s")
    if not now.verdict:
        return Wait(str(now.verdict.reasons[0]))
    return StartRound("confidence has fallen" if now.drifted else f"{now.new_samples} samples were taught")


class PageHinkley:
    """Whether the mean of a signal has fallen (Page 1954; with a tolerance as Mouss et al. 2004, section 3): the sum of
    mean - x - allowed, less its minimum, exceeds `alarm`."""

    def __init__(self, allowed: float = ALLOWED, alarm: float = ALARM, least: int = LEAST) -> None:
        self._allowed, self._alarm, self._least = allowed, alarm, least
        self.reset()

    def reset(self) -> None:
        """Begin anew: what is served has changed."""
        self._count, self._mean, self._sum, self._lowest = 0, 0.0, 0.0, 0.0
        self.fallen = False

    def add(self, value: float) -> bool:
        """One more value; whether the alarm is on, which lasts until `reset`."""
        self._count += 1
        self._mean += (value - self._mean) / self._count
        self._sum += self._mean - value - self._allowed
        self._lowest = min(self._lowest, self._sum)
        if self._count >= self._least and self._sum - self._lowest > self._alarm:
            self.fallen = True
        return self.fallen
