"""Forecast of a round on a backbone before torch is loaded: bytes of memory, and the work after the last step."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgecl.training.worker.limits import PLANNED_SHARE

if TYPE_CHECKING:
    from edgecl.backbones.cut import Anatomy, Cut
    from edgecl.rounds.method import Method

# Measured with torch 2.13 for processors and ONNX Runtime 1.32; tools/check_rounds.py shows whether they hold.
TORCH = 284 * 10**6     # resident with torch, numpy and onnx after a few steps of a small network
CODE = 14 * 10**6       # the part of it that the first steps load
RUNTIME = 75 * 10**6    # resident with ONNX Runtime
SESSION = 5             # times the backbone's file: read, cut, written out, loaded, and packed for the processor
WRITING = 4             # times the backbone's file: read, copied with other weights, and written out
FLOAT = 4               # bytes
STEPPING = 4            # times the learned weights: they, their speed, their gradient, and that at its own pace
BATCH = 2               # times the activations of a step: drawn, and turned round
TURNING = 2             # times them again, before a pass
PASS = 2                # times gradients and activations of one sample: some are held in two orders at once


@dataclass(frozen=True)
class RoundSize:
    """What a round goes through. samples: all of them; batch: new ones of a step; rounds: completed so far; known:
    classes before it."""

    samples: int
    batch: int
    rounds: int = 0
    known: int = 0


def activations(cut: Cut, samples: int) -> int:
    """Bytes of the activations of samples, as they are kept."""
    return samples * cut.values * (2 if len(cut.shape) == 3 else 4)


def weight_copies(method: Method, rounds: int) -> int:
    """Copies of the learned weights that its parts hold during a round. rounds: completed so far."""
    rows = [row for _, row in method.rows()]
    return sum(row.weights + rounds * row.per_round for row in rows) + old_networks(method)


def old_networks(method: Method) -> int:
    """Copies of the network as it was before the round: it answers for replayed samples. The first copy lives on while
    a later phase has its own."""
    rows = [row for _, row in method.rows()]
    if not (any(row.old for row in rows) and any(row.replays for row in rows)):
        return 0
    return 2 if any(row.phases for row in rows) else 1


def old_outputs(method: Method, size: RoundSize, dimension: int) -> int:
    """Bytes of the old network's outputs for the samples of a round. dimension: of a feature."""
    rows = [row for _, row in method.rows()]
    if not size.known or not any(row.old for row in rows):
        return 0
    numbers = size.known + (dimension if any(row.old == "features" for row in rows) else 0)
    return FLOAT * numbers * size.samples * (2 if any(row.phases for row in rows) else 1)


def beside_a_pass(cut: Cut, dimension: int, method: Method, size: RoundSize) -> int:
    """Bytes that a step holds besides network, activations and the gradient of a pass. dimension: of a feature."""
    copies = sum(row.copies for _, row in method.rows())
    weights = STEPPING - 2 + weight_copies(method, size.rounds)
    return (copies * activations(cut, size.samples) + BATCH * activations(cut, 2 * size.batch)
            + old_outputs(method, size, dimension) + FLOAT * weights * cut.weights)


def step(cut: Cut, batch: int, one: float) -> float:
    """Bytes that a step takes in turn: to make the batch, or for the pass of `one` sample."""
    return max(one, TURNING * activations(cut, 2 * batch))


def memory(anatomy: Anatomy, cut: Cut, file: int, method: Method, size: RoundSize) -> int:
    """The least memory in bytes that a round above a cut takes, with one sample per pass. file: bytes of the backbone's
    file."""
    kept, weights = activations(cut, size.samples), FLOAT * cut.weights
    one = step(cut, size.batch, PASS * (weights + FLOAT * anatomy.live(cut)))
    training = weights + beside_a_pass(cut, anatomy.info.dimension, method, size) + one
    writing = (2 + weight_copies(method, 0)) * weights + WRITING * file
    return int((TORCH + kept + max(training, writing)) / PLANNED_SHARE)


def trunk_memory(file: int, inputs: int) -> int:
    """The least memory in bytes that will do below it. inputs: bytes of all samples."""
    return int((RUNTIME + SESSION * file + 2 * inputs) / PLANNED_SHARE)


def files(size: int) -> float:
    """Seconds of a processor that it takes to write the candidate. size: bytes of the backbone's file."""
    return 0.4 + 4e-8 * size


def closing(method: Method, samples: int, fresh: int) -> float:
    """Forward passes after the last step, those for the candidate's features included. fresh: of the samples, those
    that are new."""
    passes = float(samples)
    for _, row in method.rows():
        most = int(method.numbers["samples"]) if "samples" in row.numbers else 0
        passes += row.new_passes * min(most or fresh, fresh) + row.all_passes * samples
    return passes
