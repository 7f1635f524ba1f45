"""A state whose log holds most of its classes, and what tests do to the log."""
from __future__ import annotations

import shutil

import numpy as np
from helpers_state import create, vectors

from edgecl.exemplars.codecs import Float32
from edgecl.exemplars.stored import unpack

NAMES = ["ant", "bee", "cat", "dog", "elk"]  # ant lies in a snapshot (generation 2), the others in the log (3 to 6)
QUOTA = 700_000
GARBAGE = np.random.default_rng(5).bytes(100_000)


def log_states(folder):
    """Copies of one state: as it is, before its last learn, and of another state."""
    for name, seed in (("state", 0), ("other", 7)):
        learner = create(folder / name, quota=QUOTA, exemplars=40_000)
        for label in NAMES:
            if label == "elk" and name == "state":
                shutil.copytree(folder / "state", folder / "before")
            learner.learn(vectors(label, 80, seed), label)
        learner.close()
    return folder


def records(log):
    """Start, end and JSON of each record of a log."""
    return [(start, end, record.about) for start, end, record in unpack(log.read_bytes(), lambda _: Float32())]


def record_of(log, label):
    """Start and end of the record that holds a class."""
    return next((start, end) for start, end, about in records(log) if about["labels"] == [label])


def put(log, place, data):
    """Write bytes over those of a log."""
    whole = bytearray(log.read_bytes())
    whole[place:place + len(data)] = data
    log.write_bytes(whole)


def remove(log, begin, end):
    """Take bytes out of a log."""
    data = log.read_bytes()
    log.write_bytes(data[:begin] + data[end:])


def copied(where, *names):
    """Put files of another copy in the place of the state's."""
    def change(state, made):
        for name in names:
            shutil.copy(made / where / name, state / name)
    return change
