"""Older files copied over a state that a learner has open, as `cp -r BACKUP/. STATE` does: the same numbers of
generations then stand for other ones."""
from __future__ import annotations

import os
import shutil

import pytest
from helpers_state import create, vectors

from edgecl.learner import Learner


def shown(learner):
    return {each.name: each.samples for each in learner.classes()}


def copy_over(source, state, how):
    """Copy every file over the one that is there: into it, or in its place."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            target = state / path.relative_to(source)
            if how == "into":
                shutil.copyfile(path, target)
            else:
                shutil.copyfile(path, target.with_suffix(".copying"))
                os.replace(target.with_suffix(".copying"), target)


@pytest.mark.parametrize("how", ["into", "in place"])
@pytest.mark.parametrize("looks", [True, False])    # the open learner, before another process goes on
@pytest.mark.parametrize("change", ["append", "rewrite"])
def test_what_is_known_is_read_again_though_the_number_is_the_same(tmp_path, change, looks, how):
    state, copy = tmp_path / "state", tmp_path / "copy"
    learner = create(state, exemplars=40_000)
    learner.learn(vectors("ant", 30), "ant")
    learner.learn(vectors("bee", 30), "bee")
    learner.close()
    shutil.copytree(state, copy)
    learner = Learner.open(state)
    if change == "rewrite":
        learner.forget("ant")
    learner.learn(vectors("cat", 30), "cat")
    assert "cat" in shown(learner)
    number = learner.store.current
    copy_over(copy, state, how)
    if looks:
        assert shown(learner) == {"ant": 30, "bee": 30}
    other = Learner.open(state)
    while other.store.current < number:
        other.learn(vectors("dog", 30, other.store.current), "dog")
    taught = shown(other)
    other.close()
    assert learner.store.current == number
    assert shown(learner) == taught
    assert "cat" not in {each.label for each in learner.predict(vectors("cat", 9))}
    learner.learn(vectors("elk", 5), "elk")
    learner.forget("elk")       # which writes all that is known again
    assert shown(learner) == taught
    learner.close()
    learner = Learner.open(state)
    assert shown(learner) == taught
    learner.close()


def test_what_other_processes_append_drops_nothing(tmp_path):
    learner = create(tmp_path / "state", exemplars=40_000)
    learner.learn(vectors("ant", 30), "ant")
    learner.classes()
    other, calls = Learner.open(tmp_path / "state"), []
    learner.store.started_over = lambda: calls.append(1)
    for number in range(5):
        other.learn(vectors("bee", 3, number), "bee")
        learner.learn(vectors("cat", 3, number), "cat")
        assert learner.store.current == other.store.current
    assert calls == []
    learner.close()
    other.close()
