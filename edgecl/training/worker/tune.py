"""Tuning the top of a backbone in a worker: the one loop on cached activations, inside the time and memory allowed."""
from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from edgecl.backbones.cut import Anatomy
from edgecl.errors import BudgetError
from edgecl.rounds.job import Job, Stored
from edgecl.rounds.method import read_method
from edgecl.rounds.process import trim
from edgecl.training.balance.base import Balance
from edgecl.training.batch import Batch
from edgecl.training.bench.session import below
from edgecl.training.composition import balance_of, parts_of
from edgecl.training.loop import Parts, learning_round, planned_steps
from edgecl.training.memory.base import Memory
from edgecl.training.networks.network import outputs
from edgecl.training.networks.pretrained import empty, network_above
from edgecl.training.passes import Allowance, Deadline
from edgecl.training.plan import Plan
from edgecl.training.worker import forecast, limits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edgecl.backbones.cut import Cut
    from edgecl.rounds.method import Method
    from edgecl.training.networks.from_onnx import OnnxModule
    from edgecl.training.networks.network import Network
    from edgecl.training.worker.limits import Stop

UNBOUNDED = 2**62       # bytes of a memory: the state's own buffer bounds what it may keep
MEASURED = 8            # samples of the pass that is measured
MARGIN = 1.3            # times the forecast seconds
OUTSIDE = 3             # seconds of a round outside the worker
PROGRESS = 0.2          # seconds between two lines of progress


@dataclass(frozen=True)
class RoundContext:
    """What a worker tunes. file_bytes: of the backbone; stop: when to end; peak: of the resident memory."""

    job: Job
    cut: Cut
    method: Method
    file_bytes: int
    stop: Stop
    peak: limits.Peak


def tune(folder: Path, job: Job, cut: Cut, stop: Stop, peak: limits.Peak,
         tell: Callable[..., None]) -> dict[str, Any]:
    """One round: writes the candidate and answers with the fields of result.json. Raises BadInput, BudgetError."""
    torch.set_num_threads(job.threads)
    samples, method = Stored.read(folder, inputs=False), read_method(job.method, job.own_code)
    order, begin, end = samples.arranged()
    x = torch.from_numpy(np.load(folder / "activations.npy", allow_pickle=False))
    columns = torch.from_numpy(samples.column[order])
    (head,) = parts_of(method, "head")
    file = folder / "backbone.onnx"
    network = network_above(Anatomy(file.read_bytes()), cut, head).to(_device(job))
    parts, before = compose(method, cut), _before(folder)
    rounds = adopt(network, parts, before, job)
    parts.memory.hold(Batch(x[:begin], columns[:begin]))
    new = Batch(x[begin:end], columns[begin:end])
    allowance = fit(network, x, RoundContext(job, cut, method, file.stat().st_size, stop, peak), len(new), rounds)
    plan = Plan(job.epochs, job.batch, job.rate, 0.9, method.training["decay"], clip=method.training["clip"],
                head_rate=job.head_rate, cosine=True, smoothing=job.smoothing, mirror=True)
    steps = planned_steps(parts, columns[:begin], new, plan, method.memory.whole)
    begun, last = time.monotonic(), 0.0
    seen = 0

    def progress(done: int, loss: float) -> None:
        nonlocal seen, last
        seen += 1
        if (now := time.monotonic()) - last > PROGRESS:
            last = now
            tell(step=seen, steps=steps, loss=loss, rss=limits.status("VmRSS")[0], left=stop.left,
                 samples_per_second=done / max(now - begun, 1e-9), share=min(max(seen / steps, allowance.spent()), 1.0))

    allowance.report_to(progress)
    learning_round(network, parts, new, len(job.classes), plan, np.random.default_rng([job.seed, rounds]), allowance)
    if not seen:
        raise BudgetError("the round was stopped before it learned anything" if stop.asked else
                          f"{job.seconds:.0f} s were over before anything was learned",
                          f"give --time {math.ceil(1.5 * job.seconds + OUTSIDE)}s or more")
    seconds = time.monotonic() - begun
    digest = write(folder, network, x, order)
    keep(folder, network, parts, job, method, rounds + 1)
    return {"sha256": digest, "steps": seen, "of": steps, "samples": allowance.samples, "train_seconds": seconds,
            "piece": allowance.piece, "device": str(network.device), "stopped": stop.asked}


def compose(method: Method, cut: Cut) -> Parts:
    """The method's parts; the state itself keeps statistics, and solves heads from them."""
    nothing = Batch(empty(cut), torch.empty(0, dtype=torch.int64))
    (memory,) = parts_of(method, "memory")
    constraints = [constraint() for constraint in parts_of(method, "constraint")]
    return Parts(Memory(UNBOUNDED, nothing) if method.closed_form else memory(UNBOUNDED, nothing),
                 Balance() if method.closed_form else balance_of(method), constraints)


