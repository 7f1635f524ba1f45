"""What a learner answers."""
from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecl.state.generations import Generation


@dataclass(frozen=True)
class Prediction:
    """label: the likeliest class; confidence: its calibrated probability; unknown: whether it is none of the known
    classes; milliseconds: backbone and head together, a sample."""

    source: str
    label: str
    confidence: float
    unknown: bool
    milliseconds: float


@dataclass(frozen=True)
class Learned:
    """What a `learn` did: samples taken, milliseconds a sample (all work included), the generation, bytes used, and the
    held-back accuracy of each class before and after (None where nothing is held back); judged_on: what that is of:
    held-back samples, or pseudo-samples where none are kept."""

    label: str
    samples: int
    milliseconds: float
    generation: int
    used_bytes: int
    held_back: dict[str, tuple[float | None, float | None]]
    judged_on: str = "held-back samples"


@dataclass(frozen=True)
class RoundResult:
    """What a learning round came to. accepted: whether its candidate serves now, as `generation`; checks: (name, what
    was found, whether it passed) of the gate; held_back: as in `Learned`; steps of planned ones; samples: that it was
    tuned on; seconds of all, and of training; peak_rss_bytes of the worker, and what it was allowed; blocks of the
    backbone that were tuned, less than wished where the memory did not do."""

    accepted: bool
    method: str
    generation: int | None
    checks: tuple[tuple[str, str, bool], ...]
    held_back: dict[str, tuple[float | None, float | None]]
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


@dataclass(frozen=True)
class Evaluation:
    """accuracy over the samples of known classes; per_class: class -> accuracy; n: those samples; unknown_rate: share
    of them called unknown; untaught: class never taught -> share of its samples called unknown."""

    accuracy: float
    per_class: dict[str, float]
    n: int
    unknown_rate: float
    untaught: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassSummary:
    """A known class: samples learned, exemplars kept, and its accuracy on held-back exemplars (None without)."""

    name: str
    samples: int
    exemplars: int
    held_back_accuracy: float | None


@dataclass(frozen=True)
class Status:
    """Where a state stands; the sizes are bytes of the whole directory and of the exemplar buffer. purposes: bytes by
    what they are for, see `edgecl.state.quota.Usage`; reserved_bytes: of the disk, held for what is yet to come;
    memory: "exemplars", or "statistics" where no sample is ever kept."""

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


def history_rows(generations: Iterable[Generation], restorable: Set[int], current: int) -> list[dict[str, Any]]:
    """The history as `edgecl history --json` has it. restorable: what can be gone back to; current: what serves."""
    return [{"generation": g.id, "created": g.created, "action": g.action, "current": g.id == current,
             "restorable": g.id in restorable, "undone": g.undone, **g.detail} for g in generations]
