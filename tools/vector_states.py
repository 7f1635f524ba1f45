"""Small states with the identity backbone, their samples, and digests of what they show and know."""
from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from edgecl.errors import EdgeclError
from edgecl.learner import Learner
from edgecl.settings import Settings

DIMENSION = 16
PROBE = np.random.default_rng(99).normal(size=(32, DIMENSION)).astype(np.float32) * 3


def vectors(label: str, count: int, seed: int = 0, dimension: int = DIMENSION) -> np.ndarray:
    """Feature vectors [count, dimension] of one class; the same for equal arguments."""
    own = int.from_bytes(hashlib.blake2b(label.encode(), digest_size=4).digest(), "big")
    centre = np.random.default_rng(own).normal(size=dimension) * 3
    noise = np.random.default_rng([own, seed]).normal(size=(count, dimension))
    return (centre + noise).astype(np.float32)


def create(path: Path, quota: int = 1_000_000, exemplars: int = 20_000, head: str = "slda", **settings: Any) -> Learner:
    """A new state with the identity backbone, which stores samples unchanged."""
    return Learner.create(path, Settings(backbone="identity", quota=quota, exemplars=exemplars, head=head,
                                         **{"codec": "raw", **settings}))


def answers(learner: Learner, probe: np.ndarray = PROBE) -> list[tuple[str, float, bool]] | str:
    """Everything that `predict` returns, bit for bit, or the reason why it refuses."""
    try:
        return [(each.label, each.confidence, each.unknown) for each in learner.predict(probe)]
    except EdgeclError as error:
        return type(error).__name__


def knowledge(learner: Learner) -> Any:
    """The knowledge of the learner: counts, sums and second moment of each transform, and the stored samples."""
    if learner.foundation is None:
        return None
    known = learner.repository.known()
    return [[(sorted(s.counts.items()), [s.sums[c].tobytes() for c in s.labels], s.residual,
              None if s.moment is None else s.moment.tobytes()) for s in known.statistics.values()],
            sorted((row.label, row.key, row.feature.tobytes()) for row in known.exemplars())]


def fingerprint(path: Path, older: bool = True, damage: bool = True) -> str:
    """A digest of everything that a freshly opened state shows and knows, except ids and times of generations. older:
    include the accuracies and the counts of older generations, which are dropped when room is made for a
    change; damage: include what is said of damage."""
    learner = Learner.open(path)
    try:
        d = learner.foundation.dimension if learner.foundation else DIMENSION
        probe = PROBE if d == DIMENSION else np.random.default_rng(99).normal(size=(32, d)).astype(np.float32) * 3
        shown = [answers(learner, probe), knowledge(learner)]   # which solves the head, if nobody had
        shown += [line.replace(str(path), "STATE") for line in learner.damage if damage]
        dropped = {"removed", "dropped", "renamed", "spare"}    # which are noted while samples of before are there
        dropped |= set() if older else {"judged", "accuracy", "known"}
        shown += [(g.action, {key: value for key, value in g.detail.items() if key not in dropped}, g.undone)
                  for g in learner.history()]
        return hashlib.sha256(repr(shown).encode()).hexdigest()
    finally:
        learner.close()


def tree(path: Path) -> dict[str, str]:
    """The digest of each file below a folder."""
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(path.rglob("*")) if file.is_file()}
