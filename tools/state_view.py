"""What a state shows and knows, as values for JSON that can be compared; whether it goes on; what forgetting left."""
from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from crash import child, wait
from folders import directory_bytes
from vector_states import DIMENSION, tree, vectors

from edgecl.errors import EdgeclError
from edgecl.learner import Learner

LIMIT = 300     # seconds of processor time that a fork may take
SHOWN = ("class", "samples", "to", "exact")     # what is compared of a generation's detail
NEW = "new class"
NOTHING_LOST = "nothing that was acknowledged was lost"
View = dict[str, Any]


def in_fork(work: Callable[[], Any], answer: Path) -> Any:
    """What some work returns, as JSON, done by a fork: {"crashed": ...} with its traceback if it raises something else
    than an EdgeclError, or does not end. answer: a file to pass it through."""
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 10))
        try:
            found = work()
        except EdgeclError as error:
            found = {"refused": str(error)}
        except BaseException:
            found = {"crashed": traceback.format_exc()}
        answer.write_text(json.dumps(found))

    answer.unlink(missing_ok=True)
    code = wait(child(limited)[0])
    return json.loads(answer.read_text()) if answer.exists() else {"crashed": f"the process ended with {code}"}


def samples(learner: Learner, label: str, count: int, seed: int = 0) -> np.ndarray:
    """Samples of a class as the state's backbone takes them; the same for equal arguments."""
    about = learner.foundation
    if about is None or about.kind == "feature":
        return vectors(label, count, seed, about.input_shape[0] if about else DIMENSION)
    rng = np.random.default_rng([len(label), *label.encode(), seed])
    if about.kind == "window":
        return windows(rng, count, *about.input_shape)
    tint = np.random.default_rng(list(label.encode())).integers(0, 200, about.input_shape[2])
    return (tint + rng.integers(0, 50, (count, *about.input_shape))).astype(np.uint8)


def windows(rng: np.random.Generator, count: int, time: int, channels: int) -> np.ndarray:
    """Windows float32 [count, time, channels]: waves of one frequency, which is the class."""
    turns = np.linspace(0, 2 * np.pi * rng.integers(1, 8), time)[:, None] + rng.uniform(0, 6, (count, 1, channels))
    return (np.sin(turns) + 0.1 * rng.normal(size=turns.shape)).astype(np.float32)


def only_look(state: Path) -> tuple[View, list[str]]:
    """What a process without write access sees in a state, and what it has changed there, which must be nothing."""
    access, before = os.access, tree(state)

    def refused(path: Any, mode: int, **options: Any) -> bool:
        return not mode & os.W_OK and access(path, mode, **options)

    os.access = refused     # root is refused nothing
    try:
        view = view_of(state)
    except EdgeclError as error:
        view = {"refused": str(error)}
    finally:
        os.access = access
    after = tree(state)
    return view, [f"looking has changed {name}" for name in sorted({*before, *after})
                  if before.get(name) != after.get(name)]


def view_of(state: Path) -> View:
    """What a state shows when it is opened; {} if there is none."""
    if not state.exists():
        return {}
    learner = Learner.open(state)
    try:
        return look(learner)
    finally:
        learner.close()


def part(work: Callable[[], Any]) -> Any:
    """What some work returns; its refusal in words."""
    try:
        return work()
    except EdgeclError as error:
        return f"refused: {error}"


def look(learner: Learner) -> View:
    """What an open state shows and knows; each part may be a refusal."""
    view = {"answers": part(lambda: answers(learner)), "classes": part(lambda: classes(learner)),
            **unpacked(part(lambda: knowledge(learner))),
            "history": part(lambda: [[g.action, {key: g.detail[key] for key in SHOWN if key in g.detail}, g.undone]
                                     for g in learner.history()])}
    taught = learner.foundation is not None and view["classes"]
    return {**view, "damage": part(lambda: alarms(learner)) if taught else []}


def alarms(learner: Learner) -> list[str]:
    """What is damaged; a record of the log that was cut off, so that nothing is lost, is not."""
    return [line for line in learner.damage if NOTHING_LOST not in line]


