"""The results that a learner returns."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from edgecl.samples import NOTHING

if TYPE_CHECKING:
    from edgecl.state.generations import Generation


class LikelyClass(NamedTuple):
    """A class and its calibrated probability."""

    label: str
    probability: float


class StoredMatch(NamedTuple):
    """A stored sample that another one is like. id: as people write it; source: where it came from, "" if that is not
    known; similarity: 1 the same, 0 as two stored samples that have nothing in common, less if it is further away: of
    photos the cosine of their features; picture: whether the sample itself is stored, not only its feature."""

    id: str
    label: str
    source: str
    similarity: float
    picture: bool


class Why(NamedTuple):
    """Why an answer is what it is. top: the most likely classes, at most three; nearest: the stored samples that are
    most like it, at most three; outside: how far the sample is from what is known: 0 as usual, 1 at the threshold,
    unknown above it; None if that can't be told; note: why there is nothing in `nearest`, else ""."""

    top: tuple[LikelyClass, ...]
    nearest: tuple[StoredMatch, ...]
    outside: float | None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a dict, without a `note` that there is not."""
        found: dict[str, Any] = {
            "top": [{"class": label, "probability": probability} for label, probability in self.top],
            "nearest": [{"id": number, "class": label, "source": source, "similarity": similarity, "picture": picture}
                        for number, label, source, similarity, picture in self.nearest], "outside": self.outside}
        return {**found, "note": self.note} if self.note else found

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Why:
        """The inverse of `to_json`."""
        return cls(tuple(LikelyClass(*each.values()) for each in values["top"]),
                   tuple(StoredMatch(*each.values()) for each in values["nearest"]), values["outside"],
                   values.get("note", ""))


@dataclass(frozen=True)
class Prediction:
    """label: the most likely class, None if that is `nothing` or the sample shows nothing; confidence: its calibrated
    probability, 1 if the sample shows nothing; unknown: whether the sample belongs to none of the known classes, None
    if too few samples were taught to tell; milliseconds: backbone and head together, per sample; reason: why there is
    no label, or why `unknown` is None; why: more about it, if that was asked for."""

    source: str
    label: str | None
    confidence: float
    unknown: bool | None
    milliseconds: float
    reason: str | None = None
    why: Why | None = None

    def right(self, truth: str) -> bool:
        """Whether this is the right answer for a sample of a class: the right one for `nothing` is unknown."""
        return bool(self.unknown) if truth == NOTHING else self.label == truth

    def to_json(self) -> dict[str, Any]:
        """As a dict, without a `reason` that there is not; what `why` says stands beside the rest."""
        found = {name: value for name, value in vars(self).items()
                 if name != "why" and (name != "reason" or value is not None)}
        return found if self.why is None else {**found, **self.why.to_json()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Prediction:
        """The inverse of `to_json`."""
        own = {name: value for name, value in values.items() if name in cls.__dataclass_fields__}
        return cls(**own, why=Why.from_json(values) if "top" in values else None)


def untold(needs: int | None) -> str:
    """Why it can't be told what is unknown. needs: samples of one class that are missing; None: no number would do."""
    if needs is None:
        return "can't tell unknown: this state keeps no samples as they were learned"
    return f"can't tell unknown yet: needs {needs} more sample{'s' * (needs != 1)} of one class"


LIKE_NOTHING = f"it is like the class {NOTHING}"    # why there is no label
# in the history, of what a generation keeps
NOT_SHOWN = frozenset({"known", "choice", "held_back", "removed", "dropped", "renamed", "spare"})
BeforeAndAfter = dict[str, tuple[Any, Any]]   # figures of each class, before a `learn` and after; None for none


