"""From knowledge to generations and back: snapshots of the statistics, and the journal of samples since."""
from __future__ import annotations

from typing import TYPE_CHECKING

from edgecl.errors import StateError
from edgecl.founding import Foundation
from edgecl.head_graph import build_head
from edgecl.knowledge import Judgement, Knowledge

if TYPE_CHECKING:
    from edgecl.config import Settings
    from edgecl.records import Change, Generation
    from edgecl.store import Store

REWRITE = 2  # the journal may grow to this many times the statistics before they are written anew


class Journal:
    """Reads what was known at a generation, and commits what is known now; keeps the current knowledge in memory."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store, self.settings = store, settings
        self._kept: tuple[int, Knowledge] | None = None

    @property
    def foundation(self) -> Foundation | None:
        """Backbone and form of the statistics; None while the backbone waits for the first samples."""
        values = self.store.meta.get("foundation")
        return None if values is None else Foundation.from_meta(values)

    def known(self, foundation: Foundation | None = None) -> Knowledge:
        """What is known now; `foundation` where the state has none yet. Raises StateError for a state without."""
        foundation = self.foundation or foundation
        if foundation is None:
            raise StateError(f"{self.store.path} has learned nothing yet", "teach it with `edgecl learn`")
        current = self.store.current
        if self._kept is None or self._kept[0] != current:
            self._kept = current, self.load(current, foundation)
        return self._kept[1]

    def load(self, generation: int, foundation: Foundation | None = None) -> Knowledge:
        """What was known at a generation: its base's statistics, and the samples journaled since."""
        foundation = self.foundation or foundation
        assert foundation is not None
        knowledge = Knowledge(foundation.lifts(self.settings.seed), foundation.form, self.settings.exemplars)
        base = self._base(generation)
        if base is not None and base.snapshot is not None:
            rows = [row for row in self.store.samples() if (row.generation or 0) <= generation]
            knowledge.load(self.store.blob_path(base.snapshot).read_bytes(),
                           [row for row in rows if (row.generation or 0) > base.id], rows)
        return knowledge

    def commit(self, knowledge: Knowledge, change: Change, rewrite: bool = False) -> tuple[int, Judgement]:
        """Solve, judge and store what is known now, inside `Store.exclusive`: the generation and the judgement.

        Samples are journaled while that writes less than the statistics would; `rewrite` forces the statistics.
        Raises BudgetError past the quota.
        """
        self._kept = None  # should the commit fail, memory is dropped and read again
        judgement = knowledge.judge(self.settings.head)
        if judgement.head is not None:
            change.head = build_head(judgement.head)
        exemplars = knowledge.exemplars()
        change.detail |= {"classes": len(knowledge.labels), "exemplars": len(exemplars), **judgement.summary()}
        base = self._base(self.store.current)
        since = sum(row.feature.nbytes for row in knowledge.stored
                    if row.id is None or base is None or (row.generation or 0) > base.id)
        journals = not rewrite and base is not None and base.snapshot is not None and \
            since <= REWRITE * self.store.blob_path(base.snapshot).stat().st_size
        if journals:
            change.rows = [row for row in knowledge.stored if row.id is None]
        if not journals or not self.store.fits(change):
            kept = {id(row) for row in exemplars}
            change.snapshot = knowledge.snapshot()
            change.rows = [row for row in exemplars if row.id is None]
            change.drop = [row for row in (*knowledge.stored, *knowledge.erased)
                           if row.id is not None and id(row) not in kept]
            knowledge.stored, knowledge.erased = exemplars, []
            while not self.store.fits(change) and self.store.prune():
                pass
        generation, first = self.store.commit(change)
        numbers = iter(range(first, first + len(change.rows)))
        knowledge.stored = [row if row.id is not None else row._replace(id=next(numbers), generation=generation)
                            for row in knowledge.stored]
        self._kept = generation, knowledge
        return generation, judgement

    def _base(self, generation: int) -> Generation | None:
        """The latest generation up to this one whose statistics are kept."""
        return max((g for g in self.store.generations() if g.snapshot and not g.undone and g.id <= generation),
                   default=None, key=lambda g: g.id)
