"""What came of teaching, of a correction and of a learning round."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


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
    files that were set aside and are deleted, since they may hold what was erased; twice: samples that the class knew
    already, which count twice now."""

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
    twice: int = 0


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
