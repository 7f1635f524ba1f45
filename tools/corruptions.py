"""Small states of six kinds, and what can happen to a file of theirs."""
from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import crash_commands
import numpy as np
from state_view import windows
from vector_states import create, vectors

from edgecl.learner import Learner
from edgecl.settings import Settings


def raw(state: Path, older: Path) -> None:
    """Vectors, stored unchanged: a snapshot, journals, of which one was merged, a log and heads."""
    learner = create(state, quota=700_000, exemplars=10_000)
    for name in ("ant", "bee", "cat"):
        learner.learn(vectors(name, 25), name)
    learner.forget("bee")
    learner.learn(vectors("dog", 600), "dog")
    learner.learn(vectors("elk", 25), "elk")
    answer_and_close(learner, vectors("elk", 2))
    shutil.copytree(state, older)
    learner = Learner.open(state)
    learner.learn(vectors("fox", 600), "fox")
    with crash_commands.often_merged():
        for name in ("hen", "ibis"):
            learner.learn(vectors(name, 25), name)
    learner.learn(vectors("gnu", 25), "gnu")
    learner.learn(vectors("elk", 25, seed=1), "elk")
    answer_and_close(learner, vectors("elk", 2))


def rocket(state: Path, older: Path) -> None:
    """Windows of a sensor, stored with their input."""
    learner = Learner.create(state, Settings(backbone="rocket", quota=500_000, exemplars=20_000, codec="delta16"))
    for number, name in enumerate(("ant", "bee", "cat")):
        learner.learn(windows(np.random.default_rng(number), 20, 30, 3), name)
    answer_and_close(learner, windows(np.random.default_rng(9), 2, 30, 3))
    shutil.copytree(state, older)
    learner = Learner.open(state)
    for number, name in enumerate(("dog", "elk", "ant")):
        learner.learn(windows(np.random.default_rng(10 + number), 40, 30, 3), name)
    answer_and_close(learner, windows(np.random.default_rng(9), 2, 30, 3))


def codebook(state: Path, older: Path) -> None:
    """Exemplars that went through a codebook."""
    learner = create(state, quota=400_000, exemplars=10_000, codec="auto")
    for number in range(12):
        learner.learn(vectors(f"class {number}", 40, dimension=64), f"class {number}")
    answer_and_close(learner, vectors("class 3", 2, dimension=64))
    if not list(state.rglob("*.codebook")):
        raise SystemExit("no codebook was made")
    shutil.copytree(state, older)
    learner = Learner.open(state)
    for name, count in (("class 12", 40), ("class 3", 10), ("class 13", 40)):
        learner.learn(vectors(name, count, seed=1, dimension=64), name)
    answer_and_close(learner, vectors("class 3", 2, dimension=64))


def after_round(state: Path, older: Path) -> None:
    """A tuned backbone, its older samples' features, and a class learned since."""
    crash_commands.prepare(state.parent)
    shutil.rmtree(state.parent / "other")
    shutil.copytree(state, older)
    crash_commands.after_round(state)
    learner = Learner.open(state)
    learner.learn(vectors("hen", 25), "hen")
    answer_and_close(learner, vectors("hen", 2))


def corrected(state: Path, older: Path) -> None:
    """Samples that were removed and moved, which lie beside the rest for a rollback, and a class with another name."""
    crash_commands.prepare(state.parent)
    shutil.rmtree(state.parent / "other")
    learner = Learner.open(state)
    learner.learn(vectors("hen", 40), "hen")
    learner.rename("elk", "yak")
    learner.predict(vectors("cat", 2))
    shutil.copytree(state, older)
    learner.remove(crash_commands.ids(learner, "cat", 5))
    learner.move(crash_commands.ids(learner, "cat", 3), "hen")
    learner.learn(vectors("ibis", 12), "ibis")
    answer_and_close(learner, vectors("cat", 2))


def statistics(state: Path, older: Path) -> None:
    """No sample is kept."""
    learner = create(state, quota=700_000, memory="statistics", codec="auto")
    for name in ("ant", "bee", "cat"):
        learner.learn(vectors(name, 25), name)
    answer_and_close(learner, vectors("ant", 2))
    shutil.copytree(state, older)
    learner = Learner.open(state)
    for name in ("dog", "elk", "ant"):
        learner.learn(vectors(name, 25, seed=1), name)
    answer_and_close(learner, vectors("ant", 2))


