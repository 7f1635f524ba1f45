"""From knowledge to generations and back: snapshots of the statistics, and the journal of samples since."""
from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from edgecl.errors import BudgetError, EdgeclError, FoundedMeanwhile, StateError
from edgecl.exemplars.stored import packed_bytes
from edgecl.heads.unknown import rows_bytes
from edgecl.learning.bases import all_stored, base_of, from_samples, intact_base
from edgecl.learning.foundation import Foundation
from edgecl.learning.knowledge import Knowledge
from edgecl.learning.plan import KEYS_SHARE, LOG_SHARE, SHORTEST_LOG, head_bytes, statistics_bytes
from edgecl.learning.rewrites import PlannedRewrite, rewrites, wanted_codebook
from edgecl.learning.solved_heads import Figures, SolvedHeads, about
from edgecl.state.compaction import needed_since
from edgecl.state.generations import Append, Rewrite
from edgecl.state.quota import pages
from edgecl.state.reader import JOURNAL
from edgecl.state.space import Present

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgecl.exemplars.buffer import KeptSamples
    from edgecl.exemplars.stored import StoredSample
    from edgecl.learning.judging import Judgement
    from edgecl.settings import Settings
    from edgecl.state.store import Store


class Repository:
    """Reads what was known at a generation, and commits what is known now; keeps the current knowledge in memory."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store, self.settings = store, settings
        self._kept: tuple[int, Knowledge] | None = None
        self._rows: tuple[int, list[StoredSample]] | None = None
        self.heads = SolvedHeads(store, settings.head, lambda: self.known())
        self._moved = "", 0, 0      # epoch of the log, a generation, and bytes of the samples journaled in between

    @property
    def foundation(self) -> Foundation | None:
        """Backbone and form of the statistics; None while the backbone waits for the first samples."""
        if "foundation" not in self.store.meta:
            self.store.refresh()
        values = self.store.meta.get("foundation")
        return None if values is None else Foundation.from_meta(values)

    def known(self, foundation: Foundation | None = None) -> Knowledge:
        """What is known now; `foundation` if the state has none yet. Inside `Store.exclusive` it is handed over: it
        may be changed, and only `commit` brings it back. Raises StateError for a state without a foundation."""
        mine = self.foundation
        if mine is not None and foundation is not None and mine != foundation:
            raise FoundedMeanwhile(f"{self.store.path} was taught by another edgecl process just now", "try again")
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

    def stored(self) -> list[StoredSample]:
        """The samples that are stored now, as in `Knowledge.stored`, without the statistics, which take longer to read;
        [] if the state keeps none. A list that is not to be changed."""
        if self.foundation is None or self.settings.memory == "statistics":
            return []
        with self.store.reading():
            current = self.store.current
            if self._kept is not None and self._kept[0] == current:
                return self._kept[1].stored
            if self._rows is None or self._rows[0] != current:
                self._rows = current, self.store.samples(current)
            return self._rows[1]

    def release(self) -> None:
        """Drop what was read into memory; it is read again when it is needed."""
        self._kept = self._rows = None

    def forget_generations(self) -> None:
        """Drop all that is kept for a generation's number."""
        self._kept = self._rows = None
        self.heads.forget_generations()

    def load(self, generation: int, foundation: Foundation | None = None) -> Knowledge:
        """What was known at a generation: the statistics of its base, and all intact samples since. Raises StateError
        if the statistics are damaged, and neither an older base nor the samples alone give the same."""
        foundation = self.foundation or foundation
        assert foundation is not None
        knowledge = self.nothing(foundation)
        with self.store.reading():
            base = base_of(self.store, generation)
            if base is not None and base.snapshot is not None:
                rows = self.store.samples(generation)
                try:
                    base = intact_base(self.store, base, generation, rows)
                except StateError:
                    if foundation.form.rank is None and all_stored(self.store, generation, rows):
                        return from_samples(knowledge, rows)
                    raise
                assert base.snapshot is not None
                knowledge.load(self.store.blob_path(base.snapshot).read_bytes(),
                               [row for row in rows if (row.generation or 0) > base.id], rows)
        return knowledge

    def nothing(self, foundation: Foundation) -> Knowledge:
        """What is known before anything was taught."""
        buffer = foundation.buffer(self.settings, self.store.codebook)
        return Knowledge(foundation.transforms(self.settings.seed), foundation.form, buffer,
                         foundation.gaussians(self.settings), foundation.kind == "image",
                         0 if self.settings.memory == "statistics" else self.settings.quota // KEYS_SHARE)

    def unchanged(self, knowledge: Knowledge) -> None:
        """Take back, inside `Store.exclusive`, what `known` has handed over and nobody has changed."""
        self._kept = self.store.current, knowledge

    def commit(self, knowledge: Knowledge, change: Append | Rewrite, judgement: Judgement | None = None) -> int:
        """Store what is known now, inside `Store.exclusive`; the generation. judgement: of a `Rewrite`, if it was made
        before.

        An `Append` is journaled while that writes less than the statistics would; its head is solved when it is asked
        for. Else it is made a `Rewrite`, which is judged and solved at once. What is committed leaves room to write
        head and statistics once more, so that a class can always be forgotten. Raises BudgetError past the quota; then
        nothing has changed, and knowledge is read again.
        """
        self._kept = None
        store = self.store
        if isinstance(change, Rewrite) and "foundation" in change.meta and self.foundation is not None:
            change = self._on_the_same(change)
        change = replace(change, detail={**change.detail, "classes": len(knowledge.names.labels)})
        if isinstance(change, Append):
            append = self._append(knowledge, change)
            if append is not None:
                generation, rows = store.commit(append)
                self.heads.without_head(generation, _feature_bytes(append.rows))
                knowledge.number(rows)
                self._kept = generation, knowledge
                return generation
            change = Rewrite(change.action, change.detail)
        generation = self._rewrite(knowledge, change, judgement)
        self._kept = generation, knowledge
        return generation

    def _on_the_same(self, change: Rewrite) -> Rewrite:
        """A change with a foundation for a state that another process has given one meanwhile, without it. Raises
        FoundedMeanwhile unless the two are the same."""
        store, backbone = self.store, hashlib.sha256(change.backbone or b"").hexdigest()
        if Foundation.from_meta(change.meta["foundation"]) != self.foundation or \
                store.newest.backbone != f"{backbone}.onnx":
            raise FoundedMeanwhile(f"{store.path} was taught by another edgecl process just now", "try again")
        meta = {key: value for key, value in change.meta.items() if key != "foundation"}
        return replace(change, backbone=None, meta=meta)

    def _rewrite(self, knowledge: Knowledge, change: Rewrite, judgement: Judgement | None) -> int:
        """Commit a rewrite: its generation."""
        fresh, kept = _feature_bytes(knowledge.fresh), knowledge.kept()
        judgement, summary, head = self.heads.judge(knowledge, kept, change, judgement)
        plan = self._plan(knowledge, replace(change, head=head, detail={**change.detail, **summary}), kept)
        generation, rows = self.store.commit(self._with_way_back(plan.change))
        numbered = dict(zip(map(id, plan.change.rows), rows))
        knowledge.become(plan.form, plan.buffer, [numbered.get(id(row), row) for row in plan.stored])
        if plan.change.snapshot is not None:
            knowledge.load(plan.change.snapshot, [], knowledge.stored)  # as it will be read: float32
            self._settle_exemplars(knowledge, [numbered.get(id(row), row) for row in plan.exemplars])
        self.heads.with_head(generation, Figures(judgement.judged, judgement.accuracy), plan.change.head, fresh)
        return generation

    def _with_way_back(self, change: Rewrite) -> Rewrite:
        """A rewrite with the head of the generation before, if that has none and there is room: which exemplars it had
        can't be told any more when others are kept."""
        newest = self.store.newest
        if newest.head is not None or not newest.detail.get("classes") or change.erase is not None or (
                change.undo_after is not None):
            return change
        with suppress(EdgeclError):
            full = replace(change, way_back=self.heads.solution(newest, self.load(newest.id))[1:])
            return full if self.store.fits(full) else change
        return change

    def _plan(self, knowledge: Knowledge, change: Rewrite, kept: KeptSamples) -> PlannedRewrite:
        """How to commit what is known now as a rewrite; room for it is made. Raises BudgetError if there is none."""
        if change.undo_after is not None:  # statistics and samples are there
            detail = {**change.detail, **about(knowledge.buffer, kept, knowledge)}
            return PlannedRewrite(replace(change, detail=detail), [], knowledge.stored, knowledge.form,
                                  knowledge.buffer)
        return self._make_room(rewrites(self.store, self.settings, self.foundation, knowledge, change))

    def _append(self, knowledge: Knowledge, change: Append) -> Append | None:
        """The new samples, to be appended to the log; None if the change must be a rewrite. What is journaled must stay
        short, and leave room to write the head, and then it and the statistics once more, with one more class."""
        store, base = self.store, base_of(self.store, self.store.current)
        if (knowledge.gaussians is not None or base is None or base.snapshot is None  # what is journaled are samples
                or not store.blobs.intact(base.snapshot) or wanted_codebook(store, self.foundation, knowledge, change)):
            return None
        rows, names, dimension = knowledge.fresh, knowledge.names, knowledge.transforms[0].dimension
        allowed = max(LOG_SHARE * max(store.blobs.bytes(base.snapshot), self.settings.exemplars), SHORTEST_LOG)
        if self._journaled(base.id) + store.log.length + packed_bytes([(rows, store.exact)]) > allowed:
            return None
        classes = len(names.labels)
        statistics = statistics_bytes(dimension, classes + 1, knowledge.form, names.longest)
        held = rows_bytes(knowledge.buffer.limit, knowledge.photos, dimension, classes)
        head = pages(head_bytes(dimension, classes, knowledge.form, names.text, held))
        change = replace(change, rows=rows, spare=pages(statistics) + head + pages(head * 9 // 8))
        return change if store.fits(change) else None

    def _journaled(self, base: int) -> int:
        """Bytes of the samples that have moved out of the log since a generation; they do so in whole files."""
        store = self.store
        if self._moved[:2] != (store.epoch, base):
            self._moved = store.epoch, base, sum(
                store.blobs.bytes(name) for name, _, newest in store.files(JOURNAL) if newest > base)
        return self._moved[2]

    def _make_room(self, plans: Iterator[PlannedRewrite]) -> PlannedRewrite:
        """The first of some rewrites that fits, for which room is made. Raises BudgetError, with the figures of the
        last one, if none does."""
        for plan in plans:
            change = plan.change
            try:
                self.store.make_room(change, self._present if self.foundation and not change.moved else None)
                return plan
            except BudgetError as error:
                refusal = error
        raise refusal

    def _present(self) -> Present:
        """What is served now, and must survive when samples are dropped."""
        newest = self.store.newest
        knowledge = self.load(newest.id)
        kept = knowledge.kept()
        exemplars = knowledge.exemplars(kept=kept)
        if newest.head is not None or not newest.detail.get("classes"):
            return Present(exemplars, None, {})
        return Present(exemplars, *self.heads.solution(newest, knowledge, kept)[1:])

    def _settle_exemplars(self, knowledge: Knowledge, exemplars: list[StoredSample]) -> None:
        """Bring disk and memory to what a snapshot leaves: the exemplars, and what a rollback needs."""
        since = needed_since(self.store)
        self.store.evict(exemplars)
        left = {row.id: row for row in exemplars}
        left |= {row.id: row for row in knowledge.stored if row.id is not None and (row.generation or 0) > since}
        knowledge.stored = [left[number] for number in sorted(left)]  # type: ignore[type-var]


def _feature_bytes(rows: list[StoredSample]) -> int:
    """Bytes of the features that are not committed yet."""
    return sum(row.feature.nbytes for row in rows if row.id is None)
