"""Learning rounds without a worker: another matrix as the candidate backbone."""
from __future__ import annotations

import numpy as np
from vector_states import DIMENSION, vectors

from edgecl.backbones.graph import GraphBuilder, finish_backbone
from edgecl.learner import Learner
from edgecl.rounds.candidate import Candidate
from edgecl.samples import sample_keys


def matrix(seed: int) -> np.ndarray:
    """A change of features, float32 [d, d]: a rotation and a scaling."""
    rng = np.random.default_rng([77, seed])
    turn = np.linalg.qr(rng.normal(size=(DIMENSION, DIMENSION)))[0]
    return (turn * rng.uniform(0.5, 2, DIMENSION)).astype(np.float32)


def linear(weight: np.ndarray, slow: int = 0, kind: str = "feature") -> bytes:
    """A backbone for vectors that multiplies them by a matrix [d, d']. slow: number of useless steps before that."""
    g, d = GraphBuilder(), weight.shape[0]
    last = "input"
    if slow:
        wide = g.node("Tile", [last, g.weight("times", np.array([1, 4000]))])
        for _ in range(slow):
            wide = g.node("Sin", [wide])
        nothing = g.node("Mul", [g.node("ReduceMax", [wide], axes=[1]), g.weight("zero", np.float32(0))])
        last = g.node("Add", [last, nothing])
    g.node("MatMul", [last, g.weight("matrix", weight)], "features")
    ends = {"input": ("float32", ["n", d])}, {"features": ("float32", ["n", weight.shape[1]])}
    return finish_backbone(g.model("linear", *ends), "identity", kind, [d], weight.shape[1])


def by(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Features of vectors [n, d] as `linear` computes them, up to rounding."""
    return (x.astype(np.float64) @ weight).astype(np.float32)


def world(*taught: tuple[str, int, int]) -> dict[int, np.ndarray]:
    """Key -> vector, for all samples learned, given as (label, count, seed)."""
    return {key: x for each in taught for x in [vectors(*each)] for key, x in zip(sample_keys(x), x)}


def candidate(learner: Learner, seen: dict[int, np.ndarray], weight: np.ndarray) -> Candidate:
    """The result that a worker would have produced for the current state. seen: see `world`."""
    known = learner.repository.known()
    held = {row.id for row in known.held_back()}
    features = by(weight, np.stack([seen[row.key] for row in known.stored]))
    found = {row.id: feature for row, feature in zip(known.stored, features)}
    return Candidate("er", learner.store.current, linear(weight), found, frozenset(found) - held,
                     b"what the method keeps" + weight.tobytes()[:8])
