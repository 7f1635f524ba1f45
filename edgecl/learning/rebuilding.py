"""Knowledge from what is stored, if the statistics are damaged."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from edgecl.learning.bases import from_samples
from edgecl.settings import counted

if TYPE_CHECKING:
    from edgecl.learning.knowledge import Knowledge
    from edgecl.learning.repository import Repository
    from edgecl.state.reader import StateReader


class Rebuilt(NamedTuple):
    """Knowledge from all that is stored. known: samples in it; taught: samples that were taught, as far as the history
    tells; all_told: whether it tells of all; gone: classes of which nothing is left."""

    knowledge: Knowledge
    known: int
    taught: int
    all_told: bool
    gone: list[str]

    @property
    def figures(self) -> str:
        """How much of what was taught is in it."""
        more = "" if self.all_told else "at least "
        gone = f"; nothing is left of {', '.join(map(repr, self.gone))}, to be taught again" if self.gone else ""
        return f"approximate, from {self.known} of {more}{counted(max(self.taught, self.known), 'sample')}{gone}"


def rebuilt_from_stored(repository: Repository) -> Rebuilt | None:
    """The most that older statistics and stored samples give; None if there is neither."""
    store, foundation = repository.store, repository.foundation
    assert foundation is not None
    with store.reading():
        current, changed = store.current, max(store.tuned() or 0, *_corrections(store))
        rows, (taught, all_told) = store.samples(current), _taught(store)
        older = next((g for g in reversed(store.alive()) if g.snapshot and g.id >= changed
                      and store.blobs.intact(g.snapshot)), None)
        found: list[tuple[int, Knowledge]] = []
        if older is not None and older.snapshot is not None:
            knowledge = repository.nothing(foundation)
            knowledge.load(store.blob_path(older.snapshot).read_bytes(),
                           [row for row in rows if (row.generation or 0) > older.id], rows)
            found.append((knowledge.plain.total, knowledge))
        if rows:
            found.append((len(rows), from_samples(repository.nothing(foundation), rows)))
    if not found:
        return None
    known, best = max(found, key=lambda each: each[0])
    return Rebuilt(best, known, taught, all_told, sorted(_classes(store) - best.plain.counts.keys()))


def _taught(store: StateReader) -> tuple[int, bool]:
    """Samples of known classes that were taught, as far as the history tells, and whether it tells of all."""
    every = store.generations()
    forgotten = {g.detail["class"]: g.id for g in every if g.action == "forget" and "class" in g.detail}
    learned = [g for g in every if g.action == "learn" and not g.undone and "class" in g.detail]
    count = sum(g.detail.get("samples", 0) for g in learned if g.id > forgotten.get(g.detail["class"], 0))
    count -= sum(g.detail.get("samples", 0) for g in every if g.action == "remove" and not g.undone
                 and g.id > max(forgotten.values(), default=0))
    return count, len(every) == max((g.id for g in every), default=0) and not any("merged" in g.detail for g in every)


def _corrections(store: StateReader) -> list[int]:
    """The generations that have corrected what was taught before; older statistics are not without that. At least 0.
    """
    return [0, *(g.id for g in store.alive() if g.action in ("remove", "move", "rename"))]


def _classes(store: StateReader) -> set[str]:
    """The classes that are known, as far as the history tells."""
    found: set[str] = set()
    for g in reversed(store.alive()):
        if "known" in g.detail:
            return found | set(g.detail["known"])
        if g.action == "learn" and "class" in g.detail:
            found.add(g.detail["class"])
    return found
