"""What was taught leaves again: all stored samples as files that people and other programs can read.

An export is a folder. `edgecl-samples.jsonl`, its manifest, has a line about the export and one for each sample. Each
class has a folder: photos are files as they are stored, windows and feature vectors an .npz file. `features.npz` holds
the features of samples that are also there themselves, and `backbone.onnx` what computed them, so that a state that
learns the export, see `edgecl.learning.sample_import`, knows exactly what this one does.
"""
from __future__ import annotations

import hashlib
import io
import json
import os
import unicodedata
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecl.errors import BadInput, StateError
from edgecl.exemplars.sample_ids import sample_id
from edgecl.exemplars.selection import GROUP_SHIFT
from edgecl.files.atomic import appearing, sync_folder
from edgecl.learning.backbone_file import backbone_bytes
from edgecl.learning.status import known_are
from edgecl.state.backup import into

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from edgecl.exemplars.input_codecs import InputCodec
    from edgecl.exemplars.stored import StoredSample
    from edgecl.learning.repository import Repository

MANIFEST, FEATURES, BACKBONE = "edgecl-samples.jsonl", "features.npz", "backbone.onnx"
VERSION = 1                     # of the manifest
MOST_FOLDER = 100               # bytes of the name of a class's folder
UNSAFE = set('<>:"/\\|?*%')     # in the name of a folder, on some system
RESERVED = {"con", "prn", "aux", "nul", "lost+found", "thumbs.db", "desktop.ini", "system volume information"}


class ExportFile(NamedTuple):
    """A file of an export. name: its path in it."""

    name: str
    content: bytes


@dataclass(frozen=True)
class SampleExport:
    """Result of an export of samples, at a generation. samples: exported, of which `coded` are kept as product codes
    only; per_class: class -> samples; inputs: samples that are there themselves, not only as a feature; not_stored:
    class -> samples that were taught, but are not stored any more; files, bytes: of the export."""

    generation: int
    samples: int
    per_class: dict[str, int]
    coded: int
    inputs: int
    not_stored: dict[str, int]
    files: int
    bytes: int


def export_samples(repository: Repository, label: str | None = None) -> tuple[SampleExport, list[ExportFile]]:
    """All stored samples, or those of a class, as the files of an export, the manifest last. Raises BadInput for an
    unknown class, StateError if no sample is stored."""
    store = repository.store
    with store.reading():
        knowledge, foundation, newest = repository.known(), repository.foundation, store.newest
        assert foundation is not None
        if knowledge.gaussians is not None:
            raise StateError(f"{store.path} keeps no samples, so there are none to export",
                             "`edgecl export` writes what it has learned from them as a model")
        if label is not None and label not in knowledge.labels:
            raise BadInput(f"no class is called {label!r}", known_are(knowledge.labels))
        rows = sorted((row for row in knowledge.stored if label in (None, row.label)),
                      key=lambda row: (row.label, row.id))
        taught = {name: knowledge.plain.counts[name] for name in knowledge.labels if label in (None, name)}
        if not rows:
            raise StateError(f"{store.path} has no sample stored", "what was taught with room for it can be exported")
        backbone, tuned = backbone_bytes(store, foundation, str(newest.backbone)), store.tuned() is not None
    about = {"edgecl_samples": VERSION, "state": store.meta["id"], "generation": newest.id,
             "exported": datetime.now(timezone.utc).isoformat(timespec="seconds"), "kind": foundation.kind,
             "input_shape": [*foundation.input_shape],
             "foundation": {**foundation.to_meta(), "source": ""}, "tuned": tuned,
             "blank": bool(store.meta.get("blank"))}
    vectors = foundation.name == "identity" and not tuned   # what is stored as the feature is the sample
    files = _Files(foundation.kind, vectors, knowledge.buffer.codec.input)
    lines = files.add(rows)
    stored = Counter(row.label for row in rows)
    made = [*files.made(), ExportFile(BACKBONE, backbone)]
    about["classes"] = [{"class": name, "folder": files.folders.get(name), "taught": count, "stored": stored[name]}
                        for name, count in taught.items()]
    about["files"] = {file.name: hashlib.sha256(file.content).hexdigest() for file in made}
    text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in [about, *lines])
    made.append(ExportFile(MANIFEST, text.encode()))
    return SampleExport(newest.id, len(rows), dict(stored), sum(row.coded != "" for row in rows),
                        sum(bool(row.input) for row in rows),
                        {name: count - stored[name] for name, count in taught.items() if count > stored[name]},
                        len(made), sum(len(file.content) for file in made)), made


