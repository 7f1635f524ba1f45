"""Erasing, going back, merging, and the quota's refusals."""
from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from helpers_state import (
    DIMENSION,
    PROBE,
    answers,
    create,
    fingerprint,
    in_a_child,
    knowledge,
    traces,
    vectors,
)

from edgecl.errors import BudgetError, StateError
from edgecl.exemplars.codecs import Float32
from edgecl.exemplars.stored import StoredSample, pack, packed_bytes, rows_of
from edgecl.heads.solvers import forms
from edgecl.learner import Learner
from edgecl.learning.plan import state_bytes
from edgecl.state.history import HISTORY
from edgecl.state.quota import PAGE
from edgecl.state.store import Store


@pytest.mark.parametrize("head", ["slda", "nearest-mean", "auto"])
def test_forget_erases_names_and_features(tmp_path, head):
    learner = create(tmp_path / "state", head=head, exemplars=6_000)
    learner.learn(vectors("base", 30), "base")
    victims = {}
    for round_ in range(4):
        for number in range(6):
            name = f"Zaunkönig-{round_}-{number}"
            victims[name] = vectors(name, 12 + 7 * number, round_)
            learner.learn(victims[name], name)
        if round_ == 2:
            learner.rollback()
            rolled_back = victims.pop(name)
        name = f"Zaunkönig-{round_}-2"
        assert traces(learner.store.path, victims[name], [name])
        learner.forget(name)
        assert not traces(learner.store.path, victims.pop(name), [name])
    for name, features in victims.items():
        learner.forget(name)
        assert not traces(learner.store.path, features, [name])
    assert not traces(learner.store.path, rolled_back, [])
    assert [c.name for c in learner.classes()] == ["base"]


def test_what_a_killed_forget_left_is_erased_at_the_next_opening(learner, monkeypatch):
    state = learner.store.path
    monkeypatch.setattr(Store, "tidy", lambda *_, **__: os._exit(9))
    assert in_a_child(lambda: learner.forget("wasp")) == 9
    monkeypatch.undo()
    assert traces(state, vectors("wasp", 25), ["wasp"])
    learner.close()
    learner = Learner.open(state)
    assert not traces(state, vectors("wasp", 25), ["wasp"])
    assert [c.name for c in learner.classes()] == ["ant", "cat"]


def test_a_forgotten_class_can_be_learned_again(learner):
    learner.forget("wasp")
    learner.learn(vectors("wasp", 9, 1), "wasp")
    learner.learn(vectors("dog", 9, 1), "dog")
    learner.rollback()
    assert {c.name: c.samples for c in learner.classes()} == {"ant": 25, "wasp": 9, "cat": 25}
    assert learner.forget("wasp")["exact"]
    learner.learn(vectors("wasp", 4, 2), "wasp")
    learner.close()
    learner = Learner.open(learner.store.path)
    assert {c.name: c.samples for c in learner.classes()} == {"ant": 25, "wasp": 4, "cat": 25}


def test_forgetting_everything_leaves_a_state_that_learns(learner):
    for name in ("ant", "wasp", "cat"):
        learner.forget(name)
    with pytest.raises(StateError, match="learned nothing"):
        learner.predict(PROBE)
    learner.learn(vectors("dog", 20), "dog")
    assert learner.predict(PROBE)[0].label == "dog"


def test_going_back_gives_the_same_answers_bit_for_bit(learner, tmp_path):
    other = create(tmp_path / "other")
    for name in ("cat", "fox"):
        other.learn(vectors(name, 40, 3), name)
    shown = {learner.store.current: answers(learner)}

    def learn(name, count, seed=0):
        return lambda: learner.learn(vectors(name, count, seed), name)

    steps = [learn("dog", 30), learner.rollback, lambda: learner.forget("ant"), learn("elk", 1500), learn("gnu", 3),
             lambda: learner.merge([tmp_path / "other"]), learner.rollback, learn("hen", 700), learn("hen", 7, 1)]
    for step in steps:
        step()
        shown[learner.store.current] = answers(learner)
        for wanted in learner.store.restorable() & shown.keys():
            copy = tmp_path / "copy"
            shutil.copytree(learner.store.path, copy)
            restored = Learner.open(copy)
            if wanted != restored.store.current:
                restored.rollback(wanted)
            assert answers(restored) == shown[wanted]
            restored.learn(vectors("ibis", 5), "ibis")
            restored.close()
            shutil.rmtree(copy)
    assert len(learner.store.restorable()) > 3


def test_the_step_before_can_always_be_gone_back_to(learner):
    for number in range(12):
        shown = answers(learner)
        learner.learn(vectors(f"class {number}", 200), f"class {number}")
        learner.rollback()
        assert answers(learner) == shown
        learner.learn(vectors(f"class {number}", 200), f"class {number}")


def test_going_back_to_the_empty_state(learner):
    learner.rollback(1)
    assert learner.classes() == []
    with pytest.raises(StateError, match="learned nothing"):
        learner.predict(PROBE)
    learner.learn(vectors("dog", 20), "dog")
    assert [c.name for c in learner.classes()] == ["dog"]


