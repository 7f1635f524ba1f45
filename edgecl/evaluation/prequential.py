"""Prequential evaluation (Gama, Sebastião & Rodrigues 2013): a labelled recording is played to a learner,
which is first tested on each batch and then taught it, whether it holds new instances, new classes or both."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgecl.errors import BadInput

if TYPE_CHECKING:
    from edgecl.results import Learned, Prediction
    from edgecl.samples import Sample
    from edgecl.sources.spec import Item, Spec

MOST_ROWS = 10      # of a report


class OnlineLearner(Protocol):
    """What is tested and taught: a daemon or a learner."""

    def predict(self, batch: np.ndarray) -> list[Prediction]:
        """One prediction per sample of a batch [n, ...]."""

    def learn(self, samples: Iterable[Sample], label: str, progress: Callable[[int], None]) -> Learned:
        """Learn samples of one class."""


@dataclass(frozen=True)
class BatchResult:
    """One batch. seconds: the end of the batch in the recording; right: correct answers; unknown: answers "unknown";
    known: samples of classes taught before it; new: classes first taught with it; late: seconds behind the pace."""

    seconds: float
    samples: int
    right: int
    unknown: int
    known: int
    new: tuple[str, ...]
    late: float


@dataclass(frozen=True)
class Pace:
    """How fast a recording is played. period: seconds from one sample to the next; speed: factor; batch: samples tested
    and taught at once; teach: share of the batches that are taught."""

    period: float
    speed: float = 1.0
    batch: int = 10
    teach: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.speed <= 1e6 or not 1 <= self.batch <= 10_000 or not 0 <= self.teach <= 1:
            raise BadInput(f"speed {self.speed:g}, batch {self.batch}, teach {self.teach:g}",
                           "give --speed above 0, --batch from 1 to 10000, and --teach from 0 to 1")


def recording(path: Path, spec: Spec) -> Iterator[Item]:
    """The labelled samples of a folder of classes, of the training part of an .npz file, or of a .csv with a column
    `label`, in order. Raises BadInput."""
    from edgecl.sources import read_labelled
    from edgecl.sources.recordings import read_annotated

    return read_annotated(path, spec) if path.suffix.lower() == ".csv" else read_labelled(path, spec, "train")


def play(samples: Iterable[Sample], learner: OnlineLearner, pace: Pace, known: Iterable[str] = (),
         progress: Callable[[int], None] = lambda _: None,
         clock: Callable[[], float] = time.monotonic,
         sleep: Callable[[float], None] = time.sleep) -> Iterator[BatchResult]:
    """The result of each batch, once it was tested and taught.

    known: classes that the learner knows already; progress: called with the number of samples taught. Raises BadInput
    if no sample has a label, and what the learner raises.
    """
    taught, begin, done, credit = set(known), clock(), 0, 0.0
    labelled = (sample for sample in samples if sample.label is not None)
    while batch := list(islice(labelled, pace.batch)):
        due = begin + (done + len(batch)) * pace.period / pace.speed
        sleep(max(0.0, due - clock()))
        answers = learner.predict(np.stack([item.data for item in batch])) if taught else []
        right = sum(answer.right(str(item.label)) for answer, item in zip(answers, batch))
        seen, credit = sum(item.label in taught for item in batch), credit + pace.teach
        labels = list(dict.fromkeys(str(item.label) for item in batch)) if credit >= 1.0 else []
        credit -= credit >= 1.0
        for label in labels:
            learner.learn([item for item in batch if item.label == label], label, progress)
        new = tuple(label for label in labels if label not in taught)
        taught |= set(labels)
        done += len(batch)
        unknown = sum(answer.unknown is True for answer in answers)
        yield BatchResult(done * pace.period, len(batch), right, unknown, seen, new, max(0.0, clock() - due))
    if not done:
        raise BadInput("the recording has no labelled sample", "give a FOLDER with one subfolder per class, an .npz "
                       "file, or a .csv with a column `label`")


def summary(results: list[BatchResult], most: int = MOST_ROWS) -> list[dict[str, Any]]:
    """Accuracy over time, in at most `most` rows: {seconds, samples, accuracy, accuracy_known, unknown_rate, new,
    late_seconds}.

    accuracy: over all samples, where those of classes not yet taught count as wrong; accuracy_known: over samples of
    classes taught before, or None.
    """
    rows, each = [], max(1, -(-len(results) // most))
    for start in range(0, len(results), each):
        part = results[start:start + each]
        rows.append({"seconds": part[-1].seconds, **shares(part), "new": [name for one in part for name in one.new],
                     "late_seconds": max(one.late for one in part)})
    return rows


def shares(results: list[BatchResult]) -> dict[str, Any]:
    """{samples, accuracy, accuracy_known, unknown_rate} over some batches."""
    samples, known = sum(one.samples for one in results), sum(one.known for one in results)
    right = sum(one.right for one in results)
    return {"samples": samples, "accuracy": right / samples, "accuracy_known": right / known if known else None,
            "unknown_rate": sum(one.unknown for one in results) / samples}
