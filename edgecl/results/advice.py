"""Advice on what to teach."""
from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


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
