"""A state that grows past its plan: the exact statistics give way to a coarser form, classes are not refused."""
from __future__ import annotations

import numpy as np
import pytest

from edgecl.errors import BudgetError
from edgecl.learner import Learner
from edgecl.settings import Settings

DIMENSION, PER_CLASS, QUOTA = 120, 12, 480_000


def test_statistics_become_coarser_before_a_class_is_refused(fast_path):
    rng = np.random.default_rng(0)
    centres = 3 * rng.standard_normal((400, DIMENSION)).astype(np.float32)

    def samples(label: int) -> np.ndarray:
        return centres[label] + rng.standard_normal((PER_CLASS, DIMENSION)).astype(np.float32)

    learner = Learner.create(fast_path / "s", Settings(backbone="identity", quota=QUOTA, exemplars=10_000))
    forms: list[str] = []
    known = 0

    def learn_one_more() -> int:
        learned = learner.learn(samples(known), f"c{known:03d}")
        assert learned.used_bytes <= QUOTA
        form = learner.status().statistics or ""
        if form not in forms:
            forms.append(form)
        return known + 1

    def learn_all() -> None:
        nonlocal known
        while known < 400:
            known = learn_one_more()

    with pytest.raises(BudgetError, match="--quota"):
        learn_all()
    assert forms[0] == "exact 120 x 120"
    assert len(forms) >= 3
    assert all(form.startswith("diagonal + rank ") for form in forms[1:])
    learner.close()
    reopened = Learner.open(fast_path / "s")
    answers = reopened.predict(np.concatenate([samples(label) for label in range(known)]))
    truth = np.repeat([f"c{label:03d}" for label in range(known)], PER_CLASS)
    assert np.mean([a.label == b for a, b in zip(answers, truth)]) > 0.98
    reopened.forget("c000")
    assert len(reopened.classes()) == known - 1
