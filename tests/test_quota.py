"""The quota, under random commands: never passed, temporaries included, and never in the way of going back."""
from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers_state import answers, create, directory_bytes, fast_folder, knowledge, vectors
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edgecl.errors import BadInput, BudgetError, StateError
from edgecl.heads.solvers import forms
from edgecl.learner import Learner
from edgecl.learning.plan import state_bytes
from edgecl.state.quota import PAGE

EXAMPLES = 10 * int(os.environ.get("EDGECL_TIMES", "1"))  # states of each shape
LABELS = [f"class-{number:02d}" for number in range(40)]
SHAPES = {  # head, dimension, exemplars, which form of the statistics: 0 is the richest
    "slda": ("slda", 48, 40_000, 0), "low rank": ("slda", 200, 60_000, -1), "means": ("nearest-mean", 400, 30_000, 0),
    "cosine": ("cosine", 1000, 0, 0), "auto": ("auto", 24, 20_000, -1), "projected": ("ridge-projected", 8, 8_000, 1)}
READS = re.compile(r"SELECT|PRAGMA data_version|BEGIN$|ROLLBACK$")  # statements that change no file


class Watch(threading.Thread):
    """Measures a directory over and over, and after every file and SQL statement of the learner's own thread."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.peak, self.ended = path, 0, threading.Event()

    def look(self, *_: object) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.peak = max(self.peak, directory_bytes(self.path))

    def run(self) -> None:
        while not self.ended.wait(0.005):
            with contextlib.suppress(FileNotFoundError):
                found = directory_bytes(self.path)
                if found == directory_bytes(self.path):     # else a file that moved meanwhile may count twice
                    self.peak = max(self.peak, found)


class Small(RuleBasedStateMachine):
    """A learner on a small quota, beside a model of what it should know."""

    shape = "slda"
    total = refusals = classes = 0
    peak = 0.0

    @initialize(surplus=st.sampled_from([0, 1, 2, 20]))
    def begin(self, surplus):
        head, self.dimension, exemplars, which = SHAPES[self.shape]
        form = forms(head, self.dimension)[which]
        quota = state_bytes(300, exemplars, self.dimension, 2, form) + surplus * PAGE
        self.folder = Path(tempfile.mkdtemp(prefix="edgecl-quota-", dir=fast_folder()))
        self.mounted = mount(self.folder, quota - 2 * PAGE)  # two directories, which a tmpfs does not count
        self.quota = quota
        self.watch = Watch(self.folder / "state")
        self.learner = create(self.folder / "state", quota, exemplars, head)
        self.open(self.learner)
        self.watch.start()
        self.seeds, self.others = itertools.count(), itertools.count()
        self.models = {1: {}}
        self.shown = {1: answers(self.learner, self.probe())}

    def probe(self):
        return np.random.default_rng(5).normal(size=(8, self.dimension)).astype(np.float32) * 3

    def open(self, learner):
        self.learner = learner
        learner.store.connection.set_trace_callback(
            lambda statement: None if READS.match(statement) else self.watch.look())
        write = learner.store.blobs.write

        def watched(blob, suffix):
            name = write(blob, suffix)
            self.watch.look()
            return name

        learner.store.blobs.write = watched

    def done(self, model):
        generation = self.learner.store.current
        self.models[generation] = model
        self.shown[generation] = answers(self.learner, self.probe())

    def refused_by(self, error, reason):
        note(str(error))
        assert reason in error.what
        Small.refusals += 1

    @property
    def model(self):
        return self.models[self.learner.store.current]

    @rule(labels=st.lists(st.sampled_from(LABELS), min_size=1, max_size=6),
          count=st.sampled_from([1, 2, 7, 30, 30, 60, 300]))
    def learn(self, labels, count):
        for label in labels:
            Small.total += 1
            model = self.model
            try:
                self.learner.learn(vectors(label, count, next(self.seeds), self.dimension), label)
            except BudgetError as error:
                assert self.model == model
                self.refused_by(error, "quota")
                return
            self.done({**model, label: model.get(label, 0) + count})

    @rule(labels=st.lists(st.sampled_from(LABELS), min_size=4, max_size=6))
    def fill(self, labels):
        self.learn(labels, 60)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def forget(self, data):
        Small.total += 1
        label = data.draw(st.sampled_from(sorted(self.model)))
        model = {name: n for name, n in self.model.items() if name != label}
        self.learner.forget(label)
        self.done(model)

    @precondition(lambda self: len(self.learner.store.restorable()) > 1)
    @rule(data=st.data())
    def rollback(self, data):
        Small.total += 1
        wanted = data.draw(st.sampled_from(sorted(self.learner.store.restorable() - {self.learner.store.current})))
        self.learner.rollback(wanted)
        self.done(self.models[wanted])
        assert self.shown[self.learner.store.current] == self.shown[wanted]

    @precondition(lambda self: self.model)
    @rule(count=st.sampled_from([3, 40]))
    def merge(self, count):
        Small.total += 1
        model, theirs = dict(self.model), Path(tempfile.mkdtemp(prefix="edgecl-other-", dir=fast_folder()))
        try:
            other = create(theirs / "state", self.quota, self.learner.settings.exemplars, self.learner.settings.head)
            number = next(self.others)
            for label in LABELS[number % 40], LABELS[(number + 1) % 40]:
                other.learn(vectors(label, count, 1000 + number, self.dimension), label)
                model[label] = model.get(label, 0) + count
            other.close()
            self.learner.merge([theirs / "state"])
            self.done(model)
        except (BudgetError, StateError) as error:  # the latter where the other was planned in another form
            self.refused_by(error, "quota" if isinstance(error, BudgetError) else "differs in form")
        finally:
            shutil.rmtree(theirs)

    def corrected(self, correct, model):
        Small.total += 1
        before = self.model
        try:
            correct()
            self.done({label: count for label, count in model.items() if count})
        except BudgetError as error:
            assert self.model == before
            self.refused_by(error, "quota")
        except StateError as error:
            assert self.model == before
            self.refused_by(error, "low-rank form")

    @precondition(lambda self: self.model and self.learner.repository.known().stored)
    @rule(data=st.data(), count=st.sampled_from([1, 3, 40]), to=st.sampled_from([None, None, *LABELS]))
    def remove_or_move(self, data, count, to):
        rows = self.learner.repository.known().stored
        first, model = data.draw(st.integers(0, len(rows) - 1)), dict(self.model)
        picked = [row for row in rows[first:first + count] if row.label != to]
        if not picked:
            return
        for row in picked:
            model[row.label] -= 1
        ids = [row.id for row in picked]
        if to is None:
            self.corrected(lambda: self.learner.remove(ids, erase=count == 3), model)
        else:
            self.corrected(lambda: self.learner.move(ids, to), {**model, to: model.get(to, 0) + len(picked)})

    @precondition(lambda self: self.model)
    @rule(data=st.data(), to=st.sampled_from(LABELS))
    def rename(self, data, to):
        label = data.draw(st.sampled_from(sorted(self.model)))
        if label != to:
            model = {**self.model, to: self.model.get(to, 0) + self.model[label], label: 0}
            self.corrected(lambda: self.learner.rename(label, to, into=to in self.model), model)

    @rule()
    def reopen(self):
        self.learner.close()
        self.open(Learner.open(self.folder / "state"))

    @rule()
    def refused(self):
        Small.total += 1
        with pytest.raises((BadInput, StateError)):
            self.learner.forget("class-never")
        with pytest.raises(StateError):
            self.learner.rollback(10_000)

    @invariant()
    def within_the_quota(self):
        if hasattr(self, "learner"):
            assert self.learner.store.used_bytes() <= self.quota
            assert self.watch.peak <= self.quota
            model = self.model
            assert {each.name: each.samples for each in self.learner.classes()} == model
            assert answers(self.learner, self.probe()) == self.shown[self.learner.store.current]

    def teardown(self):
        if not hasattr(self, "learner"):
            return
        self.watch.ended.set()
        self.watch.join()
        assert self.watch.peak <= self.quota
        Small.peak = max(Small.peak, self.watch.peak / self.quota)
        Small.classes = max(Small.classes, *map(len, self.models.values()))
        restorable, current = self.learner.store.restorable(), self.learner.store.current
        self.learner.close()
        try:
            for wanted in sorted(restorable - {current}):
                with tempfile.TemporaryDirectory(dir=fast_folder()) as copy:
                    shutil.copytree(self.folder / "state", Path(copy, "state"))
                    learner = Learner.open(Path(copy, "state"))
                    learner.rollback(wanted)
                    assert answers(learner, self.probe()) == self.shown[wanted]
                    assert {each.name: each.samples for each in learner.classes()} == self.models[wanted]
                    assert knowledge(learner) is not None
                    learner.close()
        finally:
            if self.mounted:
                subprocess.run(["umount", "-l", self.folder], check=True)
            shutil.rmtree(self.folder, ignore_errors=True)


def mount(folder: Path, size: int) -> bool:
    """Let the kernel hold the limit, where it lets us: a tmpfs of `size` bytes at `folder`."""
    if os.geteuid() != 0:
        return False
    return subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size // PAGE * PAGE}", "edgecl-test", folder],
                          capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_hundreds_of_random_commands_stay_within_the_quota(shape):
    Small.shape, Small.total, Small.refusals, Small.classes, Small.peak = shape, 0, 0, 0, 0.0
    run_state_machine_as_test(seed(list(SHAPES).index(shape))(Small), settings=settings(
        max_examples=EXAMPLES, stateful_step_count=30, phases=[Phase.generate], deadline=None, database=None,
        suppress_health_check=list(HealthCheck)))
    print(f"{shape}: {Small.total} commands, up to {Small.classes} classes, {Small.refusals} refused, "
          f"peak {Small.peak:.3f} of the quota")
    assert Small.total >= 10 * EXAMPLES
    assert Small.refusals or shape == "auto"     # which is refused merges only, and may draw none
