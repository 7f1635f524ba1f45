"""A view of a state, taken once after each change, so that any thread can read it without the learner."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from edgecl.exemplars.sample_ids import parse_sample_id
from edgecl.learning.foundation import spec_for
from edgecl.results import history_rows

if TYPE_CHECKING:
    import numpy as np

    from edgecl.learner import Learner

MOST_EXEMPLARS = 64   # of one call


@dataclass(frozen=True)
class View:
    """A state after its last change, ready for JSON. Never altered, so that any thread may read it."""

    status: dict[str, Any]
    classes: list[dict[str, Any]]
    history: list[dict[str, Any]]
    kind: str | None
    input_shape: list[int] | None
    spec: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def view_of(learner: Learner, warnings: list[str]) -> View:
    """The present view of a learner."""
    store, foundation = learner.store, learner.foundation
    with store.reading():
        restorable, current, generations = store.restorable(), store.current, learner.history()
        return View(
            asdict(learner.status()), [asdict(each) for each in learner.classes()] if foundation else [],
            history_rows(generations, restorable, current), foundation.kind if foundation else None,
            list(foundation.input_shape) if foundation else None,
            asdict(spec_for(learner.settings, foundation)), list(warnings))


def rolled_back(learner: Learner, generation: int | None) -> dict[str, Any]:
    """Go back to a generation; {generation, restored, classes}. Raises StateError."""
    number = learner.rollback(generation)
    detail = learner.store.newest.detail
    return {"generation": number, "restored": detail["to"], "classes": detail["classes"]}


def round_rows(history: list[dict[str, Any]], seconds: Mapping[int, float]) -> list[dict[str, Any]]:
    """See `Service.rounds`. history: of a view; seconds: durations of rounds by generation."""
    return [{"generation": g["generation"], "method": g.get("method"), "taken": "refused" not in g,
             "reasons": g.get("refused", []), "checks": g.get("checks", []), "seconds": seconds.get(g["generation"]),
             "when": g["created"]} for g in reversed(history) if g["action"] == "round"]


def new_samples(learner: Learner) -> int:
    """Samples taught since the last learning round, accepted or refused."""
    generations = learner.history()
    last = max((g.id for g in generations if g.action == "round"), default=0)
    return sum(g.detail.get("samples", 0) for g in generations if g.id > last and g.action == "learn" and not g.undone)


def stored_samples(learner: Learner, label: str, limit: int) -> list[np.ndarray]:
    """At most `limit` stored samples of a class, evenly spread, decoded; [] if only features are stored."""
    foundation, limit = learner.foundation, max(min(limit, MOST_EXEMPLARS), 0)
    codec = foundation.buffer(learner.settings).codec.input if foundation else None
    if codec is None or not limit:
        return []
    rows = [row for row in learner.repository.known().stored if row.label == label and row.input]
    return [codec.decode(row.input) for row in rows[::max(len(rows) // limit, 1)][:limit]]


def stored_inputs(learner: Learner, ids: Sequence[str]) -> dict[str, np.ndarray | None]:
    """See `Service.inputs`."""
    numbers, foundation = {parse_sample_id(each): each for each in ids}, learner.foundation
    codec = foundation.buffer(learner.settings).codec.input if foundation else None
    found: dict[str, np.ndarray | None] = dict.fromkeys(numbers.values())
    if codec is not None:
        for row in learner.repository.known().stored:
            if row.id in numbers and row.input:
                found[numbers[row.id]] = codec.decode(row.input)
    return found
