"""The one way in which the package writes a file: whole, or not at all."""
from __future__ import annotations

import os
import shutil
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def write_atomically(path: Path, content: bytes, *, scratch: Path | None = None, mode: int = 0o666,
                     sync: bool = True) -> None:
    """Write a temporary file, sync it, rename it to `path`, and sync the folder. Raises OSError; then the temporary is
    gone, and what was at `path` is still there. What root writes is owned as the folder is.

    scratch: folder of the temporary, on the same file system; default: that of `path`; mode: before the umask;
    sync: False if the file can be computed again, so that surviving a power cut is not worth the flash wear.
    """
    temporary = (scratch or path.parent) / f".{path.name}.{os.getpid()}.tmp"
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode), "wb") as file:
            give_owner(file.fileno(), path.parent)
            file.write(content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def give_owner(descriptor: int, folder: Path) -> None:
    """Give an open file the owner and the group of a folder, if this is root and they differ: else the folder's owner
    might not be able to use what root has written there. Raises OSError."""
    if os.geteuid() == 0:
        mine, wanted = os.fstat(descriptor), folder.stat()
        only_here = mine.st_nlink < 2 or stat.S_ISDIR(mine.st_mode)     # else it may be a file of root's own
        if (mine.st_uid, mine.st_gid) != (wanted.st_uid, wanted.st_gid) and only_here:
            with suppress(OSError):     # a file system without owners, or an owner that this container does not know
                os.fchown(descriptor, wanted.st_uid, wanted.st_gid)


def make_folder(path: Path) -> None:
    """Make a folder (mode 0700) and sync its parent; what root makes is owned as the parent is. Raises OSError."""
    path.mkdir(mode=0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        give_owner(descriptor, path.parent)
    finally:
        os.close(descriptor)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make a folder's entries survive a power cut. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_parents(path: Path) -> None:
    """Make the folders that are missing above `path`, each of which survives a power cut. Raises OSError."""
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_folder(folder.parent)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name beside `path` under which the block makes a file or folder and syncs it; it takes the name `path` at the
    end of the block, or is deleted after an error. Also deletes what a killed process has left under such a name.
    Raises OSError."""
    making = path.with_name(f".{path.name}.{os.getpid()}.new")
    clear_unfinished(path)
    try:
        yield making
        making.rename(path)
        sync_folder(path.parent)
    finally:
        _delete(making)


def clear_unfinished(path: Path) -> None:
    """Delete what killed processes have left of `appearing(path)`. Raises OSError."""
    prefix = f".{path.name}."
    for entry in path.parent.iterdir():
        number = entry.name.removeprefix(prefix).removesuffix(".new")
        if entry.name == f"{prefix}{number}.new" and number.isdecimal() and (
                int(number) == os.getpid() or not Path("/proc", number).exists()):
            _delete(entry)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
