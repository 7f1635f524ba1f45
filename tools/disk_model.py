"""A folder as a file system keeps it: inodes, the operations that change them, and what a power cut may leave of these.

An operation is durable once the inode that it changes has been synced: a file for its content and length, a folder for
its entries (for a rename the folder of the new name). Syncing a file does not make its entry durable; this is what
POSIX promises, and less than what ext4 or xfs do.
"""
from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Union

ROOT = 1
SPARSE = "reserved"     # a file of which only the length counts


class Write(NamedTuple):
    """Bytes written to a file."""

    inode: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    """The length of a file set; what is added are zeros."""

    inode: int
    length: int


class Link(NamedTuple):
    """A name given to an inode, which may be new."""

    inode: int
    name: str
    target: int
    folder: bool = False


class Unlink(NamedTuple):
    """A name taken from a folder."""

    inode: int
    name: str


class Rename(NamedTuple):
    """A name moved; `inode` is the folder of the new one."""

    inode: int
    name: str
    source: int
    old: str
    target: int


class Sync(NamedTuple):
    """What was done to an inode so far is durable."""

    inode: int


Operation = Union[Write, Truncate, Link, Unlink, Rename, Sync]
NAMING = (Link, Unlink, Rename)
Edit = Callable[[Write], list[tuple[int, bytes]]]   # what of a write came to the disk: parts with their offsets


@dataclass
class Disk:
    """The inodes below one folder, ROOT: a file's bytes, or a folder's names and their inodes."""

    inodes: dict[int, bytes | dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    last: int = ROOT

    @classmethod
    def read(cls, folder: Path) -> Disk:
        """What lies below a folder."""
        disk, seen = cls(), dict[int, int]()

        def walk(path: str, inode: int) -> None:
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                number = entry.inode()
                if entry.is_dir(follow_symlinks=False):
                    disk.names(inode)[entry.name] = disk.add({})
                    walk(entry.path, disk.last)
                    continue
                if number not in seen:
                    sparse = entry.name == SPARSE
                    seen[number] = disk.add(bytes(entry.stat().st_size) if sparse else Path(entry.path).read_bytes())
                disk.names(inode)[entry.name] = seen[number]

        walk(str(folder), ROOT)
        return disk

    def add(self, content: bytes | dict[str, int]) -> int:
        """A new inode."""
        self.last += 1
        self.inodes[self.last] = content
        return self.last

    def names(self, inode: int) -> dict[str, int]:
        """The entries of a folder."""
        content = self.inodes[inode]
        if not isinstance(content, dict):
            raise NotADirectoryError(inode)
        return content

    def content(self, inode: int) -> bytes:
        """The bytes of a file."""
        content = self.inodes[inode]
        if isinstance(content, dict):
            raise IsADirectoryError(inode)
        return content

    def find(self, path: str, start: int = ROOT) -> int | None:
        """The inode of a relative path."""
        inode = start
        for part in filter(None, path.split("/")):
            content = self.inodes[inode]
            if not isinstance(content, dict) or part not in content:
                return None
            inode = content[part]
        return inode

    def paths(self) -> Iterator[tuple[str, int]]:
        """Every path and its inode, in the order of the names; that of ROOT is "". """
        stack = [("", ROOT)]
        while stack:
            path, inode = stack.pop()
            yield path, inode
            content = self.inodes[inode]
            if isinstance(content, dict):
                stack += [(f"{path}/{name}", content[name]) for name in sorted(content, reverse=True)]

    def after(self, operations: Iterable[Operation], edits: dict[int, Edit] | None = None) -> Disk:
        """Another disk: this one after some operations, in their order. edits: for the number of a write, what of it
        came to the disk. Operations on an inode whose creation is not among them work on an empty one without a name.
        """
        disk = Disk({inode: dict(c) if isinstance(c, dict) else c for inode, c in self.inodes.items()}, self.last)
        open_files: dict[int, bytearray] = {}

        def file(inode: int) -> bytearray:
            if inode not in open_files:
                content = disk.inodes.get(inode, b"")
                open_files[inode] = bytearray() if isinstance(content, dict) else bytearray(content)
            return open_files[inode]

        for number, operation in enumerate(operations):
            if isinstance(operation, Write):
                parts = [(operation.offset, operation.data)]
                if edits and number in edits:
                    parts = edits[number](operation)
                content = file(operation.inode)
                for offset, data in parts:
                    content.extend(bytes(max(offset - len(content), 0)))
                    content[offset:offset + len(data)] = data
            elif isinstance(operation, Truncate):
                content = file(operation.inode)
                del content[operation.length:]
                content.extend(bytes(operation.length - len(content)))
            elif not isinstance(operation, Sync):
                disk.rename(operation)
        disk.inodes |= {inode: bytes(content) for inode, content in open_files.items()}
        disk.last = max(disk.inodes)
        return disk

    def rename(self, operation: Link | Unlink | Rename) -> None:
        """Apply an operation on names; those of folders that were never created are created without a name."""
        names = self.inodes.setdefault(operation.inode, {})
        if not isinstance(names, dict):
            raise NotADirectoryError(operation.inode)
        if isinstance(operation, Unlink):
            names.pop(operation.name, None)
            return
        if isinstance(operation, Rename):
            old = self.inodes.setdefault(operation.source, {})
            if isinstance(old, dict) and old.get(operation.old) == operation.target:
                del old[operation.old]
        names[operation.name] = operation.target
        self.inodes.setdefault(operation.target, {} if isinstance(operation, Link) and operation.folder else b"")

    def digest(self, known: dict[int, bytes] | None = None) -> bytes:
        """A digest of all paths and contents. known: id of bytes that stay alive -> their digest, which it fills."""
        total = hashlib.blake2b(digest_size=16)
        for path, inode in self.paths():
            content = self.inodes[inode]
            if isinstance(content, dict):
                total.update(f"folder {path}\n".encode())
            elif path.endswith(f"/{SPARSE}"):
                total.update(f"{len(content)} {path}\n".encode())
            else:
                found = None if known is None else known.get(id(content))
                found = found or hashlib.blake2b(content, digest_size=16).digest()
                total.update(f"file {path} ".encode() + found)
        return total.digest()

    def digests(self) -> dict[int, bytes]:
        """What `digest` may be told of the files of this disk, while it is kept."""
        return {id(content): hashlib.blake2b(content, digest_size=16).digest()
                for content in self.inodes.values() if isinstance(content, bytes)}

    def write(self, folder: Path) -> None:
        """Put everything into a folder, which must not exist."""
        made: dict[int, Path] = {}
        for path, inode in self.paths():
            content, target = self.inodes[inode], Path(f"{folder}{path}")
            if isinstance(content, dict):
                target.mkdir()
            elif inode in made:
                os.link(made[inode], target)
            elif target.name == SPARSE:
                with target.open("wb") as file:
                    file.truncate(len(content))
            else:
                target.write_bytes(content)
            made[inode] = target
