"""The fast learner: learn, predict, forget, roll back, merge and export on one state directory."""
from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from edgecl.backbones.session import Backbone
from edgecl.errors import BadInput, ChangedMeanwhile, FoundedMeanwhile, StateError
from edgecl.exemplars.origin import origins_of
from edgecl.exemplars.pseudo_samples import MIN_SAMPLES
from edgecl.heads.solvers import KINDS
from edgecl.learning.backbone_file import backbone_bytes, backbone_file
from edgecl.learning.forgetting import REMAINS
from edgecl.learning.foundation import Foundation, check_codec, create_foundation, waits_for_samples
from edgecl.learning.judging import ON
from edgecl.learning.merge import merge_into
from edgecl.learning.repository import Repository
from edgecl.learning.serving import Serving
from edgecl.learning.solved_heads import Figures, figures_of
from edgecl.learning.status import status_of
from edgecl.learning.teaching import taught
from edgecl.results import BeforeAndAfter, ClassSummary, Evaluation, Learned, Prediction, Status
from edgecl.rounds.candidate import clear_killed, rerun
from edgecl.samples import NOTHING, Sample, SampleBatch, batches_of, check_class_name, check_new_name, kind_of, prepare
from edgecl.settings import Settings, counted
from edgecl.state.generations import Append, Generation, Rewrite
from edgecl.state.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgecl.results import RoundResult
    from edgecl.rounds.run import RoundRequest
    from edgecl.rounds.worker import Watch
    from edgecl.samples import Samples

Progress = Callable[[int], None]
T = TypeVar("T")
ATTEMPTS = 20   # to make a change while other processes change the state


