"""The head of a generation, which is solved when it is asked for, and written down if that is worth its bytes."""
from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from edgecl.errors import EdgeclError, StateError
from edgecl.heads.onnx_head import build_head
from edgecl.learning.judging import KEPT_OF_JUDGEMENT, Judgement

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgecl.exemplars.buffer import Buffer, KeptSamples
    from edgecl.learning.knowledge import Knowledge
    from edgecl.state.generations import Generation, Rewrite
    from edgecl.state.store import Store

FREE_HEADS = 2 ** 18    # bytes of heads that a process may always write; then it writes them ...
HEAD_SHARE = 4          # ... as long as they are a quarter of the features learned


class Solution(NamedTuple):
    """The head of a generation that was not solved when it was committed, and what the history keeps of it."""

    generation: int
    head: bytes
    summary: dict[str, Any]


class Figures(NamedTuple):
    """What a head gets right out of fold, see `Judgement`."""

    judged: dict[str, tuple[int, int]]
    accuracy: dict[str, float]


def figures_of(detail: dict[str, Any]) -> Figures:
    """The figures in a generation's history; none if an edgecl wrote it that held samples back."""
    return Figures({label: (right, of) for label, (right, of) in detail.get("judged", {}).items()},
                   dict(detail.get("accuracy", {})))


