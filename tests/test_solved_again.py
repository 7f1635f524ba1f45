"""`edgecl check --repair` solves the heads of older generations again, so that the ways back stay open."""
from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers_check import STATES, checked, probe_of
from helpers_state import answers, flip

from edgecl.errors import BudgetError
from edgecl.learner import Learner
from edgecl.learning.solved_again import SAME
from edgecl.state.store import Store

HURT = {"flip": flip, "gone": Path.unlink}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A state of each kind, closed, with a head for each generation."""
    folder = tmp_path_factory.mktemp("states")
    for name, make in STATES.items():
        make(folder / name).close()
        learner = Learner.open(folder / name)
        assert len(learner.store.restorable()) >= 3
        learner.close()
    return folder


def then(state, number):
    """What a state answers when it has gone back to a generation; nothing of it is changed."""
    copy = shutil.copytree(state, state.with_name("then"))
    learner = Learner.open(copy)
    learner.rollback(number)
    found = answers(learner, probe_of(learner)), learner.predict(probe_of(learner))
    learner.close()
    shutil.rmtree(copy)
    return found


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("how", HURT)
def test_every_way_back_outlives_the_loss_of_its_head(made, fast_path, capsys, kind, how):
    learner = Learner.open(made / kind)
    heads = {g.id: g.head for g in learner.store.alive() if g.head}
    possible, newest = learner.store.restorable(), learner.store.current
    learner.close()
    assert len(heads) > 1
    for lost in (*[[number] for number in heads], [*heads]):
        state = shutil.copytree(made / kind, fast_path / kind)
        wanted = {number: then(state, number) for number in lost if number in possible - {newest}}
        for name in {heads[number] for number in lost}:
            HURT[how](state / "models" / name)
        code, report = checked(capsys, state)
        cures = [each["cure"] for each in report["files"] if each["what"].startswith("head") and each["cure"]]
        assert code == 1 and len(cures) == len(possible & {*lost}) and all("solved again" in cure for cure in cures)
        code, report = checked(capsys, state, "--repair")
        assert code == 0
        learner = Learner.open(state)
        assert possible <= learner.store.restorable() and learner.store.current == newest
        learner.close()
        for number, (bits, told) in wanted.items():
            (line,) = [line for line in report["done"] if f"the head of generation {number} " in line]
            found, again = then(state, number)
            if SAME in line:
                assert found == bits
            assert [each.label for each in again] == [each.label for each in told]
            assert SAME in line or "its confidence may differ" in line
        shutil.rmtree(state)


def test_without_room_for_a_head_it_is_said_and_only_that_way_back_is_lost(made, fast_path, capsys, monkeypatch):
    state = shutil.copytree(made / "vectors", fast_path / "state")
    learner = Learner.open(state)
    possible, lost = learner.store.restorable(), next(g for g in learner.store.alive() if g.head)
    learner.close()
    flip(state / "models" / lost.head)

    def no_room(*_):
        raise BudgetError("no room", "none")

    monkeypatch.setattr(Store, "naming_bytes", no_room)
    code, report = checked(capsys, state, "--repair")
    assert code == 0 and f"the head of generation {lost.id} was not solved again: no room" in report["done"]
    assert (state / "set-aside" / f"{lost.head}.1").exists()
    learner = Learner.open(state)
    assert learner.store.restorable() == possible - {lost.id}
    learner.close()


def test_a_way_back_without_its_statistics_is_told_as_lost(made, fast_path, capsys):
    state = shutil.copytree(made / "vectors", fast_path / "state")
    learner = Learner.open(state)
    oldest = next(g for g in learner.store.alive() if g.head and g.snapshot)
    learner.close()
    for name in (oldest.head, oldest.snapshot):
        flip(state / "models" / name)
    code, report = checked(capsys, state)
    (told,) = [each for each in report["files"] if oldest.head in each["file"]]
    assert (told["cure"], told["lost"]) == ("", f"the way back to generation {oldest.id}")
    code, report = checked(capsys, state, "--repair")
    assert code == 0 and not any("solved again" in line for line in report["done"])
