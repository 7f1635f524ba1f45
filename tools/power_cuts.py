"""What a power cut may leave of a recorded series of operations.

A cut is tried before each sync and at the end. What was synced by then is on the disk; of everything else any part may
be: the first so many operations, all but one, one alone, only names or only contents, nothing deleted, nothing cut
short, any subset. A write that came to the disk may be torn at sectors or pages, with zeros, with garbage, or with
nothing in the place of what is missing.
"""
from __future__ import annotations

import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from disk_model import NAMING, Disk, Edit, Operation, Sync, Truncate, Unlink, Write

SUBSETS = 6     # random ones before each sync


@dataclass
class Cut:
    """A cut before operation `at`, of which the operations `kept` are on the disk, edited where `edits` has their
    number. kind: what is missing, in a word; label: the same in detail."""

    at: int
    kind: str
    label: str
    kept: list[int]
    edits: dict[int, Edit] = field(default_factory=dict)

    def disk(self, start: Disk, operations: list[Operation]) -> Disk:
        """What the disk holds then."""
        places = {number: place for place, number in enumerate(self.kept)}
        return start.after([operations[number] for number in self.kept],
                           {places[number]: edit for number, edit in self.edits.items()})


Part = Callable[[int, int, int], "tuple[int, int] | None"]


def only_first(unit: int, start: int, end: int) -> tuple[int, int] | None:
    """The part of a write from `start` to `end` that lies in its first block of `unit` bytes; None if that is all."""
    cut = start - start % unit + unit
    return (start, cut) if cut < end else None


def first_half(unit: int, start: int, end: int) -> tuple[int, int] | None:
    """The blocks of the first half."""
    cut = (start + end) // 2 // unit * unit
    return (start, cut) if start < cut < end else None


def all_but_last(unit: int, start: int, end: int) -> tuple[int, int] | None:
    """All blocks but the last one."""
    cut = (end - 1) // unit * unit
    return (start, cut) if start < cut else None


def only_last(unit: int, start: int, end: int) -> tuple[int, int] | None:
    """The last block."""
    cut = (end - 1) // unit * unit
    return (cut, end) if start < cut else None


def torn(write: Write, part: Part, unit: int, rest: str) -> list[tuple[int, bytes]] | None:
    """What came to the disk of a write of which one part did; rest: what stands in the other parts: "nothing", "zeros"
    or "garbage". None if the write has only that part."""
    start, end = write.offset, write.offset + len(write.data)
    span = part(unit, start, end)
    if span is None:
        return None
    kept = (span[0], write.data[span[0] - start:span[1] - start])
    if rest == "nothing":
        return [kept]
    return [(start, bytes(end - start) if rest == "zeros" else garbage(write)), kept]


def hole(write: Write, unit: int) -> list[tuple[int, bytes]] | None:
    """A write whose second block was lost: zeros stand there. None if it has no three blocks."""
    begin = write.offset - write.offset % unit + unit
    if begin + unit >= write.offset + len(write.data):
        return None
    return [(write.offset, write.data), (begin, bytes(unit))]


def garbage(write: Write) -> bytes:
    """Bytes of what lay on these blocks before."""
    return random.Random(len(write.data)).randbytes(len(write.data))


def all_zeros(write: Write) -> list[tuple[int, bytes]]:
    """The length came to the disk, the data did not."""
    return [(write.offset, bytes(len(write.data)))]


def all_garbage(write: Write) -> list[tuple[int, bytes]]:
    """The same, with what lay there before."""
    return [(write.offset, garbage(write))]


TEARS: dict[str, Callable[[Write], list[tuple[int, bytes]] | None]] = {
    **{f"{part.__name__.replace('_', ' ')} {unit}, {rest} elsewhere": partial(torn, part=part, unit=unit, rest=rest)
       for unit in (512, 4096) for part in (only_first, first_half, all_but_last, only_last)
       for rest in ("nothing", "zeros", "garbage")},
    **{f"hole of {unit}": partial(hole, unit=unit) for unit in (512, 4096)},
    "zeros": all_zeros,
    "garbage": all_garbage,
}


def durable_from(operations: list[Operation]) -> list[int]:
    """For each operation the number of the sync after which it is durable; the number of operations if none."""
    syncs: dict[int, list[int]] = defaultdict(list)
    for number, operation in enumerate(operations):
        if isinstance(operation, Sync):
            syncs[operation.inode].append(number)
    found = []
    for number, operation in enumerate(operations):
        later = syncs[operation.inode]
        place = bisect_right(later, number)
        found.append(later[place] if place < len(later) else len(operations))
    return found


def cuts(operations: list[Operation], rng: random.Random) -> Iterator[Cut]:
    """Every cut that is tried."""
    durable = durable_from(operations)
    points = [number for number, each in enumerate(operations) if isinstance(each, Sync)] + [len(operations)]
    for at in points:
        done = [number for number in range(at) if not isinstance(operations[number], Sync)]
        safe = {number for number in done if durable[number] < at}
        free = [number for number in done if number not in safe]
        for cut in _cuts_of(free, operations, rng):
            yield Cut(at, cut.kind, cut.label, sorted(safe.union(cut.kept)), cut.edits)


def _cuts_of(free: list[int], operations: list[Operation], rng: random.Random) -> Iterator[Cut]:
    """The cuts before one sync, with only those operations that are `free` to be lost."""
    def kind_of(kind: type | tuple[type, ...]) -> list[int]:
        return [number for number in free if isinstance(operations[number], kind)]

    def without(lost: list[int]) -> list[int]:
        return [number for number in free if number not in lost]

    for count in range(len(free) + 1):
        yield Cut(0, "prefix", f"the first {count} of {len(free)}", free[:count])
    for number in free:
        yield Cut(0, "one lost", f"without {number}", without([number]))
        yield Cut(0, "one alone", f"only {number}", [number])
    names = kind_of(NAMING)
    yield Cut(0, "names only", "only operations on names", names)
    yield Cut(0, "names lost", "no operation on names", without(names))
    yield Cut(0, "unlinks lost", "nothing deleted", without(kind_of(Unlink)))
    yield Cut(0, "truncates lost", "no length set", without(kind_of(Truncate)))
    for number in kind_of(Write):
        for name, tear in TEARS.items():
            if tear(operations[number]) is None:
                continue
            for also, kept in (("all else", free), ("nothing later", [n for n in free if n <= number]),
                               ("alone", [number])):
                yield Cut(0, "torn", f"{number} torn, {name}; {also}", kept, {number: tear})
    for _ in range(SUBSETS if len(free) > 2 else 0):
        kept = [number for number in free if rng.random() < 0.5]
        edits: dict[int, Edit] = {}
        for number in kept:
            write, tear = operations[number], rng.choice(list(TEARS.values()))
            if isinstance(write, Write) and rng.random() < 0.4 and tear(write) is not None:
                edits[number] = tear
        yield Cut(0, "random", "a random subset", kept, edits)


def chosen(every: list[Cut], rng: random.Random) -> Iterator[Cut]:
    """The cuts in a random order in which all kinds take turns; torn and random ones, of which there are most, three
    times as often. The caller takes as many as it needs."""
    kinds: dict[str, list[Cut]] = defaultdict(list)
    for cut in every:
        kinds[cut.kind].append(cut)
    for group in kinds.values():
        rng.shuffle(group)
    while any(kinds.values()):
        for kind, group in kinds.items():
            for _ in range(3 if kind in ("torn", "random") else 1):
                if group:
                    yield group.pop()
