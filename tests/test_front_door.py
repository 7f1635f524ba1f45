"""Read this first: a learner's life on real data, scikit-learn's handwritten digits, through the Python API."""
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

import edgecl
from edgecl.evaluation.datasets import digits
from edgecl.settings import Settings

DIGITS = digits()    # 8 x 8 pixels each, as vectors of 64 numbers


def images(digit, part="train"):
    return getattr(DIGITS, f"x_{part}")[getattr(DIGITS, f"y_{part}") == digit]


def create(path, known):
    """A state: one directory, never over 1 MB, that learns digits one after the other."""
    learner = edgecl.Learner.create(path, Settings(backbone="identity", quota=1_000_000, exemplars=100_000))
    for digit in known:
        learner.learn(images(digit), str(digit))    # one generation, on the disk when this returns
    learner.close()
    return path


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    return create(tmp_path_factory.mktemp("front_door") / "state", range(8))


@pytest.fixture
def learner(taught, tmp_path):
    return edgecl.Learner.open(shutil.copytree(taught, tmp_path / "state"))


def accuracy(learner, known):
    return np.mean([a.label == str(digit) for digit in known for a in learner.predict(images(digit, "test"))])


def test_it_learns_class_after_class_inside_its_quota(learner):
    before = accuracy(learner, range(8))
    assert learner.learn(images(8), "8").samples == len(images(8))
    assert accuracy(learner, range(8)) > before - 0.02 > 0.9    # the new class costs the old ones next to nothing
    assert learner.status().used_bytes < learner.status().quota_bytes == 1_000_000


def test_what_it_never_saw_is_unknown(learner):
    assert np.mean([answer.unknown for answer in learner.predict(1 - DIGITS.x_test)]) > 0.7    # negatives
    assert np.mean([answer.unknown for answer in learner.predict(images(0, "test"))]) < 0.1


def test_a_mistake_is_taken_back_and_a_class_forgotten_exactly(learner):
    before = [(answer.label, answer.confidence) for answer in learner.predict(DIGITS.x_test)]
    learner.learn(images(8), "7")    # eights, taught as sevens
    learner.rollback()
    assert [(answer.label, answer.confidence) for answer in learner.predict(DIGITS.x_test)] == before
    assert learner.forget("3")["exact"]
    assert [each.name for each in learner.classes()] == list("0124567")


def test_two_learners_merge_and_export_as_one_onnx_file(learner, tmp_path):
    learner.merge([create(tmp_path / "other", [9])])
    assert accuracy(learner, [*range(8), 9]) > 0.88
    learner.export(tmp_path / "digits.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "digits.onnx")
    found = session.run(["probabilities"], {session.get_inputs()[0].name: DIGITS.x_test})[0]
    assert found.max(1) == pytest.approx([answer.confidence for answer in learner.predict(DIGITS.x_test)], abs=1e-4)


def test_after_a_kill_all_is_there_that_learn_has_returned_for(learner, tmp_path):
    np.save(tmp_path / "eights.npy", images(8))
    subprocess.run([sys.executable, "-c", "import os, sys, signal, edgecl, numpy\n"
                    "edgecl.Learner.open(sys.argv[1]).learn(numpy.load(sys.argv[2]), '8')\n"
                    "os.kill(os.getpid(), signal.SIGKILL)", tmp_path / "state", tmp_path / "eights.npy"])
    assert [each.name for each in learner.classes()] == list("012345678")
    assert accuracy(edgecl.Learner.open(tmp_path / "state"), range(9)) > 0.85
