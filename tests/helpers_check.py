"""States of each kind to damage, and what `edgecl check` says of them."""
from __future__ import annotations

import json

import numpy as np
from candidates import candidate, matrix, world
from helpers_state import answers, create, knowledge, vectors

from edgecl.cli import main
from edgecl.learner import Learner
from edgecl.learning.repair import check
from edgecl.rounds import gate
from edgecl.rounds.candidate import take_in
from edgecl.state.integrity import BAD

QUOTA = 1_000_000


def half(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def zeros(path):
    data = path.read_bytes()
    path.write_bytes(data[:len(data) // 4] + bytes(len(data) // 2) + data[3 * len(data) // 4:])


def vector_state(path):
    """Older heads and statistics, exemplars, a journal, and a class in the log."""
    learner = create(path, quota=QUOTA, exemplars=8_000)
    for name in ("ant", "bee"):
        learner.learn(vectors(name, 25), name)
    learner.learn(vectors("cat", 1200), "cat")
    learner.learn(vectors("dog", 25), "dog")
    return learner


def coded_state(path):
    """Exemplars as product codes, with their codebook."""
    learner = create(path, quota=400_000, exemplars=6_000, codec="auto")
    for number in range(6):
        learner.learn(vectors(f"class {number}", 60, dimension=64), f"class {number}")
    assert learner.store.codebook
    return learner


def tuned_state(path):
    """A round has given all samples other features."""
    learner = create(path, quota=QUOTA, exemplars=40_000)
    for name in ("ant", "bee", "cat"):
        learner.learn(vectors(name, 25), name)
    accuracy, gate.check_accuracy = gate.check_accuracy, lambda *_: []
    try:
        seen = world(*((name, 25, 0) for name in ("ant", "bee", "cat")))
        assert take_in(learner.repository, candidate(learner, seen, matrix(1)), gate.BOUNDS).generation
    finally:
        gate.check_accuracy = accuracy
    learner.learn(vectors("dog", 25), "dog")
    return learner


def statistics_state(path):
    """No samples at all."""
    learner = create(path, quota=QUOTA, memory="statistics")
    for name in ("ant", "bee", "cat"):
        learner.learn(vectors(name, 60), name)
    return learner


STATES = {"vectors": vector_state, "coded": coded_state, "tuned": tuned_state, "statistics": statistics_state}


def checked(capsys, state, *options):
    """Exit code and JSON of the command."""
    code = main(["check", "--json", "--state", str(state), *options])
    return code, json.loads(capsys.readouterr().out)


def probe_of(learner):
    return np.random.default_rng(1).normal(size=(20, learner.foundation.dimension)).astype(np.float32) * 3


def summary(state):
    """What a state knows: counts, means and scatter, as one array of float64, and the samples that it keeps."""
    learner = Learner.open(state)
    try:
        plain = learner.repository.known().plain
        sums = [plain.counts[name] * plain.mean(name) for name in plain.labels]
        return np.concatenate([list(plain.counts.values()), *sums, plain.scatter().ravel()]), knowledge(learner)[1]
    finally:
        learner.close()


def files_of(report, *verdicts):
    return {each["file"] for each in report["files"] if each["verdict"] in (verdicts or BAD)}


def every_file(state):
    return sorted(path for path in state.rglob("*") if path.is_file() and path.name != "reserved")


def repaired(capsys, state):
    code = main(["check", "--json", "--repair", "--state", str(state)])
    out, err = capsys.readouterr()
    if not out:
        assert "Traceback" not in err and err.count("\n") == 1, err
        return checked(capsys, state)
    return code, json.loads(out)


def learns_on(state, name):
    learner = Learner.open(state)
    learner.learn(vectors("new", 30, dimension=learner.foundation.dimension), "new")
    learner.forget("new")
    learner.close()
    assert check(state).intact, name
    again = Learner.open(state)
    assert isinstance(answers(again, probe_of(again)), list), name
    again.close()