class SolvedHeads:
    """Solves heads for a state. known: gives what is known now; kind: "auto" or a kind of head."""

    def __init__(self, store: Store, kind: str, known: Callable[[], Knowledge]) -> None:
        self.store, self.kind, self._known = store, kind, known
        self._solved: Solution | None = None
        self._latest: tuple[int, Figures] | None = None     # a generation, and its figures
        self._changed: int | None = None    # the generation that was committed here without a head
        self._written_bytes, self._learned = 0, 0   # bytes of heads written, of features learned

    def forget_generations(self) -> None:
        """Drop all that is kept for a generation's number."""
        self._solved = self._latest = self._changed = None

    def without_head(self, generation: int, features: int) -> None:
        """A generation was committed without a head. features: bytes of those learned by it."""
        self._learned += features
        self._solved, self._changed = None, generation

    def with_head(self, generation: int, figures: Figures, head: bytes | None, features: int) -> None:
        """A generation was committed with its head, or with an older one that is written already (None)."""
        self._written_bytes, self._learned = self._written_bytes + len(head or b""), self._learned + features
        self._solved, self._latest = None, (generation, figures)

    def solve(self) -> None:
        """Work out the head of the current generation, how accurate it is and which exemplars are kept, if nobody has
        or the file is damaged; it is written down if that is worth its bytes. Raises StateError."""
        store = self.store
        with store.reading():
            newest = store.newest
            if not newest.detail.get("classes") or self._solved_now or self._written(newest):
                return
            self._solved = self.solution(newest, self._known())
            self._latest = newest.id, figures_of(self._solved.summary)
        if self._written_bytes + len(self._solved.head) <= FREE_HEADS + self._learned // HEAD_SHARE:
            with suppress(EdgeclError):
                self._write(0)

    def model(self) -> bytes:
        """The head of the current generation, which was not written or is damaged. Raises StateError."""
        self.solve()
        assert self._solved is not None
        return self._solved.head

    def summary(self) -> dict[str, Any]:
        """What the history keeps of the current generation, worked out if need be: see `Judgement.summary`; "known":
        class -> [samples, exemplars]. Damaged exemplars do not count. If the statistics are damaged, it is what was
        written down last."""
        try:
            return self._summary()
        except StateError:  # an older generation answers
            alive = self.store.alive()
            return next((g.detail for g in reversed(alive) if "judged" in g.detail), alive[-1].detail)

    def _summary(self) -> dict[str, Any]:
        """The same. Raises StateError if statistics are damaged."""
        if "judged" not in self.store.newest.detail:
            self.solve()
        with self.store.reading():
            solved, summary = self._solved_now, self.store.newest.detail
        if solved is not None:
            summary = {**summary, **solved.summary}
        if not summary.get("classes"):
            return summary
        damaged = bool(self.store.damage())
        if damaged or "known" not in summary:   # which an older edgecl has not written
            knowledge = self._known()
            found = about(knowledge.buffer, knowledge.kept(), knowledge)
            summary = {**summary, **found} if damaged else {**found, **summary}
        return summary

    def last_figures(self) -> Figures:
        """The figures of the head that was solved last."""
        alive, current = self.store.alive(), self.store.current
        latest = self._latest   # after the store was looked at, which may drop it
        solved = next((g for g in reversed(alive) if "judged" in g.detail), None)
        if latest is not None and (latest[0] == current or (
                latest[0] < current and (solved is None or solved.id < latest[0]))):
            return latest[1]
        return figures_of(solved.detail) if solved else Figures({}, {})

    def figures_since(self, generation: int) -> Figures:
        """The same by the head that serves now, which is of that generation or a later one; also after `settle`.
        Raises StateError."""
        if self._latest is None or self._latest[0] < generation:
            self._latest = generation, figures_of(self.summary())
        return self._latest[1]

    def settle(self) -> None:
        """Write the head of the current generation, if there is room, so that no other process solves it."""
        if self._changed is None and self._solved is None:
            return
        with suppress(EdgeclError):
            mine = self.store.writable and self._changed == self.store.current
            if mine:
                self.solve()
            self._write(None if mine else 0)
        self._changed = self._solved = None

    def _written(self, g: Generation) -> bool:
        """Whether the head of a generation was written, by an edgecl that judged it as this one does, and is intact."""
        return g.head is not None and "judged" in g.detail and self.store.blobs.intact(g.head)

    @property
    def _solved_now(self) -> Solution | None:
        """The head that was solved, if it is of the current generation."""
        current = self.store.current    # first: if another process has changed the state, what was solved is dropped
        return self._solved if self._solved is not None and self._solved.generation == current else None

    def _write(self, patience: int | None) -> None:
        """Write the head that was solved, if it still is the current one and nobody has. patience: see
        `Store.exclusive`. Raises StateError, BudgetError."""
        store, solved = self.store, self._solved
        if solved is None or not store.writable or store.newest.id != solved.generation or self._written(store.newest):
            return
        with store.exclusive(patience):
            newest = store.newest
            if newest.id == solved.generation and not self._written(newest):
                store.name_head(newest, solved.head, solved.summary)
                if not newest.logged:
                    store.commit_rows()
                self._written_bytes += len(solved.head)

    def solution(self, g: Generation, knowledge: Knowledge, kept: KeptSamples | None = None) -> Solution:
        """The head of a generation that has none. kept: of `knowledge.kept()`, if it is known."""
        kept = kept or knowledge.kept()
        judgement = knowledge.judge(self.kind, kept)
        assert judgement.head is not None
        return Solution(g.id, build_head(judgement.head),
                        {**judgement.summary(), **about(knowledge.buffer, kept, knowledge)})

    def judge(self, knowledge: Knowledge, kept: KeptSamples, change: Rewrite,
              judgement: Judgement | None) -> tuple[Judgement, dict[str, Any], bytes | None]:
        """The judgement, what the history keeps of it, and the head to serve; at a rollback it is the one that served
        then, and None if that is written."""
        if change.undo_after is not None:
            then = next(g for g in self.store.generations() if g.id == change.undo_after)
            if self._written(then) or not knowledge.labels:
                summary = {key: then.detail[key] for key in KEPT_OF_JUDGEMENT if key in then.detail}
                return Judgement(None, *figures_of(then.detail)), summary, None
        judgement = judgement or knowledge.judge(self.kind, kept)
        return judgement, judgement.summary(), None if judgement.head is None else build_head(judgement.head)


def about(buffer: Buffer, kept: KeptSamples, knowledge: Knowledge) -> dict[str, Any]:
    """What the history keeps of the exemplars, and how many samples and exemplars each class has."""
    exemplars, counts = kept.columns.of_class(), knowledge.plain.counts if knowledge.statistics else {}
    return {"exemplars": len(kept.columns.rows),
            "exemplar_bytes": buffer.bytes_of(kept.columns, knowledge.transforms[0].source),
            "known": {label: [counts[label], exemplars.get(label, 0)] for label in knowledge.labels}}