def adopt(network: Network, parts: Parts, before: Mapping[str, np.ndarray], job: Job) -> int:
    """Go on where the last round ended; how many rounds were completed. The head is taken over from any method if it
    has the same form, the state of parts from the same method only."""
    if not before:
        return 0
    head = below("head", before)
    if list(before["classes"]) == list(job.classes[:job.known]) and head.keys() == network.head.state_dict().keys():
        network.head.extend(job.known, np.random.default_rng(0))
        network.head.load_state_dict({name: torch.tensor(array) for name, array in head.items()})
        if str(before["method"]) == job.method:
            parts.balance.load(below("balance", before))
            for i, part in enumerate(parts.constraints):
                part.load(below(f"constraint{i}", before))
            if parts.memory.lasting:
                parts.memory.load(below("memory", before))
    return int(before["rounds"])


def fit(network: Network, x: torch.Tensor, context: RoundContext, fresh: int, rounds: int) -> Allowance:
    """Measure passes of a few samples; choose how many go through at a time, and when the last step must be done.

    x: all activations; fresh: samples to learn from; rounds: completed so far. Raises BudgetError if one sample takes
    too much memory, or a step too much time.
    """
    job, stop, few, taken, worked = context.job, context.stop, x[:MEASURED], 0.0, 0.0
    weights = list(network.body.parameters())

    def passed(count: int) -> int | None:
        nonlocal taken, worked
        begun, working = time.monotonic(), time.process_time()
        raised = context.peak.raised_by(lambda: torch.autograd.grad(
            network.features(few[:count]).square().sum(), weights, allow_unused=True))
        taken, worked = time.monotonic() - begun, time.process_time() - working
        trim()
        return raised

    passed(1)       # loads code
    costs = passed(1), passed(len(few))
    assumed = 4 * context.cut.weights + few[:1].nbytes
    one, all_of_them = (assumed if cost is None else cost for cost in costs)
    each = max((all_of_them - one) / max(len(few) - 1, 1), 2 * few[:1].nbytes)
    size = forecast.RoundSize(len(x), job.batch, rounds, network.head.classes)
    needed = (limits.status("VmRSS")[0] + forecast.CODE + forecast.step(context.cut, job.batch, one)
              + forecast.beside_a_pass(context.cut, network.head.weight.shape[-1], context.method, size))
    if needed > job.memory:
        least = math.ceil(needed / limits.PLANNED_SHARE)
        raise BudgetError(f"a round here takes {least} bytes of memory at least, {job.memory} are allowed",
                          f"give --memory {least} or more")
    network.block = int(min(max(limits.PLANNED_SHARE * job.memory - needed, 0) / each + 1, 2 * job.batch))
    shared = max(taken / max(worked, 1e-3), 1.0)    # with other programs
    clock = Deadline(stop.left, forecast.closing(context.method, len(x), fresh),
                     shared * forecast.files(context.file_bytes), taken / len(few), 2 * job.batch)
    if clock.spent(0) >= 1:
        seconds = job.seconds + MARGIN * (clock.last - stop.left) + OUTSIDE
        raise BudgetError(f"{job.seconds:.1f} s are too short to learn anything and to write it down",
                          f"give --time {math.ceil(seconds)}s or more")
    limits.limit(job.memory)
    return Allowance(network.block, clock, lambda: stop.asked, limits.Watch(job.memory).tight)


def write(folder: Path, network: Network, x: torch.Tensor, order: np.ndarray) -> str:
    """The candidate, the features of all samples by it, and the probes'; the candidate's SHA-256."""
    anatomy, body = Anatomy((folder / "backbone.onnx").read_bytes()), cast("OnnxModule", network.body)
    weights = {name: anatomy.as_stored(name, values) for name, values in body.weights().items()}
    body.load(weights)
    content = anatomy.rebuilt(weights)
    del anatomy, weights
    (folder / "candidate.onnx").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    del content
    features = outputs(network.features, x, network.block).numpy()
    np.save(folder / "features.npy", features[np.argsort(order)])
    probes = torch.from_numpy(np.load(folder / "probes_in.npy", allow_pickle=False))
    np.save(folder / "probes.npy", outputs(network.features, probes, network.block).numpy())
    return digest


def keep(folder: Path, network: Network, parts: Parts, job: Job, method: Method, rounds: int) -> None:
    """Write what the next round goes on from, and the trained head if the method has one."""
    kept: dict[str, Any] = {f"constraint{i}/{name}": array for i, part in enumerate(parts.constraints)
                            for name, array in part.state().items()}
    if parts.memory.lasting:
        kept |= {f"memory/{name}": array for name, array in parts.memory.state().items()}
    kept |= {f"balance/{name}": array for name, array in parts.balance.state().items()}
    kept |= {f"head/{name}": value.cpu().numpy() for name, value in network.head.state_dict().items()}
    np.savez(folder / "parts.npz", method=np.array(job.method), classes=np.array(job.classes, np.str_),
             rounds=np.array(rounds), **kept)
    served: Any = parts.balance.fold(network)
    if not method.closed_form and (affine := served.affine()):
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