def test_history_and_files_stay_bounded(learner):
    for number in range(70):
        learner.learn(vectors("ant", 2, number + 1), "ant")
        if number % 7 == 0:
            learner.rollback()
    assert len(learner.history()) <= 2 * HISTORY + 2
    assert len(list((learner.store.path / "models").iterdir())) < 60
    assert learner.store.current == 84


def test_merging_twice_is_refused_also_by_detours(learner, tmp_path):
    b, c = create(tmp_path / "b"), create(tmp_path / "c")
    b.learn(vectors("bat", 20), "bat")
    c.learn(vectors("cow", 20), "cow")
    learner.merge([b.store.path])
    kept = fingerprint(learner.store.path)
    for others in ([b], [b, c], [c, c], [learner]):
        with pytest.raises(StateError, match=r"merged here before|this state itself"):
            learner.merge([other.store.path for other in others])
        assert fingerprint(learner.store.path) == kept
    c.merge([b.store.path])
    with pytest.raises(StateError, match="merged here before"):
        learner.merge([c.store.path])
    with pytest.raises(StateError, match="merged here before"):
        b.merge([learner.store.path])
    learner.learn(vectors("dog", 5), "dog")
    assert [each.name for each in learner.classes()] == ["ant", "bat", "cat", "dog", "wasp"]
    learner.rollback(4)
    learner.merge([c.store.path])
    assert [each.name for each in learner.classes()] == ["ant", "bat", "cat", "cow", "wasp"]


def test_what_failed_stays_out_of_memory(learner, monkeypatch):
    kept = knowledge(Learner.open(learner.store.path))
    monkeypatch.setattr(learner.store.ledger, "quota", learner.store.used_bytes())
    with pytest.raises(BudgetError, match="bytes"):
        learner.learn(vectors("dog", 20), "dog")
    monkeypatch.undo()
    assert knowledge(learner) == kept
    learner.learn(vectors("elk", 20), "elk")
    assert [c.name for c in learner.classes()] == ["ant", "cat", "elk", "wasp"]


def test_samples_survive_their_file():
    rows = [StoredSample(7 << 32 | i, 7, label, 2 ** 62 + i, np.arange(5, dtype=np.float32) + i, b"input" * i, bool(i))
            for i, label in enumerate(("a", "Bär 2"))]
    file = pack([(rows, Float32())], {"id": 7})
    assert len(file) <= packed_bytes([(rows, Float32())], 10)
    again = rows_of(file, lambda _: Float32(), "file")
    for row, same in zip(rows, again):
        assert row[:4] + row[5:] == same[:4] + same[5:]
        assert (row.feature == same.feature).all()
    for place in range(len(file)):
        with pytest.raises(StateError, match="damaged"):
            rows_of(file[:place] + bytes([file[place] ^ 1]) + file[place + 1:], lambda _: Float32(), "file")


@pytest.mark.parametrize("head", ["slda", "nearest-mean", "auto"])
def test_a_quota_too_small_is_refused_with_the_bytes_that_suffice(tmp_path, head):
    small = create(tmp_path / "small", quota=100_000, exemplars=8_000, head=head)
    with pytest.raises(BudgetError, match="give --quota") as refusal:
        small.learn(vectors("ant", 25), "ant")
    least = int(refusal.value.cure.split()[2])
    assert least == state_bytes(317, 8_000, DIMENSION, 2, forms(head, DIMENSION)[-1])
    enough = create(tmp_path / "enough", quota=least, exemplars=8_000, head=head)
    for turn in range(3):
        for name in ("ant", "wasp"):
            enough.learn(vectors(name, 60, turn), name)
        enough.forget("ant")
    with pytest.raises(BudgetError, match="give --quota"):
        create(tmp_path / "short", quota=least - 1, exemplars=8_000, head=head).learn(vectors("ant", 25), "ant")
    with pytest.raises(BudgetError, match="needs"):
        create(tmp_path / "tiny", quota=5_000, exemplars=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["enough", "short", "small"]


def test_what_is_not_an_exemplar_stays_for_a_bounded_time_only(fast_path):
    """The bound in docs/state.md: twice the exemplar limit, twice the statistics or 64 KB, for two snapshots."""
    limit = 20_000
    learner, largest = create(fast_path / "state", quota=2_000_000, exemplars=limit), 0
    for number in range(120):
        learner.learn(vectors(f"class {number % 3}", 20, number), f"class {number % 3}")
        snapshots = [learner.store.blobs.bytes(g.snapshot) for g in learner.store.alive() if g.snapshot]
        allowed = max(2 * limit, 2 * max(snapshots), 65536)
        journal = learner.store.usage().journal
        assert journal <= 2 * allowed + 4 * PAGE
        largest = max(largest, journal)
    assert largest > 65536      # there were more than one log holds
    learner.close()
