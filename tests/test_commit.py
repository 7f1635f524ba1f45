"""What a commit costs and leaves for later: one record is appended; the head is solved when it is asked for."""
from __future__ import annotations

import json
import os
from dataclasses import asdict

import numpy as np
import pytest
from helpers_state import answers, calls_of, create, in_a_child, knowledge, vectors

from edgecl.cli import main
from edgecl.learner import Learner
from edgecl.learning.knowledge import Knowledge
from edgecl.results import Learned
from edgecl.state import quota, store
from edgecl.state.quota import PAGE

NAMES = ("ant", "wasp", "cat", "dog")


def taught(path, **settings):
    """A learner that has a foundation, and knows one class."""
    learner = create(path, **settings)
    learner.learn(vectors("ant", 25), "ant")
    return learner


@pytest.fixture
def judged(monkeypatch):
    """The numbers of classes that were known when heads were judged."""
    found, judge = [], Knowledge.judge

    def counted(self, *arguments, **named):
        found.append(len(self.labels))
        return judge(self, *arguments, **named)

    monkeypatch.setattr(Knowledge, "judge", counted)
    return found


def test_the_head_is_solved_once_when_it_is_asked_for(tmp_path, judged):
    learner = taught(tmp_path / "s")
    judged.clear()
    for name in NAMES[1:]:
        learner.learn(vectors(name, 25), name)
    assert not judged
    assert "judged" not in learner.store.newest.detail
    assert learner.status().head == "slda"
    assert learner.store.newest.detail["accuracy"] == dict.fromkeys(NAMES, 1.0)  # written down
    assert [(c.name, c.samples) for c in learner.classes()] == [(name, 25) for name in sorted(NAMES)]
    assert {answer.label for answer in learner.predict(vectors("dog", 5))} == {"dog"}
    learner.export(tmp_path / "model.onnx")
    assert judged == [4]
    learner.learn(vectors("ant", 1, seed=1), "ant")
    learner.close()
    assert judged == [4, 4]
    again = Learner.open(tmp_path / "s")
    assert again.status().classes == len(again.classes()) == len(again.predict(vectors("cat", 4)))
    again.close()
    assert judged == [4, 4]


@pytest.mark.parametrize("ask", [Learner.status, Learner.classes, Learner.serving, Learner.close,
                                 lambda learner: learner.predict(vectors("cat", 1)),
                                 lambda learner: learner.learn(vectors("cat", 1), "cat").accuracy],
                         ids=["status", "classes", "serving", "close", "predict", "accuracy"])
def test_whatever_shows_the_head_solves_it(tmp_path, ask):
    learner = taught(tmp_path / "s")
    learner.learn(vectors("cat", 25), "cat")
    ask(learner)
    again = Learner.open(tmp_path / "s")
    assert again.store.newest.head
    assert again.store.newest.detail["accuracy"] == {"ant": 1.0, "cat": 1.0}
    again.close()
    learner.close()


def test_what_a_killed_process_has_learned_is_solved_by_the_next(tmp_path):
    state, whole = tmp_path / "s", tmp_path / "whole"
    taught(state).close()
    learner = taught(whole)

    def die():
        mine = Learner.open(state)
        for name in NAMES[1:]:
            mine.learn(vectors(name, 25), name)
        os._exit(9)

    assert in_a_child(die) == 9
    for name in NAMES[1:]:
        learner.learn(vectors(name, 25), name)
        learner.status()
    again = Learner.open(state)
    assert again.store.newest.head is None
    assert answers(again) == answers(learner)
    assert knowledge(again) == knowledge(learner)
    assert [g.detail["samples"] for g in again.history() if g.action == "learn"] == [25] * 4


