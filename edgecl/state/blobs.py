"""The content-addressed files of a state, models/<sha256>.<suffix>: whole and true to their name, or not there."""
from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING

from edgecl.errors import StateError
from edgecl.files.atomic import sync_folder, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

SETTLED = 2 * 10**9     # nanoseconds: within one tick of the clock a file can change and its times stay


class Blobs:
    """A folder of content-addressed files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._intact: dict[str, tuple[int, ...]] = {}   # name -> what the file was when it was found intact

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
        """Whether a file is there and true to its name. A file that has not changed since it was read is not read
        again."""
        try:
            about = (self.folder / name).stat()
            seen = about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
            if self._intact.get(name) != seen:
                self._intact.pop(name, None)
                self.path(name, "")
                if time.time_ns() - max(seen[2:]) > SETTLED:
                    self._intact[name] = seen
        except (OSError, StateError):
            return False
        return True

    @property
    def version(self) -> object:
        """What changes whenever a file comes or goes. Raises OSError."""
        about = self.folder.stat()
        return about.st_ino, about.st_mtime_ns

    def bytes(self, name: str) -> int:
        """Length of a file; 0 if it is missing."""
        path = self.folder / name
        return path.stat().st_size if path.exists() else 0

    def sweep(self, named: set[str]) -> None:
        """Delete every file that is not named. Raises OSError."""
        for path in self.folder.iterdir():
            if path.name not in named:
                path.unlink(missing_ok=True)
