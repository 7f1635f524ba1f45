"""Damage: what is found by its hash, and what serves instead."""
from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers_state import (
    answers,
    flip,
    vectors,
)

from edgecl.cli import main
from edgecl.errors import EdgeclError, StateError
from edgecl.learner import Learner
from edgecl.learning.repository import Repository


def aside(state):
    """The names of what is set aside."""
    return sorted(path.name for path in (state / "set-aside").glob("*"))


@pytest.mark.parametrize("hurt", [flip, Path.unlink, lambda path: path.write_bytes(b"")], ids=["flip", "gone", "empty"])
def test_a_damaged_head_is_solved_again(state, hurt):
    learner = Learner.open(state)
    shown, newest = answers(learner), learner.store.newest
    hurt(state / "models" / newest.head)
    looking = Learner.open(state)
    looking.store.database.writable = False     # one that can't write solves it for itself
    assert answers(looking) == shown
    assert newest.head in looking.damage[0]
    looking.store.close()
    assert newest.id in learner.store.restorable()
    learner = Learner.open(state)
    assert answers(learner) == shown
    assert aside(state) == ([] if hurt is Path.unlink else [f"{newest.head}.1"])
    assert len(learner.damage) == len(aside(state))
    assert learner.store.blobs.intact(newest.head)
    assert [(c.name, c.accuracy) for c in learner.classes()] == [
        (name, newest.detail["accuracy"][name]) for name in ("ant", "cat", "wasp")]


@pytest.mark.parametrize("hurt", [flip, Path.unlink, lambda path: path.write_bytes(b"")], ids=["flip", "gone", "empty"])
def test_a_damaged_head_that_can_not_be_solved_again_is_found_and_the_one_before_serves(state, hurt, monkeypatch):
    monkeypatch.setattr(Repository, "known", lambda *_: (_ for _ in ()).throw(StateError("no statistics", "none")))
    learner = Learner.open(state)
    before = {g.id: g for g in learner.history()}
    newest = learner.store.newest
    hurt(state / "models" / newest.head)
    assert {answer.label for answer in learner.predict(vectors("ant", 5))} == {"ant"}
    assert newest.head in learner.damage[0]
    assert "generation 2 answers instead of 4" in learner.damage[-1]
    shown = answers(learner)
    monkeypatch.undo()
    learner.rollback(2)
    assert aside(state) == ([] if hurt is Path.unlink else [f"{newest.head}.1"])
    assert len(learner.damage) == len(aside(state))
    assert answers(learner) == shown
    assert [c.name for c in learner.classes()] == ["ant"]
    assert before.keys() < {g.id for g in learner.history()}


def test_teaching_repairs_a_damaged_head(state):
    learner = Learner.open(state)
    flip(state / "models" / learner.store.newest.head)
    learner.learn(vectors("dog", 20), "dog")
    assert not any("answers instead" in line for line in learner.damage)
    assert {answer.label for answer in learner.predict(vectors("cat", 5))} == {"cat"}


@pytest.mark.parametrize("hurt", [flip, Path.unlink], ids=["flip", "gone"])
def test_damaged_statistics_are_found_and_the_generation_before_them_can_be_restored(learner, hurt):
    learner.forget("wasp")
    shown, kept = answers(learner), learner.store.current
    learner.learn(vectors("dog", 2000), "dog")  # more than a journal takes
    state = learner.store.path
    snapshot = learner.store.newest.snapshot
    learner.close()
    assert snapshot is not None
    hurt(state / "models" / snapshot)
    learner = Learner.open(state)
    assert answers(learner) != shown
    with pytest.raises(StateError, match=r"damaged.*edgecl rollback|can't be read.*edgecl rollback"):
        learner.learn(vectors("elk", 20), "elk")
    assert kept in learner.store.restorable()
    assert max(learner.store.restorable()) == kept
    learner.rollback(kept)
    assert answers(learner) == shown
    learner.learn(vectors("elk", 20), "elk")


def test_an_acknowledged_record_that_is_damaged_loses_its_own_samples_and_learning_goes_on(learner):
    state, served = learner.store.path, answers(learner)
    learner.close()
    flip(state / "learned.log", (state / "learned.log").read_bytes().index(b'["cat"]') + 200)
    learner = Learner.open(state)
    assert learner.store.restorable() == {1, 2, 3}
    assert "25 samples of 'cat' (generation 4) are lost" in learner.damage[0]
    assert learner.status().warnings == learner.damage
    assert answers(learner) == served  # its head is whole
    assert [c.name for c in learner.classes()] == ["ant", "wasp"]
    learner.learn(vectors("dog", 20), "dog")
    assert aside(state) == []  # the log still holds the damaged bytes
    assert learner.store.restorable() == {1, 2, 3, 5}
    learner.rollback(3)
    assert [c.name for c in learner.classes()] == ["ant", "wasp"]
    assert aside(state) == ["learned.log.1"]
    learner.learn(vectors("dog", 20), "dog")
    assert "25 samples of 'cat' (generation 4) are lost" in learner.damage[0]
    shown = answers(learner)
    learner.close()
    again = Learner.open(state)
    assert answers(again) == shown
    again.forget("ant")  # what is set aside may hold it
    assert aside(state) == []
    assert len(again.damage) == 1
    again.forget("wasp")
    assert [c.name for c in again.classes()] == ["dog"]


