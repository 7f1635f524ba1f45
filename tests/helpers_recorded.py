"""Play command lines on a copy of a recorded state, and compare what they print with what was recorded."""
from __future__ import annotations

import contextlib
import io
import json
import math
import os
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgecl.cli import main

FOLDER = Path(__file__).parent / "recorded" / "states"
NAMES = ("photos", "windows", "vectors", "statistics", "round")
MERGED = ("photos", "vectors", "statistics")   # those that a state with other samples of the same form is beside
VARYING = {"milliseconds", "seconds", "created"}

# Command lines, played in this order; what stands in braces is a file or a class of the recording.
LOOK = (["status"], ["classes"], ["history"], ["predict", "{ask}"], ["evaluate", "{ask}"])
CHANGES = (["export", "{out}"], ["learn", "--class", "class 5", "{new}"], *LOOK, ["rollback"], *LOOK,
           ["learn", "--from", "{more}"], *LOOK, ["forget", "--class", "{first}"], *LOOK)
MERGE = (["merge", "{other}"], *LOOK)
METHODS = (["methods"], ["methods", "show", "er"])
KEYS_ONLY = (["doctor"], ["profile", "--seconds", "0.2", "--out", "{out}"],     # their figures are of the machine
             ["bench", "--method", "slda", "--data", "{more}", "--steps", "2", "--seeds", "0"],
             ["round", "--method", "er", "--epochs", "1", "--time", "10m", "--memory", "2GB"])


def unpack(name: str, folder: Path) -> dict[str, str]:
    """What a recording holds, unpacked to a folder: the words of a command line and what they stand for."""
    with tarfile.open(FOLDER / f"{name}.tar.xz") as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)
    return words(folder)


def words(folder: Path) -> dict[str, str]:
    """What stands for the words in braces."""
    found = {path.stem: str(path) for path in folder.iterdir()}
    with np.load(found["more"]) as more:
        return {**found, "first": str(more["class_names"][0]), "out": str(folder / "out.onnx")}


def state_of(line: Sequence[str]) -> str:
    """The recording that one of KEYS_ONLY is played on."""
    return "round" if line[0] == "round" else "vectors"


def recorded(name: str) -> dict[str, Any]:
    """What was recorded of a state: `look`, `changes` and `merge`, each a list of [command line, what it printed]."""
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def play(lines: Iterable[Sequence[str]], named: dict[str, str]) -> list[tuple[list[str], list[Any]]]:
    """Each command line with the JSON objects that it prints. It is run beside the state: names of files are stored, so
    what fits depends on how long they are."""
    played, before, folder = [], Path.cwd(), Path(named["state"]).parent
    beside = {word: os.path.relpath(place, folder) if place.startswith(str(folder)) else place
              for word, place in named.items()}
    os.chdir(folder)
    try:
        for line in lines:
            out = io.StringIO()
            words_of_line = [word.format(**beside) for word in line]
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
                code = main([words_of_line[0], "--state", beside["state"], "--json", *words_of_line[1:]])
            assert code == 0, (line, err.getvalue())
            played.append((list(line), [normal(json.loads(text)) for text in out.getvalue().splitlines()]))
    finally:
        os.chdir(before)
    return played


def normal(value: Any, key: str = "") -> Any:
    """Times, durations and paths replaced by their types."""
    if isinstance(value, dict):
        return {name: normal(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [normal(each, key) for each in value]
    if key in VARYING and value is not None:
        return type(value).__name__
    if isinstance(value, str) and "/" in value:
        return value.rpartition("/")[2]
    return value


def keys(value: Any) -> Any:
    """The names in a JSON value, in those of all elements of a list."""
    if isinstance(value, dict):
        return {name: keys(each) for name, each in sorted(value.items())}
    if isinstance(value, list):
        found: dict[str, Any] = {}
        for each in map(keys, value):
            found.update(each or {})
        return found
    return None


def differences(found: Any, wanted: Any, where: str = "") -> list[str]:
    """What a printed value says otherwise than the recorded one. Numbers with a fraction may differ in what another
    order of summation changes, bytes of files in what their digits, SQLite, onnx and the format of the state make of
    it."""
    if isinstance(found, dict) and isinstance(wanted, dict) and sorted(found) == sorted(wanted):
        return [line for name in found for line in differences(found[name], wanted[name], f"{where}.{name}")]
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        return [line for i, (here, there) in enumerate(zip(found, wanted))
                for line in differences(here, there, f"{where}[{i}]")]
    if type(found) is type(wanted) and (found == wanted or _close(found, wanted, where)):
        return []
    return [f"{where}: {found!r}, recorded {wanted!r}"]


def _close(found: Any, wanted: Any, where: str) -> bool:
    if isinstance(found, float):
        return math.isclose(found, wanted, rel_tol=1e-3, abs_tol=1e-5)
    counts_bytes = "bytes" in where.rpartition(".")[2] or ".purposes." in where
    return isinstance(found, int) and counts_bytes and abs(found - wanted) <= 4 * 4096
