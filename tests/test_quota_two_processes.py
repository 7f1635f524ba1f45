"""The quota while another process comes in whenever the state's lock is free: used and reserved bytes never pass it."""
from __future__ import annotations

import contextlib
import os
import sys

import pytest
from helpers_state import create, directory_bytes, vectors

from edgecl.errors import BudgetError, EdgeclError
from edgecl.learner import Learner
from edgecl.state.quota import pages
from edgecl.state.rows import COPY_FILE
from edgecl.state.store import Store

QUOTA = 400_000
EVENTS = {"open", "os.truncate", "os.remove", "os.rename", "os.link"}   # of Python's audit hooks, which stay
CHANGES = {"append": lambda learner: learner.learn(vectors("bee", 3), "bee"),
           "rewrite": lambda learner: learner.learn(vectors("bee", 300), "bee"),
           "forget": lambda learner: learner.forget("ant"),
           "rollback": lambda learner: learner.rollback(2)}


class Other:
    """Another process: whenever it gets the lock, the copy of the database gives way, and it reserves what is left;
    the `filling`th time, it uses what a change may use of that, until the next time."""

    now: Other | None = None

    def __init__(self, learner, filling):
        self.learner, self.state, self.filling = learner, learner.store.path, filling
        self.store = Store(self.state)
        self.times, self.peak, self.busy = 0, 0, False

    def __enter__(self):
        Other.now = self
        self.learner.store.connection.set_trace_callback(self.come)
        return self

    def __exit__(self, *_):
        Other.now = None
        self.learner.store.connection.set_trace_callback(None)
        self.filler.unlink(missing_ok=True)
        self.store.close()

    @property
    def filler(self):
        return self.state / "filler"

    def come(self, statement=""):
        if self.busy:
            return
        self.busy = True
        self.look()
        with contextlib.suppress(EdgeclError):
            self.store.begin_writing(patience=0)
            self.store.start_log()
            self.work()
            self.store.roll_back()
        self.look((self.state / "edgecl.db").stat().st_size if statement == "VACUUM" else 0)
        self.busy = False

    def look(self, journal=0):
        """journal: bytes of the one that the database is about to write."""
        self.peak = max(self.peak, directory_bytes(self.state) + pages(journal))

    def work(self):
        self.times += 1
        self.filler.unlink(missing_ok=True)
        (self.state / COPY_FILE).unlink(missing_ok=True)
        if self.times == self.filling:
            room = QUOTA - self.store.usage().total - self.store.journal_bytes()    # which every change leaves free
            self.store.ledger.release(room)
            self.filler.touch()
            os.truncate(self.filler, room // 4096 * 4096)
        self.store.ledger.hold()


def heard(event, _):
    if event in EVENTS and Other.now is not None:
        Other.now.come()


@pytest.fixture(scope="module", autouse=True)
def hook():
    sys.addaudithook(heard)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_stays_within_the_quota_beside_another_process(tmp_path, change):
    filling = times = 1
    while filling <= times:
        state = tmp_path / f"{filling}"
        create(state, QUOTA, exemplars=12_000).close()
        learner = Learner.open(state)
        for label in ("ant", "cat"):
            learner.learn(vectors(label, 40), label)
        learner.classes()
        with Other(learner, filling) as other, contextlib.suppress(BudgetError):
            CHANGES[change](learner)
        other_peak, times = other.peak, other.times
        assert 0 < other_peak <= QUOTA, f"{change}, {filling}"
        learner.close()
        assert directory_bytes(state) <= QUOTA
        assert not Learner.open(state).damage
        filling += 1
    assert times > 3
