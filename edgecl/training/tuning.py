"""Tuning the top of a backbone in a worker: the one loop on cached activations, inside the time and memory allowed."""
from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edgecl.errors import BudgetError
from edgecl.job import Job, Stored
from edgecl.method import read_method
from edgecl.training import confines
from edgecl.training.allowance import Allowance
from edgecl.training.balance import Balance
from edgecl.training.loop import Parts, Plan, learning_round
from edgecl.training.memory import Batch, Nothing
from edgecl.training.network import outputs
from edgecl.training.pretrained import empty, network_above
from edgecl.training.session import parts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edgecl.backbones.surgery import Anatomy, Cut
    from edgecl.method import Method
    from edgecl.training.network import Network
    from edgecl.training.round import Stop

ROOM = 2**62                # the state's own buffer bounds what a memory may keep
TAIL, RESERVE = 1.3, 0.7    # times the forecast of what comes after the last step, and seconds beside it
EACH = 0.2                  # seconds between two lines of progress


def tune(folder: Path, job: Job, anatomy: Anatomy, cut: Cut, stop: Stop, tell: Callable[..., None]) -> dict[str, Any]:
    """One round; writes the candidate and answers what result.json is to say. Raises BadInput, BudgetError."""
    torch.set_num_threads(job.threads)
    samples, method = Stored.read(folder), read_method(job.method)
    x = torch.from_numpy(np.load(folder / "activations.npy", mmap_mode="c", allow_pickle=False))     # no copy
    columns = torch.from_numpy(samples.column)
    (head,) = parts_of(method, "head")
    network = network_above(anatomy, cut, head).to(_device(job))
    parts = compose(method, cut)
    before = _before(folder)
    kept = adopt(network, parts, before, job)
    free = torch.from_numpy(~samples.held)
    fresh = free & torch.from_numpy(samples.fresh)
    parts.memory.hold(Batch(x[free & ~fresh], columns[free & ~fresh]))
    new = Batch(x[fresh], columns[fresh])
    allowance = fit(network, x, job, stop)
    begun, seen, last = time.monotonic(), [0, 0], [0.0]
    steps = -(-int(fresh.sum()) // job.batch) * job.epochs

    def progress(done: int, loss: float) -> None:
        seen[0], seen[1] = seen[0] + 1, done
        if (now := time.monotonic()) - last[0] > EACH:
            last[0] = now
            tell(step=seen[0], steps=steps, loss=loss, rss=confines.status("VmRSS")[0], left=stop.left,
                 samples_per_second=done / max(now - begun, 1e-9), share=max(seen[0] / steps, allowance.spent()))

    plan = Plan(job.epochs, job.batch, job.rate, 0.9, method.training["decay"], clip=method.training["clip"],
                head_rate=job.head_rate, cosine=True, smoothing=job.smoothing, mirror=True)
    learning_round(network, parts, new, len(job.classes), plan,
                   np.random.default_rng([job.seed, kept]), progress, allowance)
    if not seen[0]:
        raise BudgetError(f"{job.seconds:.0f} s were over before anything was learned", "give --time more")
    write(folder, network, parts, anatomy, x, job, method)
    content = (folder / "candidate.onnx").read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "steps": seen[0], "of": steps, "samples": seen[1],
            "train_seconds": time.monotonic() - begun, "peak_rss_bytes": confines.peak_rss(), "piece": allowance.piece,
            "weights": cut.weights, "device": str(network.device), "stopped": stop.asked}


def compose(method: Method, cut: Cut) -> Parts:
    """The method's parts; statistics and what is solved from them are the state's own."""
    nothing = Batch(empty(cut), torch.empty(0, dtype=torch.int64))
    (memory,), (balance,) = (parts_of(method, kind) for kind in ("memory", "balance"))
    closed = method.parts["balance"] == ("closed-form",)
    constraints = [constraint() for constraint in parts_of(method, "constraint")]
    return Parts(Nothing(ROOM, nothing) if closed else memory(ROOM, nothing), Balance() if closed else balance(),
                 constraints)


