"""Rounds that are refused, and what happens to a state while a worker runs."""
from __future__ import annotations

import errno
import json
from dataclasses import replace

import numpy as np
import pytest
from helpers_candidates import accept, candidate, matrix, world
from helpers_state import DIMENSION, answers, create, fingerprint, knowledge, traces, tree, vectors

from edgecl.errors import BudgetError
from edgecl.learner import Learner
from edgecl.learning import solved_heads
from edgecl.rounds.candidate import take_in, workshop_prefix
from edgecl.rounds.gate import BOUNDS, Check
from edgecl.state import compaction
from edgecl.state.blobs import Blobs

THREE = [("ant", 25, 0), ("wasp", 25, 0), ("cat", 25, 0)]
WORSE = Check("parity", "5.0e-02, 1e-04 allowed", False)


def files(learner):
    """Digests of all that a state holds beside its history."""
    return {name: digest for name, digest in tree(learner.store.path).items()
            if name not in ("edgecl.db", "edgecl.copy", "reserved")}


def refuse(learner, *checks):
    made = replace(candidate(learner, world(*THREE), matrix(1)), checks=checks or (WORSE,))
    return take_in(learner.repository, made, BOUNDS)


def test_a_refused_round_leaves_nothing_but_a_row_of_the_history(learner):
    store = learner.store
    learner.serving()   # which writes the head
    before = files(learner), answers(learner), knowledge(learner), store.restorable(), store.current
    status = replace(learner.status(), used_bytes=0, reserved_bytes=0, purposes={})
    took = refuse(learner)
    assert took.generation is None
    assert (files(learner), answers(learner), knowledge(learner), store.restorable(), store.current) == before
    assert replace(learner.status(), used_bytes=0, reserved_bytes=0, purposes={}) == status
    row = learner.history()[-1]
    assert (row.action, row.undone, row.backbone, row.head) == ("round", True, None, None)
    assert row.detail["refused"] == ["parity: 5.0e-02, 1e-04 allowed"]
    other = Learner.open(store.path)
    assert (answers(other), knowledge(other)) == before[1:3]
    learner.rollback()
    assert [c.name for c in learner.classes()] == ["ant", "wasp"]
    assert learner.learn(vectors("dog", 25), "dog").generation > row.id


def test_a_round_whose_accuracy_is_worse_is_refused_by_the_figures(learner):
    flat = matrix(1) * (np.arange(DIMENSION) < 1)  # one direction is left
    took = take_in(learner.repository, candidate(learner, world(*THREE), flat.astype(np.float32)), BOUNDS)
    assert took.generation is None
    assert next(check.name for check in took.checks if not check.passed) == "accuracy"
    assert took.accuracy["ant"][0] == 1.0
    assert min(after for _, after in took.accuracy.values()) < 1.0


def test_many_refused_rounds_neither_grow_the_state_nor_push_out_what_is_known(learner, monkeypatch):
    monkeypatch.setattr(solved_heads, "FREE_HEADS", 0)
    monkeypatch.setattr(solved_heads, "HEAD_SHARE", 10**9)
    learner.learn(vectors("dog", 25), "dog")
    assert learner.store.newest.head is None, "its head was left for later"
    before, held = knowledge(learner), learner.repository.heads.summary()["accuracy"]
    sizes = []
    for number in range(130):
        with learner.store.exclusive():
            learner.store.note("round", {"method": "er", "refused": [f"accuracy: {number} " + 200 * "x"]})
        sizes.append((learner.store.path / "edgecl.db").stat().st_size)
    assert max(sizes[90:]) == sizes[90], "it has stopped growing"
    assert len(learner.history()) < 70
    with learner.store.exclusive():
        compaction.prune(learner.store)
    assert learner.repository.heads.summary()["accuracy"] == held
    assert knowledge(learner) == before
    learner.learn(vectors("elk", 1500), "elk")
    assert [c.name for c in learner.classes()] == ["ant", "cat", "dog", "elk", "wasp"]
    assert len(before[1]) == 100
    assert {each.label for each in learner.predict(vectors("dog", 9, 3))} == {"dog"}


def test_a_quota_without_room_for_a_second_backbone_refuses_and_leaves_no_trace(tmp_path, monkeypatch):
    learner = create(tmp_path / "state", quota=600_000)
    for name, count, seed in THREE:
        learner.learn(vectors(name, count, seed), name)
    learner.learn(vectors("ant", 1500, 1), "ant")  # a second snapshot: pruning would free something
    before = files(learner), fingerprint(learner.store.path), learner.store.restorable()
    made = candidate(learner, world(*THREE, ("ant", 1500, 1)), matrix(1))
    made = replace(made, parts=bytes(500_000))
    monkeypatch.setattr("edgecl.rounds.gate.check_accuracy", lambda *_: [])
    took = take_in(learner.repository, made, BOUNDS)
    assert took.generation is None
    assert took.checks[-1].name == "quota"
    assert "of the quota of" in took.checks[-1].found
    assert (files(learner), learner.store.restorable()) == before[::2]


@pytest.mark.parametrize("suffix", ["onnx", "npz", "features", "parts"])
def test_a_full_disk_refuses_a_round_and_changes_nothing(learner, monkeypatch, suffix):
    before = fingerprint(learner.store.path)
    write = Blobs.write

    def full(self, blob, kind):
        if kind == suffix:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, blob, kind)

    monkeypatch.setattr(Blobs, "write", full)
    monkeypatch.setattr("edgecl.rounds.gate.check_accuracy", lambda *_: [])
    with pytest.raises(BudgetError, match="full"):
        take_in(learner.repository, candidate(learner, world(*THREE), matrix(1)), BOUNDS)
    monkeypatch.undo()
    assert fingerprint(learner.store.path) == before
    accept(learner, candidate(learner, world(*THREE), matrix(1)), monkeypatch)


def test_forgetting_erases_a_class_from_the_reasons_of_refused_rounds_and_from_what_a_killed_one_left(learner):
    refuse(learner, Check("regression", "wasp 90 % -> 50 %", False))
    left = learner.store.path.parent / f"{workshop_prefix(learner.store.path)}99999999-x"
    left.mkdir()
    (left / "samples.npz").write_bytes(vectors("wasp", 25).tobytes())
    assert "wasp" in json.dumps([g.detail for g in learner.history()])
    assert learner.forget("wasp")["exact"] is True
    assert not traces(learner.store.path, vectors("wasp", 25), ["wasp"])
    assert not left.exists()
