"""From knowledge to generations and back: snapshots of the statistics, and the journal of samples since."""
from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from edgecl import upkeep
from edgecl.budget import PAGE, pages, statistics_bytes
from edgecl.errors import BudgetError, StateError
from edgecl.founding import Foundation
from edgecl.head_graph import build_head
from edgecl.heads import coarser
from edgecl.knowledge import Judgement, Knowledge
from edgecl.records import packed_bytes

if TYPE_CHECKING:
    from edgecl.config import Settings
    from edgecl.records import Change, Generation
    from edgecl.store import Store

REWRITE = 2  # the journal may grow to this many times the statistics before they are written anew ...
FILES = 16   # ... and to this many generations


class Journal:
    """Reads what was known at a generation, and commits what is known now; keeps the current knowledge in memory."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store, self.settings = store, settings
        self._kept: tuple[int, Knowledge] | None = None

    @property
    def foundation(self) -> Foundation | None:
        """Backbone and form of the statistics; None while the backbone waits for the first samples."""
        if "foundation" not in self.store.meta:
            self.store.refresh()
        values = self.store.meta.get("foundation")
        return None if values is None else Foundation.from_meta(values)

    def known(self, foundation: Foundation | None = None) -> Knowledge:
        """What is known now; `foundation` where the state has none yet. Inside `Store.exclusive` it is handed over: it
        may be changed, and only `commit` brings it back. Raises StateError for a state without a foundation."""
        mine = self.foundation
        if mine is not None and foundation is not None and mine != foundation:
            raise StateError(f"{self.store.path} was taught by another edgecl process just now", "try again")
        foundation = mine or foundation
        if foundation is None:
            raise StateError(f"{self.store.path} has learned nothing yet", "teach it with `edgecl learn`")
        with self.store.reading():
            current = self.store.current
            if self._kept is None or self._kept[0] != current:
                self._kept = current, self.load(current, foundation)
        knowledge = self._kept[1]
        if self.store.writing:
            self._kept = None
        return knowledge

    def load(self, generation: int, foundation: Foundation | None = None) -> Knowledge:
        """What was known at a generation: its base's statistics, and the samples journaled since."""
        foundation = self.foundation or foundation
        assert foundation is not None
        knowledge = Knowledge(foundation.lifts(self.settings.seed), foundation.form, self.settings.exemplars)
        with self.store.reading():
            base = self._base(generation)
            if base is not None and base.snapshot is not None:
                rows = self.store.samples(generation, base.id)
                knowledge.load(self.store.blob_path(base.snapshot).read_bytes(),
                               [row for row in rows if (row.generation or 0) > base.id], rows)
        return knowledge

    def commit(self, knowledge: Knowledge, change: Change, rewrite: bool = False) -> tuple[int, Judgement]:
        """Solve, judge and store what is known now, inside `Store.exclusive`: the generation and the judgement.

        Samples are journaled while that writes less than the statistics would; `rewrite` forces the statistics. What
        is committed leaves room to write the statistics once more, so that a class can always be forgotten. Raises
        BudgetError past the quota.
        """
        self._kept = None  # should the commit fail, memory is dropped and read again
        store, exemplars = self.store, knowledge.exemplars()
        if change.backbone is not None and self.foundation is not None:
            raise StateError(f"{store.path} was taught by another edgecl process just now", "try again")
        judgement = self._judge(knowledge, change)
        change.detail |= {"classes": len(knowledge.labels), "exemplars": len(exemplars)}
        base = self._base(store.current)
        if change.undo_after is None and not (base and not rewrite and self._journals(knowledge, change, base)):
            change.rows = [row for row in exemplars if row.id is None]
            self._write_anew(knowledge, change, {row.id for row in exemplars})
        generation, rows = store.commit(change)
        numbered = dict(zip(map(id, change.rows), rows))
        knowledge.stored = [numbered.get(id(row), row) for row in knowledge.stored]
        if change.snapshot is not None:
            kept, since = {id(row) for row in (*exemplars, *rows)}, upkeep.needed_since(store)
            knowledge.stored = [row for row in knowledge.stored if id(row) in kept or (row.generation or 0) > since]
            upkeep.evict(store, {row.id for row in knowledge.stored})
        self._kept = generation, knowledge
        return generation, judgement

    def _write_anew(self, knowledge: Knowledge, change: Change, kept: set[int | None]) -> None:
        """Put the statistics into the change, in a coarser form from now on where the quota has no room for the exact
        one any more."""
        planned = knowledge.form
        for form in (planned, *coarser(planned, knowledge.lifts[0].dimension)):
            knowledge.form = form
            change.snapshot = knowledge.snapshot()
            change.spare = 0 if change.erase else self._spare(change)
            self._make_room(change, kept)
            if self.store.fits(change):
                break
        if knowledge.form != planned:
            foundation = self.foundation or Foundation.from_meta(change.meta["foundation"])
            change.meta["foundation"] = replace(foundation, form=knowledge.form).to_meta()

    def _judge(self, knowledge: Knowledge, change: Change) -> Judgement:
        """The head to serve, put into the change; at a rollback it is the one that served then."""
        if change.undo_after is not None:
            then = next(g for g in self.store.generations() if g.id == change.undo_after)
            change.detail |= {key: then.detail[key] for key in Judgement(None, {}).summary() if key in then.detail}
            return Judgement(None, then.detail.get("held_back", {}))
        judgement = knowledge.judge(self.settings.head)
        change.detail |= judgement.summary()
        change.head = build_head(judgement.head) if judgement.head is not None else None
        return judgement

    def _journals(self, knowledge: Knowledge, change: Change, base: Generation) -> bool:
        """Whether the new samples are journaled; then they are put into the change. As long as they take less than the
        statistics, and leave room to write these once more, with one more class."""
        recent = [row for row in knowledge.stored if row.id is None or (row.generation or 0) > base.id]
        assert base.snapshot is not None
        if not self.store.blobs.intact(base.snapshot) or len({row.generation for row in recent}) > FILES:
            return False
        change.rows = [row for row in recent if row.id is None]
        names = max((len(label) for label in knowledge.labels), default=0)
        lifts = sum(statistics_bytes(lift.dimension, len(knowledge.labels) + 1, knowledge.form, names)
                    for lift in knowledge.lifts)
        head = len(change.head or b"") * 9 // 8
        change.spare = pages(lifts) + pages(head) + self.settings.exemplars + self.store.segment
        allowed = max(REWRITE * self.store.blobs.bytes(base.snapshot), FILES * PAGE)
        return packed_bytes(recent) <= allowed and self.store.fits(change)

    def _spare(self, change: Change) -> int:
        """Room that new statistics and head must leave so that they can be written once more."""
        store, newest = self.store, self.store.newest
        base = self._base(newest.id)
        old = sum(pages(store.blobs.bytes(name)) for name in (newest.head, base.snapshot if base else None) if name)
        return store.segment + max(pages(len(change.head or b"")) + pages(len(change.snapshot or b"")) - old, 0)

    def _make_room(self, change: Change, kept: set[int | None]) -> None:
        """Let go of what only a rollback needs, then of exemplars that will not stay, until the change fits."""
        while not self.store.fits(change):
            if not upkeep.prune(self.store):
                with suppress(BudgetError):
                    upkeep.compact(self.store, kept)
                return

    def _base(self, generation: int) -> Generation | None:
        """The latest generation up to this one whose statistics are kept."""
        kept = [g for g in self.store.alive() if g.snapshot and g.id <= generation]
        return kept[-1] if kept else None
