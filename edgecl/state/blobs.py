"""The content-addressed files of a state, models/<sha256>.<suffix>: whole and true to their name, or not there."""
from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from edgecl.errors import StateError
from edgecl.files.atomic import sync_folder, write_atomically

if TYPE_CHECKING:
    from pathlib import Path


class Blobs:
    """A folder of content-addressed files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, blob: bytes, suffix: str) -> str:
        """Write, sync, rename, sync the folder; the file's name. Raises OSError."""
        name = f"{hashlib.sha256(blob).hexdigest()}.{suffix}"
        write_atomically(self.folder / name, blob)
        return name

    def adopt(self, path: Path, suffix: str) -> str:
        """Give a synced file a name here too: a link if the file system has links, else a copy. Raises OSError."""
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        name = f"{digest}.{suffix}"
        try:
            (self.folder / name).unlink(missing_ok=True)
            os.link(path, self.folder / name)
        except OSError:  # a file system without links
            return self.write(path.read_bytes(), suffix)
        sync_folder(self.folder)
        return name

    def path(self, name: str, cure: str) -> Path:
        """The path of a file whose content matches its name. Raises StateError, with the cure, if it is missing or
        altered."""
        path, digest = self.folder / name, hashlib.sha256()
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise StateError(f"{path} can't be read ({error.strerror})", cure) from error
        if digest.hexdigest() != name.partition(".")[0]:
            raise StateError(f"{path} is damaged: its SHA-256 does not match its name", cure)
        return path

    def intact(self, name: str) -> bool:
        """Whether a file is there and true to its name."""
        try:
            return self.path(name, "").name == name
        except StateError:
            return False

    def bytes(self, name: str) -> int:
        """Length of a file; 0 if it is missing."""
        path = self.folder / name
        return path.stat().st_size if path.exists() else 0

    def sweep(self, named: set[str]) -> None:
        """Delete every file that is not named. Raises OSError."""
        for path in self.folder.iterdir():
            if path.name not in named:
                path.unlink(missing_ok=True)