class WorkedOut:
    """A field of a dataclass that may be given as a function, which is called when the field is first read."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> BeforeAndAfter:
        if instance is None:
            raise AttributeError(self._name)  # it has no default
        value = instance.__dict__[self._name]
        if callable(value):
            value = instance.__dict__[self._name] = value()
        return value  # type: ignore[no-any-return]

    def __set__(self, instance: object, value: BeforeAndAfter | Callable[[], BeforeAndAfter] | WorkedOut) -> None:
        instance.__dict__[self._name] = {} if isinstance(value, WorkedOut) else value  # the default


@dataclass(frozen=True)
class Learned:
    """Result of a `learn`: samples learned, milliseconds per sample (all work but solving the head included), new
    generation, bytes used, and the accuracy of each class by the head that was solved last before it, and by the one
    that serves when this is first read, which solves it (None for a class of fewer than four samples). judged_on: what
    that accuracy is measured on, stored samples, each left out of the head that judges it, or pseudo-samples if the
    state keeps no samples. left_out: samples that show nothing and were not learned; blank: samples that show nothing
    and were learned; see `samples.blank`; new: whether the class was not known before; judged: like accuracy, how many
    of the judging samples are right, and how many they are. known: samples that the class was taught before, and were
    left out; if none is left, nothing has changed, and generation is the current one; also_in: other class -> sources
    of samples that were learned though it knows them; unrecognised: older samples of the class that would count again,
    since their content is not known any more; blurred: sources of photos that look blurred and were learned."""

    label: str
    samples: int
    milliseconds: float
    generation: int
    used_bytes: int
    accuracy: WorkedOut = field(default=WorkedOut(), repr=False)
    judged_on: str = "left-out samples"
    left_out: int = 0
    blank: int = 0
    new: bool = False
    judged: WorkedOut = field(default=WorkedOut(), repr=False)
    known: int = 0
    also_in: dict[str, list[str]] = field(default_factory=dict)
    unrecognised: int = 0
    blurred: list[str] = field(default_factory=list)

    @property
    def given(self) -> int:
        """Samples that came."""
        return self.samples + self.known + self.left_out


@dataclass(frozen=True)
class Corrected:
    """Result of a `remove`, `move` or `rename` (action): its generation, and the number of samples, which for a rename
    are all of the class. label: the class that they are of now, None for removed ones; new: whether it was not known
    before; ids: of the stored samples, as people write them, before -> now, None for what is not stored any more; gone:
    classes without a sample left; exact: whether all is as if it had been taught so, why: if not; discarded: damaged
    files that were set aside and are deleted, since they may hold what was erased."""

    action: str
    generation: int
    samples: int
    label: str | None
    new: bool
    ids: dict[str, str | None]
    gone: list[str]
    exact: bool
    why: str = ""
    discarded: int = 0


@dataclass(frozen=True)
class RoundResult:
    """Result of a learning round. accepted: whether its candidate now serves, as `generation`; checks: of the gate,
    (name, finding, whether it passed); accuracy: as in `Learned`; steps: taken, out of planned_steps; samples: tuned
    on; seconds: of the whole round, train_seconds: of training; peak_rss_bytes: of the worker, allowed
    memory_limit_bytes; blocks: of the backbone that were tuned, fewer than wished_blocks if memory was short."""

    accepted: bool
    method: str
    generation: int | None
    checks: tuple[tuple[str, str, bool], ...]
    accuracy: dict[str, tuple[float | None, float | None]]
    steps: int
    planned_steps: int
    samples: int
    seconds: float
    train_seconds: float
    peak_rss_bytes: int
    memory_limit_bytes: int
    device: str
    blocks: int
    wished_blocks: int


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


@dataclass(frozen=True)
class ClassSummary:
    """A known class: samples learned, exemplars kept; right: how many of `judged` exemplars are answered rightly, each
    left out of the head that judges it; accuracy: from those, smoothed towards that of all classes (None below
    four)."""

    name: str
    samples: int
    exemplars: int
    accuracy: float | None
    right: int
    judged: int


@dataclass(frozen=True)
class SampleSummary:
    """A stored sample. id: as people write it, GENERATION-NUMBER; source: where it came from, "" if that is not known;
    taught: when, ISO 8601 in UTC, None if not known; kept: "exact", as it was learned, or "coded"; near_duplicate:
    whether it nearly repeats the one before in its recording; picture: whether the sample itself is stored, not only
    its feature; session: of other stored samples too, None if it has one of its own. Of suspicious ones only, see
    `edgecl.learning.suspicious`: margin, None if it is the only sample of its class; looks_like: a class; reason."""

    id: str
    label: str
    source: str
    taught: str | None
    kept: str
    near_duplicate: bool
    picture: bool
    session: str | None
    margin: float | None = None
    looks_like: str | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As a dict, with "class" for the label; margin, looks_like and reason only if there is a reason."""
        found = {"class" if name == "label" else name: value for name, value in asdict(self).items()}
        if self.reason is None:
            del found["margin"], found["looks_like"], found["reason"]
        return found


