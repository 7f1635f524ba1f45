"""The log under processes that keep one state open: each knows which log it reads, whatever the file system says."""
from __future__ import annotations

import os

import numpy as np
import pytest
from helpers_state import create, in_a_child, vectors

from edgecl.exemplars.codecs import Float32
from edgecl.exemplars.stored import StoredSample, pack
from edgecl.learner import Learner
from edgecl.state.epoch import first_record
from edgecl.state.write_ahead_log import LOG_FILE, WriteAheadLog


def shown(learner):
    return {each.name: each.samples for each in learner.classes()}


def overwrite(keep, path):
    """Put a file's content into another file, which takes its place: the name leads to the inode number of `keep`."""
    keep.write_bytes(path.read_bytes())
    number = keep.stat().st_ino
    keep.rename(path)
    assert path.stat().st_ino == number


@pytest.mark.parametrize("logs", [1, 2, 3])
def test_a_later_log_with_the_inode_number_of_an_earlier_one_is_read_from_its_beginning(disk, logs):
    state, keep = disk / "state", disk / "keep"
    here = create(state, exemplars=12_000)
    for name in ("ant", "bee"):
        here.learn(vectors(name, 20), name)
    assert shown(here) == {"ant": 20, "bee": 20}
    assert here.store.newest.logged
    os.link(state / LOG_FILE, keep)

    def elsewhere():
        other = Learner.open(state)
        for number in range(logs):
            other.learn(vectors("cat", 1500, seed=number), "cat")  # more than a log takes: it moves, another begins
            other.learn(vectors("dog", 60, seed=number), "dog")
        other.learn(vectors("elk", 20), "elk")
        other.close()

    assert in_a_child(elsewhere) == 0
    overwrite(keep, state / LOG_FILE)
    known = {"ant": 20, "bee": 20, "cat": 1500 * logs, "dog": 60 * logs, "elk": 20}
    assert shown(here) == known
    numbers = [g.id for g in here.history()]
    assert here.learn(vectors("fox", 20), "fox").generation == max(numbers) + 1
    here.close()
    assert shown(Learner.open(state)) == {**known, "fox": 20}


def record(number, count=2):
    """A record of the log, as a `learn` makes it."""
    rows = [StoredSample(number << 32 | place, number, "ant", place, np.full(4, number, np.float32))
            for place in range(count)]
    about = {"id": number, "created": "now", "action": "learn", "detail": {}, "head": None}
    return pack([(rows, Float32())], about)


E1, E2 = "1" * 32, "2" * 32
AFTER = {  # what takes the place of the log of E1 with generations 2 and 3, and the generations in it by epoch
    "another epoch": (first_record(E2) + record(5) + record(6), {E1: [], E2: [5, 6]}),
    "another epoch, longer": (first_record(E2) + record(5) + record(6) + record(7), {E1: [], E2: [5, 6, 7]}),
    "another epoch, empty": (first_record(E2), {E1: [], E2: []}),
    "cut off and grown": (first_record(E1) + record(2) + record(4), {E1: [2, 4], E2: []}),
    "cut off and grown longer": (first_record(E1) + record(2) + record(4) + record(5), {E1: [2, 4, 5], E2: []}),
    "cut off": (first_record(E1) + record(2), {E1: [2], E2: []}),
    "cut off in a record": (first_record(E1) + record(2) + record(3)[:-1], {E1: [2], E2: []}),
    "grown": (first_record(E1) + record(2) + record(3) + record(4), {E1: [2, 3, 4], E2: []}),
    "emptied": (b"", {E1: [], E2: []}),
    "damaged at its beginning": (bytes(100) + record(5), {E1: [], E2: []}),
}


@pytest.mark.parametrize("after", AFTER)
def test_whatever_takes_the_place_of_a_log_is_read(disk, after):
    data, wanted = AFTER[after]
    path = disk / LOG_FILE
    path.write_bytes(first_record(E1) + record(2) + record(3))
    log, about = WriteAheadLog(disk, lambda _: Float32(), lambda: None), path.stat()
    assert [entry.generation.id for entry in log.entries(E1)] == [2, 3]
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))  # what the clock of a file system is too coarse to tell
    assert path.stat().st_ino == about.st_ino
    for epoch, numbers in wanted.items():
        assert [entry.generation.id for entry in log.entries(epoch)] == numbers
    fresh = WriteAheadLog(disk, lambda _: Float32(), lambda: None)
    for epoch in wanted:
        assert log.stale(epoch) == fresh.stale(epoch)
    assert log.damaged == fresh.damaged
