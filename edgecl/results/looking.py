"""What is known, as it is looked at: classes, stored samples, generations, the state."""
from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecl.state.generations import Generation


# in the history, of what a generation keeps
NOT_SHOWN = frozenset({"known", "choice", "held_back", "removed", "dropped", "renamed", "spare"})


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
