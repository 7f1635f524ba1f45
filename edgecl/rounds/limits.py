"""What a learning round may take, and whether one may run now: pure functions of readings, so that any machine can be
replayed."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import inf
from typing import Annotated, NamedTuple

from edgecl.files.tables import Rule, check
from edgecl.rounds.board import Readings, Zone
from edgecl.settings import format_size, parse_seconds, parse_size

# A running round is stopped only this far past the bound under which it may start, so that it does not flap.
HOTTER, EMPTIER, SLOWER, BUSIER, LONGER = 5.0, 5.0, 10.0, 0.3, 1.25  # degrees, percent, percent, tasks, times

FIRMWARE = (  # bits of a Raspberry Pi's get_throttled, and whether they also stop a running round
    (1, True, "its supply voltage is too low", "use a stronger power supply or a shorter cable"),
    (2, False, "its clock is capped", "cool the board, or check its power supply"),
    (4, True, "it is throttled", "cool the board, or check its power supply"),
    (8, False, "it is at its soft temperature limit", "cool the board"))


@dataclass(frozen=True)
class Need:
    """What a round is forecast to take in all: bytes beyond what the process holds before it, seconds, threads."""

    memory: int
    seconds: float
    threads: int = 1


@dataclass(frozen=True)
class Limits:
    """What a round may take and when it may start, with the reason of each default; they are judged, not measured.

    memory: bytes, or None: what is available less the reserve, since boards differ too much for one number.
    reserve: bytes left to all others, 100 MB: room for what other programs ask for while it runs.
    time: seconds, or None, 600: no more than that is lost when a round is killed.
    threads: 1, so that `predict` and the robot's control keep the other cores.
    heat: degrees C, 75: a Raspberry Pi 4 or 5 begins to slow down at 80, and a round heats.
    heat_margin: degrees C below a zone's own trip point, 5: the same distance on boards that slow down earlier.
    battery: percent, 30, off mains: a robot must still get home. 0 never refuses.
    frequency: percent of the maximum clock, 60: below it, a round takes nearly twice its forecast. 0 never refuses.
    load: tasks for each processor, 0.7: above it a round would take time from those that run.
    """

    memory: Annotated[int | None, Rule(low=1, read=parse_size, cure="a size such as 400MB")] = None
    reserve: Annotated[int, Rule(low=0, read=parse_size, cure="a size such as 100MB, or 0")] = 100 * 10**6
    time: Annotated[float | None, Rule(low=1e-3, high=1e9, read=parse_seconds, cure="a time such as 60s")] = 600.0
    threads: Annotated[int, Rule(low=1, high=1024, cure="1 or more")] = 1
    heat: Annotated[float, Rule(low=1, high=125, cure="degrees C, 1 to 125")] = 75.0
    heat_margin: Annotated[float, Rule(low=0, high=50, cure="degrees C, 0 to 50")] = 5.0
    battery: Annotated[float, Rule(low=0, high=100, cure="percent, 0 to 100")] = 30.0
    frequency: Annotated[float, Rule(low=0, high=100, cure="percent, 0 to 100")] = 60.0
    load: Annotated[float, Rule(low=0.01, high=100, cure="tasks per processor, such as 0.7")] = 0.7

    def __post_init__(self) -> None:
        check(self)

    def below(self, zone: Zone) -> float:
        """Degrees C that a zone must be below for a round to start."""
        return min(self.heat, inf if zone.trip is None else zone.trip - self.heat_margin)


LIMIT_NAMES = frozenset(field.name for field in fields(Limits))


class Reason(NamedTuple):
    """Why not: what was measured and what it may be, and the cure; both in one sentence as text."""

    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.what}: {self.cure}"


@dataclass(frozen=True)
class Verdict:
    """Whether a round may run, and if not, all the reasons."""

    reasons: tuple[Reason, ...] = ()

    @property
    def allowed(self) -> bool:
        """True without any reason against."""
        return not self.reasons

    def __bool__(self) -> bool:
        return self.allowed


def may_run(readings: Readings, limits: Limits, need: Need, running: bool = False) -> Verdict:
    """Whether a round may start, or with `running` whether it may go on. What is not known does not refuse."""
    return Verdict((*_takes(limits, need, running), *_room(readings, limits, need, running),
                    *_heat(readings, limits, running), *_power(readings, limits, running),
                    *_load(readings, limits, need, running)))


def _takes(limits: Limits, need: Need, running: bool) -> Iterator[Reason]:
    slack = LONGER if running else 1.0
    if limits.memory is not None and need.memory > limits.memory * slack:
        yield Reason(f"the round takes {format_size(need.memory)} of memory, rounds may take "
                     f"{format_size(limits.memory * slack)}", "raise memory")
    if limits.time is not None and need.seconds > limits.time * slack:
        yield Reason(f"the round takes {need.seconds:.3g} s, rounds may take {limits.time * slack:.3g} s", "raise time")
    if not running and need.threads > limits.threads:
        yield Reason(f"the round takes {need.threads} threads, rounds may take {limits.threads}", "raise threads")


def _room(readings: Readings, limits: Limits, need: Need, running: bool) -> Iterator[Reason]:
    wanted = limits.reserve // 2 if running else need.memory + limits.reserve
    if readings.memory is not None and readings.memory < wanted:
        bound = (f"a running round stops below {format_size(wanted)}" if running else
                 f"the round takes {format_size(need.memory)} and leaves {format_size(limits.reserve)}")
        yield Reason(f"{format_size(readings.memory)} of memory are available, {bound}",
                     "end other programs, or lower reserve")
    if not running and readings.cores is not None and need.threads > max(readings.cores, 1):
        yield Reason(f"the round takes {need.threads} threads, this process may use {readings.cores:.3g} cores",
                     "lower threads")


def _heat(readings: Readings, limits: Limits, running: bool) -> Iterator[Reason]:
    zone = max(readings.zones, key=lambda zone: zone.degrees - limits.below(zone), default=None)
    bound = limits.below(zone) + HOTTER * running if zone else inf
    if zone and zone.degrees >= bound:
        own = limits.below(zone) < limits.heat
        yield Reason(f"{zone.name} is at {zone.degrees:.0f} C, "
                     f"{'a running round stops at' if running else 'rounds start below'} {bound:g} C"
                     + (f" since it trips at {zone.trip:g} C" if own else ""),
                     f"cool the board, or {'lower heat_margin' if own else 'raise heat'}")


def _power(readings: Readings, limits: Limits, running: bool) -> Iterator[Reason]:
    verb = "a running round stops below" if running else "rounds start from"
    for bit, stops, what, cure in FIRMWARE:
        if (readings.throttled or 0) & bit and (stops or not running):
            yield Reason(f"the board says that {what} now (throttled=0x{readings.throttled:x})", cure)
    least = limits.frequency - SLOWER * running
    if readings.frequency is not None and readings.frequency < least:
        yield Reason(f"the clock is capped at {readings.frequency:.0f} % of its maximum, {verb} {least:g} %",
                     "check cooling, power supply and power mode, or lower frequency")
    least = limits.battery - EMPTIER * running
    if readings.battery is not None and not readings.mains and readings.battery < least:
        yield Reason(f"the battery is at {readings.battery:.0f} %, {verb} {least:g} %", "charge it, or lower battery")


def _load(readings: Readings, limits: Limits, need: Need, running: bool) -> Iterator[Reason]:
    if readings.load is None or not readings.processors:
        return
    others = max(readings.load - need.threads * running, 0)
    most = (limits.load + BUSIER * running) * readings.processors
    if others >= most:
        yield Reason(f"other programs load {readings.processors} processors with {others:.2f} tasks, "
                     f"{'a running round stops at' if running else 'rounds start below'} {most:.2f}",
                     "wait until they are done, or raise load")
