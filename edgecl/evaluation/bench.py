"""The benchmark: runs each method and seed on a scenario in its own process (`edgecl.training.bench.one_seed`)."""
from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgecl.backbones.session import sha256
from edgecl.errors import BadInput, EdgeclError
from edgecl.evaluation.datasets import Split, load
from edgecl.evaluation.scenarios import KINDS, ScenarioStep, build
from edgecl.files.atomic import write_atomically
from edgecl.rounds.method import FOLDER, read_method
from edgecl.rounds.parts import WHERE, source_file

RESULT_FIELDS = ("method", "data", "scenario", "seed", "classes", "steps", "accuracy_matrix", "step_accuracy",
          "average_incremental_accuracy", "final_accuracy", "forgetting", "task_aware_accuracy", "task_aware_matrix",
          "units_used", "memory_bytes", "train_seconds", "samples_per_second", "peak_rss_bytes")
DEFAULT_STEPS = {"nc": 5, "ni": 5, "nic": 20, "online": 5}
COMMAND = (sys.executable, "-m", "edgecl.training.bench.one_seed")
PACKAGE = Path(__file__).resolve().parents[1]

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class BenchJob:
    """One method and one seed. method: a name or a .toml file; data: a name or an .npz file; memory: bytes; backbone:
    None chooses one that fits the data; steps, batch: None for the scenario's; rate: None for the method's; order: of
    the classes, "natural", "seeded" or numbers separated by commas; per_class: number of training samples of each
    class, None for all; blocks: of a pretrained backbone to tune, None for the default. Raises BadInput if a value is
    out of range."""

    method: str
    data: str
    scenario: str = "nc"
    steps: int | None = None
    memory: int = 200_000
    seed: int = 0
    epochs: int = 1
    batch: int | None = None
    rate: float | None = None
    backbone: str | None = None
    multi_head: bool = False
    order: str = "natural"
    per_class: int | None = None
    blocks: int | None = None

    def __post_init__(self) -> None:
        for flag, value in (("--steps", self.steps), ("--epochs", self.epochs), ("--batch", self.batch),
                            ("--rate", self.rate), ("--per-class", self.per_class), ("--blocks", self.blocks)):
            if value is not None and not 0 < value < 1e15:
                raise BadInput(f"{flag} is {value}", "give a number above 0")
        if not 0 <= self.seed < 2**32:
            raise BadInput(f"the seed is {self.seed}", "give --seeds from 0 to 4294967295, such as 0,1,2")
        if self.scenario not in KINDS:
            raise BadInput(f"there is no scenario {self.scenario!r}", f"give {', '.join(KINDS)}")
        if self.scenario == "online" and self.epochs != 1:
            raise BadInput(f"--epochs is {self.epochs}, but an online stream is read once", "give --epochs 1")

    def key(self) -> str:
        """A hash of everything that determines the result: these settings, the files they name, and the learning code.
        """
        code = sorted(path for part in ("training", "evaluation") for path in (PACKAGE / part).rglob("*.py"))
        files = [sha256(path) for path in (method_file(self.method), Path(self.data), *self._own_code(), *code)
                 if path.is_file()]
        text = json.dumps([asdict(self), files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _own_code(self) -> list[Path]:
        """The modules of the user's own that the method and the backbone name; what these import is not looked at."""
        named = [(where, part.folder) for where, part in read_method(self.method).own.items()]
        if self.backbone and WHERE.fullmatch(self.backbone):
            named.append((self.backbone, Path()))
        return [file for where, folder in named if (file := source_file(where, folder))]


def method_file(method: str) -> Path:
    """The file that `edgecl.rounds.method` reads a method from."""
    return Path(method) if method.endswith(".toml") else FOLDER / f"{method}.toml"


def prepare(job: BenchJob) -> tuple[Split, list[ScenarioStep]]:
    """The data and the steps of a job. Raises BadInput if the data or the steps are not available."""
    split = load(job.data)
    if job.per_class is not None:
        split = split.first(job.per_class)
    order: Sequence[int] | None = None
    if job.order == "seeded":
        order = np.random.default_rng(job.seed).permutation(len(split.class_names)).tolist()
    elif job.order != "natural":
        try:
            order = [int(part) for part in job.order.split(",")]
        except ValueError as error:
            raise BadInput(f"--order is {job.order!r}",
                           "give natural, seeded, or class numbers such as 2,0,1") from error
    return split, build(job.scenario, split, job.steps or DEFAULT_STEPS[job.scenario], job.seed, order)


def check(jobs: Sequence[BenchJob]) -> None:
    """Raise BadInput if torch or a method is missing, or the data or the steps of a job are not available."""
    if find_spec("torch") is None:
        raise BadInput("learning rounds need torch", "pip install 'edgecl[train]'")
    for method in dict.fromkeys(job.method for job in jobs):
        read_method(method)
    for job in {job.data: job for job in jobs}.values():
        prepare(job)


class Failed(EdgeclError):
    """A method and seed without a result. alike: whether the other seeds of the method would fail in the same way."""

    def __init__(self, job: BenchJob, what: str, cure: str, alike: bool) -> None:
        super().__init__(f"{job.method}: {what}" if alike else f"{job.method}, seed {job.seed}: {what}", cure)
        self.alike = alike


def run(jobs: Iterable[BenchJob], out: Path | None, done: Callable[[dict[str, Any]], None],
        failed: Callable[[Failed], None], watch: Callable[[BenchJob, dict[str, Any]], None]) -> None:
    """Run the jobs one after another, each in its own process, except those whose result `out` already contains.

    done: called with each result, a dict with RESULT_FIELDS; failed: with each failure, after which the others go on;
    watch: with each step of a running job. A method that is refused before it starts to learn is not tried again.
    """
    refused: set[str] = set()
    for job in jobs:
        place = out / "runs" / f"{job.key()}.json" if out else None
        if job.method in refused:
            continue
        result = _kept(place)
        if result is None:
            try:
                result = run_one(job, partial(watch, job))
            except Failed as error:
                if error.alike:
                    refused.add(job.method)
                failed(error)
                continue
            if place:
                write_json(place, result)
        done(result)


def run_one(job: BenchJob, tell: Tell) -> dict[str, Any]:
    """The result of one job, run in its own process. Raises Failed."""
    result: dict[str, Any] | None = None
    refusal: dict[str, Any] | None = None
    begun = False
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert child.stdin and child.stdout
        try:
            with contextlib.suppress(BrokenPipeError):      # it has already ended: its exit status says more
                child.stdin.write(json.dumps(asdict(job)))
                child.stdin.close()
            for line in child.stdout:
                message = json.loads(line) if line.endswith("\n") else {}     # else it was killed while writing
                result, refusal = message.get("result", result), message.get("refused", refusal)
                if "step" in message:
                    begun = True
                    tell(message)
            child.wait()
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
        if result is not None:
            return result
        if refusal is not None:
            raise Failed(job, refusal["what"], refusal["cure"], not begun)
        errors.seek(0)
        why = ([line.strip() for line in errors if line.strip()] or ["no message"])[-1][:200]
    if child.returncode < 0:
        why = f"killed by signal {-child.returncode}"
    raise Failed(job, f"its process ended with status {child.returncode} ({why})", "the others went on", False)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(value, ensure_ascii=False) + "\n").encode(), sync=False)


def _kept(place: Path | None) -> dict[str, Any] | None:
    """The result of an earlier run; None if there is none or it can't be read."""
    try:
        result = json.loads(place.read_text("utf-8")) if place else None
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and set(result) == set(RESULT_FIELDS) else None
