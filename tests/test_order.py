"""A state is the same whatever the order of teaching, the split into commands and the names of sessions."""
from __future__ import annotations

import os
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from helpers_state import create, vectors

from edgecl.exemplars.columns import GrowingColumns
from edgecl.exemplars.selection import OWN_BITS
from edgecl.samples import Sample

SEEDS = int(os.environ.get("EDGECL_ORDERS", "3"))   # draws of recordings; each is taught in several orders
DIMENSION, LABELS = 64, [f"class {number}" for number in range(7)]
PROBE = np.concatenate([vectors(label, 20, 99, DIMENSION) for label in LABELS])


@pytest.fixture(autouse=True)
def short_log(monkeypatch):
    """Samples that the buffer has no room for are dropped soon, so that it decides many times."""
    monkeypatch.setattr("edgecl.learning.repository.SHORTEST_LOG", 0)


class Recording(NamedTuple):
    """A recording of a class, as it was taken; number: in its class."""

    label: str
    number: int
    samples: np.ndarray


def recordings(seed):
    """Recordings of several classes, of 1 to 60 samples, with stretches of a scene that hardly moves."""
    rng = np.random.default_rng(seed)
    made = []
    for label in LABELS:
        for number in range(int(rng.integers(2, 7))):
            taken = vectors(label, int(rng.choice([1, 4, 30, 60])), 10 * seed + number, DIMENSION)
            taken[0] = vectors(label, 1, 0, DIMENSION)[0] * np.float32(1 + rng.random())    # where they all begin
            still = rng.random(len(taken)) < 0.4
            for place in np.flatnonzero(still)[1:]:
                taken[place] = taken[place - 1] * np.float32(1 + rng.random())
            made.append(Recording(label, number, taken))
    return made


def taught(path, made, seed, **settings):
    """A learner that was taught recordings in a random order, some of a class in one command, as sessions with random
    names."""
    rng = np.random.default_rng(seed)
    learner = create(path, 4_000_000, codec=settings.pop("codec", "raw"),
                     exemplars=settings.pop("exemplars", 24_000), **settings)
    names = rng.permutation(10 * len(made)).astype(str)
    todo = [(made[i], names[i]) for i in rng.permutation(len(made))]
    while todo:
        label = todo[0][0].label
        mine = [pair for pair in todo if pair[0].label == label][:int(rng.integers(1, 4))]
        todo = [pair for pair in todo if not any(pair is other for other in mine)]
        learner.learn(np.concatenate([each.samples for each, _ in mine]), label,
                      [name for each, name in mine for _ in each.samples])
        if rng.random() < 0.3:
            learner.status()    # which solves and writes the head
    return learner


def kept(learner, exact=False):
    """(class, hash of the sample itself) of every exemplar; exact: only of those that are as they were learned"""
    return sorted((row.label, row.key & OWN_BITS) for row in learner.repository.known().exemplars()
                  if not (exact and row.coded))


def evicted(learner):
    """Samples that are nowhere any more."""
    return sum(each.samples for each in learner.classes()) - len(learner.repository.known().stored)


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("codec", ["raw", "int8-feature"])
def test_any_order_split_and_numbering_keep_the_same_exemplars_and_answer_the_same(fast_path, codec, seed):
    made, found = recordings(seed), []
    for order in range(4):
        learner = taught(fast_path / f"{order}", made, order, codec=codec, head="nearest-mean",
                         exemplars=24_000 if codec == "raw" else 9_000)
        learner.learn(vectors("last", 1, 0, DIMENSION), "last")
        answers = learner.predict(PROBE)
        found.append((kept(learner), [each.label for each in answers], [each.confidence for each in answers]))
        assert evicted(learner) > 100
        learner.close()
    for exemplars, labels, confidence in found[1:]:
        assert exemplars == found[0][0]
        assert labels == found[0][1]
        assert confidence == pytest.approx(found[0][2], abs=1e-4)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_a_codebook_leaves_as_it_was_is_the_same_in_any_order(fast_path, seed):
    made, found = recordings(seed), []
    for order in range(4):
        learner = taught(fast_path / f"{order}", made, order, codec="pq", head="nearest-mean", exemplars=30_000)
        learner.learn(vectors("last", 400, 0, DIMENSION), "last")
        learner.learn(vectors("last", 400, 1, DIMENSION), "last")
        assert learner.repository.known().buffer.codebook is not None
        found.append(kept(learner, exact=True))
        assert 20 < len(found[-1]) < len(kept(learner))
        learner.close()
    assert all(exemplars == found[0] for exemplars in found)


@pytest.mark.parametrize("admission", ["herding", "boundary"])
def test_without_loss_the_other_policies_keep_the_same_too(fast_path, admission):
    """What they choose follows the class means, so that it is the same as long as nothing had to go before."""
    made, found = recordings(1), []
    for order in range(3):
        learner = taught(fast_path / f"{order}", made, order, admission=admission, exemplars=400_000)
        known = learner.repository.known()
        small = replace(known.buffer, limit=20_000)
        columns = small.keep(known.stored, GrowingColumns()(known.stored), known.plain, known.transforms[0]).columns
        rows = [known.stored[place] for place in columns.rows["place"]]
        found.append(sorted((row.label, row.key & OWN_BITS) for row in rows))
        assert 20 < len(rows) < len(known.stored)
        learner.close()
    assert all(exemplars == found[0] for exemplars in found)


def test_photos_without_recordings_stay_the_same_too(fast_path):
    found = []
    for order in range(3):
        learner = create(fast_path / f"{order}", 4_000_000, 24_000, "nearest-mean")
        rng = np.random.default_rng(order)
        photos = [(label, x) for label in LABELS for x in vectors(label, 120, 7, DIMENSION)]
        for start in range(0, len(photos), 60):
            if not start:
                photos = [photos[i] for i in rng.permutation(len(photos))]
            batch = photos[start:start + 60]
            for label in dict.fromkeys(label for label, _ in batch):
                learner.learn([Sample(x) for name, x in batch if name == label], label)
        learner.learn(vectors("last", 1, 0, DIMENSION), "last")
        found.append(kept(learner))
        assert evicted(learner) > 100
        learner.close()
    assert all(exemplars == found[0] for exemplars in found)
