"""The Python API where the other tests do not reach: going back step by step, first samples, recordings."""
from __future__ import annotations

import numpy as np
import pytest
from helpers_state import create, traces, vectors

import edgecl
from edgecl.errors import BadInput, StateError
from edgecl.samples import Sample
from edgecl.settings import Settings


def test_rollback_goes_on_backwards(tmp_path):
    learner = create(tmp_path / "s")
    for name in ("a", "b", "c"):
        learner.learn(vectors(name, 10), name)
    known = []
    for _ in range(3):
        learner.rollback()
        known.append([each.name for each in learner.classes()])
    assert known == [["a", "b"], ["a"], []]
    with pytest.raises(StateError, match="restorable"):
        learner.rollback()
    learner.learn(vectors("d", 10), "d")
    learner.rollback()
    assert learner.classes() == []


def test_a_class_taught_first_with_one_sample_leaves_no_trace(tmp_path):
    learner = create(tmp_path / "s")
    only = vectors("wasp", 1)
    learner.learn(only, "wasp")
    learner.learn(vectors("ant", 12), "ant")
    assert traces(tmp_path / "s", only, ["wasp"])
    learner.forget("wasp")
    learner.close()
    assert not traces(tmp_path / "s", only, ["wasp"])


def test_recordings_stay_whole_across_batches(tmp_path):
    learner = create(tmp_path / "s", exemplars=200_000)
    values = vectors("walk", 150)
    learner.learn((Sample(x, f"{i}", group="first" if i < 100 else "second") for i, x in enumerate(values)), "walk")
    learner.learn(vectors("run", 20), "run")
    groups = [row.key >> 32 for row in learner.repository.known().stored if row.label == "walk"]
    assert sorted(np.unique(groups, return_counts=True)[1].tolist()) == [50, 100]


def test_a_session_is_the_same_in_every_class_and_command(tmp_path):
    learner = create(tmp_path / "s", exemplars=200_000)
    learner.learn(vectors("walk", 150), "walk", ["ann"] * 100 + ["ben"] * 50)
    learner.learn(vectors("run", 4), "run", ["ben", "ann", "", "ann"])
    learner.learn((Sample(x, group="run.csv", session="ann") for x in vectors("run", 3, 1)), "run")
    learner.learn(vectors("walk", 2, 1), "walk", np.array(["ben", "cleo"]))
    stored = learner.repository.known().stored
    of = {label: [row.key >> 32 for row in stored if row.label == label] for label in ("walk", "run")}
    ann, ben = of["walk"][0], of["walk"][100]
    assert of["walk"][:-1] == [ann] * 100 + [ben] * 51
    assert of["run"][:2] + of["run"][3:] == [ben, ann] + [ann] * 4
    assert len({ann, ben, of["run"][2], of["walk"][-1]}) == 4


def test_the_package_names_its_api(tmp_path):
    assert edgecl.Learner.create(tmp_path / "s", Settings(backbone="identity")).classes() == []
    with pytest.raises(edgecl.EdgeclError, match="learned nothing"):
        edgecl.Learner.open(tmp_path / "s").predict(np.zeros((1, 3), np.float32))
    with pytest.raises(AttributeError, match="nothing"):
        edgecl.nothing


def test_learning_nothing_is_refused(tmp_path):
    learner = create(tmp_path / "s")
    for empty in (np.zeros((0, 16), np.float32), iter(())):
        with pytest.raises(BadInput, match="no sample"):
            learner.learn(empty, "x")
    with pytest.raises(BadInput, match="1 group for 3 samples"):
        learner.learn(vectors("x", 3), "x", groups=["one"])
