"""What a round on a backbone will take, told before torch is loaded: bytes of memory, and work after the last step."""
from __future__ import annotations

from typing import TYPE_CHECKING

from edgecl.training.worker.limits import SLACK

if TYPE_CHECKING:
    from edgecl.backbones.cut import Anatomy, Cut
    from edgecl.rounds.method import Method

# Measured with torch 2.13 for processors and ONNX Runtime 1.32; tools/check_rounds.py shows whether they hold.
TORCH = 284 * 10**6     # resident with torch, numpy and onnx after a few steps of a small network
CODE = 14 * 10**6       # of it what the first steps load
RUNTIME = 75 * 10**6    # resident with ONNX Runtime
SESSION = 5             # times the backbone's file: read, cut, written out, loaded, and packed for the processor
WRITING = 4             # times the backbone's file: read, copied with other weights, and written out
STEPPING = 4            # times the learned weights: they, their speed, their gradient, and that at its own pace
BATCH = 2               # times the activations of a step: drawn, and turned round
TURNING = 2             # times them beside, before a pass
PASS = 2                # times gradients and activations of one sample: some are held in two orders at once
FISHER = 6              # passes forward that the squared gradients of one sample take

COPIES = {"reservoir": 2, "herding": 3, "everything": 3, "greedy": 2, "recorded": 2, "by-gradient": 2, "episodes": 2,
          "latent": 2}
# of all activations, by the memory; else 1
WHOLE = ("herding", "everything")                           # memories whose samples are all part of every epoch
BESIDE = {"l2": 2, "fisher": 3, "sensitivity": 3, "path-integral": 8, "riemannian-walk": 12, "task-gradients": 3,
          "average-gradient": 1, "class-share": 1, "by-round": 1, "less-forget": 1,
          "pooled-outputs": 1, "gradient-noise": 1}
# times the learned weights that a constraint holds, else 0; and once for each earlier round:
BY_ROUND = {"task-gradients"}
GRADED = {"fisher", "sensitivity"}                          # constraints that pass single samples at the end


def activations(cut: Cut, samples: int) -> int:
    """Bytes of the activations of samples, as they are kept."""
    return samples * cut.values * (2 if len(cut.shape) == 3 else 4)


def held(method: Method, rounds: int) -> int:
    """Times the learned weights that its constraints hold. rounds: that there were."""
    return sum(BESIDE.get(name, 0) + rounds * (name in BY_ROUND) for name in method.parts["constraint"])


def beside_a_pass(cut: Cut, method: Method, samples: int, batch: int, rounds: int = 0) -> int:
    """Bytes that a step holds beside network, activations and the gradient of a pass. rounds: that there were."""
    copies = COPIES.get(method.parts["memory"][0], 1) - 1
    weights = STEPPING - 2 + held(method, rounds)
    return copies * activations(cut, samples) + BATCH * activations(cut, 2 * batch) + 4 * weights * cut.weights


def step(cut: Cut, batch: int, one: float) -> float:
    """Bytes that a step takes in turn: to make the batch, or for the pass of `one` sample."""
    return max(one, TURNING * activations(cut, 2 * batch))


def memory(anatomy: Anatomy, cut: Cut, file: int, method: Method, samples: int, batch: int,
           rounds: int = 0) -> int:
    """The least memory in bytes that will do above a cut, one sample a pass. file: bytes of the backbone's; rounds:
    that there were."""
    kept, weights = activations(cut, samples), 4 * cut.weights
    one = step(cut, batch, PASS * (weights + 4 * anatomy.live(cut)))
    training = weights + beside_a_pass(cut, method, samples, batch, rounds) + one
    writing = (2 + held(method, 0)) * weights + WRITING * file
    return int((TORCH + kept + max(training, writing)) / SLACK)


def trunk_memory(file: int, inputs: int) -> int:
    """The least memory in bytes that will do below it. inputs: bytes of all samples."""
    return int((RUNTIME + SESSION * file + 2 * inputs) / SLACK)


def files(size: int) -> float:
    """Seconds of a processor that it takes to write the candidate. size: bytes of the backbone's file."""
    return 0.4 + 4e-8 * size


def closing(method: Method, samples: int, fresh: int) -> float:
    """How many samples go forward once the last step is done, those of the candidate's features included. fresh: of
    the samples, those that are new."""
    herded = fresh if method.parts["memory"] == ("herding",) else 0
    means = 2 * samples if method.parts["balance"] == ("exemplar-means",) else 0
    most = int(method.numbers.get("samples", 0)) if GRADED & {*method.parts["constraint"]} else -1
    graded = 0 if most < 0 else min(most, fresh) if most else fresh
    return samples + herded + means + FISHER * graded

