"""The order in which classes and sessions arrive: new classes, new instances, both, or one pass over a stream.

    nc      groups of classes, in order
    ni      the same classes, with a group of new sessions in each step
    nic     a few classes first, then new classes and new sessions of known ones, in many small steps
    online  as nc, but the samples of each step in random order, read once, in small batches
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from edgecl.errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.evaluation.datasets import Split

ONLINE_BATCH = 10       # samples, as in Chaudhry 2019 and Aljundi 2019
NIC_FIRST_ONE_IN = 5    # nic starts with one class in five, but at least with two


@dataclass(frozen=True)
class ScenarioStep:
    """The samples of one step. train, test: indices int64 [n] into the train and test arrays of the split, ascending
    (online: train is shuffled); classes: those of train, in the order in which they arrive."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    classes: tuple[int, ...]


def build(kind: str, split: Split, count: int, seed: int = 0, order: Sequence[int] | None = None) -> list[ScenarioStep]:
    """The steps of a scenario. Each train sample is in exactly one, and no test sample comes before its class.

    count: number of steps; seed: of all random choices; order: of the classes (default: by number; ignored by ni).
    Raises BadInput if the kind is unknown, the count is not possible, the order is invalid, or sessions are missing.
    """
    if kind not in KINDS:
        raise BadInput(f"there is no scenario {kind!r}", f"give {', '.join(KINDS)}")
    classes = list(range(len(split.class_names))) if order is None else [int(c) for c in order]
    if sorted(classes) != list(range(len(split.class_names))):
        raise BadInput(f"the class order is {','.join(map(str, classes))}",
                       f"name each class from 0 to {len(split.class_names) - 1} once")
    if count < 1:
        raise BadInput(f"--steps is {count}", "give 1 or more")
    return KINDS[kind](split, count, np.random.default_rng(seed), classes)


def seen_classes(steps: Sequence[ScenarioStep]) -> list[int]:
    """All classes of these steps, in the order in which they arrived."""
    return list(dict.fromkeys(c for step in steps for c in step.classes))


def _new_classes(split: Split, count: int, rng: np.random.Generator, classes: list[int]) -> list[ScenarioStep]:
    if count > len(classes):
        raise BadInput(f"{count} steps for {len(classes)} classes", f"give --steps {len(classes)} or fewer")
    groups = np.array_split(np.asarray(classes), count)
    return [ScenarioStep(_of(split.y_train, group), _of(split.y_test, group), tuple(map(int, group)))
            for group in groups]


def _online(split: Split, count: int, rng: np.random.Generator, classes: list[int]) -> list[ScenarioStep]:
    return [ScenarioStep(rng.permutation(step.train), step.test, step.classes)
            for step in _new_classes(split, count, rng, classes)]


def _new_instances(split: Split, count: int, rng: np.random.Generator, classes: list[int]) -> list[ScenarioStep]:
    """Steps of new sessions. Test samples are those of a step's own sessions if test has the same sessions as train,
    else all."""
    sessions = _sessions(split)
    names = np.unique(sessions)
    if count > len(names):
        raise BadInput(f"{count} steps for {len(names)} sessions", f"give --steps {len(names)} or fewer")
    groups = np.array_split(rng.permutation(names), count)
    tested = split.session_test
    everything = np.arange(len(split.y_test))
    steps, seen = [], set[int]()
    for group in groups:
        train = _of(sessions, group)
        present = set(split.y_train[train].tolist())
        seen |= present
        known = np.isin(split.y_test, sorted(seen))
        if tested is not None and np.array_equal(np.unique(tested), names):
            known &= np.isin(tested, group) | ~(known & np.isin(tested, group)).any()
        test = everything[known]
        steps.append(ScenarioStep(train, test, tuple(c for c in classes if c in present)))
    return steps


def _both(split: Split, count: int, rng: np.random.Generator, classes: list[int]) -> list[ScenarioStep]:
    """New classes and sessions, as in CORe50's NICv2 (Lomonaco 2020): classes first appear throughout the run."""
    sessions = _sessions(split)
    first = min(max(2, len(classes) // NIC_FIRST_ONE_IN), len(classes))
    units: list[tuple[float, int, object]] = []        # when, class, session
    for place, label in enumerate(classes):
        own = rng.permutation(np.unique(sessions[split.y_train == label]))
        start = -1.0 if place < first else (place - first) / (len(classes) - first)
        times = [start, *rng.uniform(max(start, 0.0), 1.0, len(own) - 1)]
        units += [(when, label, session) for when, session in zip(times, own)]
    units.sort(key=lambda unit: unit[:2])
    rest = len(units) - first
    if count > rest + 1:
        raise BadInput(f"{count} steps for {len(units)} pairs of class and session",
                       f"give --steps {rest + 1} or fewer")
    cuts = [0, *(first + round(i * rest / (count - 1)) for i in range(count))] if count > 1 else [0, len(units)]
    steps = []
    for low, high in pairwise(cuts):
        mine = [(split.y_train == label) & (sessions == session) for _, label, session in units[low:high]]
        labels = list(dict.fromkeys(label for _, label, _ in units[low:high]))
        steps.append(ScenarioStep(np.flatnonzero(np.logical_or.reduce(mine)), _of(split.y_test, labels), tuple(labels)))
    return steps


KINDS: dict[str, Callable[[Split, int, np.random.Generator, list[int]], list[ScenarioStep]]] = {
    "nc": _new_classes, "ni": _new_instances, "nic": _both, "online": _online}


def _of(values: NDArray[np.int64], wanted: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the values that are among `wanted`."""
    return np.flatnonzero(np.isin(values, wanted))


def _sessions(split: Split) -> NDArray[np.int64]:
    if split.session_train is None:
        raise BadInput("the data have no sessions", "use --scenario nc or online, or an .npz file with session_train")
    return split.session_train
