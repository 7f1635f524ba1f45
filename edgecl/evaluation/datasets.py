"""Real data that installed packages carry: nothing is downloaded, nothing but numpy imported."""
from __future__ import annotations

import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgecl.backbone import sha256
from edgecl.errors import BadInput
from edgecl.pickled import interpret
from edgecl.sources.windows import cut

WATCH = "seglearn", "data/watch_dataset.npy"
WATCH_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
DIGITS = "sklearn", "datasets/data/digits.csv.gz"
DIGITS_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
TEST_EVERY = 4  # one digit in four is a test digit


@dataclass(frozen=True)
class Recordings:
    """Sensor recordings [time, channels], one class and one person each.

    recordings: float32 arrays; labels: class names; subjects: person numbers; channels: their
    names; rate: samples a second (Hz).
    """

    recordings: tuple[np.ndarray, ...]
    labels: tuple[str, ...]
    subjects: tuple[int, ...]
    channels: tuple[str, ...]
    rate: float

    def windows(self, window: float, hop: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(windows float32 [n, time, channels], labels [n], subjects [n]); seconds as for `cut`."""
        pieces = [cut(recording, self.rate, window, hop) for recording in self.recordings]
        counts = [len(piece) for piece in pieces]
        return (np.concatenate(pieces), np.repeat(self.labels, counts),
                np.repeat(self.subjects, counts))


@dataclass(frozen=True)
class Split:
    """Float32 vectors [n, d] and int64 classes [n], divided for good into training and test."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]


class _Dtype:
    """A dtype as a pickle describes it."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code

    def build(self, state: tuple[Any, ...]) -> None:
        self.code = str(state[1]) + self.code


class _Array:
    """An array as a pickle describes it; `values`: an array, or a list where its items are objects."""

    def __init__(self, *_: object) -> None:
        self.values: Any = None

    def build(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.values = data if isinstance(data, list) else np.frombuffer(data, dtype.code).reshape(
            shape, order="F" if fortran else "C")


NUMPY = {"numpy.core.multiarray _reconstruct": _Array, "numpy ndarray": None, "numpy dtype": _Dtype,
         "_codecs encode": lambda text, _: text.encode("latin1")}


def watch() -> Recordings:
    """Seven shoulder exercises, 10 people, smartwatch accelerometer and gyroscope (Burns 2018).

    140 recordings at 50 Hz, as seglearn carries them; seglearn itself is not imported, since it
    needs pandas without saying so. Raises BadInput where the package or its file is not there.
    """
    with _packaged(*WATCH, WATCH_SHA256).open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        data = interpret(file, NUMPY).values[0]
    return Recordings(
        tuple(np.asarray(recording.values, np.float32) for recording in data["X"]),
        tuple(str(data["y_labels"][int(label)]) for label in data["y"].values),
        tuple(int(subject) for subject in data["subject"].values),
        tuple(str(name) for name in data["X_labels"]), 50.0)


def digits() -> Split:
    """1,797 handwritten digits of 8 x 8 pixels, as scikit-learn has them: vectors [n, 64] in 0..1.

    Every fourth digit of each class is for testing. Raises BadInput where the package or its file
    is not there.
    """
    with gzip.open(_packaged(*DIGITS, DIGITS_SHA256)) as file:
        table = np.loadtxt(file, np.float32, delimiter=",")
    x, y = table[:, :-1] / np.float32(16), table[:, -1].astype(np.int64)
    test = np.zeros(len(y), bool)
    for digit in range(10):
        test[np.flatnonzero(y == digit)[TEST_EVERY - 1::TEST_EVERY]] = True
    return Split(x[~test], y[~test], x[test], y[test], tuple("0123456789"))


def _packaged(package: str, name: str, digest: str) -> Path:
    """A data file of an installed package, checked by its SHA-256; the package is not imported."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / name
        if not path.is_file():
            continue
        if (found := sha256(path)) != digest:
            raise BadInput(f"{path} has SHA-256 {found[:16]}, not {digest[:16]}",
                           'pip install --force-reinstall "edgecl[demo]"')
        return path
    raise BadInput(f"{package} with its {name} is not installed", 'pip install "edgecl[demo]"')