def answers(learner: Learner) -> list[list[Any]]:
    """What `predict` says of some samples that are far from, and near to, what states of tools learn."""
    asked = [samples(learner, label, 4, seed=9) for label in ("ant", "cat", "dog", "elk", "fox", "gnu", "hen", "else")]
    return [[each.label, each.confidence, each.unknown] for each in learner.predict(np.concatenate(asked))]


def classes(learner: Learner) -> list[list[Any]]:
    """Name, samples learned and exemplars kept of each class."""
    return [[each.name, each.samples, each.exemplars] for each in learner.classes()]


def knowledge(learner: Learner) -> View:
    """The statistics in a few numbers, and a digest of the samples that are stored."""
    if learner.foundation is None:
        return {}
    known = learner.repository.known()
    plain, moment = known.plain, known.plain.moment
    direction = np.linspace(-1, 1, plain.dimension)
    rows = sorted((row.label, row.key, row.feature.tobytes(), row.input) for row in known.exemplars())
    return {"means": {label: plain.mean(label).tolist() for label in plain.labels},
            "moment": None if moment is None else (moment @ direction).tolist(), "residual": plain.residual,
            "exemplars": len(rows), "stored": hashlib.sha256(repr(rows).encode()).hexdigest()}


def unpacked(found: View | str) -> View:
    """The parts of the knowledge; each is the refusal if it was refused."""
    parts = ("means", "moment", "residual", "exemplars", "stored")
    return {name: found if isinstance(found, str) else found.get(name) for name in parts}


def differences(found: View, wanted: View) -> list[str]:
    """The parts in which two views differ, by more than another order of summation makes of the numbers."""
    return [name for name in sorted({*found, *wanted}) if not same(found.get(name), wanted.get(name))]


def same(found: Any, wanted: Any) -> bool:
    """Whether two values are the same, up to rounding."""
    if isinstance(found, float) and isinstance(wanted, float):
        return math.isclose(found, wanted, rel_tol=1e-4, abs_tol=1e-4)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(found, dict) and isinstance(wanted, dict):
        return sorted(found) == sorted(wanted) and all(same(found[name], wanted[name]) for name in found)
    return bool(found == wanted)


def go_on(state: Path) -> list[str]:
    """What goes wrong when a state learns a class, is opened again and forgets it."""
    problems = []
    learner = Learner.open(state)
    before, taught = counts(learner), samples(learner, NEW, 20)
    learner.learn(taught, NEW)
    learner.close()
    learner = Learner.open(state)
    if counts(learner) != {**before, NEW: 20}:
        problems.append(f"after `learn` it knows {counts(learner)}, not {before} and 20 of {NEW!r}")
    problems += [f"opened again, it says: {line}" for line in learner.damage if NOTHING_LOST in line]
    learner.predict(samples(learner, NEW, 3))
    learner.forget(NEW)
    learner.close()
    learner = Learner.open(state)
    if counts(learner) != before:
        problems.append(f"after `forget` it knows {counts(learner)}, not {before}")
    learner.close()
    features = taught if taught.ndim == 2 else taught[:0]
    return [*problems, *over_quota(state), *left_of(state, NEW, features)]


def counts(learner: Learner) -> dict[str, int]:
    """Samples learned of each class."""
    return {each.name: each.samples for each in learner.classes()}


def over_quota(state: Path) -> list[str]:
    """By how much a state directory is larger than its quota."""
    learner = Learner.open(state)
    quota = learner.settings.quota
    learner.close()
    used = directory_bytes(state, reserve=False)
    return [f"it takes {used} bytes of {quota}"] if used > quota else []


def left_of(state: Path, name: str, features: np.ndarray) -> list[str]:
    """What the files of a state, which was opened since, still hold of a class that it has forgotten: its name, or its
    samples' features, float32 [n, d]."""
    text, found = (name if len(name) > 5 else f'"{name}"').encode(), []     # short ones may be there by chance
    for file in state.rglob("*"):
        if file.is_file() and file.name != "reserved":
            data = file.read_bytes()
            if text in data:
                found.append(f"{file.name} still names {name!r}")
            if any(feature[:3].tobytes() in data for feature in features):
                found.append(f"{file.name} still holds samples of {name!r}")
    return found
