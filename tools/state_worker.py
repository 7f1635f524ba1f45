"""One of many processes that change a state: random commands, and a journal of what it began and was acknowledged.

The journal is what survives a kill: `Worker` writes it, `WorkerProcess` reads it in the process that kills.
"""
from __future__ import annotations

import json
import os
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vector_states import PROBE, create, vectors

from edgecl.errors import EdgeclError
from edgecl.learner import Learner
from edgecl.state.backup import backup

CLASSES = tuple(f"class {number}" for number in range(6))
COUNTS = (1, 2, 5, 12, 12, 40, 300)     # samples of a batch; the last one moves the log
SEEDS = 8                               # batches of each count: few, so that an oracle can hold all of them;
OTHER_SEEDS = 10 ** 9                   # ... of what is merged: so many that no sample is known on both sides
SHARES = {"learn": 10, "forget": 3, "rollback": 2, "merge": 1, "classes": 3, "predict": 4, "status": 1, "export": 1,
          "backup": 1, "reopen": 2}


class Worker:
    """Random commands on a state. Its journal has two lines for each: {"begun": change} before it, and then one of
    {"done": ...}, {"refused": message} and {"failed": traceback}."""

    def __init__(self, state: Path, folder: Path, random_: random.Random) -> None:
        self.state, self.folder, self.random = state, folder, random_
        self.journal = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.learner: Learner | None = None

    def run(self, stop: Path) -> None:
        """Commands until a file appears."""
        self.write({"started": os.getpid()})
        while not stop.exists():
            self.step()
        if self.learner is not None:
            self.learner.close()

    def write(self, line: dict[str, Any]) -> None:
        os.write(self.journal, json.dumps(line).encode() + b"\n")

    def step(self) -> None:
        """One command."""
        change = self.draw()
        self.write({"begun": change})
        try:
            self.learner = self.learner or Learner.open(self.state)
            self.write({"done": WORK[change["do"]](self, self.learner, change)})
        except EdgeclError as error:
            self.write({"refused": f"{change['do']}: {type(error).__name__}: {error}"})
        except BaseException:
            self.write({"failed": f"{change['do']}: {traceback.format_exc()}"})
            os._exit(1)

    def draw(self) -> dict[str, Any]:
        """A random command."""
        kind = self.random.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "learn":
            return {"do": kind, "class": self.random.choice(CLASSES), "count": self.random.choice(COUNTS),
                    "seed": self.random.randrange(SEEDS)}
        if kind == "forget":
            return {"do": kind, "class": self.random.choice(CLASSES)}
        if kind == "merge":
            return {"do": kind, "taught": [[label, 4, self.random.randrange(SEEDS, OTHER_SEEDS)]
                                           for label in self.random.sample(CLASSES, 2)]}
        return {"do": kind}

    # commands; each returns what the journal keeps beside the change ------------------------------------

    def learn(self, learner: Learner, change: dict[str, Any]) -> dict[str, Any]:
        samples = vectors(change["class"], change["count"], change["seed"])
        return {"generation": learner.learn(samples, change["class"], again=True).generation}

    def forget(self, learner: Learner, change: dict[str, Any]) -> dict[str, Any]:
        return {"generation": learner.forget(change["class"])["generation"]}

    def rollback(self, learner: Learner, change: dict[str, Any]) -> dict[str, Any]:
        """One step back, or to any generation that is offered."""
        offered = sorted(learner.store.restorable() - {learner.store.current})
        wanted = self.random.choice(offered) if offered and self.random.random() < 0.5 else None
        number = learner.rollback(wanted)
        to = wanted if wanted is not None else next(g.detail["to"] for g in learner.history() if g.id == number)
        return {"generation": number, "to": to}

    def merge(self, learner: Learner, change: dict[str, Any]) -> dict[str, Any]:
        path = self.folder / "other"
        shutil.rmtree(path, ignore_errors=True)
        other = create(path, exemplars=12_000)
        for label, count, seed in change["taught"]:
            other.learn(vectors(label, count, seed), label)
        other.close()
        return {"generation": learner.merge([path])}

    def classes(self, learner: Learner, change: dict[str, Any]) -> dict[str, Any]:
        """What is known, between two looks at the generation."""
        first = learner.store.current
        seen = known(learner)
        return {"from": first, "until": learner.store.current, "known": seen}

    def predict(self, learner: Learner, change: dict[str, Any]) -> dict[str, Any]:
        learner.predict(PROBE[:2])
        if learner.damage:
            raise RuntimeError(f"damage: {learner.damage}")
        return {}

    def status(self, learner: Learner, change: dict[str, Any]) -> dict[str, Any]:
        learner.status()
        return {}

    def export(self, learner: Learner, change: dict[str, Any]) -> dict[str, Any]:
        learner.export(self.folder / "exported.onnx")
        return {}

    def backup(self, learner: Learner, change: dict[str, Any]) -> dict[str, Any]:
        """What a copy knows, which was made while others write."""
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copied = backup(self.state, copy, lambda _: None)
        if copied.damaged:
            raise RuntimeError(f"damage: {copied.damaged}")
        with closing(Learner.open(copy)) as opened:
            return {"from": copied.generation, "until": copied.generation, "known": known(opened)}

    def reopen(self, learner: Learner, change: dict[str, Any]) -> dict[str, Any]:
        self.learner = None
        learner.close()
        return {}


def known(learner: Learner) -> dict[str, int]:
    """Samples of each class."""
    return {each.name: each.samples for each in learner.classes()}


Work = Callable[[Worker, Learner, dict[str, Any]], dict[str, Any]]
WORK: dict[str, Work] = {kind: getattr(Worker, kind) for kind in SHARES}


@dataclass
class WorkerProcess:
    """A worker in a process of its own, and how far its journal was read."""

    number: int
    folder: Path
    pid: int = 0
    read: int = 0
    begun: dict[str, Any] | None = None     # the command that it is in the middle of
    ended: int = 0                          # commands that have ended

    def start(self, state: Path, seed: int, stop: Path) -> None:
        """Fork it; what a killed one has left of a line in the journal is ended."""
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "journal").open("ab") as journal:
            journal.write(b"\n")
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            os.dup2(os.open(self.folder / "errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            Worker(state, self.folder, random.Random(seed)).run(stop)
            code = 0
        finally:
            os._exit(code)

    def kill(self) -> None:
        """Kill it, if it runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines that the journal has got since the last time."""
        with (self.folder / "journal").open("rb") as journal:
            journal.seek(self.read)
            data = journal.read()
        whole = data[:data.rfind(b"\n") + 1]
        self.read += len(whole)
        for line in whole.splitlines():
            with suppress(ValueError):      # of a process that was killed while it wrote
                yield json.loads(line)
