"""From knowledge to generations and back: snapshots of the statistics, and the journal of samples since."""
from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from edgecl.errors import BudgetError, EdgeclError, StateError
from edgecl.exemplars.codebook import Codebook, codebook_sizes
from edgecl.exemplars.stored import packed_bytes, unpack
from edgecl.heads.onnx_head import build_head
from edgecl.heads.solvers import coarser
from edgecl.learning.foundation import Foundation
from edgecl.learning.knowledge import Judgement, Knowledge
from edgecl.learning.plan import LOG_SHARE, SHORTEST_LOG, statistics_bytes
from edgecl.state.compaction import needed_since
from edgecl.state.generations import Append, Rewrite
from edgecl.state.quota import pages
from edgecl.state.reader import FEATURES, JOURNAL
from edgecl.state.space import Present

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgecl.exemplars.buffer import Buffer
    from edgecl.exemplars.stored import StoredSample
    from edgecl.settings import Settings
    from edgecl.state.generations import Generation
    from edgecl.state.store import Store
    from edgecl.statistics.form import Form

FREE_HEADS = 2 ** 18    # bytes of heads that a process may always write; then it writes them ...
HEAD_SHARE = 4          # ... as long as they are a quarter of the features learned


class PlannedChange(NamedTuple):
    """A change that is ready to commit, and what the knowledge becomes by it."""

    change: Append | Rewrite
    exemplars: list[StoredSample]
    stored: list[StoredSample]
    form: Form
    buffer: Buffer


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
        """What is known now; `foundation` if the state has none yet. Inside `Store.exclusive` it is handed over: it
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
        """Drop the knowledge in memory; it is read again when it is needed."""
        self._kept = None

    def load(self, generation: int, foundation: Foundation | None = None) -> Knowledge:
        """What was known at a generation: the statistics of its base, and all intact samples since. Raises StateError
        if the statistics are damaged, and an older base does not give the same."""
        foundation = self.foundation or foundation
        assert foundation is not None
        buffer = foundation.buffer(self.settings, self.store.codebook)
        knowledge = Knowledge(foundation.transforms(self.settings.seed), foundation.form, buffer,
                              foundation.gaussians(self.settings))
        with self.store.reading():
            base = self._base(generation)
            if base is not None and base.snapshot is not None:
                rows = self.store.samples(generation)
                base = self._intact(base, generation, rows)
                assert base.snapshot is not None
                knowledge.load(self.store.blob_path(base.snapshot).read_bytes(),
                               [row for row in rows if (row.generation or 0) > base.id], rows)
        return knowledge

    def commit(self, knowledge: Knowledge, change: Append | Rewrite,
               judgement: Judgement | None = None) -> tuple[int, Judgement]:
        """Solve, judge and store what is known now, inside `Store.exclusive`: the generation and the judgement, which
        may have been made before.

        An `Append` is journaled while that writes less than the statistics would; else it is made a `Rewrite`. What is
        committed leaves room to write the statistics once more, so that a class can always be forgotten. Raises
        BudgetError past the quota; then nothing has changed, and knowledge is read again.
        """
        self._kept = None
        store = self.store
        if isinstance(change, Rewrite) and "foundation" in change.meta and self.foundation is not None:
            raise StateError(f"{store.path} was taught by another edgecl process just now", "try again")
        exemplars = knowledge.exemplars(decode=False)
        judgement, summary, head = self._judge(knowledge, exemplars, change, judgement)
        change = replace(change, detail={**change.detail, **summary, "classes": len(knowledge.labels)})
        fresh = _feature_bytes(knowledge.stored) if isinstance(change, Append) else 0
        plan = self._plan(knowledge, change, exemplars, head)
        generation, rows = store.commit(plan.change)
        numbered = dict(zip(map(id, plan.change.rows), rows))
        knowledge.become(plan.form, plan.buffer, [numbered.get(id(row), row) for row in plan.stored])
        if isinstance(plan.change, Rewrite) and plan.change.snapshot is not None:
            knowledge.load(plan.change.snapshot, [], knowledge.stored)  # as it will be read: float32
            self._settle_exemplars(knowledge, [numbered.get(id(row), row) for row in plan.exemplars])
        self._heads, self._learned = self._heads + len(plan.change.head or b""), self._learned + fresh
        self._kept = generation, knowledge
        self._head = None if plan.change.head is not None or head is None else (generation, head)
        return generation, judgement

    def head(self) -> bytes:
        """The head of the current generation, if it was not written. Raises StateError."""
        with self.store.reading():
            current = self.store.current
            if self._head is None or self._head[0] != current:
                head = self.known().judge(self.settings.head).head
                assert head is not None
                self._head = current, build_head(head)
            return self._head[1]

    def settle(self) -> None:
        """Write the deferred head of the current generation, if there is room, so that no other process solves it."""
        store = self.store
        with suppress(EdgeclError):
            if self._head is not None and store.writable and self._head[0] == store.current:
                with store.exclusive():
                    if self._head[0] == store.current and store.newest.logged:
                        store.name_head(*self._head)
                self._head = None

    def _judge(self, knowledge: Knowledge, exemplars: list[StoredSample], change: Append | Rewrite,
               judgement: Judgement | None) -> tuple[Judgement, dict[str, Any], bytes | None]:
        """The judgement, what the history keeps of it, and the head to serve; at a rollback it is the one that served
        then, and None if that is written."""
        if isinstance(change, Rewrite) and change.undo_after is not None:
            then = next(g for g in self.store.generations() if g.id == change.undo_after)
            if then.head is not None or not knowledge.labels:
                summary = {key: then.detail[key] for key in Judgement(None, {}).summary() if key in then.detail}
                return Judgement(None, then.detail.get("held_back", {})), summary, None
        judgement = judgement or knowledge.judge(self.settings.head, knowledge.judges(exemplars))
        return judgement, judgement.summary(), None if judgement.head is None else build_head(judgement.head)

    def _codebook_sizes(self, knowledge: Knowledge, change: Append | Rewrite, kept: int) -> tuple[int, int] | None:
        """Sizes of the codebook that is to be made; None if the buffer holds everything, or needs no other one."""
        foundation, buffer = self.foundation, knowledge.buffer
        if (foundation is None or not knowledge.labels or kept == len(knowledge.stored) or self.store.files(FEATURES)
                or knowledge.gaussians is not None or (isinstance(change, Rewrite) and change.moved)):
            return None
        return codebook_sizes(foundation.codec, buffer.limit, foundation.dimension, len(knowledge.labels),
                              buffer.codebook)

    def _plan(self, knowledge: Knowledge, change: Append | Rewrite, exemplars: list[StoredSample],
              head: bytes | None) -> PlannedChange:
        """How to commit what is known now; room for it is made. Raises BudgetError if there is none."""
        if isinstance(change, Rewrite) and change.undo_after is not None:  # statistics and samples are there
            detail = {**change.detail, **_about(knowledge.buffer, exemplars)}
            return PlannedChange(replace(change, head=head, detail=detail), exemplars, knowledge.stored, knowledge.form,
                                 knowledge.buffer)
        sizes = self._codebook_sizes(knowledge, change, len(exemplars))
        if isinstance(change, Append):
            plan = None if sizes else self._append(knowledge, change, exemplars, head)
            if plan is not None:
                return plan
            change = Rewrite(change.action, change.detail)
        return self._make_room(self._rewrites(knowledge, replace(change, head=head), sizes))

    def _append(self, knowledge: Knowledge, change: Append, exemplars: list[StoredSample],
                head: bytes | None) -> PlannedChange | None:
        """The new samples appended to the log, with the head if that is worth its bytes; None if the change must be a
        rewrite. The log must stay short, and leave room to write the statistics once more, with one more class. Only
        exemplars keep their input."""
        store, base = self.store, self._base(self.store.current)
        if (knowledge.gaussians is not None or base is None or base.snapshot is None  # what is journaled are samples
                or not store.blobs.intact(base.snapshot)):
            return None
        kept = {id(row) for row in exemplars}
        stored = [row._replace(input=b"") if row.id is None and row.input and id(row) not in kept else row
                  for row in knowledge.stored]
        rows = [row for row in stored if row.id is None]
        size = len(head or b"")
        written = self._heads + size <= FREE_HEADS + (self._learned + _feature_bytes(stored)) // HEAD_SHARE
        longest = max((len(label) for label in knowledge.labels), default=0)
        statistics = statistics_bytes(knowledge.transforms[0].dimension, len(knowledge.labels) + 1, knowledge.form,
                                      longest)
        allowed = max(LOG_SHARE * max(store.blobs.bytes(base.snapshot), self.settings.exemplars), SHORTEST_LOG)
        if store.log.length + packed_bytes([(rows, store.exact)]) > allowed:
            return None
        change = replace(change, rows=rows, head=head if written else None,
                         spare=pages(statistics) + pages(size * 9 // 8),
                         detail={**change.detail, **_about(knowledge.buffer, exemplars)})
        plan = PlannedChange(change, exemplars, stored, knowledge.form, knowledge.buffer)
        return plan if store.fits(change) else None

    def _make_room(self, plans: Iterator[PlannedChange]) -> PlannedChange:
        """The first of some rewrites that fits, for which room is made. Raises BudgetError, with the figures of the
        last one, if none does."""
        for plan in plans:
            change = plan.change
            try:
                assert isinstance(change, Rewrite)
                self.store.make_room(change, self._present if self.foundation and not change.moved else None)
                return plan
            except BudgetError as error:
                refusal = error
        raise refusal

    def _rewrites(self, knowledge: Knowledge, change: Rewrite,
                  sizes: tuple[int, int] | None) -> Iterator[PlannedChange]:
        """The change as a rewrite of statistics and exemplars, the best first: with the codebook that is wanted or
        without, and the statistics in coarser and coarser forms. A round is judged already, in the one form it has."""
        foundation = self.foundation or Foundation.from_meta(change.meta["foundation"])
        made = sizes and Codebook.make(knowledge.stored, sizes, foundation.power, len(knowledge.labels),
                                       self.settings.seed)
        choices = [(replace(knowledge.buffer, codebook=made[0]), (made[1], made[0].classes))] if made else []
        for buffer, codebook in [*choices, (knowledge.buffer, None)]:
            exemplars = knowledge.exemplars(buffer)
            detail = {**change.detail, **_about(buffer, exemplars)}
            others = [] if change.moved else coarser(knowledge.form, knowledge.transforms[0].dimension)
            for form in (knowledge.form, *others):
                meta = change.meta if form == knowledge.form else {
                    **change.meta, "foundation": replace(foundation, form=form).to_meta()}
                snapshot = knowledge.snapshot(form)
                yield PlannedChange(replace(change, detail=detail, meta=meta, codebook=codebook, snapshot=snapshot,
                                   rows=[row for row in exemplars if row.id is None],
                                   spare=None if change.erase else self._spare(change.head, snapshot)),
                           exemplars, knowledge.stored, form, buffer)

    def _spare(self, head: bytes | None, snapshot: bytes) -> int:
        """Room that new statistics and head must leave so that they can be written once more."""
        store, newest = self.store, self.store.newest
        base = self._base(newest.id)
        old = sum(pages(store.blobs.bytes(name)) for name in (newest.head, base.snapshot if base else None) if name)
        return max(pages(len(head or b"")) + pages(len(snapshot)) - old, 0)

    def _present(self) -> Present:
        """What is served now, and must survive when samples are dropped."""
        newest = self.store.newest
        knowledge = self.load(newest.id)
        head = knowledge.judge(self.settings.head).head if newest.head is None else None
        return Present(knowledge.exemplars(), build_head(head) if head is not None else None)

    def _settle_exemplars(self, knowledge: Knowledge, exemplars: list[StoredSample]) -> None:
        """Bring disk and memory to what a snapshot leaves: the exemplars, and what a rollback needs."""
        since = needed_since(self.store)
        self.store.evict(exemplars)
        left = {row.id: row for row in exemplars}
        left |= {row.id: row for row in knowledge.stored if row.id is not None and (row.generation or 0) > since}
        knowledge.stored = [left[number] for number in sorted(left)]  # type: ignore[type-var]

    def _intact(self, base: Generation, generation: int, rows: list[StoredSample]) -> Generation:
        """The base of a generation or, if its statistics are damaged, an older one since which every sample is among
        `rows` as it was learned. Raises StateError if there is none."""
        store = self.store
        assert base.snapshot is not None
        try:
            store.blob_path(base.snapshot)
            return base
        except StateError as error:
            damage = error
        for older in reversed([g for g in store.alive() if g.snapshot and g.id < base.id]):
            if older.snapshot and store.blobs.intact(older.snapshot):
                if self._complete(older.id, generation, rows):
                    return older
                break
        raise StateError(f"{damage.what}, and the statistics can't be computed again exactly",
                         "`edgecl check --repair` computes them from all that is stored, `edgecl rollback N` goes back")

    def _complete(self, since: int, until: int, rows: list[StoredSample]) -> bool:
        """Whether `rows` hold all that has changed the statistics in the generations after `since`, up to `until`."""
        store, stored = self.store, Counter(row.generation for row in rows if not row.coded)
        taught = {record.about["id"]: record.about["detail"].get("samples") for name, *_ in store.files(JOURNAL)
                  if (store.blobs.folder / name).exists()
                  for _, _, record in unpack((store.blobs.folder / name).read_bytes(), store.codec)
                  if record.about.get("action") == "learn"}
        for g in store.generations():   # which names fewer of the old ones
            taught[g.id] = (0 if g.undone or g.action == "rollback" else
                            g.detail.get("samples") if g.action == "learn" else None)
        return all(taught.get(number) == stored[number] for number in range(since + 1, until + 1))

    def _base(self, generation: int) -> Generation | None:
        """The latest generation up to this one whose statistics are kept."""
        kept = [g for g in self.store.alive() if g.snapshot and g.id <= generation]
        return kept[-1] if kept else None


def _feature_bytes(rows: list[StoredSample]) -> int:
    """Bytes of the features that are not committed yet."""
    return sum(row.feature.nbytes for row in rows if row.id is None)


def _about(buffer: Buffer, exemplars: list[StoredSample]) -> dict[str, int]:
    """What the history keeps of the exemplars."""
    return {"exemplars": len(exemplars), "exemplar_bytes": buffer.bytes_of(exemplars)}
