"""`.npz` files: x_train, y_train, x_test, y_test and, optionally, class_names, session_train and session_test."""
from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecl.errors import BadInput
from edgecl.samples import Sample
from edgecl.sources.spec import shown

NPZ_CURE = "give x_train, y_train, x_test and y_test: uint8 images or float32 windows or vectors, and their classes"


@dataclass(frozen=True)
class LabelledArray:
    """data [n, ...]; names: the class of each sample; sessions: the name of the session of each, or None."""

    data: np.ndarray
    names: list[str]
    sessions: list[str] | None


def load_part(path: Path, part: str) -> LabelledArray:
    """One part, "train" or "test", of an .npz file. Raises BadInput if the file or one of its arrays can't be used."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (f"x_{part}", f"y_{part}", f"session_{part}", "class_names")
                      if name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path} can't be read as .npz ({error})", NPZ_CURE) from error
    if f"x_{part}" not in arrays or f"y_{part}" not in arrays:
        raise BadInput(f"{path} has no x_{part} and y_{part}", NPZ_CURE)
    data, classes = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if data.ndim < 2 or len(data) != len(classes) or classes.ndim != 1:
        raise BadInput(f"{path}: x_{part} is {list(data.shape)} and y_{part} {list(classes.shape)}", NPZ_CURE)
    if "class_names" in arrays and classes.dtype.kind in "iu":
        names = arrays["class_names"].astype(str)
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(names):
            raise BadInput(f"{path}: y_{part} names class {classes.max()} of {len(names)}", NPZ_CURE)
        classes = names[classes]
    sessions = arrays.get(f"session_{part}")
    if sessions is not None and sessions.shape != classes.shape:
        raise BadInput(f"{path}: session_{part} is {list(sessions.shape)} and y_{part} {list(classes.shape)}",
                       "give one session per sample, by name or number")
    return LabelledArray(data, [str(name) for name in classes],
                         None if sessions is None else sessions.astype(str).tolist())


def read_part(path: Path, part: str) -> Iterator[Sample]:
    """Every sample of one part, with its class and session. A session is the same in other files if its name is."""
    loaded, name = load_part(path, part), shown(path)
    for i, data in enumerate(loaded.data):
        session = loaded.sessions[i] if loaded.sessions else ""
        yield Sample(data, name, session and f"{name}:{loaded.names[i]}:{session}", loaded.names[i], i, "index",
                     session)


def read_class(path: Path, label: str | None) -> Iterator[Sample]:
    """The training samples of one class; without a label, every training sample.

    Raises BadInput if the file has no such class.
    """
    names = set(load_part(path, "train").names)
    if label is not None and label not in names:
        shown = ", ".join(sorted(names)[:10])
        raise BadInput(f"{path} has no class {label!r}", f"its classes are {shown}; --from teaches all of them")
    for sample in read_part(path, "train"):
        if label is None or sample.label == label:
            yield sample