class _Files:
    """The files of an export while they come about. vectors: whether features are the samples themselves; codec: of the
    samples, None if only features are stored."""

    def __init__(self, kind: str, vectors: bool, codec: InputCodec | None) -> None:
        self._kind, self._vectors, self._codec = kind, vectors, codec
        self._photos: list[ExportFile] = []
        self._arrays: dict[str, tuple[str, list[NDArray[Any]]]] = {}    # file -> class and samples
        self._features: list[NDArray[np.float32]] = []
        self._inputs: list[bytes] = []
        self.folders: dict[str, str] = {}

    def add(self, rows: Sequence[StoredSample]) -> list[dict[str, Any]]:
        """Take samples in; a line of the manifest for each."""
        self.folders = folder_names(row.label for row in rows)
        shared = Counter(row.key >> GROUP_SHIFT for row in rows)
        return [{"id": sample_id(row), "class": row.label, "source": row.source, "position": row.at,
                 "unit": row.origin.unit, "taught": iso(row.taught),
                 "session": f"{row.key >> GROUP_SHIFT:08x}" if shared[row.key >> GROUP_SHIFT] > 1 else None,
                 "kept": "coded" if row.coded else "exact", "near_duplicate": row.spare, "tuned_on": row.trained,
                 "held_back": row.judges, "key": f"{row.key:016x}", **self._placed(row)} for row in rows]

    def _placed(self, row: StoredSample) -> dict[str, Any]:
        """Where a sample is in the export. feature: its place in FEATURES, None if the file holds the feature."""
        folder = self.folders[row.label]
        if not row.input or self._codec is None:
            name = f"{folder}/{'vectors' if self._vectors else 'features'}.npz"
            return {"file": name, "index": self._append(name, row.label, row.feature), "feature": None}
        self._features.append(row.feature)
        place = len(self._features) - 1
        if self._kind == "image":
            jpeg = self._codec.name == "jpeg"
            content = row.input if jpeg else _png(self._codec.decode(row.input))
            file = ExportFile(f"{folder}/{sample_id(row)}.{'jpg' if jpeg else 'png'}", content)
            self._photos.append(file)
            return {"file": file.name, "index": None, "feature": place}
        self._inputs.append(row.input)
        name = f"{folder}/windows.npz"
        return {"file": name, "index": self._append(name, row.label, self._codec.decode(row.input)), "feature": place}

    def _append(self, name: str, label: str, sample: NDArray[Any]) -> int:
        samples = self._arrays.setdefault(name, (label, []))[1]
        samples.append(sample)
        return len(samples) - 1

    def made(self) -> list[ExportFile]:
        """All files but manifest and backbone. Those of arrays are as `edgecl learn` takes them."""
        made = [*self._photos]
        for name, (label, samples) in self._arrays.items():
            data, names = np.stack(samples), np.full(len(samples), label)
            made.append(ExportFile(name, _npz(x_train=data, y_train=names, x_test=data[:0], y_test=names[:0])))
        if self._features:
            arrays: dict[str, NDArray[Any]] = {"features": np.stack(self._features)}
            if self._inputs:    # windows as they are stored
                arrays["lengths"] = np.array([*map(len, self._inputs)], np.int64)
                arrays["inputs"] = np.frombuffer(b"".join(self._inputs), np.uint8)
            made.append(ExportFile(FEATURES, _npz(**arrays)))
        return made


def check_folder(path: Path, state: Path) -> None:
    """Raises StateError if a folder can't be written because something is there, BadInput if it is inside a state."""
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise StateError(f"{path} exists already", "name a new or an empty folder")
    if state.resolve() in [path.resolve(), *path.resolve().parents]:
        raise BadInput(f"{path} is inside the state {state}", "choose a place outside")


def write_folder(files: Iterable[ExportFile], path: Path) -> None:
    """Write an export to a folder that is new or empty: whole, or not at all. Raises BudgetError, StateError."""
    with into(path), appearing(Path(os.path.abspath(path))) as making:
        making.mkdir(mode=0o700)
        folders = [making]
        for name, content in files:
            place = making / name
            if not place.parent.exists():
                place.parent.mkdir(mode=0o700)
                folders.append(place.parent)
            with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for folder in reversed(folders):
            sync_folder(folder)


def folder_names(labels: Iterable[str]) -> dict[str, str]:
    """A folder for each class, by a name that every file system takes, is not hidden, and differs from the others by
    more than capitals: the name of the class, with % and two digits for each byte of what can't be in a name, and cut
    if it is long."""
    found: dict[str, str] = {}
    used: set[str] = set()
    for label in sorted(set(labels)):
        name = "".join(c if c.isprintable() and c not in UNSAFE else _escaped(c) for c in label)
        if name[0] in "._~ @#$" or name.lower().partition(".")[0] in RESERVED or name.lower() in RESERVED or (
                name.lower() == "recycler"):
            name = _escaped(name[0]) + name[1:]
        if name[-1] in ". ":
            name = name[:-1] + _escaped(name[-1])
        if len(name.encode()) > MOST_FOLDER:
            digest = hashlib.blake2b(label.encode(), digest_size=4).hexdigest()
            name = f"{name.encode()[:MOST_FOLDER - 9].decode('utf-8', 'ignore')}-{digest}"
        whole, number = name, 1
        while (same := unicodedata.normalize("NFKD", whole).casefold()) in used:
            number += 1
            whole = f"{name}-{number}"
        used.add(same)
        found[label] = whole
    return found


def _escaped(c: str) -> str:
    return "".join(f"%{byte:02X}" for byte in c.encode("utf-8", "surrogatepass"))


def iso(seconds: int) -> str | None:
    """When something was taught, ISO 8601 in UTC; None if it is not known."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat() if seconds else None


def _png(pixels: NDArray[Any]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(out, "PNG")
    return out.getvalue()


def _npz(**arrays: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()
