"""A learning round on a state: a worker makes a candidate from stored samples, and the gate decides on it."""
from __future__ import annotations

import io
import os
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgecl.errors import BadInput, BudgetError, StateError
from edgecl.exemplars.pseudo_samples import PSEUDO_CODED
from edgecl.heads.head import Head
from edgecl.learning.backbone_file import backbone_bytes
from edgecl.learning.rerun import decoded
from edgecl.results import RoundResult
from edgecl.rounds import gate, worker
from edgecl.rounds.board import read
from edgecl.rounds.candidate import Candidate, clear_killed, take_in, workshop_prefix
from edgecl.rounds.job import PROBES, Job, Stored
from edgecl.rounds.limits import Limits, Need, may_run
from edgecl.rounds.method import method_names, read_method
from edgecl.settings import counted
from edgecl.statistics.transform import FeatureTransform

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgecl.exemplars.stored import StoredSample
    from edgecl.learning.foundation import Foundation
    from edgecl.learning.repository import Repository

FIRST_METHOD, LATER_METHOD = "first-session", "er"    # the default method of the first round, and of later ones
WITHOUT_SAMPLES = "statistics"          # that of a state that keeps statistics only
SECONDS, MEMORY = 60.0, 400 * 10**6
GATE_SECONDS = 1.5                              # seconds of a round that are left for the gate
ADAPTERS = 8                            # behind a backbone, one a round: each takes time with every answer
FEWEST = 2                               # classes, and as many samples of each
# A round that a person asks for takes the time and the threads that they name; it gives way to other programs.
ASKED = Limits(load=100.0, time=None, threads=1024)


@dataclass(frozen=True)
class RoundRequest:
    """What is asked of a round. method: a name or a .toml file, None for the default; seconds: for all of it; memory:
    bytes of the worker; blocks: of the backbone to tune, None for the usual number; epochs: at most; batch: new samples
    per step; own_code: whether the method may have parts of the user's own, which the worker then imports."""

    method: str | None = None
    seconds: float = SECONDS
    memory: int = MEMORY
    blocks: int | None = None
    epochs: int = 8
    batch: int = 32
    threads: int = 1
    bounds: gate.Bounds = gate.BOUNDS
    limits: Limits = ASKED
    own_code: bool = True


def run_round(repository: Repository, request: RoundRequest, watch: worker.Watch | None = None) -> RoundResult:
    """One learning round. watch: called with each line of the worker's progress.

    Raises BadInput, BudgetError and StateError if it can't be done. A candidate that the gate refuses is not an error:
    it leaves a row in the history and nothing else.
    """
    begun, store = time.monotonic(), repository.store
    allowed = may_run(read(), request.limits, Need(request.memory, request.seconds, request.threads))
    if not allowed:
        raise BudgetError(allowed.reasons[0].what, allowed.reasons[0].cure)
    foundation = repository.foundation
    if foundation is None:
        raise StateError(f"{store.path} has learned nothing yet", "teach it with `edgecl learn`")
    method = _method(repository, request)
    with store.reading():
        knowledge, serving = repository.known(), backbone_bytes(store, foundation, store.newest.backbone or "")
        begun_at, before, last = store.current, store.parts(), store.tuned()
    codec = foundation.buffer(repository.settings).codec
    drawn = knowledge.gaussians is not None
    before = None if drawn else before      # all that is known is drawn again
    rows = _rows(knowledge.pseudo_samples() if drawn else knowledge.stored, codec.input is not None)
    held = {row.id for row in ([row for row in rows if row.judges] if drawn else knowledge.held_back())}
    with workshop(store.path) as folder:
        classes, known = _classes(rows, before)
        places = {name: place for place, name in enumerate(classes)}
        Stored(np.array([places[row.label] for row in rows], np.int64),
               np.array([drawn or (row.generation or 0) > (last or 0) for row in rows]),
               np.array([row.id in held for row in rows]),
               np.stack([row.feature for row in rows]), [row.input for row in rows]).write(folder)
        (folder / "backbone.onnx").write_bytes(serving if codec.input else _adapted(serving, method, before))
        if before is not None:
            (folder / "before.npz").write_bytes(before)
        left = max(request.seconds - (time.monotonic() - begun) - GATE_SECONDS, 0.1)
        job = Job(method, tuple(classes), known, foundation.codec if codec.input else "", request.blocks,
                  request.memory, left, request.threads, repository.settings.seed, request.epochs, request.batch,
                  own_code=request.own_code)
        job.write(folder)
        answer = worker.run(folder, job, watch)
        model = (folder / "candidate.onnx").read_bytes()
        features = np.load(folder / "features.npy", allow_pickle=False)
        probes = decoded([row.input for row in rows[:PROBES]], codec.input) if codec.input else None
        expected = np.load(folder / "probes.npy", allow_pickle=False)
        parts, head = (folder / "parts.npz").read_bytes(), _trained_head(folder, classes)
    checks = gate.check_file(model, answer["sha256"], serving, *(
        (probes, expected) if probes is not None else _made_up(foundation, model)))
    found = {row.id: feature for row, feature in zip(rows, features) if row.id is not None}
    tuned = frozenset(found) - held
    took = take_in(repository, Candidate(Path(method).stem, begun_at, model, {} if drawn else found, tuned, parts,
                                         head, tuple(checks)), request.bounds)
    return RoundResult(took.generation is not None, Path(method).stem, took.generation, took.checks, took.accuracy,
                       answer["steps"], answer["of"], len(tuned), time.monotonic() - begun, answer["train_seconds"],
                       answer["peak_rss_bytes"], request.memory, answer["device"], answer["blocks"],
                       answer["wished_blocks"])


