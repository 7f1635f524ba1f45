"""An export of samples as a folder to read, see `edgecl.learning.sample_export`: nothing in it is taken on trust."""
from __future__ import annotations

import hashlib
import io
import json
import zipfile
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl.errors import BadInput, StateError
from edgecl.files.forms import COUNT, have_forms
from edgecl.files.regular import read_regular
from edgecl.learning.foundation import Foundation
from edgecl.learning.sample_export import BACKBONE, FEATURES, MANIFEST, VERSION
from edgecl.samples import UNITS, check_class_name

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

ABOUT = {"edgecl_samples": COUNT, "kind": str, "input_shape": [COUNT], "foundation": dict, "tuned": bool, "blank": bool,
         "classes": [dict], "files": dict}
SAMPLE = {"id": str, "class": str, "source": str, "unit": str, "kept": str, "near_duplicate": bool, "tuned_on": bool,
          "held_back": bool, "key": str, "file": str}
CLASS = {"class": str, "taught": COUNT, "stored": COUNT}
AGAIN = "export the samples again with `edgecl export-samples`"


class SampleArchive:
    """An export of samples in a folder. Raises BadInput if it can't be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            first, *lines = read_regular(path / MANIFEST).decode().splitlines()
            self.about, self._lines = json.loads(first), [json.loads(line) for line in lines if line.strip()]
        except (OSError, ValueError, RecursionError) as error:
            raise self._bad(f"its {MANIFEST} can't be read ({error})") from error
        if not have_forms(self.about, ABOUT) or not ABOUT.keys() <= self.about.keys():
            raise self._bad(f"the first line of its {MANIFEST} is not about an export")
        if self.about["edgecl_samples"] != VERSION:
            raise BadInput(f"{path} is an export of form {self.about['edgecl_samples']}, this edgecl reads {VERSION}",
                           "export the samples again, or learn them with the edgecl that wrote it")
        for number, line in enumerate(self._lines, 2):
            if not (have_forms(line, SAMPLE) and SAMPLE.keys() <= line.keys() and _sensible(line)):
                raise self._bad(f"line {number} of its {MANIFEST} is not about a sample")
        if not all(have_forms(each, CLASS) and CLASS.keys() <= each.keys() for each in self.about["classes"]):
            raise self._bad(f"the first line of its {MANIFEST} is not about an export")
        self._arrays: dict[str, dict[str, NDArray[Any]]] = {}

    def check(self) -> None:
        """Raises BadInput for the name of a class that can't be, and for arrays that are not as they were written."""
        for label in self.labels:
            check_class_name(label)
        for line in self._lines:
            if line["file"].endswith(".npz"):
                self.at(line["file"], "x_train", line.get("index"))
            if line.get("feature") is not None:
                self.at(FEATURES, "features", line["feature"])

    @property
    def labels(self) -> list[str]:
        """The classes of its samples, in order."""
        return sorted({line["class"] for line in self._lines})

    @property
    def not_stored(self) -> dict[str, int]:
        """Class -> samples that were taught there and not stored any more."""
        return {each["class"]: each["taught"] - each["stored"] for each in self.about["classes"]
                if each["taught"] > each["stored"]}

    def samples(self, label: str) -> list[dict[str, Any]]:
        """What the manifest says of the samples of a class."""
        return [line for line in self._lines if line["class"] == label]

    def foundation(self) -> Foundation:
        """Of the state that wrote it. Raises BadInput."""
        try:
            return Foundation.from_meta(self.about["foundation"])
        except StateError as error:
            raise self._bad(error.what) from error

    def backbone(self) -> bytes:
        """The model that computed its features. Raises BadInput."""
        return self._content(BACKBONE)

    @property
    def backbone_name(self) -> str:
        """The name of its file in a state."""
        return f"{self.about['files'].get(BACKBONE)}.onnx"

    def _content(self, name: str) -> bytes:
        """A file that must be as it was written. Raises BadInput."""
        content = self._read(name)
        if content is None or hashlib.sha256(content).hexdigest() != self.about["files"].get(name):
            raise self._bad(f"its {name} is missing" if content is None else f"its {name} was changed since")
        return content

    def _read(self, name: str) -> bytes | None:
        """A file of it; None if it is not there. Raises BadInput for a name that leads out of it."""
        try:
            place = (self.path / name).resolve()
        except (ValueError, RuntimeError):  # no name of a file, or a link to itself
            place = None
        if place is None or self.path.resolve() not in place.parents:
            raise self._bad(f"its {MANIFEST} names the file {name!r}")
        try:
            return read_regular(place)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._bad(f"its {name} can't be read ({error.strerror})") from error

    def photo(self, name: str) -> tuple[bytes, bool] | None:
        """The bytes of a photo, and whether they are as they were written; None if it is not there. Raises BadInput."""
        content = self._read(name)
        return None if content is None else (
            content, hashlib.sha256(content).hexdigest() == self.about["files"].get(name))

    def has(self, file: str, name: str) -> bool:
        """Whether one of its .npz files has an array. Raises BadInput."""
        return name in self._loaded(file)

    def array(self, file: str, name: str) -> NDArray[Any]:
        """An array of one of its .npz files. Raises BadInput."""
        found = self._loaded(file)
        if name not in found:
            raise self._bad(f"its {file} has no {name}")
        return found[name]

    def _loaded(self, file: str) -> dict[str, NDArray[Any]]:
        if file not in self._arrays:
            content = self._content(file)
            try:
                with np.load(io.BytesIO(content), allow_pickle=False) as found:
                    self._arrays[file] = {key: found[key] for key in found.files}
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                raise self._bad(f"its {file} can't be read ({error})") from error
        return self._arrays[file]

    def at(self, file: str, name: str, place: Any) -> NDArray[Any]:
        """One row of an array. Raises BadInput."""
        array = self.array(file, name)
        if not isinstance(place, int) or not 0 <= place < len(array):
            raise self._bad(f"its {file} has {len(array)} samples, and the {MANIFEST} names number {place}")
        found: NDArray[Any] = array[place]
        return found

    def _bad(self, what: str) -> BadInput:
        return BadInput(f"{self.path} can't be learned: {what}", AGAIN)


def is_archive(path: Path) -> bool:
    """Whether a folder is an export of samples."""
    return (path / MANIFEST).is_file()


def _sensible(line: dict[str, Any]) -> bool:
    """Whether the values of a line can be used."""
    try:
        seconds_of(line.get("taught"))
        at, unit = line.get("position"), line["unit"]
        place = unit in UNITS if isinstance(at, (int, float)) and not isinstance(at, bool) else (at, unit) == (None, "")
        return place and len(line["key"]) == 16 and 0 <= int(line["key"], 16) < 2 ** 63 and bool(line["class"])
    except ValueError:
        return False


def seconds_of(taught: Any) -> int:
    """The inverse of `sample_export.iso`. Raises ValueError."""
    if taught is None:
        return 0
    if not isinstance(taught, str):
        raise ValueError(f"{taught!r} is not a time")
    return max(int(datetime.fromisoformat(taught).timestamp()), 0)