@pytest.mark.parametrize("codec", ["raw", "auto"])
def test_when_the_head_is_solved_changes_nothing(tmp_path, codec):
    rng = np.random.default_rng(0)
    steps = [(NAMES[int(rng.integers(4))], int(rng.integers(1, 30)), number) for number in range(25)]
    shown = []
    for folder, often, reopened in (("each", 1, False), ("some", 7, False), ("never", 99, False), ("opened", 3, True)):
        learner = taught(tmp_path / folder, exemplars=6_000, codec=codec, quota=1_500_000)
        for number, (name, count, seed) in enumerate(steps):
            learner.learn(vectors(name, count, seed), name)
            if number % often == 0:
                learner.predict(vectors("ant", 1))
            if reopened and number % 4 == 0:
                learner.close()
                learner = Learner.open(tmp_path / folder)
        status = learner.status()
        shown.append((answers(learner), knowledge(learner), learner.classes(), status.exemplars, status.exemplar_bytes,
                      status.unknown_threshold))
        learner.close()
    assert shown[1:] == shown[:1] * 3


def test_going_back_to_a_head_that_was_not_written_solves_it_again(tmp_path):
    each, burst = taught(tmp_path / "each"), taught(tmp_path / "burst")
    shown = {}
    for name in NAMES[1:]:
        for learner in (each, burst):
            learner.learn(vectors(name, 25), name)
        shown[each.store.current] = answers(each), each.classes()
    assert burst.store.restorable() == each.store.restorable() == {1, 2, 3, 4, 5}
    for generation, wanted in reversed(shown.items()):
        burst.rollback(generation) if generation != burst.store.current else None
        assert (answers(burst), burst.classes()) == wanted


def test_the_step_before_a_rewrite_can_be_gone_back_to(tmp_path):
    learner, twin = taught(tmp_path / "s", exemplars=3_000), taught(tmp_path / "twin", exemplars=3_000)
    for one in (learner, twin):
        one.learn(vectors("wasp", 60), "wasp")
    shown, before = answers(twin), learner.store.current
    learner.learn(vectors("cat", 2_000), "cat")     # more than the log takes
    assert learner.store.newest.snapshot
    assert before in learner.store.restorable()
    learner.rollback()
    assert answers(learner) == shown


def test_accuracy_before_and_after_is_worked_out_when_it_is_read(tmp_path, judged):
    learner = taught(tmp_path / "s")
    first = learner.learn(vectors("wasp", 25), "wasp")
    second = learner.learn(vectors("cat", 2), "cat")
    judged.clear()
    assert repr(second) and not judged
    assert second.accuracy == {"ant": (1.0, 1.0), "cat": (None, None), "wasp": (None, 1.0)}
    assert first.accuracy == {"ant": (1.0, 1.0), "wasp": (None, 1.0)}     # by the head that serves now
    third = learner.learn(vectors("cat", 40, 1), "cat")
    learner.close()
    assert third.accuracy["cat"] == (None, 1.0)
    assert third.accuracy["wasp"] == (1.0, 1.0)
    assert judged == [3, 3]
    told = asdict(third)
    assert Learned(**json.loads(json.dumps(told))).accuracy["cat"] == [None, 1.0]
    assert Learned("ant", 1, 1.0, 2, 3, {"ant": (None, 1.0)}) == Learned("ant", 1, 1.0, 2, 3, {"ant": (None, 1.0)})


