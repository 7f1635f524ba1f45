"""What a state shows, taken once after each change, so that every thread can look without asking the learner."""
from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from edgecl.learning.foundation import spec_for
from edgecl.results import history_rows

if TYPE_CHECKING:
    from edgecl.learner import Learner


@dataclass(frozen=True)
class View:
    """What a state looked like after its last change; never altered, so that any thread may read it."""

    status: dict[str, Any]
    classes: list[dict[str, Any]]
    history: list[dict[str, Any]]
    kind: str | None
    input_shape: list[int] | None
    spec: dict[str, Any]
    new_samples: int = 0
    warnings: list[str] = field(default_factory=list)


def view_of(learner: Learner, warnings: list[str]) -> View:
    """What a learner shows now."""
    store, foundation = learner.store, learner.foundation
    with store.reading():
        restorable, current, generations = store.restorable(), store.current, learner.history()
        return View(
            asdict(learner.status()), [asdict(each) for each in learner.classes()] if foundation else [],
            history_rows(generations, restorable, current), foundation.kind if foundation else None,
            list(foundation.input_shape) if foundation else None,
            asdict(spec_for(learner.settings, foundation)), new_samples(learner), list(warnings))


def rolled_back(learner: Learner, generation: int | None) -> dict[str, Any]:
    """Go back; {generation, restored, classes}. Raises StateError."""
    number = learner.rollback(generation)
    detail = learner.store.newest.detail
    return {"generation": number, "restored": detail["to"], "classes": detail["classes"]}


def new_samples(learner: Learner) -> int:
    """Samples taught since the last learning round, taken or refused."""
    generations = learner.history()
    last = max((g.id for g in generations if g.action == "round"), default=0)
    return sum(g.detail.get("samples", 0) for g in generations if g.id > last and g.action == "learn" and not g.undone)
