"""One thread a process, and a cache of its own: what a test measures is not what the machine happens to hold."""
from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # also in scripts that tests run; test_telemetry does without it
if "EDGECL_CACHE" not in os.environ:
    os.environ["EDGECL_CACHE"] = tempfile.mkdtemp(prefix="edgecl-cache-")
    atexit.register(shutil.rmtree, os.environ["EDGECL_CACHE"], ignore_errors=True)

from folders import fast_folder, on_a_disk  # noqa: E402

# `tmp_path` lies in memory if there is room, for rounds too: syncs would take longer than the tests. On a disk:
# --basetemp DIR
if memory := fast_folder(room=4 * 10**9):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", memory)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from helpers_backup import quiet  # noqa: E402
from helpers_log import log_states  # noqa: E402
from helpers_state import PROBE, create, vectors  # noqa: E402

from edgecl.evaluation import bench  # noqa: E402
from edgecl.learner import Learner  # noqa: E402
from edgecl.rounds import worker  # noqa: E402
from edgecl.state.backup import backup  # noqa: E402

WARM = str(Path(__file__).with_name("warm_process.py"))


def pytest_collection_modifyitems(items):
    """Modules with long tests first: the last tests, of which a worker may have one more than the others, are short."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)



@pytest.fixture(scope="session")
def torch_process(tmp_path_factory):
    """The socket of a process that has imported torch, see warm_process.py."""
    path = tmp_path_factory.mktemp("torch") / "socket"
    child = subprocess.Popen([sys.executable, WARM, "serve", path, str(os.getpid())], start_new_session=True)
    while not path.exists():
        assert child.poll() is None
        time.sleep(0.05)
    yield str(path)
    child.kill()
    child.wait()


@pytest.fixture
def warm(monkeypatch, torch_process):
    """Workers of rounds and of the benchmark are forked from a process that has imported torch."""
    monkeypatch.setattr(worker, "COMMAND", (sys.executable, WARM, torch_process, *worker.COMMAND[2:]))
    monkeypatch.setattr(bench, "COMMAND", (sys.executable, WARM, torch_process, *bench.COMMAND[2:]))


@pytest.fixture
def fast_path():
    """Like `tmp_path`, in memory even with --basetemp: for states that take hundreds of commands."""
    with tempfile.TemporaryDirectory(prefix="edgecl-test-", dir=fast_folder()) as folder:
        yield Path(folder)


@pytest.fixture
def disk(tmp_path):
    """An empty folder on a disk."""
    places = [tmp_path, Path("/var/tmp"), Path(__file__).parent, Path.home()]
    place = on_a_disk(places)
    if place is None:
        pytest.skip(f"none of {', '.join(map(str, places))} is on a disk")
    folder = Path(tempfile.mkdtemp(dir=place, prefix=".edgecl-test-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def three_classes(tmp_path_factory):
    """A state of three classes, the second one's statistics and samples journaled; `learner` opens a copy of it."""
    path = tmp_path_factory.mktemp("three") / "state"
    made = create(path)
    for name in ("ant", "wasp", "cat"):
        made.learn(vectors(name, 25), name)
    made.close()
    return path


@pytest.fixture
def learner(three_classes, tmp_path):
    """Three classes, the second one's statistics and samples journaled."""
    made = Learner.open(shutil.copytree(three_classes, tmp_path / "state"))
    yield made
    made.close()


@pytest.fixture
def state(learner):
    learner.close()
    return learner.store.path


@pytest.fixture
def taught(learner):
    """A state with a forgotten class, exemplars, and a class in the log."""
    learner.forget("wasp")
    learner.learn(vectors("dog", 25), "dog")
    learner.close()
    return learner.store.path


@pytest.fixture
def archive(taught, tmp_path):
    backup(taught, tmp_path / "made.tar", quiet)
    return tmp_path / "made.tar"


@pytest.fixture(scope="session")
def log_copies(tmp_path_factory):
    """A folder of states whose logs hold most of their classes, see `log_states`; `logged` is a copy of one."""
    return log_states(tmp_path_factory.mktemp("logs"))


@pytest.fixture
def logged(log_copies, tmp_path):
    """A state whose log holds the classes NAMES of `helpers_log`, but for the first."""
    return shutil.copytree(log_copies / "state", tmp_path / "state")


@pytest.fixture
def photos(tmp_path):
    """Vectors to ask about, as a file for the command line."""
    labels = np.zeros(len(PROBE), np.int64)
    np.savez(tmp_path / "ask.npz", x_train=PROBE, y_train=labels, x_test=PROBE, y_test=labels)
    return tmp_path / "ask.npz"
