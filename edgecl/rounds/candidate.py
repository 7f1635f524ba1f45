"""A backbone that a learning round has tuned, and how a state takes it in: judged beside the old one, in or away."""
from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecl.errors import BudgetError
from edgecl.exemplars.origin import NOWHERE
from edgecl.learning.judging import ON
from edgecl.learning.rerun import rerun
from edgecl.rounds import gate
from edgecl.state.generations import Rewrite

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.heads.head import Head
    from edgecl.learning.knowledge import Knowledge
    from edgecl.learning.repository import Repository

HARMLESS = ("learn", "merge")   # what may happen to a state while a worker runs: samples only come


@dataclass(frozen=True)
class Candidate:
    """What a round has made of a state. begun: the generation that it was made from; model: the backbone's file;
    features: row id -> float32 [d] by it, {} if it was tuned on pseudo-samples, which are drawn again; tuned: ids of
    the rows that it was tuned on; parts: what the method keeps; head: as trained, or None; checks: what the gate has
    found so far."""

    method: str
    begun: int
    model: bytes
    features: dict[int, NDArray[np.float32]]
    tuned: frozenset[int]
    parts: bytes
    head: Head | None = None
    checks: tuple[gate.Check, ...] = ()


class Taken(NamedTuple):
    """The verdict on a candidate. generation: with which it serves, None if it was refused; accuracy: as in
    `results.Learned`, {} if it was not judged."""

    generation: int | None
    checks: tuple[gate.Check, ...]
    accuracy: dict[str, tuple[float | None, float | None]]


def take_in(repository: Repository, candidate: Candidate, bounds: gate.Bounds) -> Taken:
    """Judge a candidate on what the state knows by now, and commit it, or note in the history why not.

    Old and new backbone are judged on the same samples, which neither was tuned on.
    """
    store, checks, pairs = repository.store, [*candidate.checks], {}
    detail: dict[str, Any] = {"method": candidate.method, "tuned_samples": len(candidate.tuned)}
    if store.settings.memory == "statistics":
        detail["judged_on"] = ON[False]
    generation = None
    with store.exclusive():
        meanwhile = [g.action for g in store.alive() if g.id > candidate.begun and g.action not in HARMLESS]
        checks += [gate.Check("meanwhile", f"`{action}` has changed the state", False) for action in meanwhile[:1]]
        now = repository.known()
        if now.gaussians is not None:
            now.stored = now.pseudo_samples()
        if all(check.passed for check in checks):
            held = frozenset(candidate.features) - candidate.tuned
            now.mark(candidate.tuned, held if candidate.tuned else frozenset())
            after = now.moved(candidate.features | _arrived(now, candidate, repository))
            there = {row.id for row in after.stored}
            now.stored = [row if row.id in there else row._replace(trained=True) for row in now.stored]
            old = now.judge(repository.settings.head)
            new = after.judge(repository.settings.head, trained=candidate.head)
            checks += gate.check_accuracy(old, new, bounds)
            pairs = {name: (old.accuracy.get(name), new.accuracy.get(name)) for name in now.labels}
        if all(check.passed for check in checks):
            change = Rewrite("round", {**detail, "checks": [list(check[:2]) for check in checks]},
                             backbone=candidate.model, parts=candidate.parts,
                             moved=[row._replace(input=b"", origin=NOWHERE, tick=0) for row in after.stored
                                    if row.id is not None and now.gaussians is None])
            try:
                generation = repository.commit(after, change, judgement=new)
            except BudgetError as error:
                checks.append(gate.Check("quota", error.what, False))
        if generation is None:
            why = [f"{check.name}: {check.found}" for check in checks if not check.passed]
            store.note("round", {**detail, "refused": why, "classes": len(now.labels)})
    return Taken(generation, tuple(checks), pairs)


def _arrived(now: Knowledge, candidate: Candidate, repository: Repository) -> dict[int, NDArray[np.float32]]:
    """The features of samples that came while the worker ran."""
    foundation = repository.foundation
    assert foundation is not None
    codec = foundation.buffer(repository.settings).codec.input
    rows = [row for row in now.stored if row.id is not None and row.id not in candidate.features
            and (row.input or codec is None)]
    if not rows:
        return {}
    found = rerun(candidate.model, np.stack([row.feature for row in rows]), [row.input for row in rows], codec)
    return {row.id: feature for row, feature in zip(rows, found) if row.id is not None}


def workshop_prefix(state: Path) -> str:
    """How the names of folders begin in which rounds of a state work, beside it; the process id comes next."""
    return f".{state.name}-round-"


def clear_killed(state: Path) -> None:
    """Delete what killed rounds of a state have left beside it."""
    for left in state.absolute().parent.glob(f"{workshop_prefix(state)}*"):
        if not Path("/proc", left.name.removeprefix(workshop_prefix(state)).split("-")[0]).exists():
            shutil.rmtree(left, ignore_errors=True)
