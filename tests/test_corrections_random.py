"""Random corrections among all other changes: what is known is what a state knows that was taught only what is left.

EDGECL_OPERATIONS=10000 for the long form.
"""
from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers_state import create, directory_bytes, fast_folder, vectors
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sample_oracle import SampleOracle, recording, session
from test_corrections import marked
from test_exact import difference, served

from edgecl.exemplars.sample_ids import sample_id
from edgecl.exemplars.selection import OWN_BITS
from edgecl.learner import Learner

OPERATIONS = int(os.environ.get("EDGECL_OPERATIONS", "120"))
STEPS, EVERY = 60, 6        # operations of one state, and between two comparisons
DIMENSION, QUOTA = 12, 1_200_000
LABELS = [f"class {number}" for number in range(6)]
PROBE = np.concatenate([vectors(label, 10, 999_999, DIMENSION) for label in LABELS])
CLOSE = 1e-4                # relative, of statistics and heads
HEAD = {"head": "slda", "quota": QUOTA, "exemplars": 400_000}


def assert_knows_the_same(found, expected):
    """That two states have the same statistics and head, keep and hold back the same, and answer the same."""
    here, there = found.repository.known(), expected.repository.known()
    assert here.plain.counts == there.plain.counts
    spread = np.sqrt(np.trace(there.plain.scatter()) / max(there.plain.total, 1)) or 1.0
    assert np.abs(here.plain.scatter() - there.plain.scatter()).max() <= CLOSE * spread ** 2 * there.plain.total
    for label in there.labels:
        assert np.abs(here.plain.mean(label) - there.plain.mean(label)).max() <= CLOSE * spread
    assert marked(here.exemplars()) == marked(there.exemplars())
    assert marked(here.held_back()) == marked(there.held_back())
    assert here.known.all()[0] == there.known.all()[0]
    assert sorted(here.known.all()[1].tolist()) == sorted(there.known.all()[1].tolist())
    (kind, ours), (other, theirs) = served(found), served(expected)
    assert kind == other
    for name in ("weight", "bias", "temperature") if len(there.labels) > 1 else ():     # of one class, they are 0
        assert difference(ours[name], theirs[name]) <= CLOSE, name
    for a, b in zip(found.predict(PROBE), expected.predict(PROBE)):
        assert abs(a.confidence - b.confidence) < 1e-3
        assert (a.label == b.label and a.unknown == b.unknown) or abs(a.confidence - b.confidence) < CLOSE


