"""The fast learner: learn, predict, forget, roll back, merge and export on one state directory. What each does is in
`edgecl.learning`, or in `edgecl.rounds`."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.errors import BadInput, StateError
from edgecl.learning.backbone_file import backbone_bytes
from edgecl.learning.changes import exclusively, forget_class, roll_back
from edgecl.learning.corrections import move_samples, remove_samples, rename_class
from edgecl.learning.creating import created
from edgecl.learning.evaluating import evaluated
from edgecl.learning.foundation import Foundation
from edgecl.learning.merge import merge_into
from edgecl.learning.repository import Repository
from edgecl.learning.sessions import Sessions
from edgecl.learning.status import classes_of, status_of
from edgecl.learning.stored_samples import StoredSamples
from edgecl.learning.teaching import Teaching
from edgecl.results import ClassSummary, Corrected, Evaluation, Learned, Prediction, SampleList, Status
from edgecl.rounds.candidate import clear_killed
from edgecl.samples import batches_of, check_class_name
from edgecl.settings import Settings
from edgecl.state.store import Store

if TYPE_CHECKING:
    import numpy as np

    from edgecl.learning.serving import Serving
    from edgecl.results import RoundResult
    from edgecl.rounds.run import RoundRequest
    from edgecl.rounds.worker import Watch
    from edgecl.samples import Sample, Samples
    from edgecl.state.generations import Generation

Progress = Callable[[int], None]


class Learner:
    """A learner on a state directory. Not safe for use by several threads at once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.settings = store.settings
        self.repository = Repository(store, self.settings)
        self.sessions = Sessions(self.repository)
        self._teaching = Teaching(self.repository, self.sessions)
        store.started_over = self._forget

    # opening ------------------------------------------------------------------------------------

    @classmethod
    def create(cls, state: Path | str, settings: Settings | None = None, calibration: np.ndarray | None = None,
               weights: Path | None = None) -> Learner:
        """A new state. calibration: unlabelled samples [n, ...] for scales, kernel biases and int8 ranges;
        weights: a checkpoint for the backbone. Raises StateError, BudgetError, BackboneError, BadInput."""
        return cls(created(Path(state), settings or Settings(), calibration, weights))

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
              progress: Progress | None = None, again: bool = False) -> Learned:
        """Learn samples of one class, new or known, in one generation.

        samples: uint8 images [n, h, w, 3], float32 windows [n, time, channels], vectors [n, d], or an iterable of
        Sample, whose places are stored with them; groups: the name of the session (a person, a day, a drive) that each
        is part of, which is the same session in other classes and later; progress: called with the number of samples
        done; again: whether samples count that the class was taught before, or that repeat another one, which are left
        out otherwise. Some that show nothing are left out, see `edgecl.learning.teaching`. Raises BadInput,
        BudgetError, StateError; then nothing has changed.
        """
        return self._teaching.teach(batches_of(samples, groups), check_class_name(label), progress, again)

    def forget(self, label: str) -> dict[str, Any]:
        """Forget a class and every older generation; {"class", "generation", "exact", "discarded"}. exact: False also
        if a backbone may have been tuned on it; discarded: damaged files that were set aside and are deleted, since
        they may hold the class; "gathered": True if frames gathered for review were thrown away, since they may show
        it; "remains": what is left of it, if that is something else than its part of the shared covariance. Raises
        BadInput, StateError."""
        done = exclusively(self.store, lambda: forget_class(self.repository, label))
        clear_killed(self.store.path)
        return done

    def remove(self, ids: Iterable[int | str], erase: bool = False) -> Corrected:
        """Take stored samples out of all that is known, exactly, in one generation. ids: as in `StoredSample.id`, or as
        people write them; erase: leave nothing of them on the disk, so that no older generation can be restored; else a
        rollback brings them back. Raises BadInput for an id that is not there, StateError if a sample is not stored as
        it was learned; then nothing has changed."""
        done = exclusively(self.store, lambda: remove_samples(self.repository, ids, erase))
        if erase:
            clear_killed(self.store.path)
        return done

    def move(self, ids: Iterable[int | str], label: str) -> Corrected:
        """Move stored samples to another class, new or known, as if they had been taught as that. ids, raises: see
        `remove`; also BadInput for a sample that is in that class already, BudgetError."""
        return exclusively(self.store, lambda: move_samples(self.repository, ids, label))

    def rename(self, old: str, new: str, into: bool = False) -> Corrected:
        """Give a class another name, exactly, whether its samples are stored or not. into: `new` is a known class, and
        the two become one. Raises BadInput, BudgetError, StateError."""
        return exclusively(self.store, lambda: rename_class(self.repository, old, new, into))

    def rollback(self, generation: int | None = None) -> int:
        """Go back to what was known at a generation (default: the one before); the new generation's id.

        Raises StateError where that can't be rebuilt exactly any more.
        """
        return exclusively(self.store, lambda: roll_back(self.repository, generation))

    def merge(self, others: Iterable[Path | str], nothing: bool = False) -> int:
        """Add all that other states know, exactly; the new generation's id. Their class `nothing` is left out without
        `nothing`, since what is nothing there may be something here: its samples are counted in the generation's
        detail, as "left_out". Raises StateError if one has another backbone or form of statistics, was merged here
        before, or has nothing to merge."""
        with ExitStack() as stack:
            opened = [stack.enter_context(closing(Learner.open(path))).repository for path in others]
            if not opened:
                raise BadInput("no state to merge was named", "give at least one STATE folder")
            return exclusively(self.store, lambda: merge_into(self.repository, opened, nothing))

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
        return self.sessions.features(samples)

    # answering ----------------------------------------------------------------------------------

    def serving(self) -> Serving:
        """The sessions that answer now, which other threads may use too. Raises StateError where nothing was taught."""
        return self.sessions.serving()

    def predict(self, samples: Samples) -> list[Prediction]:
        """One prediction per sample, in order. Raises BadInput, StateError."""
        serving = self.serving()
        return [answer for batch in batches_of(samples) for answer in serving.predict(batch.data, batch.sources)[0]]

    def evaluate(self, samples: Iterable[Sample]) -> Evaluation:
        """Accuracy on labelled samples; the right answer for one of `nothing` is unknown. Raises BadInput if a sample
        has no label or none is of a known class."""
        return evaluated(self.serving(), samples)

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

    def classes(self) -> list[ClassSummary]:
        """The known classes in alphabetical order."""
        return classes_of(self.repository)

    def samples(self, label: str | None = None, suspicious: bool = False) -> SampleList:
        """The stored samples, of all classes or of one. suspicious: only those that may be in the wrong class, worst
        first, see `edgecl.learning.suspicious`. Raises BadInput for an unknown class, StateError."""
        return StoredSamples.of(self.repository, suspicious).listed(label)

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
        self.sessions.forget_generations()
