"""One thread a process, and a cache of its own: what a test measures is not what the machine happens to hold."""
from __future__ import annotations

import atexit
import os
import shutil
import tempfile

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # also in scripts that tests run; test_telemetry does without it
if "EDGECL_CACHE" not in os.environ:
    os.environ["EDGECL_CACHE"] = tempfile.mkdtemp(prefix="edgecl-cache-")
    atexit.register(shutil.rmtree, os.environ["EDGECL_CACHE"], ignore_errors=True)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from helpers_state import PROBE, create, vectors  # noqa: E402


@pytest.fixture
def learner(tmp_path):
    """Three classes, the second one's statistics and samples journaled."""
    made = create(tmp_path / "state")
    for name in ("ant", "wasp", "cat"):
        made.learn(vectors(name, 25), name)
    yield made
    made.close()


@pytest.fixture
def state(learner):
    learner.close()
    return learner.store.path


@pytest.fixture
def photos(tmp_path):
    """Vectors to ask about, as a file for the command line."""
    labels = np.zeros(len(PROBE), np.int64)
    np.savez(tmp_path / "ask.npz", x_train=PROBE, y_train=labels, x_test=PROBE, y_test=labels)
    return tmp_path / "ask.npz"