def test_a_damaged_record_that_was_acknowledged_is_told_and_learning_goes_on_behind_it(learner):
    state = learner.store.path
    learner.close()
    log = state / "learned.log"
    flip(log, log.read_bytes().index(b"cat"))  # its JSON
    learner = Learner.open(state)
    assert "what was learned in generation 4 is lost" in learner.damage[0]
    assert [c.name for c in learner.classes()] == ["ant", "wasp"]
    assert learner.learn(vectors("dog", 20), "dog").generation == 5
    shown = answers(learner)
    learner.close()
    learner = Learner.open(state)
    assert "what was learned in generation 4 is lost" in learner.damage[0]
    assert answers(learner) == shown
    assert [c.name for c in learner.classes()] == ["ant", "dog", "wasp"]


def test_damage_inside_the_log_loses_no_more_than_the_damaged_record(learner):
    for name in ("dog", "elk"):
        learner.learn(vectors(name, 20), name)
    learner.close()
    log = learner.store.path / "learned.log"
    flip(log, log.read_bytes().index(b'["dog"]') + 200)  # dog's samples
    learner = Learner.open(learner.store.path)
    assert learner.store.restorable() == {1, 2, 3, 4}
    assert {answer.label for answer in learner.predict(vectors("elk", 5))} == {"elk"}  # its head is whole
    learner.learn(vectors("fox", 20), "fox")
    assert [c.name for c in learner.classes()] == ["ant", "cat", "elk", "fox", "wasp"]
    assert learner.store.restorable() == {1, 2, 3, 4, 7}
    shown = answers(learner)
    learner.close()
    learner = Learner.open(learner.store.path)
    assert answers(learner) == shown
    learner.rollback(4)
    assert [c.name for c in learner.classes()] == ["ant", "cat", "wasp"]
    assert aside(learner.store.path) == ["learned.log.1"]


def test_a_cut_off_append_never_was_and_is_told_once(learner):
    learner.close()
    log = learner.store.path / "learned.log"
    whole, shown = log.read_bytes(), answers(Learner.open(learner.store.path))
    last = whole[whole.rindex(b"\xecCL", 0, whole.index(b'["cat"]')):]
    for tail in (last[:-3], last[:60], last[:20], b"\xec", bytes(700), last[:512] + bytes(len(last) - 512)):
        log.write_bytes(whole + tail)
        again = Learner.open(learner.store.path)
        assert answers(again) == shown
        assert [f"dropped: {len(tail)} byte" in line
                for line in again.damage] == [True]
        again.close()
        assert log.read_bytes() == whole
        again = Learner.open(learner.store.path)
        assert not again.damage
        again.close()
    again = Learner.open(learner.store.path)
    again.learn(vectors("dog", 20), "dog")
    shown = answers(again)
    again.close()
    assert answers(Learner.open(learner.store.path)) == shown


def test_damaged_exemplars_are_left_out(learner):
    learner.forget("wasp")  # writes the statistics, so that samples are only exemplars
    learner.close()
    state = learner.store.path
    shown, name = answers(Learner.open(state)), Learner.open(state).store.files("exemplars")[0][0]
    assert Learner.open(state).status().exemplars == 50
    flip(state / "models" / name)
    learner = Learner.open(state)
    assert answers(learner) == shown
    assert name in learner.damage[0]
    assert learner.status().warnings == learner.damage
    assert learner.status().exemplars == sum(c.exemplars for c in learner.classes()) < 50
    learner.learn(vectors("dog", 20), "dog")
    assert {c.name: c.samples for c in learner.classes()} == {"ant": 25, "cat": 25, "dog": 20}


def test_a_damaged_backbone_is_made_again_and_the_damaged_one_is_set_aside(state, photos, capsys):
    name, shown = Learner.open(state).store.newest.backbone, answers(Learner.open(state))
    flip(state / "models" / name)
    assert main(["predict", "--state", str(state), str(photos)]) == 0
    assert "1 damaged file is set aside" in capsys.readouterr().err
    assert aside(state) == [f"{name}.1"]
    assert answers(Learner.open(state)) == shown


@pytest.mark.parametrize("place", range(100))
def test_a_flipped_byte_in_the_header_of_the_database_is_harmless_or_said(state, place):
    shown = answers(Learner.open(state))
    flip(state / "edgecl.db", place)
    damaged = (state / "edgecl.db").read_bytes()
    learner = Learner.open(state)
    assert answers(learner) == shown
    if "damage" in learner.store.meta:
        assert (state / "set-aside" / "edgecl.db.1").read_bytes() == damaged
    learner.learn(vectors("dog", 20), "dog")
    assert [c.name for c in learner.classes()] == ["ant", "cat", "dog", "wasp"]


def test_a_flipped_byte_anywhere_never_ends_in_a_traceback_or_other_answers(state, tmp_path):
    learner = Learner.open(state)
    before = {repr(answers(learner))}
    learner.rollback(3)
    before.add(repr(answers(learner)))
    learner.rollback(2)
    before.add(repr(answers(learner)))
    learner.close()
    generator = np.random.default_rng(1)
    told = 0
    for number in range(150):
        copy = tmp_path / "copy"
        shutil.copytree(state, copy)
        victims = sorted(path for path in copy.rglob("*") if path.is_file())
        victim = victims[int(generator.integers(len(victims)))]
        flip(victim, int(generator.integers(victim.stat().st_size)))
        try:
            hurt = Learner.open(copy)
            shown = repr(answers(hurt))
            told += shown != "'StateError'" and bool(hurt.damage)
            assert shown in before | {"'StateError'"}, (number, victim)
            hurt.learn(vectors("dog", 20), "dog")
            hurt.close()
        except EdgeclError:
            pass
        shutil.rmtree(copy)
    assert told
