"""From knowledge to generations and back: snapshots of the statistics, and the journal of samples since."""
from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from edgecl.errors import BudgetError, EdgeclError, StateError
from edgecl.exemplars.codebook import Codebook, wanted
from edgecl.exemplars.stored import packed_bytes
from edgecl.heads.onnx_head import build_head
from edgecl.heads.solvers import coarser
from edgecl.learning.foundation import Foundation
from edgecl.learning.knowledge import Judgement, Knowledge
from edgecl.learning.plan import statistics_bytes
from edgecl.state import compaction
from edgecl.state.quota import PAGE, pages
from edgecl.state.reader import FEATURES

if TYPE_CHECKING:
    from edgecl.exemplars.stored import StoredSample
    from edgecl.settings import Settings
    from edgecl.state.generations import Change, Generation
    from edgecl.state.store import Store

REWRITE = 2        # the log may grow to this many times the statistics and the exemplars before these are written anew
LEAST_LOG = 2 ** 16
FREE = 2 ** 18     # bytes of heads that a process writes without a thought; then it writes them ...
HEAD_SHARE = 4     # ... as long as they are a quarter of the features learned


class Repository:
    """Reads what was known at a generation, and commits what is known now; keeps the current knowledge in memory."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store, self.settings = store, settings
        self._kept: tuple[int, Knowledge] | None = None
        self._head: tuple[int, bytes] | None = None  # of a generation that has none on the disk
        self._heads, self._learned = 0, 0            # bytes of heads written, of features learned

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

    def release(self) -> None:
        """Let go of the knowledge in memory; it is read again when it is asked for."""
        self._kept = None

    def load(self, generation: int, foundation: Foundation | None = None) -> Knowledge:
        """What was known at a generation: its base's statistics, and the samples journaled since."""
        foundation = self.foundation or foundation
        assert foundation is not None
        buffer = foundation.buffer(self.settings, self.store.codebook)
        knowledge = Knowledge(foundation.transforms(self.settings.seed), foundation.form, buffer,
                              foundation.gaussians(self.settings))
        with self.store.reading():
            base = self._base(generation)
            if base is not None and base.snapshot is not None:
                rows = self.store.samples(generation, base.id)
                knowledge.load(self.store.blob_path(base.snapshot).read_bytes(),
                               [row for row in rows if (row.generation or 0) > base.id], rows)
        return knowledge

    def commit(self, knowledge: Knowledge, change: Change, rewrite: bool = False,
               judgement: Judgement | None = None) -> tuple[int, Judgement]:
        """Solve, judge and store what is known now, inside `Store.exclusive`: the generation and the judgement, which
        may have been made before.

        Samples are journaled while that writes less than the statistics would; `rewrite` forces the statistics. What
        is committed leaves room to write the statistics once more, so that a class can always be forgotten. Raises
        BudgetError past the quota.
        """
        self._kept = None  # should the commit fail, memory is dropped and read again
        store = self.store
        if "foundation" in change.meta and self.foundation is not None:
            raise StateError(f"{store.path} was taught by another edgecl process just now", "try again")
        store.meta = {**store.meta, **change.meta}  # until `exclusive` ends: then it is what was committed
        exemplars = knowledge.exemplars(decode=False)
        judgement, head = self._judge(knowledge, exemplars, change, judgement)
        sizes = None if change.moved else self._codebook_wanted(knowledge, len(exemplars))
        change.detail["classes"] = len(knowledge.labels)
        base = self._base(store.current)
        rewrite = rewrite or knowledge.gaussians is not None    # what is journaled are samples
        if change.undo_after is None and not (base and not rewrite and not sizes
                                              and self._journals(knowledge, exemplars, change, base, head)):
            change.head = head
            exemplars = self._write_anew(knowledge, change, sizes)
        change.detail |= {"exemplars": len(exemplars), "exemplar_bytes": knowledge.buffer.bytes_of(exemplars)}
        self._heads += len(change.head or b"")
        generation, rows = store.commit(change)
        numbered = dict(zip(map(id, change.rows), rows))
        knowledge.stored = [numbered.get(id(row), row) for row in knowledge.stored]
        if change.snapshot is not None:
            knowledge.load(change.snapshot, [], knowledge.stored)  # as it will be read: float32
            self._settle_exemplars(knowledge, [numbered.get(id(row), row) for row in exemplars])
        self._kept = generation, knowledge
        self._head = None if change.head is not None or head is None else (generation, head)
        return generation, judgement

    def head(self) -> bytes:
        """The head of the current generation, where it was not written. Raises StateError."""
        with self.store.reading():
            current = self.store.current
            if self._head is None or self._head[0] != current:
                head = self.known().judge(self.settings.head).head
                assert head is not None
                self._head = current, build_head(head)
            return self._head[1]

    def settle(self) -> None:
        """Write the head of the current generation, where that was left for later, as far as the disk allows: so that
        other processes need not solve it again."""
        store = self.store
        with suppress(EdgeclError):
            if self._head is not None and store.writable and self._head[0] == store.current:
                with store.exclusive():
                    if self._head[0] == store.current and store.newest.logged:
                        store.name_head(*self._head)
                self._head = None

    def _settle_exemplars(self, knowledge: Knowledge, exemplars: list[StoredSample]) -> None:
        """Bring disk and memory to what a snapshot leaves: the exemplars, and what going back takes."""
        since = compaction.needed_since(self.store)
        compaction.evict(self.store, exemplars)
        left = {row.id: row for row in exemplars}
        left |= {row.id: row for row in knowledge.stored if row.id is not None and (row.generation or 0) > since}
        knowledge.stored = [left[number] for number in sorted(left)]  # type: ignore[type-var]

    def _codebook_wanted(self, knowledge: Knowledge, kept: int) -> tuple[int, int] | None:
        """Sizes of the codebook that is to be made; None where the buffer holds everything, or needs no other one."""
        foundation, buffer = self.foundation, knowledge.buffer
        if (foundation is None or not knowledge.labels or kept == len(knowledge.stored) or self.store.files(FEATURES)
                or knowledge.gaussians is not None):
            return None
        return wanted(foundation.codec, buffer.limit, foundation.dimension, len(knowledge.labels), buffer.codebook)

    def _make_codebook(self, knowledge: Knowledge, change: Change, sizes: tuple[int, int]) -> None:
        """Make a codebook for the exemplars; before it is written, the files of the buffer make room for it."""
        foundation = self.foundation
        assert foundation is not None
        made = Codebook.make(knowledge.stored, sizes, foundation.power, len(knowledge.labels), self.settings.seed)
        if made is None:
            return
        with suppress(BudgetError):
            self._evict_early(knowledge.exemplars(made[0].length))
            old = self.store.meta.get("codebooks", [])
            change.codebook, change.meta["codebooks"] = made[1], [*old, [made[0].name, made[0].classes]]
            self.store.meta = {**self.store.meta, **change.meta}
            self.store.books[made[0].name] = made[0]
            knowledge.buffer = replace(knowledge.buffer, codebook=made[0])

    def _write_anew(self, knowledge: Knowledge, change: Change, sizes: tuple[int, int] | None) -> list[StoredSample]:
        """Put the statistics into the change, in a coarser form from now on where the quota has no room for the exact
        one any more, and the new ones of the exemplars, which it returns."""
        if sizes is not None:
            self._make_codebook(knowledge, change, sizes)
        kept = knowledge.exemplars()
        change.rows = [row for row in kept if row.id is None]
        planned = knowledge.form
        # a round is judged already
        others = [] if change.moved else coarser(planned, knowledge.transforms[0].dimension)
        for form in (planned, *others):
            knowledge.form = form
            change.snapshot = knowledge.snapshot()
            change.spare = 0 if change.erase else self._spare(change)
            self._make_room(change, kept)
            if self.store.fits(change):
                break
        if knowledge.form != planned:
            foundation = self.foundation or Foundation.from_meta(change.meta["foundation"])
            change.meta["foundation"] = replace(foundation, form=knowledge.form).to_meta()
        return kept

    def _judge(self, knowledge: Knowledge, exemplars: list[StoredSample], change: Change,
               judgement: Judgement | None) -> tuple[Judgement, bytes | None]:
        """The judgement, put into the change, and the head to serve; at a rollback it is the one that served then."""
        if change.undo_after is not None:
            then = next(g for g in self.store.generations() if g.id == change.undo_after)
            if then.head is not None or not knowledge.labels:
                change.detail |= {key: then.detail[key] for key in Judgement(None, {}).summary() if key in then.detail}
                return Judgement(None, then.detail.get("held_back", {})), None
        judgement = judgement or knowledge.judge(self.settings.head, knowledge.judges(exemplars))
        change.detail |= judgement.summary()
        head = build_head(judgement.head) if judgement.head is not None else None
        if change.undo_after is not None:
            change.head = head
        return judgement, head

    def _journals(self, knowledge: Knowledge, exemplars: list[StoredSample], change: Change, base: Generation,
                  head: bytes | None) -> bool:
        """Whether the new samples are appended to the log; then they, and the head where that is worth its bytes, are
        put into the change. As long as the log is short, and leaves room to write the statistics once more, with one
        more class. Only exemplars keep their input."""
        kept = {id(row) for row in exemplars}
        knowledge.stored = [row._replace(input=b"") if row.id is None and row.input and id(row) not in kept else row
                            for row in knowledge.stored]
        rows = [row for row in knowledge.stored if row.id is None]
        assert base.snapshot is not None
        if not self.store.blobs.intact(base.snapshot):
            return False
        self._learned += sum(row.feature.nbytes for row in rows)
        size = len(head or b"")
        written = self._heads + size <= FREE + self._learned // HEAD_SHARE
        change.rows, change.head = rows, head if written else None
        names = max((len(label) for label in knowledge.labels), default=0)
        transforms = sum(statistics_bytes(transform.dimension, len(knowledge.labels) + 1, knowledge.form, names)
                    for transform in knowledge.transforms)
        change.spare = pages(transforms) + pages(size * 9 // 8) + self.store.transaction_bytes(PAGE) + \
            self.store.packing_bytes()
        allowed = max(REWRITE * max(self.store.blobs.bytes(base.snapshot), self.settings.exemplars), LEAST_LOG)
        length = self.store.log.length + packed_bytes([(rows, self.store.exact)])
        if length <= allowed and self.store.fits(change):
            return True
        change.rows, change.head = [], None
        return False

    def _spare(self, change: Change) -> int:
        """Room that new statistics and head must leave so that they can be written once more."""
        store, newest = self.store, self.store.newest
        base = self._base(newest.id)
        old = sum(pages(store.blobs.bytes(name)) for name in (newest.head, base.snapshot if base else None) if name)
        return store.packing_bytes() + max(pages(len(change.head or b"")) + pages(len(change.snapshot or b"")) - old, 0)

    def _make_room(self, change: Change, kept: list[StoredSample]) -> None:
        """Let go of what only a rollback needs, then of exemplars that will not stay, until the change fits. For a
        round only where that will be enough: one that is refused leaves no trace."""
        if change.moved and not self.store.fits(change, compaction.spendable(self.store)):
            return
        while not self.store.fits(change):
            if not compaction.prune(self.store):
                with suppress(BudgetError):
                    if not change.moved:
                        self._evict_early(kept)
                return

    def _evict_early(self, kept: list[StoredSample]) -> None:
        """Delete exemplars before a commit that may yet fail. What serves now is written first: it could not be solved
        again. Raises BudgetError."""
        store, newest = self.store, self.store.newest
        if newest.head is None and newest.detail.get("classes"):
            if self._head is None or self._head[0] != newest.id:
                head = self.load(newest.id).judge(self.settings.head).head
                assert head is not None
                self._head = newest.id, build_head(head)
            store.name_head(*self._head)
        store.set_meta("evicted", newest.id)
        compaction.compact(store, [row for row in kept if row.id is not None])

    def _base(self, generation: int) -> Generation | None:
        """The latest generation up to this one whose statistics are kept."""
        kept = [g for g in self.store.alive() if g.snapshot and g.id <= generation]
        return kept[-1] if kept else None