def _method(repository: Repository, request: RoundRequest) -> str:
    """The method of a round, a .toml file by its absolute path. Raises BadInput if the state can't serve it or has no
    use for it."""
    tuned, kept = repository.store.tuned(), repository.settings.memory == "exemplars"
    name = request.method or (WITHOUT_SAMPLES if not kept else FIRST_METHOD if tuned is None else LATER_METHOD)
    method = read_method(name, request.own_code)
    for _, row in method.rows():
        if row.bench_only:
            raise BadInput(f"{method.name} answers with {row.bench_only}, which a state can't keep or serve",
                           f"give --method {LATER_METHOD if kept else WITHOUT_SAMPLES}, or judge and export it with "
                           "`edgecl bench`")
    if method.tuned == "none":
        raise BadInput(f"{method.name} tunes no backbone",
                       f"`edgecl learn` does that already; take a method that tunes, such as {FIRST_METHOD}")
    if method.tuned == "first" and tuned is not None:
        raise BadInput(f"{method.name} tunes in the first round only, and generation {tuned} was one",
                       f"give --method {LATER_METHOD}, or roll back to before it")
    if not kept and not method.memory.from_statistics:
        able = [each for each in method_names() if read_method(each).memory.from_statistics]
        raise BadInput(f"{method.name} learns from stored samples, and this state keeps statistics only",
                       f"give --method {' or '.join(able)}, or create a state with --memory-kind exemplars")
    return name if not name.endswith(".toml") else os.path.abspath(name)


def _rows(stored: list[StoredSample], inputs: bool) -> list[StoredSample]:
    """The samples that a round can use. Raises StateError if there are too few."""
    rows = [row for row in stored if row.id is not None and (row.input or not inputs)]
    if any(row.coded not in ("", PSEUDO_CODED) for row in rows):
        raise StateError("the exemplars of this state are product codes, and no round can learn from those",
                         "create a state with --codec jpeg (photos), delta16 (windows) or int8-feature")
    labels = [row.label for row in rows]
    able = [label for label in set(labels) if labels.count(label) >= FEWEST]
    if len(able) < FEWEST:
        raise StateError(f"samples of {counted(len(able), 'class')} are stored, a round needs {FEWEST} classes with "
                         f"{FEWEST} samples each",
                         "teach more, or create a state with more --exemplars")
    return rows


def _adapted(serving: bytes, method: str, before: bytes | None) -> bytes:
    """With an adapter of this round's own: stored features have gone through those of earlier rounds. Raises StateError
    if there are ADAPTERS already, or the method's parts know the weights or the features of the last one."""
    from edgecl.backbones.adapters import adapters, with_adapter

    if (there := adapters(serving)) >= ADAPTERS:
        raise StateError(f"{there} rounds have put an adapter behind the backbone already, and {ADAPTERS} are the most",
                         "roll back to before them, or create a state with --codec jpeg (photos) or delta16 (windows), "
                         "which keep what was seen")
    if before is not None and there:
        with np.load(io.BytesIO(before), allow_pickle=False) as file:
            known = str(file["method"]) == method and any(name.startswith(("constraint", "memory")) for name in file)
        if known:
            raise StateError(f"what {Path(method).stem} remembers is of the last round's adapter, below this one's",
                             f"give --method {LATER_METHOD}, or create a state with --codec jpeg (photos) or delta16 "
                             "(windows), which keep what was seen")
    return with_adapter(serving, 0)


def _classes(rows: list[StoredSample], before: bytes | None) -> tuple[list[str], int]:
    """The classes in the order in which they came, those of the last round first; how many those are."""
    order: list[str] = []
    if before is not None:
        with np.load(io.BytesIO(before), allow_pickle=False) as file:
            order = [str(name) for name in file["classes"]]
    here = {row.label for row in rows}
    order = [name for name in order if name in here] if set(order) <= here else []
    known = len(order)
    return [*order, *dict.fromkeys(row.label for row in rows if row.label not in order)], known


def _made_up(foundation: Foundation, candidate: bytes) -> tuple[np.ndarray, np.ndarray]:
    """For states that keep no input: random samples, and their features by trunk and adapter one after the other."""
    from edgecl.backbones.adapters import ADAPTER_INPUT, adapted
    from edgecl.backbones.cut import Anatomy
    from edgecl.backbones.session import open_session
    from edgecl.learning.export import probes

    samples, anatomy = probes(foundation.kind, foundation.input_shape), Anatomy(candidate)
    session = open_session(anatomy.trunk(anatomy.cut_at(ADAPTER_INPUT)))
    below = session.run(None, {session.get_inputs()[0].name: samples})[0]
    return samples, adapted(candidate, below)


def _trained_head(folder: Path, classes: list[str]) -> Head | None:
    """The head that the round has trained, its rows in the order of the fast learner's."""
    path = folder / "head.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        weight, bias, normalised = file["weight"], file["bias"], bool(file["normalised"])
    order = np.argsort(classes)
    d = weight.shape[1]
    return Head("trained-cosine" if normalised else "trained", tuple(sorted(classes)), weight[order], bias[order],
                np.zeros(d, np.float32), FeatureTransform(d, d), normalised)


@contextmanager
def workshop(state: Path) -> Iterator[Path]:
    """A folder beside the state for one round; what a killed round of the same state left is deleted. Raises
    BudgetError if the disk is full."""
    clear_killed(state)
    try:
        with tempfile.TemporaryDirectory(prefix=f"{workshop_prefix(state)}{os.getpid()}-",
                                         dir=state.absolute().parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise BudgetError(f"a round needs a folder beside {state} ({error.strerror})",
                          "free some space there, and give the rights to it") from error
