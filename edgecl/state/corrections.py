"""Which stored samples live at a generation, as corrections have taken some out.

A sample that is removed, moved or renamed stays in its file, so that a rollback brings it back: the detail of the
generation says what it has taken out. When no way back needs such samples, compaction deletes them, and then these
notes. Samples of generations that were rolled back, and of forgotten classes, live nowhere.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edgecl.exemplars.sample_ids import NUMBER_BITS

if TYPE_CHECKING:
    from edgecl.exemplars.stored import StoredSample
    from edgecl.state.generations import Generation

REMOVED = "removed"     # runs of ids that the generation has taken out
DROPPED = "dropped"     # runs of ids that the buffer had no room for then
RENAMED = "renamed"     # whether it has taken out all samples of the class that its detail names as "from"
SPARE = "spare"         # runs of ids that are near-duplicates from then on, and of those that are not any more
GONE = "gone"           # names of classes whose last sample it has erased
NOTES = REMOVED, DROPPED, RENAMED, SPARE     # needed while samples of before are on the disk

Runs = list[tuple[int, int, int]]   # generation, first number in it, how many


def runs_of(ids: Iterable[int]) -> Runs:
    """Ids as runs of successive ones."""
    runs: Runs = []
    for each in sorted(ids):
        generation, number = each >> NUMBER_BITS, each & (1 << NUMBER_BITS) - 1
        if runs and runs[-1][0] == generation and sum(runs[-1][1:]) == number:
            runs[-1] = generation, runs[-1][1], runs[-1][2] + 1
        else:
            runs.append((generation, number, 1))
    return runs


def ids_of(runs: Iterable[Iterable[int]]) -> set[int]:
    """The inverse of `runs_of`."""
    return {(generation << NUMBER_BITS) + first + place for generation, first, count in runs for place in range(count)}


class Living:
    """Tells whether a stored sample lives at a generation `until` of a history, or now (None)."""

    def __init__(self, every: Iterable[Generation], until: int | None = None) -> None:
        self._undone: set[int] = set()
        self._forgotten: dict[str, int] = {}
        self._removed: set[int] = set()
        self._renamed: dict[str, int] = {}
        self._spare: dict[int, bool] = {}
        for g in every:
            if g.undone:
                self._undone.add(g.id)
                continue
            if g.action == "forget" and "class" in g.detail:
                self._forgotten[g.detail["class"]] = g.id
            if until is None or g.id <= until:
                self._removed |= ids_of([*g.detail.get(REMOVED, ()), *g.detail.get(DROPPED, ())])
                if g.detail.get(RENAMED) and "from" in g.detail:
                    self._renamed[g.detail["from"]] = g.id
                for spare, runs in zip((True, False), g.detail.get(SPARE, ())):
                    self._spare |= dict.fromkeys(ids_of(runs), spare)

    def __call__(self, row: StoredSample) -> bool:
        """Whether this one does."""
        generation = row.generation or 0
        return (generation not in self._undone and row.id not in self._removed
                and generation > self._forgotten.get(row.label, 0)
                and generation >= self._renamed.get(row.label, 0))

    def of(self, rows: Iterable[StoredSample]) -> list[StoredSample]:
        """Those that live, as near-duplicates or not as they are then."""
        found = [row for row in rows if self(row)]
        if not self._spare:
            return found
        return [row._replace(spare=self._spare[row.id]) if row.id in self._spare else row for row in found]


def noted_since(every: Iterable[Generation], since: int, note: str = "") -> bool:
    """Whether a living generation after `since` has notes, or one of them."""
    return any(g.id > since and not g.undone and any(key in g.detail for key in ([note] if note else NOTES))
               for g in every)


def without_notes(g: Generation, spare: bool) -> dict[str, Any]:
    """A detail when no sample that it has taken out is on the disk any more. spare: whether those that are there know
    themselves what is a near-duplicate."""
    gone = {REMOVED, DROPPED, RENAMED, *([SPARE] if spare else [])}
    return {key: value for key, value in g.detail.items() if key not in gone}


def former_names(every: Iterable[Generation], labels: Iterable[str], until: int) -> dict[str, int]:
    """The names under which classes were known, and the newest generation in which each may mean them. until: the
    current generation."""
    found = dict.fromkeys(labels, until)
    for g in sorted(every, key=lambda g: -g.id):
        if not g.undone and "from" in g.detail and found.get(g.detail.get("class", ""), 0) >= g.id:
            found[g.detail["from"]] = max(found.get(g.detail["from"], 0), g.id)
    return found


def without_names(g: Generation, names: dict[str, int]) -> dict[str, Any]:
    """A detail without the names of `former_names`."""
    def named(text: str) -> bool:
        return g.id <= names.get(text, 0)

    detail = {key: value for key, value in g.detail.items()
              if not (key in ("class", "from") and named(value)) and key != GONE}
    if "refused" in detail:
        hidden = [name for name, last in names.items() if g.id <= last]
        detail["refused"] = [why.partition(":")[0] if any(name in why for name in hidden) else why
                             for why in detail["refused"]]
    return detail