def answer_and_close(learner: Learner, asked: np.ndarray) -> None:
    """Leave a state as a process that was asked leaves it."""
    learner.predict(asked)
    learner.close()


STATES: dict[str, Callable[[Path, Path], None]] = {
    "raw": raw, "rocket": rocket, "codebook": codebook, "round": after_round, "statistics": statistics,
    "corrected": corrected}


def files_of(state: Path) -> dict[str, str]:
    """Every file of a state, as a path inside it, and what it is."""
    learner = Learner.open(state)
    backbones = {g.backbone for g in learner.history()}
    learner.close()
    found = {}
    for path in sorted(state.rglob("*")):
        if path.is_file():
            kind = path.suffix if path.parent != state else path.name
            if kind == ".onnx":
                kind = "backbone" if path.name in backbones else "head"
            found[str(path.relative_to(state))] = kind
    return found


class Damage(NamedTuple):
    """What was done to which file, and the kind of that file."""

    what: str
    name: str
    kind: str


def flip(state: Path, files: dict[str, str], rng: random.Random) -> Damage:
    """One bit of one file; any file is as likely as any other half of the time, else any byte. Of the database mostly
    bytes that are in use."""
    sizes = {name: (state / name).stat().st_size for name in files if name != "reserved"}
    names = [name for name in sizes if sizes[name]]
    name = rng.choice(names) if rng.random() < 0.5 else rng.choices(names, [sizes[name] for name in names])[0]
    data = bytearray((state / name).read_bytes())
    places = [place for place, byte in enumerate(data) if byte] if name == "edgecl.db" and rng.random() < 0.8 else []
    place, bit = rng.choice(places or range(len(data))), rng.randrange(8)
    data[place] ^= 1 << bit
    (state / name).write_bytes(data)
    return Damage(f"bit {bit} of byte {place} of {len(data)} flipped", name, files[name])


def other(state: Path, files: dict[str, str], rng: random.Random, older: Path) -> Damage:
    """Anything but a flipped bit, to one file or to two that are swapped."""
    name = rng.choice(list(files))
    path, kind = state / name, files[name]
    data, choice = path.read_bytes(), rng.choice(list(CHANGES))
    if choice == "deleted":
        path.unlink()
    elif choice == "a folder":
        path.unlink()
        path.mkdir()
    elif choice == "swapped":
        with_whom = rng.choice([each for each in files if each != name and "reserved" not in (each, name)] or [name])
        path.write_bytes((state / with_whom).read_bytes())
        (state / with_whom).write_bytes(data)
        return Damage(f"swapped with {with_whom}", name, kind)
    elif choice == "an older version":
        if not (older / name).is_file():    # files of models/ have no versions; those at the top do
            name = rng.choice([each for each in files if (older / each).is_file() and "/" not in each])
            kind = files[name]
        (state / name).write_bytes((older / name).read_bytes())
    else:
        changed, choice = CHANGES[choice](data, rng)
        path.write_bytes(changed)
    return Damage(choice, name, kind)


def cut(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Cut short."""
    length = rng.choice([0, 1, len(data) // 2, max(len(data) - 1, 0), rng.randrange(len(data) + 1),
                         rng.randrange(len(data) + 1) // 4096 * 4096, rng.randrange(len(data) + 1) // 512 * 512])
    return data[:length], f"cut to {length} of {len(data)} bytes"


def block(data: bytes, rng: random.Random, zeros: bool = True) -> tuple[bytes, str]:
    """A sector or page of zeros, or of something else."""
    size = rng.choice([512, 4096])
    place = rng.randrange(len(data) + 1) // size * size
    size = min(size, len(data) - place)
    new = bytes(size) if zeros else rng.randbytes(size)
    what = f"{size} bytes of {'zeros' if zeros else 'garbage'} at {place}"
    return data[:place] + new + data[place + size:], what


def appended(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Bytes behind the end."""
    more = rng.choice([bytes(1), bytes(4096), rng.randbytes(1), rng.randbytes(700), data[:300], data])
    return data + more, f"{len(more)} bytes appended"


CHANGES: dict[str, Callable[[bytes, random.Random], tuple[bytes, str]]] = {
    "cut": cut, "cut again": cut, "zeros": block, "garbage": lambda data, rng: block(data, rng, zeros=False),
    "all zeros": lambda data, _: (bytes(len(data)), "all zeros"), "appended": appended,
    **dict.fromkeys(("deleted", "a folder", "swapped", "an older version"), cut)}
