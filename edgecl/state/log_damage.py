"""What is wrong with a log, in words, and what is lost by it."""
from __future__ import annotations

import os
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from edgecl.files.regular import is_something_else
from edgecl.settings import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence, Set

    from edgecl.state.acknowledged import Acknowledged
    from edgecl.state.log_entries import DamagedPart
    from edgecl.state.write_ahead_log import WriteAheadLog

WRONG = "wrong "  # begins the key of a problem of the whole log
MOST_NAMED = 20  # generations that a line names one by one
UNKNOWN = 1000  # numbers of generations that are skipped if nothing tells which were given


class LogProblem(NamedTuple):
    """key: tells it from other problems of the same epoch; line: what is damaged, and what is lost by it; lost: the
    generations whose samples are or may be lost; newest: the highest number of a generation that may have been given.
    """

    key: str
    line: str
    lost: list[int]
    newest: int


def wrong_log(log: WriteAheadLog, acknowledged: Acknowledged | None, current: int) -> LogProblem:
    """The problem of a log that is not the current one, nor the one that moved into the database last. current: the
    newest generation of the database."""
    name, numbers = log.path.name, log.numbers
    if not os.path.lexists(log.path):
        what = f"{name} is missing"
    elif is_something_else(log.path):
        what = f"{name} is not a log that can be read, since it is not a regular file"
    elif not log.length:
        what = f"{name} is empty"
    elif log.unreadable:
        what = f"{name} is not a log that can be read"
    else:
        what = f"{name} is not the log of this database, but an older or newer one, or of another state"
    newest = max([current, *numbers, acknowledged.generation if acknowledged else current])
    newest += 0 if numbers or acknowledged else UNKNOWN
    loss = f"what was learned after generation {current} is not known any more"
    if numbers:
        loss += f"; generations {min(numbers)} to {max(numbers)} are in it"
    elif acknowledged and acknowledged.generation <= current:
        loss = "nothing that was learned is lost"
    return LogProblem(f"{WRONG}{log.digest()}", f"{what}: {loss}", [], newest)


def damaged_part(log: WriteAheadLog, part: DamagedPart, known: Set[int]) -> LogProblem:
    """The problem of damaged bytes in the current log. known: the generations that are known."""
    lost = _missing(part.first, part.last, set() if part.held else known)
    loss = f"{part.held} are lost" if part.held else f"what was learned in {_numbered(lost)} is lost" if lost else \
        "no samples are lost"
    return LogProblem(f"{part.begin} {part.end}",
                      f"{log.path.name} is damaged from byte {part.begin} to {part.end}: {loss}", lost, part.last)


def cut_log(log: WriteAheadLog, acknowledged: Acknowledged, moved: int, known: Set[int]) -> LogProblem:
    """The problem of a log that is shorter than what was acknowledged. moved: the newest generation that is not in the
    log; known: the generations that are known."""
    lost = _missing(moved + 1, acknowledged.generation, known)
    loss = f"what was learned in {_numbered(lost)} is lost" if lost else "no samples are lost"
    return LogProblem(f"cut {log.length} {acknowledged.length}",
                      f"{log.path.name} has {counted(log.length, 'byte')} of {acknowledged.length}: {loss}", lost,
                      acknowledged.generation)


def _missing(first: int, last: int, known: Set[int]) -> list[int]:
    """The numbers that are not known, of at most UNKNOWN."""
    return [number for number in range(first, min(last, first + UNKNOWN) + 1) if number not in known]


def _numbered(numbers: list[int]) -> str:
    if len(numbers) > MOST_NAMED:
        return f"{counted(len(numbers), 'generation')} from {numbers[0]} to {numbers[-1]}"
    return f"generation{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def joined(spans: Iterable[Sequence[int]], alive: Sequence[int], bases: Sequence[int]) -> list[list[int]]:
    """The spans that a generation is in, in order; those that touch and go back to the same statistics are one. alive:
    the generations; bases: those of them that have statistics, in order."""
    found: list[list[int]] = []
    for first, last in sorted(map(tuple, spans)):
        if not any(first <= number <= last for number in alive):
            continue
        if found and first <= found[-1][1] + 1 and bisect_left(bases, first) == bisect_left(bases, found[-1][0]):
            found[-1][1] = max(found[-1][1], last)
        else:
            found.append([first, last])
    return found
