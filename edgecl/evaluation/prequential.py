"""Prequential evaluation (Gama et al. 2013): plays a labelled recording into a daemon, which first predicts each batch
and then learns it. A batch may contain new instances, new classes or both."""
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

MARKS = 10      # rows in a report


class OnlineLearner(Protocol):
    """The methods of a learner that a recording is played into."""

    def predict(self, batch: np.ndarray) -> list[Prediction]:
        """A prediction for each sample of a batch [n, ...]."""

    def learn(self, samples: Iterable[Sample], label: str, progress: Callable[[int], None]) -> Learned:
        """Learn samples of one class."""


@dataclass(frozen=True)
class Heard:
    """The result of one batch. seconds: its place in the recording; right: number of correct answers; unknown: of
    answers "unknown"; known: of samples whose class had been learned before; new: classes learned for the first time;
    late: seconds behind the recording's pace."""

    seconds: float
    samples: int
    right: int
    unknown: int
    known: int
    new: tuple[str, ...]
    late: float


@dataclass(frozen=True)
class Pace:
    """How fast a recording is played. period: seconds of the recording per sample; speed: how many times faster; batch:
    samples predicted and learned at once; teach: share of batches that are learned. Raises BadInput if one is out of
    range."""

    period: float
    speed: float = 1.0
    batch: int = 10
    teach: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.speed <= 1e6 or not 1 <= self.batch <= 10_000 or not 0 <= self.teach <= 1:
            raise BadInput(f"--speed is {self.speed:g}, --batch is {self.batch}, --teach is {self.teach:g}",
                           "give a --speed above 0, a --batch from 1 to 10000, and a --teach from 0 to 1")


def recording(path: Path, spec: Spec) -> Iterator[Item]:
    """The labelled samples of a folder with one subfolder per class, of the training part of an .npz file, or of a .csv
    file with a column `label`, in their order. Raises BadInput if the recording can't be read."""
    from edgecl.sources import read_labelled
    from edgecl.sources.recordings import read_annotated

    return read_annotated(path, spec) if path.suffix.lower() == ".csv" else read_labelled(path, spec, "train")


def play(samples: Iterable[Sample], door: OnlineLearner, pace: Pace, known: Iterable[str] = (),
         progress: Callable[[int], None] = lambda _: None,
         clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> Iterator[Heard]:
    """The result of each batch, once it has been predicted and learned.

    known: classes that the daemon already knows; progress: called with the number of samples learned. Raises BadInput
    if the recording has no labelled sample, and whatever `door` raises.
    """
    taught, begin, done, credit = set(known), clock(), 0, 0.0
    labelled = (sample for sample in samples if sample.label is not None)
    while batch := list(islice(labelled, pace.batch)):
        due = begin + (done + len(batch)) * pace.period / pace.speed
        sleep(max(0.0, due - clock()))
        answers = door.predict(np.stack([item.data for item in batch])) if taught else []
        right = sum(answer.label == item.label for answer, item in zip(answers, batch))
        seen, credit = sum(item.label in taught for item in batch), credit + pace.teach
        labels = list(dict.fromkeys(str(item.label) for item in batch)) if credit >= 1.0 else []
        credit -= credit >= 1.0
        for label in labels:
            door.learn([item for item in batch if item.label == label], label, progress)
        new = tuple(label for label in labels if label not in taught)
        taught |= set(labels)
        done += len(batch)
        unknown = sum(answer.unknown for answer in answers)
        yield Heard(done * pace.period, len(batch), right, unknown, seen, new, max(0.0, clock() - due))
    if not done:
        raise BadInput("the recording has no labelled sample", "give a folder with one subfolder per class, an .npz "
                       "file, or a .csv file with a column `label`")


def summary(heard: list[Heard], marks: int = MARKS) -> list[dict[str, Any]]:
    """Accuracy over time, in at most `marks` stretches: {seconds, samples, accuracy, accuracy_known, unknown_rate, new,
    late_seconds}.

    accuracy: of all samples, where those of classes not learned before count as wrong; accuracy_known: of the other
    samples, or None if there are none.
    """
    rows, each = [], max(1, -(-len(heard) // marks))
    for start in range(0, len(heard), each):
        part = heard[start:start + each]
        rows.append({"seconds": part[-1].seconds, **shares(part), "new": [name for one in part for name in one.new],
                     "late_seconds": max(one.late for one in part)})
    return rows


def shares(heard: list[Heard]) -> dict[str, Any]:
    """{samples, accuracy, accuracy_known, unknown_rate} over some batches."""
    samples, known = sum(one.samples for one in heard), sum(one.known for one in heard)
    right = sum(one.right for one in heard)
    return {"samples": samples, "accuracy": right / samples, "accuracy_known": right / known if known else None,
            "unknown_rate": sum(one.unknown for one in heard) / samples}