class Corrected(RuleBasedStateMachine):
    """A learner, and what it must know sample by sample."""

    total = compared = refused = 0

    @initialize(seed=st.integers(0, 2 ** 32))
    def begin(self, seed):
        self.folder = Path(tempfile.mkdtemp(prefix="edgecl-corrected-", dir=fast_folder()))
        self.state, self.random = self.folder / "state", random.Random(seed)
        self.learner = create(self.state, **HEAD)
        self.oracle = SampleOracle(self.learner.store.current, DIMENSION)
        self.batches, self.since = 0, 0
        self.learn(LABELS[0], 3)

    def some(self, data, most=5):
        """Some stored samples of one class or several, and their ids."""
        ids = self.oracle.ids(self.learner)
        pieces = sorted(ids, key=lambda each: (each.label, each.batch, each.place))
        first = data.draw(st.integers(0, len(pieces) - 1))
        step = data.draw(st.sampled_from([1, 1, 7]))
        picked = pieces[first::step][:data.draw(st.integers(1, most))]
        order = self.random.sample(range(len(picked)), len(picked))
        return picked, [ids[picked[place]] for place in order]

    @property
    def known(self):
        return bool(self.oracle.known)

    @rule(label=st.sampled_from(LABELS), count=st.sampled_from([1, 1, 2, 4, 9, 20]))
    def teach(self, label, count):
        self.learn(label, count)

    def learn(self, label, count):
        self.batches += 1
        done = self.learner.learn(recording(label, self.batches, count, DIMENSION), label,
                                  [session(self.batches)] * count)
        self.oracle.learn(done.generation, label, self.batches, count)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), erase=st.sampled_from([False, False, False, True]))
    def remove(self, data, erase):
        gone, ids = self.some(data, 12)
        done = self.learner.remove(ids, erase)
        assert done.exact
        if erase:
            self.oracle.states = {number: known for number, known in self.oracle.states.items()
                                  if not known or number == self.oracle.generation}
        self.oracle.remove(done.generation, gone)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), label=st.sampled_from(LABELS))
    def move(self, data, label):
        moved, _ = self.some(data)
        moved, ids = [each for each in moved if each.label != label], self.oracle.ids(self.learner)
        if not moved:
            return
        done = self.learner.move([ids[each] for each in moved], label)
        assert done.exact
        self.oracle.move(done.generation, moved, label)
        now = {sample_id(row) for row in self.learner.repository.known().stored if row.label == label}
        assert {*done.ids.values()} <= now

    @precondition(lambda self: self.known)
    @rule(data=st.data(), new=st.sampled_from(LABELS))
    def rename(self, data, new):
        old = data.draw(st.sampled_from(self.oracle.labels()))
        if old == new:
            return
        done = self.learner.rename(old, new, into=new in self.oracle.labels())
        assert done.exact
        self.oracle.rename(done.generation, old, new)

    @precondition(lambda self: len(self.oracle.labels()) > 3)
    @rule(data=st.data())
    def forget(self, data):
        label = data.draw(st.sampled_from(self.oracle.labels()))
        done = self.learner.forget(label)
        assert done["exact"]
        self.oracle.forget(done["generation"], label)

    @precondition(lambda self: len(self.learner.store.restorable()) > 1)
    @rule(data=st.data())
    def rollback(self, data):
        offered = sorted(self.learner.store.restorable() - {self.learner.store.current})
        to = data.draw(st.sampled_from(offered[-4:]))
        self.oracle.rollback(self.learner.rollback(to), to)

    @precondition(lambda self: self.known)
    @rule(labels=st.lists(st.sampled_from(LABELS), min_size=1, max_size=2, unique=True),
          count=st.sampled_from([1, 5]))
    def merge(self, labels, count):
        shutil.rmtree(self.folder / "other", ignore_errors=True)
        other, first = create(self.folder / "other", **HEAD), self.batches
        for label in labels:
            self.batches += 1
            other.learn(recording(label, self.batches, count, DIMENSION), label, [session(self.batches)] * count)
        other.close()
        generation, known = self.learner.merge([self.folder / "other"]), self.oracle.known
        for number, label in enumerate(labels, 1):
            self.oracle.learn(generation, label, first + number, count)
        self.oracle.become(generation, self.oracle.known | known)

    @rule()
    def reopen(self):
        self.learner.close()
        self.learner = Learner.open(self.state)

    @invariant()
    def knows_what_is_left(self):
        if not hasattr(self, "learner"):
            return
        Corrected.total += 1
        self.since += 1
        assert directory_bytes(self.state, reserve=False) <= QUOTA
        known = self.learner.repository.known()
        assert (known.plain.counts if known.statistics else {}) == Counter(each.label for each in self.oracle.known)
        assert {*self.oracle.ids(self.learner)} == self.oracle.known
        if self.since >= EVERY:
            self.compare()

    def compare(self):
        self.since = 0
        if not self.known:
            return
        Corrected.compared += 1
        shutil.rmtree(self.folder / "fresh", ignore_errors=True)
        fresh = self.oracle.taught(self.folder / "fresh", self.random, **HEAD)
        assert_knows_the_same(self.learner, fresh)
        fresh.close()

    def teardown(self):
        if hasattr(self, "learner"):
            self.compare()
            self.learner.close()
            shutil.rmtree(self.folder)


