"""How the states in tests/recorded/states were made: `python tests/recorded/make_states.py`, with the edgecl of the
commit to record on the path (they are of 651cae2, with ONNX Runtime 1.32 on an AMD EPYC). Needs edgecl[test,train].
The states stay as they are: `--printed` plays the commands on them again, where answers change for a reason, and
writes only what they print.

NAME.tar.xz holds a state and the arrays that are asked about and learned afterwards; NAME.json what every command
printed, first on the state itself, then while it learns, goes back, forgets and merges.
"""
from __future__ import annotations

import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from helpers_networks import convolutions, photos  # noqa: E402
from helpers_recorded import (  # noqa: E402
    CHANGES,
    FOLDER,
    KEYS_ONLY,
    LOOK,
    MERGE,
    MERGED,
    METHODS,
    NAMES,
    keys,
    play,
    state_of,
    unpack,
)

from edgecl.cli import main  # noqa: E402
from edgecl.evaluation.datasets import digits, watch  # noqa: E402


def run(*words: object) -> None:
    """One command that must not be refused."""
    if main([str(word) for word in words]):
        raise SystemExit(1)


def arrays(file: Path, x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> Path:
    """An .npz file whose two parts are the same."""
    np.savez_compressed(file, x_train=x, y_train=y, x_test=x, y_test=y, class_names=np.array(names))
    return file


def data_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Samples and class numbers, 0 to 5 at least."""
    if name in ("photos", "round"):
        tints = np.random.default_rng(0).integers(-40, 41, (6, 3)) // (1 if name == "photos" else 4)
        x = [(photos(kind, 36) + tint).clip(0, 255).astype(np.uint8) for kind, tint in enumerate(tints)]
        return np.concatenate(x) & 0xE0, np.repeat(range(6), 36)     # 3 bits: small files
    if name == "windows":
        x, labels, _ = watch().windows(1.0, 1.0)
        return np.ascontiguousarray(x, np.float32), np.unique(labels, return_inverse=True)[1]
    return digits().x_train, digits().y_train


SETTINGS = {
    "photos": ["--quota", "600KB", "--exemplars", "80KB", "--codec", "jpeg"],
    "windows": ["--quota", "500KB", "--exemplars", "40KB", "--rate", "50", "--window", "1", "--hop", "1"],
    "vectors": ["--quota", "600KB", "--exemplars", "4KB", "--codec", "pq", "--backbone", "identity"],
    "statistics": ["--quota", "600KB", "--memory-kind", "statistics", "--backbone", "identity"],
    "round": ["--quota", "1MB", "--exemplars", "200KB"],
}


def make(name: str, folder: Path) -> None:
    """One state, and the arrays beside it; in a folder that is the working one, so that no path stands in the state."""
    state, settings = folder / "state", list(SETTINGS[name])
    x, y = data_of(name)
    each, asked = {"windows": (12, 3), "vectors": (60, 6), "statistics": (40, 6)}.get(name, (24, 4))

    def part(file: str, classes: Sequence[int], first: int, count: int) -> Path:
        rows = np.concatenate([np.flatnonzero(y == c)[first:first + count] for c in classes])
        return arrays(folder / file, x[rows], np.searchsorted(classes, y[rows]), [f"class {c}" for c in classes])

    if name in ("photos", "round"):
        Path("net.onnx").write_bytes(convolutions())
        settings += ["--backbone", "net.onnx"]
    taught = part("taught.npz", (0, 1, 2, 3), 0, each)
    run("init", "--state", state, *settings)
    run("learn", "--state", state, "--from", taught)
    if name == "round":
        from edgecl import gate  # as that commit had it
        gate.check_accuracy = lambda *_: []     # the round is taken, whatever it is worth
        run("round", "--state", state, "--time", "300s", "--memory", "2GB", "--epochs", "8", "--max-regression", "1")
        run("learn", "--state", state, "--from", part("taught.npz", (4,), 0, each))
    part("ask.npz", (0, 1, 2, 3, 5), each, asked)
    part("more.npz", (1, 4), each + asked, 6)
    part("new.npz", (5,), 0, 6)
    if name in MERGED:
        run("init", "--state", folder / "other", *settings)
        run("learn", "--state", folder / "other", "--from", part("taught.npz", (0, 5), each + asked, 6))
    for gone in ("taught.npz", "net.onnx"):
        (folder / gone).unlink(missing_ok=True)


def _nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, "", ""
    return entry


def record(name: str) -> None:
    """One archive."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, name)
        folder.mkdir()
        os.chdir(folder)
        make(name, folder)
        os.chdir(HERE)
        with tarfile.open(FOLDER / f"{name}.tar.xz", "w:xz", preset=9) as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, path.name, filter=_nobody)


def record_printed(name: str) -> None:
    """What is printed on one archive."""
    with tempfile.TemporaryDirectory() as temporary:
        named, again = (unpack(name, Path(temporary, copy)) for copy in ("copy", "again"))
        write(name, {"look": play(LOOK, named), "changes": play(CHANGES, named),
                     "merge": play(MERGE, again) if name in MERGED else []})
        if name == "round":
            measured = [play([line], unpack(state_of(line), Path(temporary, line[0])))[0] for line in KEYS_ONLY]
            write("commands", {"same": play(METHODS, again),
                               "keys": [[line, keys(printed)] for line, printed in measured]})


def write(name: str, recorded: dict[str, object]) -> None:
    """What was recorded, a printed object a line."""
    text = json.dumps(recorded, ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(text.replace('}, {"', '},\n{"').replace("]], [[", "]],\n[[") + "\n", "utf-8")


if __name__ == "__main__":
    printed = "--printed" in sys.argv
    for chosen in [word for word in sys.argv[1:] if word != "--printed"] or NAMES:
        if not printed:
            record(chosen)
        record_printed(chosen)
