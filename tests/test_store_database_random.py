"""Random damage of edgecl.db or edgecl.copy is harmless or said, and learning goes on."""
from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from helpers_database import noted, rows_of
from helpers_recorded import unpack
from helpers_state import create, tree, vectors

from edgecl.learner import Learner
from edgecl.state.open_database import read_copy
from edgecl.state.store import Store

TRIALS = 40 * int(os.environ.get("EDGECL_TIMES", "1"))  # of each kind of state


def small_copy(state, to):
    """A copy of a state: files of models/ have a second name, since nothing writes into them."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(state, to, ignore=shutil.ignore_patterns("models", "reserved"))
    (to / "models").mkdir()
    for path in (state / "models").iterdir():
        os.link(path, to / "models" / path.name)
    return to


def flip_bit(data, chance):
    places = [i for i, value in enumerate(data) if value] if chance.random() < 0.7 else range(len(data))
    data[chance.choice(places)] ^= 1 << chance.randrange(8)


def cut(data, chance):
    del data[chance.randrange(len(data)):]


def blank(size, fill):
    def hurt(data, chance):
        start = chance.randrange(0, len(data), size)
        data[start:start + size] = fill(chance, len(data[start:start + size]))
    return hurt


def double(data, _):
    data += bytes(data)


HURTS = [*[flip_bit] * 8, cut, double, blank(512, lambda _, size: bytes(size)),
         blank(4096, lambda _, size: bytes(size)), blank(512, lambda chance, size: chance.randbytes(size)),
         "delete", "folder", "older"]


def damage(path, older, chance):
    """Damage a file somehow; how."""
    hurt = chance.choice(HURTS)
    if callable(hurt):
        data = bytearray(path.read_bytes())
        hurt(data, chance)
        path.write_bytes(data)
        return getattr(hurt, "__name__", "")
    path.unlink()
    if hurt == "folder":
        path.mkdir()
        (path / "note").write_text("mine")
    if hurt == "older":
        shutil.copy(older / path.name, path)
    return hurt


def long_history(folder):
    learner = create(folder / "state", quota=700_000, exemplars=10_000)
    for name in ("ant", "bee", "cat"):
        learner.learn(vectors(name, 25), name)
    learner.forget("bee")
    shutil.copytree(folder / "state", folder / "older")
    learner.learn(vectors("dog", 25), "dog")
    learner.rollback()
    learner.learn(vectors("fly", 1500), "fly")
    learner.learn(vectors("gnu", 25), "gnu")
    learner.close()
    return folder / "state", folder / "older"


def recorded_state(name):
    def make(folder):
        named = unpack(name, folder)
        state = Path(named["state"])
        Learner.open(state).close()
        shutil.copytree(state, folder / "older")
        store = Store(state)
        with store.exclusive():
            store.note("tried", {})
        store.close()
        return state, folder / "older"
    return make


KINDS = {"vectors": long_history, "windows": recorded_state("windows"), "statistics": recorded_state("statistics"),
         "codebook": recorded_state("vectors"), "round": recorded_state("round")}


def view(state):
    """Classes, rows, and whether damage is said, without answering: sessions of a backbone take long to open."""
    learner = Learner.open(state)
    try:
        return [(c.name, c.samples) for c in learner.classes()], rows_of(learner.store), noted(state)
    finally:
        learner.close()


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage_of_the_database_or_its_copy_is_harmless_or_said(kind, fast_path, monkeypatch):
    (fast_path / "origin").mkdir()
    state, older = KINDS[kind](fast_path / "origin")
    wanted, chance, seen = view(state), random.Random(kind), Counter()
    access = os.access
    for number in range(TRIALS):
        hurt = small_copy(state, fast_path / "hurt")
        name = chance.choice(["edgecl.db", "edgecl.db", "edgecl.copy"])
        how = damage(hurt / name, older, chance)
        reader = chance.random() < 0.3
        before = tree(hurt)
        with monkeypatch.context() as patch:
            if reader:
                patch.setattr("os.access", lambda path, mode: mode != os.W_OK and access(path, mode))
            classes, rows, said = view(hurt)
        assert (classes, rows) == wanted[:2], (number, name, how, reader)
        assert not reader or tree(hurt) == before, (number, name, how)
        assert not said or name == "edgecl.db"
        seen[name, said] += 1
        learner = Learner.open(hurt)    # as a writer in any case
        assert not learner.store.found, (number, name, how)
        if kind == "vectors":
            learner.learn(vectors("new", 25), "new")
        with learner.store.exclusive():
            learner.store.note("tried", {"number": number})
        assert read_copy(hurt) == learner.store.database.rows
        if said:
            assert how == "delete" or (hurt / "set-aside" / "edgecl.db.1").exists()
            assert noted(hurt)
        learner.close()
    assert seen["edgecl.db", True] > TRIALS // 6, seen
    assert seen["edgecl.copy", False]