def test_any_sequence_of_changes_leaves_what_would_be_known_if_only_the_rest_had_been_taught():
    Corrected.total = Corrected.compared = 0
    run_state_machine_as_test(Corrected, settings=settings(
        max_examples=-(-OPERATIONS // STEPS) + OPERATIONS // 1000, stateful_step_count=STEPS, phases=[Phase.generate],
        deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)))
    print(f"{Corrected.total} operations, {Corrected.compared} comparisons")
    assert Corrected.total >= OPERATIONS // 2
    assert Corrected.compared >= OPERATIONS // (4 * EVERY)


# the buffer overflowing --------------------------------------------------------------------------


def kept(learner):
    return sorted((row.label, row.key & OWN_BITS) for row in learner.repository.known().exemplars())


@pytest.mark.parametrize("codec", ["raw", "int8-feature"])
@pytest.mark.parametrize("seed", range(max(OPERATIONS // 60, 1)))
def test_with_a_full_buffer_corrections_end_the_same_in_any_order_of_teaching(fast_path, monkeypatch, codec, seed):
    """What is taught between two corrections is taught in several orders; the corrections are the same."""
    monkeypatch.setattr("edgecl.learning.repository.SHORTEST_LOG", 0)
    random_, orders = random.Random(seed), 3
    learners = [create(fast_path / f"{number}", 4_000_000, 9_000 if codec == "raw" else 4_000, "slda", codec=codec)
                for number in range(orders)]
    batch = 0
    for _ in range(4):
        parts = []
        for _ in range(8):
            batch += 1
            label = random_.choice(LABELS)
            parts.append((label, recording(label, batch, random_.choice([2, 20, 60]), DIMENSION), batch))
        for number, learner in enumerate(learners):
            random.Random(number).shuffle(parts)
            for label, samples, which in parts:
                learner.learn(samples, label, [session(which)] * len(samples))
                if random.Random(which + number).random() < 0.2:
                    learner.status()
        assert_end_the_same(learners)
        for change in random_.choices(["remove", "move", "rename", "into", "forget"], [5, 5, 2, 1, 1], k=3):
            correct(learners, change, random_)
            assert_end_the_same(learners)
    assert sum(each.samples - each.exemplars for each in learners[0].classes()) > 100


def correct(learners, change, random_):
    """The same correction in each state."""
    labels, exemplars = sorted({label for label, _ in kept(learners[0])}), kept(learners[0])
    old, new = random_.choice(labels), random_.choice(LABELS)
    whole = [each.name for each in learners[0].classes() if each.samples == each.exemplars]     # else it is not exact
    picked = set(random_.sample(exemplars, random_.choice([1, 5, 20])))
    for learner in learners:
        ids = [row.id for row in learner.repository.known().exemplars() if (row.label, row.key & OWN_BITS) in picked]
        if change == "remove":
            assert learner.remove(ids).exact
        elif change == "move" and not any(label == new for label, _ in picked):
            assert learner.move(ids, new).exact
        elif change == "rename" and new not in labels:
            learner.rename(old, new)
        elif change == "into" and new in labels and new != old:
            learner.rename(old, new, into=True)
        elif change == "forget" and whole:
            assert learner.forget(whole[0])["exact"]


def assert_end_the_same(learners):
    """That all know, keep, hold back and answer the same; also when they are opened again."""
    for number, learner in enumerate(learners):
        learner.close()
        learners[number] = Learner.open(learner.store.path)
    first = learners[0]
    for other in learners[1:]:
        assert marked(other.repository.known().exemplars()) == marked(first.repository.known().exemplars())
        assert marked(other.repository.known().held_back()) == marked(first.repository.known().held_back())
        assert {each.name: each.samples for each in other.classes()} == {
            each.name: each.samples for each in first.classes()}
        for a, b in zip(first.predict(PROBE), other.predict(PROBE)):
            assert abs(a.confidence - b.confidence) < 1e-3
            assert a.label == b.label or abs(a.confidence - b.confidence) < CLOSE
