"""The fast learner: learn, predict, forget, roll back, merge and export on one state directory. What each does is in
`edgecl.learning`, or in `edgecl.rounds`."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.errors import BadInput, StateError
from edgecl.learning.advice import JudgedSamples
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
from edgecl.learning.why import stored_input
from edgecl.results import ClassSummary, Corrected, Evaluation, Learned, Prediction, SampleList, Status, TeachingAdvice
from edgecl.rounds.candidate import clear_killed
from edgecl.samples import batches_of, check_class_name
from edgecl.settings import Settings
from edgecl.state.store import Store

if TYPE_CHECKING:
    import numpy as np

    from edgecl.learning.certificate import CheckedCertificate
    from edgecl.learning.evaluating import OnWrong
    from edgecl.learning.sample_archive import SampleArchive
    from edgecl.learning.sample_export import SampleExport
    from edgecl.learning.sample_import import ArchiveNotes
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
              progress: Progress | None = None, again: bool = False, distinct: bool = False) -> Learned:
        """Learn samples of one class, new or known, in one generation.

        samples: uint8 images [n, h, w, 3], float32 windows [n, time, channels], vectors [n, d], or an iterable of
        Sample, whose places are stored with them; groups: the name of the session (a person, a day, a drive) that each
        is part of, which is the same session in other classes and later; progress: called with the number of samples
        done; again: whether samples count that the class was taught before, or that repeat another one, which are left
        out otherwise; distinct: the class is another one than a known one of nearly the same name, such as Mug and mug.
        Some that show nothing are left out, see `edgecl.learning.teaching`. Raises BadInput, BudgetError, StateError;
        then nothing has changed.
        """
        return self._teaching.teach(batches_of(samples, groups), check_class_name(label), progress, again, distinct)

    def learn_export(self, archive: SampleArchive, label: str, again: bool = False
                     ) -> tuple[Learned | None, ArchiveNotes]:
        """Learn the samples of one class of an export, in one generation: as they were learned there, with their
        sources and times; None if none is left, and what was left out. Raises BadInput, BudgetError, StateError."""
        from edgecl.learning.sample_import import learn_archive

        return learn_archive(archive, label, self.repository, self.sessions, self._teaching, again)

    def forget(self, label: str, certify: bool = False) -> dict[str, Any]:
        """Forget a class and every older generation; {"class", "generation", "exact", "discarded"}. exact: False also
        if a backbone may have been tuned on it; discarded: damaged files that were set aside and are deleted, since
        they may hold the class; "gathered": True if frames gathered for review were thrown away, since they may show
        it; "remains": what is left of it, if that is something else than its part of the shared covariance; with
        certify "certificate", see `edgecl.learning.certificate`. Raises BadInput, StateError."""
        done = exclusively(self.store, lambda: forget_class(self.repository, label, certify))
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

    def predict(self, samples: Samples, why: bool = False) -> list[Prediction]:
        """One prediction per sample, in order. why: with the likeliest classes, the stored samples that each is most
        like, and how far outside of what is known it is, see `results.Why`. Raises BadInput, StateError."""
        serving, explain = self.sessions.explaining() if why else (self.serving(), None)
        return [answer for batch in batches_of(samples)
                for answer in serving.predict(batch.data, batch.sources, explain)[0]]

    def evaluate(self, samples: Iterable[Sample], on_wrong: OnWrong | None = None) -> Evaluation:
        """How good the answers to labelled samples are; the right answer for one of `nothing`, or of a class that was
        never taught, is unknown. on_wrong: called with each wrong answer and its sample. Raises BadInput if a sample
        has no label or none is of a known class."""
        return evaluated(self.serving(), samples, on_wrong)

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

    def export_samples(self, path: Path | str, label: str | None = None) -> SampleExport:
        """Write all stored samples, or those of a class, to a new or empty folder, which another state can learn; see
        `edgecl.learning.sample_export`. It appears whole, or not at all. Raises BadInput, BudgetError, StateError."""
        from edgecl.learning.sample_export import check_folder, export_samples, write_folder

        check_folder(Path(path), self.store.path)
        exported, files = export_samples(self.repository, label)
        write_folder(files, Path(path))
        return exported

    # looking ------------------------------------------------------------------------------------

    @property
    def labels(self) -> list[str]:
        """Names of the known classes in alphabetical order; unlike `classes`, this solves no head."""
        return [*self.repository.known().labels] if self.foundation is not None else []

    def classes(self) -> list[ClassSummary]:
        """The known classes in alphabetical order."""
        return classes_of(self.repository)

    def samples(self, label: str | None = None, suspicious: bool = False) -> SampleList:
        """The stored samples, of all classes or of one. suspicious: only those that may be in the wrong class, worst
        first, see `edgecl.learning.suspicious`. Raises BadInput for an unknown class, StateError."""
        return StoredSamples.of(self.repository, suspicious).listed(label)

    def advise(self) -> TeachingAdvice:
        """Which classes are confused, which need more samples and which do not, see `edgecl.learning.advice`. Raises
        StateError."""
        return JudgedSamples.of(self.repository).advice()

    def stored_input(self, number: str) -> np.ndarray | None:
        """A stored sample by its id, such as "12-5": uint8 [h, w, 3] or float32 [time, channels]; None if only its
        feature is stored. Raises BadInput for an unknown one."""
        return stored_input(self.repository, number)

    def check_certificate(self, certificate: dict[str, Any]) -> CheckedCertificate:
        """Whether this state bears out a certificate of forgetting, of `read_certificate`. Raises StateError."""
        from edgecl.learning.certificate import check_certificate

        return check_certificate(self.repository, certificate)

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
