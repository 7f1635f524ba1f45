"""The content-addressed files of a state, models/<sha256>.<suffix>: whole and true to their name, or not there."""
from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgecl.errors import StateError
from edgecl.files.atomic import make_folder, sync_folder, write_atomically
from edgecl.files.regular import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgecl.state.set_aside import SetAside

OURS = re.compile(r"[0-9a-f]{64}\.(onnx|npz|journal|exemplars|features|parts|codebook)")
TEMPORARY = re.compile(rf"\.({OURS.pattern}|learned\.log|edgecl\.[a-z]+)\.[0-9]+\.tmp")
BLOCK = 2 ** 18     # bytes that are read at once
SETTLED = 10**8  # nanoseconds after which a change of a file has changed its times, however coarse their clock is


class Blobs:
    """A folder of content-addressed files. aside: takes damaged ones that are replaced or deleted."""

    def __init__(self, folder: Path, aside: SetAside) -> None:
        self.folder, self._aside = folder, aside
        self._folder = str(folder)
        self._intact: dict[str, tuple[int, ...]] = {}  # name -> what told the file from others when it was checked
        self._looked: dict[str, str | None] | None = None   # what `problem` has found in the current look

    def make_folder(self) -> None:
        """Make the folder if it is missing; what lies in its place is set aside. Raises OSError."""
        if not self.folder.is_dir():
            self._aside.keep(self.folder)
            make_folder(self.folder)

    def write(self, blob: bytes, suffix: str) -> str:
        """Write, sync, rename, sync the folder; the file's name. Raises OSError."""
        name = f"{hashlib.sha256(blob).hexdigest()}.{suffix}"
        self._clear(name)
        write_atomically(self.folder / name, blob)
        return name

    def adopt(self, path: Path, suffix: str) -> str:
        """Give a synced file a name here too: a link if the file system has links, else a copy. Raises OSError."""
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        name = f"{digest}.{suffix}"
        self._clear(name)
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
        self._read(name, cure)
        return self.folder / name

    def content(self, name: str) -> bytes:
        """The content of a file. Raises StateError if it is missing or altered."""
        blocks: list[bytes] = []
        self._read(name, "", blocks)
        return b"".join(blocks)

    def _read(self, name: str, cure: str, kept: list[bytes] | None = None) -> None:
        """Read a file in blocks, which are `kept`. Raises StateError if it is missing or altered."""
        path, digest = self.folder / name, hashlib.sha256()
        try:
            with open(open_regular(path), "rb", buffering=0) as file:
                while block := file.read(BLOCK):
                    digest.update(block)
                    if kept is not None:
                        kept.append(block)
        except OSError as error:
            raise StateError(f"{path} can't be read ({error.strerror})", cure) from error
        if digest.hexdigest() != name.partition(".")[0]:
            raise StateError(f"{path} is damaged: its SHA-256 does not match its name", cure)

    @contextmanager
    def one_look(self) -> Iterator[None]:
        """Look at each file once at most, while no file may come or go."""
        self._looked = {}
        try:
            yield
        finally:
            self._looked = None

    def problem(self, name: str) -> str | None:
        """What is wrong with a file, None if it is there and true to its name. It is read again only if its length or
        times have changed since it was found intact."""
        if self._looked is None:
            return self._problem(name)
        if name not in self._looked:
            self._looked[name] = self._problem(name)
        return self._looked[name]

    def _problem(self, name: str) -> str | None:
        try:
            about = os.stat(f"{self._folder}/{name}")     # of each of hundreds of files, which a Path takes longer for
            mark = about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
            if self._intact.get(name) == mark:
                return None
            self.path(name, "")
            if time.time_ns() - about.st_ctime_ns > SETTLED:
                self._intact[name] = mark
        except OSError as error:
            return f"{self.folder / name} can't be read ({error.strerror})"
        except StateError as error:
            return error.what
        return None

    def intact(self, name: str) -> bool:
        """Whether a file is there and true to its name."""
        return self.problem(name) is None

    @property
    def version(self) -> object:
        """What changes whenever a file comes or goes. Raises OSError."""
        about = self.folder.stat()
        return about.st_ino, about.st_mtime_ns

    def bytes(self, name: str) -> int:
        """Length of a file; 0 if it is missing."""
        path = self.folder / name
        return path.stat().st_size if path.exists() else 0

    def sweep(self, named: set[str], keep: bool = False) -> None:
        """Delete every file of ours that is not named, or set it aside if it is damaged or `keep` is set. What has
        another name than edgecl gives, and folders, are left alone. Raises OSError."""
        for path in self.folder.iterdir():
            if path.name in named or path.is_dir():
                continue
            if TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)
            elif OURS.fullmatch(path.name):
                if keep:
                    self._aside.keep(path)
                else:
                    self._clear(path.name)
                    path.unlink(missing_ok=True)

    def _clear(self, name: str) -> None:
        """Set a file aside if it is there and damaged, unless it has another name, too: of the log, which has grown."""
        path = self.folder / name
        if os.path.lexists(path) and not self.intact(name) and (path.is_dir() or path.lstat().st_nlink == 1):
            self._aside.keep(path)