class Learner:
    """A learner on a state directory. Not safe for use by several threads at once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.settings = store.settings
        self.repository = Repository(store, self.settings)
        self._session: tuple[str, Backbone] | None = None
        self._serving: Serving | None = None
        store.started_over = self._forget

    # opening ------------------------------------------------------------------------------------

    @classmethod
    def create(cls, state: Path | str, settings: Settings | None = None, calibration: np.ndarray | None = None,
               weights: Path | None = None) -> Learner:
        """A new state. calibration: unlabelled samples [n, ...] for scales, kernel biases and int8 ranges;
        weights: a checkpoint for the backbone. Raises StateError, BudgetError, BackboneError, BadInput."""
        settings = settings or Settings()
        if settings.head not in ("auto", *KINDS):
            raise BadInput(f"no head is called {settings.head!r}", f"choose auto, {', '.join(KINDS)}")
        check_codec(settings)
        meta: dict[str, Any] = {"settings": asdict(settings), "id": uuid.uuid4().hex}
        model: bytes | None = None
        if waits_for_samples(settings, calibration):
            if weights is not None:
                raise BadInput(f"--weights for the backbone {settings.backbone}", "name an image backbone as well")
        else:
            foundation, model = create_foundation(settings, None, calibration, weights)
            meta["foundation"] = foundation.to_meta()
        first = Rewrite("init", {"backbone": settings.backbone}, backbone=model)
        return cls(Store.create(Path(state), meta, first))

    @classmethod
    def open(cls, state: Path | str) -> Learner:
        """The learner on an existing state. Raises StateError."""
        return cls(Store(Path(state)))

    def close(self) -> None:
        """Release the state; the head that was left for later is solved and written first."""
        self.repository.heads.settle()
        self.store.close()

    @property
    def foundation(self) -> Foundation | None:
        """Backbone and form of the statistics; None while the backbone waits for the first samples."""
        return self.repository.foundation

    # learning -----------------------------------------------------------------------------------

    def learn(self, samples: Samples, label: str, groups: Sequence[str] | None = None,
              progress: Progress | None = None, distinct: bool = False) -> Learned:
        """Learn samples of one class, new or known, in one generation.

        samples: uint8 images [n, h, w, 3], float32 windows [n, time, channels], vectors [n, d], or an iterable of
        Sample, whose places are stored with them; groups: the name of the session (a person, a day, a drive) that each
        is part of, which is the same session in other classes and later; progress: called with the number of samples
        done; distinct: the class is another one than a known one that is called nearly the same, such as Mug and mug.
        Some that show nothing are left out, see `edgecl.learning.teaching`. Raises BadInput, BudgetError,
        StateError; then nothing has changed.
        """
        return self._learn(batches_of(samples, groups), check_class_name(label), progress, distinct)

    def _learn(self, batches: Iterator[SampleBatch], label: str, progress: Progress | None = None,
               distinct: bool = False) -> Learned:
        """See `learn`."""
        started = time.perf_counter()
        foundation, model, batches, again = self._founded(batches, label)
        backbone = Backbone(model, self.settings.threads) if model else self._backbone()
        used, tuned = self._session[0] if self._session and not model else None, self.store.tuned()
        codec = foundation.buffer(self.settings).codec
        given = taught(batches, label, backbone, foundation, codec, progress)
        count = len(given.keys)
        if self.settings.memory == "statistics" and count < MIN_SAMPLES:
            raise BadInput(f"{counted(count, 'sample')} of {label!r}: the statistics of so few are the "
                           "samples themselves, and this state keeps none", f"teach {MIN_SAMPLES} or more at once")
        detail = {"class": label, "samples": count}
        meta: dict[str, Any] = {} if model is None else {"foundation": foundation.to_meta()}
        if given.blank and label != NOTHING and not self.store.meta.get("blank"):
            meta["blank"] = True
        change = Rewrite("learn", detail, backbone=model, meta=meta) if meta else Append("learn", detail)
        taught_at = int(time.time())

        def commit() -> tuple[int, list[str], Figures, bool]:
            now, learned, origins = self.store.newest.backbone, given.features, None
            if used is not None and now is not None and used != now:  # a round, or a way back across one, was faster
                if codec.input is None and tuned is not None:
                    raise StateError(f"the backbone of {self.store.path} has just changed", "try again")
                learned = rerun(backbone_bytes(self.store, foundation, now), learned, given.inputs, codec.input)
            if self.settings.memory != "statistics":
                origins = origins_of(given.places, taught_at)
            before = self.repository.heads.last_figures()
            knowledge = self.repository.known(foundation)
            new = label not in knowledge.labels
            if new and not distinct:
                check_new_name(label, knowledge.labels)
            knowledge.add(label, given.keys, learned, given.inputs, origins)
            return self.repository.commit(knowledge, change), knowledge.labels, before, new

        try:
            generation, labels, before, new = self._change(commit)
        except FoundedMeanwhile:
            if not again:
                raise
            return self._learn(iter(again), label, distinct=distinct)

        def figures(name: str) -> Callable[[], BeforeAndAfter]:
            def worked_out() -> BeforeAndAfter:
                was, now = (getattr(each, name) for each in (before, self.repository.heads.figures_since(generation)))
                return {each: (was.get(each), now.get(each)) for each in labels}
            return worked_out

        return Learned(label, count, 1000 * (time.perf_counter() - started) / given.given, generation,
                       self.store.used_bytes(), figures("accuracy"), ON[self.settings.memory != "statistics"],
                       given.left_out, given.blank, new, figures("judged"))

    def _change(self, work: Callable[[], T]) -> T:
        """Do a change that holds the state for writing, and do it again if another process came in between. Raises
        StateError, BudgetError; then nothing has changed."""
        for _ in range(ATTEMPTS - 1):
            with suppress(ChangedMeanwhile), self.store.exclusive():
                return work()
        with self.store.exclusive():
            return work()

    def _founded(self, batches: Iterator[SampleBatch], label: str
                 ) -> tuple[Foundation, bytes | None, Iterator[SampleBatch], list[SampleBatch]]:
        """The foundation, a new backbone's bytes where this is the first thing taught, and all batches; these again as
        a list if they are held in memory anyway, else []."""
        first = next(batches, None)
        if first is None:
            raise BadInput(f"there is no sample of {label!r}", "give at least one photo, recording or array")
        batches = chain([first], batches)
        if self.foundation is not None:
            return self.foundation, None, batches, []
        probe, everything = first.data, list[SampleBatch]()
        if kind_of(probe) != "image":  # scales and biases come from all of it
            everything = list(batches)
            probe, batches = np.concatenate([batch.data for batch in everything]), iter(everything)
        return *create_foundation(self.settings, probe), batches, everything

    def forget(self, label: str) -> dict[str, Any]:
        """Forget a class and every older generation; {"class", "generation", "exact", "discarded"}. exact: False also
        if a backbone may have been tuned on it; discarded: damaged files that were set aside and are deleted, since
        they may hold the class; "remains": what is left of it, if that is something else than its part of the shared
        covariance. Raises BadInput, StateError."""
        def commit() -> dict[str, Any]:
            knowledge = self.repository.known()
            if label not in knowledge.labels:
                raise BadInput(f"no class is called {label!r}", _known_classes(knowledge.labels))
            shown = self.store.tuned() is not None and knowledge.shown_to_backbone(label)
            exact = knowledge.forget(label) and not shown
            remains = {} if knowledge.remains in ("", REMAINS) else {"remains": knowledge.remains}
            change = Rewrite("forget", {"class": label, "exact": exact}, erase=True)
            discarded = len(self.store.set_aside.files())
            generation = self.repository.commit(knowledge, change)
            return {"class": label, "generation": generation, "exact": exact, "discarded": discarded, **remains}

        done = self._change(commit)
        clear_killed(self.store.path)
        return done

    def rollback(self, generation: int | None = None) -> int:
        """Go back to what was known at a generation (default: the one before); the new generation's id.

        Raises StateError where that can't be rebuilt exactly any more.
        """
        def commit() -> int:
            newest, alive = self.store.newest, [g.id for g in self.store.generations() if not g.undone]
            possible = sorted(self.store.restorable() & set(alive[:-1]))
            here = newest.detail.get("to", newest.id)  # after a rollback, the step before where that led
            wanted = max((i for i in alive if i < here), default=None) if generation is None else generation
            if wanted not in possible:
                shown = ", ".join(map(str, possible)) or "none"
                what = "there is no generation before this one" if wanted is None else \
                    f"generation {wanted} is the current one" if wanted == newest.id else \
                    f"generation {wanted} can't be restored"
                raise StateError(what, f"restorable are: {shown} (see `edgecl history`)")
            knowledge = self.repository.load(wanted)
            return self.repository.commit(knowledge, Rewrite("rollback", {"to": wanted}, undo_after=wanted))

        return self._change(commit)

    def merge(self, others: Iterable[Path | str], nothing: bool = False) -> int:
        """Add all that other states know, exactly; the new generation's id. Their class `nothing` is left out without
        `nothing`, since what is nothing there may be something here: its samples are counted in the generation's
        detail, as "left_out". Raises StateError if one has another backbone or form of statistics, was merged here
        before, or has nothing to merge."""
        with ExitStack() as stack:
            opened = [stack.enter_context(closing(Learner.open(path))).repository for path in others]
            if not opened:
                raise BadInput("no state to merge was named", "give at least one STATE folder")
            return self._change(lambda: merge_into(self.repository, opened, nothing))

    def round(self, request: RoundRequest | None = None, watch: Watch | None = None) -> RoundResult:
        """Tune the backbone in a worker process, and take it over if the gate finds it better; see
        `edgecl.rounds.run`."""
        from edgecl.rounds.run import RoundRequest, run_round

        return run_round(self.repository, request or RoundRequest(), watch)

    def release(self) -> None:
        """Let go of what is only kept in memory so that the next `learn` need not read it: 13 MB for Lite0."""
        self.repository.release()

    def features(self, samples: Samples) -> np.ndarray:
        """The backbone's features float32 [n, d]; nothing is learned. Raises StateError without a backbone."""
        foundation = self.foundation
        if foundation is None:
            raise StateError(f"{self.store.path} has no backbone yet", "teach it something first")
        backbone = self._backbone()
        return np.concatenate([backbone.features(prepare(batch.data, foundation.kind, foundation.input_shape))
                               for batch in batches_of(samples)])

    # answering ----------------------------------------------------------------------------------

    def predict(self, samples: Samples) -> list[Prediction]:
        """One prediction per sample, in order. Raises BadInput, StateError."""
        serving = self.serving()
        return [answer for batch in batches_of(samples) for answer in serving.predict(batch.data, batch.sources)[0]]

    def evaluate(self, samples: Iterable[Sample]) -> Evaluation:
        """Accuracy on labelled samples; the right answer for one of `nothing` is unknown. Raises BadInput if a sample
        has no label or none is of a known class."""
        serving = self.serving()
        known = set(serving.head.labels)
        correct: dict[str, list[bool]] = {}
        unknown: dict[str, list[bool]] = {}
        for batch in batches_of(samples):
            for answer, label in zip(serving.predict(batch.data)[0], batch.labels):
                if label is None:
                    raise BadInput("a sample to evaluate has no label", "give a folder with one subfolder per class")
                correct.setdefault(label, []).append(answer.right(label))
                unknown.setdefault(label, []).append(answer.unknown is True)
        taught = {label: values for label, values in sorted(correct.items()) if label in known}
        if not taught:
            raise BadInput("none of the samples to evaluate is of a known class", _known_classes(sorted(known)))
        n, named = sum(map(len, taught.values())), [unknown[label] for label in taught if label != NOTHING]
        return Evaluation(sum(map(sum, taught.values())) / n, {k: sum(v) / len(v) for k, v in taught.items()}, n,
                          sum(map(sum, named)) / max(sum(map(len, named)), 1),
                          {k: sum(v) / len(v) for k, v in sorted(unknown.items()) if k not in known})

    def export(self, path: Path | str, calibration: np.ndarray | None = None) -> dict[str, Any]:
        """Write backbone and head as one ONNX file, checked against the two sessions; see `edgecl.learning.export`.
        Raises BadInput for a path inside the state, or of something else than a file."""
        from edgecl.learning.export import check_target, export

        check_target(Path(path), self.store.path)
        serving = self.serving()
        foundation = self.foundation
        assert foundation is not None
        backbone = backbone_bytes(self.store, foundation, serving.backbone_name)
        return export(serving, backbone, Path(path), calibration)

    # looking ------------------------------------------------------------------------------------

    @property
    def labels(self) -> list[str]:
        """Names of the known classes in alphabetical order; unlike `classes`, this solves no head."""
        return [*self.repository.known().labels] if self.foundation is not None else []

    def classes(self) -> list[ClassSummary]:
        """The known classes in alphabetical order."""
        if self.foundation is None:
            return []
        summary = self.repository.heads.summary()
        figures = figures_of(summary)
        return [ClassSummary(label, samples, exemplars, figures.accuracy.get(label), *figures.judged.get(label, (0, 0)))
                for label, (samples, exemplars) in sorted(summary.get("known", {}).items())]

    def history(self) -> list[Generation]:
        """Every generation, the oldest first; `Store.restorable` tells which can be gone back to."""
        return self.store.generations()

    def status(self) -> Status:
        """Where the state stands; reads no statistics, except to solve a head that nobody has asked for yet, or to
        count exemplars if some are damaged."""
        return status_of(self.repository)

    @property
    def damage(self) -> list[str]:
        """What is damaged, and whether an older generation answers, one line each; empty if all is well."""
        try:
            return self.serving().warnings if self.store.newest.detail.get("classes") else self.store.damage()
        except StateError as error:     # no generation can answer
            return [*self.store.damage(), error.what]

    # within -------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Drop what is known of generations by their numbers, see `OpenState.started_over`."""
        self.repository.forget_generations()
        self._serving = None

    def _backbone(self, name: str | None = None) -> Backbone:
        """The session of a backbone file (default: the current one), kept while only heads change."""
        name = name or self.store.newest.backbone
        assert name is not None
        if self._session is None or self._session[0] != name:
            foundation = self.foundation
            assert foundation is not None
            self._session = name, Backbone(backbone_file(self.store, foundation, name), self.settings.threads)
        return self._session[1]

    def serving(self) -> Serving:
        """The sessions that answer now, which other threads may use too. Raises StateError where nothing was taught."""
        current = self.store.current    # first: if another database lies there now, what was kept is dropped
        if self._serving is None or self._serving.current != current:
            self._serving = None        # so that its head does not take memory while the next one is solved
            with suppress(StateError):  # `Serving` says so; a backbone is written back outside of its transaction only
                if self.store.newest.backbone:
                    self._backbone()
            with suppress(StateError):  # a head is written outside of it as well
                self.repository.heads.solve()
            self._serving = Serving(self.store, self._backbone, self.repository.heads.model)
        return self._serving


def _known_classes(labels: Sequence[str]) -> str:
    return f"known are {', '.join(labels[:20])}{' ...' if len(labels) > 20 else ''}" if labels else "none is known yet"
