"""What a learner answers, and why."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from edgecl.samples import NOTHING

if TYPE_CHECKING:
    pass


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
