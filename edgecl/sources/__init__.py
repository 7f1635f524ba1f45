"""Sources: folders, photos, .npz and .csv files, and streams, as iterators of Sample; a Refusal for what can't be read.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgecl.errors import BadInput
from edgecl.samples import Refusal, Sample
from edgecl.sources.spec import PHOTOS, Item, Spec

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


def read(path: Path, spec: Spec, label: str | None = None, watch: LinkWatch | None = None) -> Iterator[Item]:
    """The samples of a photo, recording, .npz file or stream, or of all files in a folder, sorted by name.

    watch: called with the frame counts of a device's link, if the stream has one.
    Raises BadInput if nothing is there or the kind of file is unknown; a bad file in a folder comes as a Refusal.
    """
    if str(path).startswith(CAMERAS) and not path.exists():
        from edgecl.sources.cameras import read_camera

        yield from read_camera(str(path), spec, label)
        return
    if is_stream(path):
        from edgecl.sources.streams import read_stream

        yield from read_stream(str(path), spec, label, watch)
        return
    if path.is_dir():
        found = [entry for entry in sorted(path.rglob("*")) if entry.is_file() and not entry.name.startswith(".")]
        known = [entry for entry in found if entry.suffix.lower() in READERS]
        if not known:
            raise BadInput(f"{path} contains no photo or recording", f"give files of {', '.join(sorted(READERS))}")
        for entry in known:
            try:
                yield from READERS[entry.suffix.lower()](entry, spec, label)
            except BadInput as error:
                yield Refusal(str(entry), error.what)
        return
    if not path.exists():
        raise BadInput(f"{path} does not exist", "name a file or a folder")
    if path.suffix.lower() not in READERS:
        raise BadInput(f"{path} is not a known kind of file", f"give files of {', '.join(sorted(READERS))}")
    yield from READERS[path.suffix.lower()](path, spec, label)


def read_labelled(path: Path, spec: Spec, part: str = "test") -> Iterator[Item]:
    """The samples of a folder with one subfolder per class, or of one part ("train" or "test") of an .npz file."""
    if path.is_dir():
        for folder in class_folders(path):
            yield from read(folder, spec, folder.name)
    else:
        from edgecl.sources.arrays import read_part

        yield from read_part(path, part)


def class_folders(path: Path) -> list[Path]:
    """The subfolders of a folder in order, one per class. Raises BadInput if there is none."""
    if not path.is_dir():
        raise BadInput(f"{path} is not a folder", "give a folder with one subfolder per class")
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise BadInput(f"{path} has no subfolders", "give a folder with one subfolder per class")
    return folders


def _photo(path: Path, spec: Spec, label: str | None) -> Iterator[Item]:
    from edgecl.images import read_image

    yield Sample(read_image(path, spec.height, spec.width), str(path), label=label)


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
