"""Sources: folders, photos, .npz and .csv files, and streams, as iterators of Sample; a Refusal for what can't be read.
"""
from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgecl.errors import BadInput
from edgecl.samples import Refusal, Sample
from edgecl.sources.folders import FolderContents, look, skipped
from edgecl.sources.kinds import READABLE, can_be_read, kinds_in_words
from edgecl.sources.spec import PHOTOS, Item, Spec, shown

if TYPE_CHECKING:
    import numpy as np

    from edgecl.sources.streams import LinkWatch

SIGNALS, CAMERAS = ("serial:", "udp:", "csv:"), ("camera:", "csi:", "fake:")


def is_stream(path: Path) -> bool:
    """Whether `path` names a stream of windows or photos rather than a file."""
    return str(path).startswith(SIGNALS + CAMERAS) and not path.exists()


def endless(path: Path) -> bool:
    """Whether `path` is a stream that runs until it is stopped: any but a table."""
    return is_stream(path) and not str(path).startswith("csv:")


def read(path: Path, spec: Spec, label: str | None = None, watch: LinkWatch | None = None,
         told: Callable[[FolderContents], None] | None = None) -> Iterator[Item]:
    """The samples of a photo, recording, .npz file or stream, or of all files in a folder, sorted by name.

    watch: called with the frame counts of a device's link, if the stream has one; told: called with what a folder
    holds, before it is read. Raises BadInput if nothing is there or the kind of file is unknown; a bad file in a folder
    comes as a Refusal.
    """
    if str(path).startswith(CAMERAS) and not path.exists():
        from edgecl.sources.cameras import read_camera

        yield from read_camera(str(path), spec, label)
    elif is_stream(path):
        from edgecl.sources.streams import read_stream

        yield from read_stream(str(path), spec, label, watch)
    elif path.is_dir():
        found = look(path)
        if told is not None:
            told(found)
        if not found.files:
            raise found.empty()
        yield from read_files(found, spec, label)
    else:
        reader = check_file(path)
        yield from reader(path, spec, label)


def read_files(found: FolderContents, spec: Spec, label: str | None = None) -> Iterator[Item]:
    """The samples of the files in a folder; a bad file, and what can't be opened, comes as a Refusal."""
    yield from found.refused
    for path in found.files:
        try:
            yield from READERS[path.suffix.lower()](path, spec, label)
        except BadInput as error:
            yield Refusal(shown(path), error.what)


def check_file(path: Path) -> Callable[[Path, Spec, str | None], Iterator[Item]]:
    """What reads a file. Raises BadInput if it is not there, or of a kind that can't be read."""
    if not path.exists():
        raise BadInput(f"{path} does not exist", "name a file or a folder")
    if not can_be_read(path.suffix.lower()):
        helps = kinds_in_words({path.suffix.lower(): 1})[0].partition(": ")[2]
        raise BadInput(f"{path} is not of a kind that can be read", helps or f"give files of {', '.join(READABLE)}")
    return READERS[path.suffix.lower()]


def read_labelled(path: Path, spec: Spec, part: str = "test",
                  told: Callable[[FolderContents], None] | None = None) -> Iterator[Item]:
    """The samples of a folder with one subfolder per class, or of one part ("train" or "test") of an .npz file. A
    subfolder without photos and recordings comes as a Refusal. told: see `read`. Raises BadInput."""
    if path.is_dir():
        for found in map(look, class_folders(path)):
            if told is not None:
                told(found)
            if found.files:
                yield from read_files(found, spec, class_of(found.path))
            else:
                yield Refusal(shown(found.path), "it contains no photo or recording")
    else:
        from edgecl.sources.arrays import read_part

        yield from read_part(path, part)


def class_of(folder: Path) -> str:
    """The class that a folder is of: its name in NFC, as class names are."""
    return unicodedata.normalize("NFC", folder.name)


def class_folders(path: Path) -> list[Path]:
    """The subfolders of a folder in order, one per class. Raises BadInput if there is none."""
    if not path.is_dir():
        raise BadInput(f"{path} is not a folder", "give a folder with one subfolder per class")
    folders = sorted(entry for entry in path.iterdir() if not skipped(entry.name) and entry.is_dir())
    if not folders:
        raise BadInput(f"{path} has no subfolders", "give a folder with one subfolder per class")
    return folders


def _photo(path: Path, spec: Spec, label: str | None) -> Iterator[Item]:
    from edgecl.images import read_image

    yield Sample(read_image(path, spec.height, spec.width), shown(path), label=label)


def _recording(path: Path, spec: Spec, label: str | None) -> Iterator[Item]:
    from edgecl.sources.recordings import read_recording

    return read_recording(path, spec, label)


def _arrays(path: Path, spec: Spec, label: str | None) -> Iterator[Item]:
    from edgecl.sources.arrays import read_class

    return read_class(path, label)


READERS: dict[str, Callable[[Path, Spec, str | None], Iterator[Item]]] = {
    **dict.fromkeys(PHOTOS, _photo), ".csv": _recording, ".npz": _arrays}


def stack(items: Iterable[Item], most: int) -> np.ndarray:
    """At most `most` samples, evenly spaced over all of them, as one array [n, ...]. Raises BadInput if there is none
    or their shapes differ."""
    import numpy as np

    samples = [item.data for item in items if isinstance(item, Sample)]
    if not samples:
        raise BadInput("there are no samples to calibrate with", "name a folder, recording or .npz file with samples")
    if len({sample.shape for sample in samples}) > 1:
        raise BadInput("the calibration samples differ in shape", "give samples of one kind and size")
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(most, len(samples))).astype(int))
    return np.stack([samples[i] for i in chosen])
