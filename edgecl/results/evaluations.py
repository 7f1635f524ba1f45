"""How good answers to labelled samples are."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    pass


class WrongAnswer(NamedTuple):
    """A sample that was answered wrongly. truth: its class; taught: whether that is known, else the right answer would
    have been unknown; label, confidence, unknown: of the answer."""

    source: str
    truth: str
    taught: bool
    label: str | None
    confidence: float
    unknown: bool | None

    def to_json(self) -> dict[str, Any]:
        """As a dict."""
        return {"class" if name == "truth" else name: value for name, value in self._asdict().items()}


class ReliabilityBin(NamedTuple):
    """The answers of a confidence from `low` to `high`: how many, their mean confidence, and the share that is
    right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


class Calibrated(NamedTuple):
    """How far confidence can be trusted. ece: expected calibration error, over n answers, None without any; bins: those
    of ten that have any."""

    ece: float | None
    n: int
    bins: tuple[ReliabilityBin, ...]


NOT_CALIBRATED = Calibrated(None, 0, ())


@dataclass(frozen=True)
class Evaluation:
    """accuracy: over the samples of known classes; per_class: class -> accuracy; n: number of those samples;
    unknown_rate: share of them called unknown, without `nothing`; untaught: class never taught -> share of its samples
    called unknown.

    right: samples of known classes that are answered rightly; samples, called_unknown: class, known or not -> samples
    of it, and those called unknown; confusion: known class -> class that it is taken for -> samples, where the right
    ones stand at the class itself; taken_for: class never taught -> the same, where "" stands for unknown; wrong: in
    the order of the samples; calibration: of the samples of known classes that show something; untold: why it can't be
    told yet what is unknown, None if it can.
    """

    accuracy: float
    per_class: dict[str, float]
    n: int
    unknown_rate: float
    untaught: dict[str, float] = field(default_factory=dict)
    right: int = 0
    samples: dict[str, int] = field(default_factory=dict)
    called_unknown: dict[str, int] = field(default_factory=dict)
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)
    taken_for: dict[str, dict[str, int]] = field(default_factory=dict)
    wrong: tuple[WrongAnswer, ...] = ()
    calibration: Calibrated = NOT_CALIBRATED
    untold: str | None = None

    @property
    def pairs(self) -> list[tuple[str, str, int]]:
        """What is confused: class, class that it is taken for, samples; the most first."""
        found = [(truth, label, count) for truth, answers in self.confusion.items()
                 for label, count in answers.items() if label != truth]
        return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))

    @property
    def strange(self) -> tuple[int, int]:
        """Samples of classes that were never taught: those called unknown, and all."""
        return sum(self.called_unknown[label] for label in self.untaught), \
            sum(self.samples[label] for label in self.untaught)

    def to_json(self) -> dict[str, Any]:
        """As a dict; in `taken_for`, without what was called unknown."""
        return {**vars(self), "taken_for": {truth: {label: n for label, n in answers.items() if label}
                                            for truth, answers in self.taken_for.items()},
                "wrong": [each.to_json() for each in self.wrong],
                "calibration": {"ece": self.calibration.ece, "n": self.calibration.n,
                                "bins": [each._asdict() for each in self.calibration.bins]}}
