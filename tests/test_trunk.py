"""What a round's first part says when it is too slow."""
from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest

from edgecl.errors import BudgetError
from edgecl.rounds.job import Job, Stored
from edgecl.training.worker import trunk


def test_the_time_that_is_named_holds_what_was_used_before(tmp_path, monkeypatch):
    """A worker that other programs held up for 200 of its 300 s is not told that 230 would do."""
    now, n = [0.0], 4 * trunk.SAMPLES_PER_PASS

    def passed(rows):
        now[0] += 30
        return np.zeros((len(rows), 8), np.float32)

    monkeypatch.setattr(trunk, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(trunk.limits, "limit", lambda memory: None)
    monkeypatch.setattr(trunk, "_passed", lambda *given: passed)
    nothing = np.zeros(n, bool)
    Stored(np.zeros(n, np.int64), nothing, nothing, np.zeros((n, 8), np.float32), [b"x"] * n).write(tmp_path)
    with pytest.raises(BudgetError, match="samples through the backbone takes 120 s; give --time") as told:
        trunk.run(tmp_path, Job("er", ("a", "b"), 0, "jpeg", None, 10**9, 300), SimpleNamespace(shape=(8,)), 100)
    assert int(re.search(r"--time (\d+)s", str(told.value)).group(1)) > 300 + 120