def test_the_command_line_tells_accuracy_before_and_after(tmp_path, capsys):
    state = tmp_path / "s"
    taught(state).close()
    for name in ("wasp", "cat"):
        np.savez(tmp_path / f"{name}.npz", x_train=vectors(name, 25), y_train=[name] * 25)
        assert main(["learn", "--state", str(state), "--json", "--from", str(tmp_path / f"{name}.npz")]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["accuracy"] == {"ant": [1.0, 1.0], "cat": [None, 1.0], "wasp": [1.0, 1.0]}
    assert main(["history", "--state", str(state), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [len(row["accuracy"]) for row in rows if row["action"] == "learn"] == [1, 2, 3]
    assert not any("known" in row for row in rows)


def test_one_that_can_not_write_solves_for_itself(tmp_path):
    learner = taught(tmp_path / "s")
    learner.learn(vectors("cat", 25), "cat")
    looking = Learner.open(tmp_path / "s")
    looking.store.database.writable = False
    assert looking.status().head == "slda"
    assert looking.store.newest.head is None
    assert answers(looking) == answers(learner)
    assert len(looking.classes()) == 2


def test_a_commit_costs_no_more_when_much_was_learned(fast_path):
    learner, steps = taught(fast_path / "s", quota=5_000_000, exemplars=1_000_000), []
    assert learner.settings.exemplars == 1_000_000
    costs = {}
    for number in range(1, 1001):
        new = vectors(NAMES[number % 4], 1, number)
        cost = calls_of(lambda new=new, number=number: learner.learn(new, NAMES[number % 4]))
        if number in range(40, 50):
            costs.setdefault("early", []).append(cost)
        if number in range(980, 990):
            costs.setdefault("late", []).append(cost)
        if number in (100, 1000):
            steps.append(calls_of(lambda: Learner.open(fast_path / "s").store.close()))
    assert sorted(costs["late"])[5] <= 1.2 * sorted(costs["early"])[5]
    assert steps[1] <= 1.2 * steps[0]
    assert len(learner.store.logged()) < store.MOST_LOGGED
    learner.close()


def test_the_log_moves_when_it_holds_many_generations(fast_path, monkeypatch):
    monkeypatch.setattr(store, "MOST_LOGGED", 8)
    learner = taught(fast_path / "s")
    plain = create(fast_path / "plain")
    monkeypatch.setattr(store, "MOST_LOGGED", 10**6)
    plain.learn(vectors("ant", 25), "ant")
    for number in range(40):
        monkeypatch.setattr(store, "MOST_LOGGED", 8)
        learner.learn(vectors(NAMES[number % 4], 3, number), NAMES[number % 4])
        assert len(learner.store.logged()) < 8
        monkeypatch.setattr(store, "MOST_LOGGED", 10**6)
        plain.learn(vectors(NAMES[number % 4], 3, number), NAMES[number % 4])
        if number % 9 == 0:
            learner.predict(vectors("ant", 1))
    assert [g.id for g in learner.history()] == [g.id for g in plain.history()]
    assert answers(learner) == answers(plain)
    assert knowledge(learner) == knowledge(plain)
    learner.close()
    again = Learner.open(fast_path / "s")
    assert answers(again) == answers(plain)
    assert knowledge(again) == knowledge(plain)
    assert again.rollback(30)
    plain.rollback(30)
    assert answers(again) == answers(plain)


def test_small_commits_need_not_resize_the_reserve(fast_path, monkeypatch):
    learner, sizes = taught(fast_path / "s", quota=64_000_000, exemplars=4_000_000), []
    learner.status()
    resize = os.truncate
    monkeypatch.setattr(quota.os, "truncate", lambda *values: (sizes.append(values), resize(*values)))
    for number in range(60):
        learner.learn(vectors("ant", 1, number), "ant")
    ledger = learner.store.ledger
    left = 64_000_000 - ledger.usage().total
    assert len(sizes) <= 2
    assert ledger.slack <= min(2**20, 64_000_000 // 64)
    assert left - ledger.slack - PAGE < ledger.reserved() <= left


def test_knowledge_that_another_process_has_changed_is_read_again(tmp_path):
    one, other = taught(tmp_path / "s"), Learner.open(tmp_path / "s")
    for number in range(6):
        (one if number % 2 else other).learn(vectors("cat", 5, number), "cat")
        if number == 3:
            assert one.classes() == other.classes()
    assert answers(one) == answers(other)
    assert {c.name: c.samples for c in one.classes()} == {"ant": 25, "cat": 30}
    assert one.learn(vectors("cat", 1, 6), "cat").generation == 9


def test_what_was_solved_may_be_dropped_when_the_store_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("edgecl.learning.solved_heads.FREE_HEADS", -2 ** 40)  # it stays in memory
    learner, alive = taught(tmp_path / "state"), store.Store.alive
    learner.learn(vectors("wasp", 25), "wasp")
    heads = learner.repository.heads
    expected = learner.classes()

    def changed_meanwhile(self):
        found = alive(self)
        heads.forget_generations()      # as a change by another process does
        return found

    for ask in (heads.summary, heads.last_figures, heads.settle, learner.classes):
        learner.repository.heads.solve()
        with monkeypatch.context() as patch:
            patch.setattr(store.Store, "alive", changed_meanwhile)
            ask()
    assert learner.classes() == expected