@dataclass(frozen=True)
class SampleList:
    """Stored samples of a generation. taught, stored: class -> how many samples were taught, and are stored."""

    generation: int
    taught: dict[str, int]
    stored: dict[str, int]
    samples: list[SampleSummary]

    def to_json(self) -> dict[str, Any]:
        """As a dict; not_stored: class -> how many of those that were taught are not stored, if any."""
        gone = {label: count - self.stored[label] for label, count in self.taught.items()}
        return {"generation": self.generation, "taught": sum(self.taught.values()), "stored": sum(self.stored.values()),
                "not_stored": {label: count for label, count in gone.items() if count},
                "samples": [each.to_json() for each in self.samples]}


@dataclass(frozen=True)
class Confusion:
    """Two classes that are confused: `wrong` of the `of` judged samples of label are taken for taken_for, and
    back_wrong of back_of the other way round. source: the source or folder that from_source of the wrong ones come
    from, if it stands out."""

    label: str
    taken_for: str
    wrong: int
    of: int
    back_wrong: int
    back_of: int
    source: str | None = None
    from_source: int = 0

    def to_json(self) -> dict[str, Any]:
        """As a dict, with "class" for the label."""
        return {"class" if name == "label" else name: value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class ClassAdvice:
    """What a class needs. taught, stored: samples, the latter as they were learned; judged, right: samples that judge
    it out of fold; right_with_half: their share that is right with half of its stored samples, None if that can't be
    told; verdict: "more" samples, "enough", "other" samples than those there are, None if the numbers don't tell."""

    label: str
    taught: int
    stored: int
    judged: int
    right: int
    right_with_half: float | None
    verdict: str | None

    def to_json(self) -> dict[str, Any]:
        """As a dict, with "class" for the label."""
        return {"class" if name == "label" else name: value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class TeachingAdvice:
    """What could be better, and how sure that is. head: kind of head that was judged; judged: samples that judge it out
    of fold; right, right_with_three_quarters, right_with_half: shares of them that are right with all stored samples of
    each class, or fewer, None if that can't be told; all_need: "more" samples, "enough", None if the numbers don't
    tell; advice: sentences for people."""

    generation: int
    head: str | None
    judged: int
    right: float | None = None
    right_with_three_quarters: float | None = None
    right_with_half: float | None = None
    all_need: str | None = None
    confused: list[Confusion] = field(default_factory=list)
    classes: list[ClassAdvice] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As a dict."""
        return {**asdict(self), "confused": [each.to_json() for each in self.confused],
                "classes": [each.to_json() for each in self.classes]}


@dataclass(frozen=True)
class Status:
    """Status of a state. quota_bytes, used_bytes: of the whole directory; exemplar_bytes: of the exemplar buffer;
    purposes: bytes by purpose, see `edgecl.state.quota.Usage`; reserved_bytes: disk space reserved for later writes;
    memory: "exemplars", or "statistics" if no sample is ever kept; unknown_threshold: None if it can't be told yet what
    is unknown; unknown_needs: samples of one class that are missing then, None if no number would do."""

    generation: int
    backbone: str
    head: str | None
    classes: int
    quota_bytes: int
    used_bytes: int
    exemplar_bytes: int
    exemplar_limit_bytes: int
    exemplars: int
    codec: str
    purposes: dict[str, int]
    reserved_bytes: int
    precision: str | None
    statistics: str | None
    calibrated: bool | None
    exact: bool
    unknown_threshold: float | None
    restorable: list[int]
    warnings: list[str]
    memory: str = "exemplars"
    unknown_needs: int | None = None


def history_rows(generations: Iterable[Generation], restorable: Set[int], current: int) -> list[dict[str, Any]]:
    """The history as `edgecl history --json` prints it. restorable: generations that `rollback` can return to; current:
    the one that serves."""
    return [{"generation": g.id, "created": g.created, "action": g.action, "current": g.id == current,
             "restorable": g.id in restorable, "undone": g.undone,
             **{key: value for key, value in g.detail.items() if key not in NOT_SHOWN}} for g in generations]