def adopt(network: Network, parts: Parts, before: Mapping[str, np.ndarray], job: Job) -> int:
    """Go on where the last round ended: its head and, where the method is the same, what its parts keep; how many
    rounds there were."""
    if not before or list(before["classes"]) != list(job.classes[:job.known]) or str(before["method"]) != job.method:
        return int(before["rounds"]) if before else 0
    network.head.extend(job.known, np.random.default_rng(0))
    network.head.load_state_dict({name.removeprefix("head/"): torch.tensor(array) for name, array in before.items()
                                  if name.startswith("head/")})
    for i, part in enumerate(parts.constraints):
        prefix = f"constraint{i}/"
        part.load({name.removeprefix(prefix): array for name, array in before.items() if name.startswith(prefix)})
    return int(before["rounds"])


def fit(network: Network, x: torch.Tensor, job: Job, stop: Stop) -> Allowance:
    """Measure passes of a few samples, and choose how many go through at a time and when the last step must be done.
    Raises BudgetError where one is too many."""
    few = x[:4]
    weights = list(network.body.parameters())
    costs, seconds = [], 0.0
    for count in (1, 1, min(4, len(few))):      # the first one loads code
        confines.forget_peak()
        resident, begun = confines.status("VmRSS")[0], time.monotonic()
        torch.autograd.grad(network.features(few[:count]).square().sum(), weights, allow_unused=True)
        costs.append(max(confines.peak_rss() - resident, 0))
        seconds = (time.monotonic() - begun) / count
    resident = confines.status("VmRSS")[0]
    each = max((costs[2] - costs[1]) / max(len(few) - 1, 1), few[:1].nbytes)
    speeds = sum(p.nbytes for p in weights)
    room = confines.SLACK * job.memory - resident - speeds
    if room < costs[1]:
        needed = int((resident + speeds + costs[1]) / confines.SLACK) + 1
        raise BudgetError(f"a round here takes {needed} bytes of memory at least, {job.memory} are allowed",
                          f"give --memory {needed} or more")
    piece = int(min(max((room - costs[1]) / each, 0) + 1, 2 * job.batch))
    network.block = piece
    confines.limit(job.memory)
    watch = confines.Watch(job.memory)
    tail = TAIL * len(x) * seconds / 3 + RESERVE        # a pass without gradients takes a third
    begun, whole = time.monotonic(), max(stop.left - tail, 1e-3)

    def spent() -> float:
        return 1.0 if stop.asked else (time.monotonic() - begun) / whole

    return Allowance(piece, spent, watch.tight)


def write(folder: Path, network: Network, parts: Parts, anatomy: Anatomy, x: torch.Tensor, job: Job,
          method: Method) -> None:
    """The candidate's files, see `edgecl.job`."""
    body: Any = network.body
    weights = body.weights()
    body.load({name: anatomy.as_stored(name, values) for name, values in weights.items()})
    (folder / "candidate.onnx").write_bytes(anatomy.rebuilt(weights))
    np.save(folder / "features.npy", outputs(network.features, x, network.block).numpy())
    probes = torch.from_numpy(np.load(folder / "probes_in.npy", allow_pickle=False))
    np.save(folder / "probes.npy", outputs(network.features, probes, network.block).numpy())
    kept = {f"constraint{i}/{name}": array for i, part in enumerate(parts.constraints)
            for name, array in part.state().items()}
    kept |= {f"head/{name}": value.cpu().numpy() for name, value in network.head.state_dict().items()}
    before = _before(folder)
    np.savez(folder / "parts.npz", method=np.array(job.method), classes=np.array(job.classes, np.str_),
             rounds=np.array(1 + (int(before["rounds"]) if before else 0)), **kept)
    served = parts.balance.fold(network)
    if method.parts["balance"] != ("closed-form",) and (affine := getattr(served, "readout", network.head).affine()):
        weight, bias, normalised = affine
        np.savez(folder / "head.npz", weight=weight, bias=bias, normalised=np.array(normalised))


def _before(folder: Path) -> dict[str, np.ndarray]:
    path = folder / "before.npz"
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _device(job: Job) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(job.memory / total, 1.0))
    return torch.device("cuda")
