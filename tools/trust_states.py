"""Whole states for tools/trust.py: accuracy by quota, and a class `nothing` on streams of activities never taught."""
from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from edgecl.errors import BudgetError
from edgecl.evaluation import datasets
from edgecl.learner import Learner
from edgecl.learning.foundation import CALIBRATION_SAMPLES
from edgecl.results import Prediction
from edgecl.runtime.debounce import Debounce, evidence_of
from edgecl.samples import NOTHING
from edgecl.settings import Settings, parse_size

EXEMPLAR_SHARE = 16             # of the quota, as `edgecl init` gives
WISDM_WINDOW = 5.0              # seconds
TAUGHT, OTHERS, NOTHING_WINDOWS = 6, 6, 300    # activities taught, activities of `nothing`, windows of it


def windows_by_quota(data: datasets.Split, quota: str) -> dict[str, float | str]:
    """Accuracy on unseen people of a state that learns windows."""
    assert data.session_train is not None
    with tempfile.TemporaryDirectory() as name:
        learner = _created(Path(name) / "state", quota, data.x_train)
        for number, label in enumerate(data.class_names):
            mine = data.y_train == number
            learner.learn(data.x_train[mine], label, [f"person {each}" for each in data.session_train[mine]])
        said = learner.predict(data.x_test)
        right = [each.label == data.class_names[y] for each, y in zip(said, data.y_test)]
        return {"accuracy": float(np.mean(right)), "refused": float(np.mean([bool(each.unknown) for each in said])),
                **_form(learner)}


def vectors_by_quota(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray,
                     quota: str) -> dict[str, float | str]:
    """Accuracy of a state that learns features of photos as vectors, so that quotas without room for a backbone of
    photos can be compared. Classes that do not fit are never right."""
    with tempfile.TemporaryDirectory() as name:
        learner = _created(Path(name) / "state", quota, x, "identity")
        for number in np.unique(y):
            try:
                learner.learn(x[y == number], f"{number:04d}")
            except BudgetError:     # counted as wrong
                break
        right = [each.label == f"{truth:04d}" for each, truth in zip(learner.predict(test_x), test_y)]
        return {"accuracy": float(np.mean(right)), **_form(learner)}


def _created(path: Path, quota: str, samples: np.ndarray, backbone: str = "rocket") -> Learner:
    mix = samples[np.linspace(0, len(samples) - 1, CALIBRATION_SAMPLES).astype(int)]
    settings = Settings(backbone=backbone, quota=parse_size(quota), exemplars=parse_size(quota) // EXEMPLAR_SHARE)
    return Learner.create(path, settings, mix)


def _form(learner: Learner) -> dict[str, str]:
    foundation, status = learner.foundation, learner.status()
    assert foundation is not None
    rank = foundation.form.rank
    return {"features": f"{foundation.dimension}" + ("" if rank is None else f", rank {rank}"),
            "classes": str(len(learner.classes())),
            "head": str(status.head), "used": f"{status.used_bytes}"}


def nothing(data: datasets.Split, streams: Path, seed: int) -> dict[str, dict[str, float]]:
    """Two states that know TAUGHT activities, without and with a class `nothing` of OTHERS more: what they make
    of activities that neither knows, as windows and as streams of unseen people.

    streams: folder of test recordings, CLASS/*.csv, with as many rows in WISDM_WINDOW seconds as a window has.
    """
    order = np.random.default_rng(seed).permutation(len(data.class_names))
    taught, other, strange = order[:TAUGHT], order[TAUGHT:TAUGHT + OTHERS], order[TAUGHT + OTHERS:]
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for way in ("without", "with"):
            learner = _created(Path(name) / way, "64MB", data.x_train[np.isin(data.y_train, [*taught, *other])])
            for number in taught:
                _teach(learner, data, np.flatnonzero(data.y_train == number), data.class_names[number])
            if way == "with":
                rows = np.random.default_rng(seed).permutation(np.flatnonzero(np.isin(data.y_train, other)))
                _teach(learner, data, np.sort(rows[:NOTHING_WINDOWS]), NOTHING)
            found[way] = _answers(learner, data, taught, strange) | _streams(learner, data, streams, taught, strange)
    return found


def _teach(learner: Learner, data: datasets.Split, rows: np.ndarray, label: str) -> None:
    assert data.session_train is not None
    learner.learn(data.x_train[rows], label, [f"person {each}" for each in data.session_train[rows]])


def named(answer: Prediction) -> str | None:
    """The taught name that an answer gives, if any."""
    return None if answer.unknown else answer.label


def _answers(learner: Learner, data: datasets.Split, taught: np.ndarray, strange: np.ndarray) -> dict[str, float]:
    known, odd = (np.isin(data.y_test, of) for of in (taught, strange))
    right = [named(answer) == data.class_names[y]
             for answer, y in zip(learner.predict(data.x_test[known]), data.y_test[known])]
    wrong = [named(answer) is not None for answer in learner.predict(data.x_test[odd])]
    return {"known right and answered": float(np.mean(right)), "strange named": float(np.mean(wrong))}


def _streams(learner: Learner, data: datasets.Split, streams: Path, taught: np.ndarray, strange: np.ndarray
             ) -> dict[str, float]:
    """False activations per hour of strange recordings, and of taught ones the share in which the right name became
    stable, and after how many windows."""
    rows, false, hours, found, waits = data.x_test.shape[1], 0, 0.0, [], []
    for number in [*strange, *taught]:
        label = data.class_names[number]
        for file in sorted((streams / label).glob("*.csv")):
            values = np.loadtxt(file, np.float32, delimiter=",")
            windows = values[:len(values) // rows * rows].reshape(-1, rows, values.shape[1])
            debounce = Debounce()
            stable = [named(answer) if debounce(*evidence_of(answer)) else None for answer in learner.predict(windows)]
            if number in strange:
                false += sum(each is not None for each in stable)
                hours += len(windows) * WISDM_WINDOW / 3600
            else:
                found.append(label in stable)
                waits += [stable.index(label) + 1] if label in stable else []
    return {"false activations per hour": false / hours, "recordings with the right name": float(np.mean(found)),
            "windows until then": float(np.median(waits)) if waits else float("nan")}
