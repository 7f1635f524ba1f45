"""Copies of a state: of a live one, as it is at one moment, in a folder or a tar."""
from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgecl.errors import BadInput, BudgetError, StateError
from edgecl.files.atomic import appearing, sync_folder
from edgecl.settings import format_size
from edgecl.state.backup_tar import files_of, reader_of, tar_of
from edgecl.state.database import MODELS
from edgecl.state.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from edgecl.state.frozen import Copied, StateFile

    Progress = Callable[[int], None]

COMPRESSED = {".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip"}


def backup(path: Path, out: Path, progress: Progress) -> Copied:
    """Copy the state in the folder `path`, see `save`. Raises StateError as well."""
    check_new(out, path)
    with frozen(path) as state:
        save(tar_of(state), state.size, out, progress)
        return state.copied()


def save(blocks: Iterator[bytes], size: int, out: Path, progress: Progress) -> None:
    """Write a tar of `size` bytes of files to a new file if its name ends with .tar, else unpack it to a new folder:
    whole, or not at all. progress: called with the number of bytes written. Raises BadInput, BudgetError, StateError.
    """
    with into(out):
        _check_room(out, size)
        with appearing(out) as making:
            if out.suffix == ".tar":
                with open(os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    for block in blocks:
                        file.write(block)
                        progress(len(block))
                    file.flush()
                    os.fsync(file.fileno())
            else:
                write_folder(files_of(reader_of(blocks), str(out)), making, progress)


def write_folder(parts: Iterable[StateFile], making: Path, progress: Progress) -> None:
    """Write files into a new folder, and sync them. Raises BudgetError if the disk has no room for one, OSError."""
    making.mkdir(mode=0o700)
    (making / MODELS).mkdir()
    for name, size, blocks in parts:
        _check_room(making.parent, size)
        with open(os.open(making / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            for block in blocks:
                file.write(block)
                progress(len(block))
            file.flush()
            os.fsync(file.fileno())
    for folder in (making / MODELS, making):
        sync_folder(folder)


def check_new(path: Path, state: Path | None = None) -> None:
    """Raise StateError if there is something at a path already, BadInput if it is inside the state or its name promises
    a compressed file."""
    free = not path.exists() or (path.is_dir() and path.suffix != ".tar" and not any(path.iterdir()))
    if path.is_symlink() or not free:
        raise StateError(f"{path} exists already", "choose another name, or delete it first")
    if state is not None and state.resolve() in path.resolve().parents:
        raise BadInput(f"{path} is inside the state {state}", "choose a place outside, on another disk if there is one")
    if state is not None and path.suffix in COMPRESSED:
        raise BadInput(f"{path} would be compressed, which edgecl does not do",
                       f"`edgecl backup - | gzip > {path.name}`, or name a folder or a .tar")


def _check_room(path: Path, size: int) -> None:
    free = shutil.disk_usage(path if path.exists() else path.parent).free
    if free < size:
        raise BudgetError(f"the disk that holds {path} has {format_size(free)} free, and the copy takes "
                          f"{format_size(size)}", "free some space, or choose another disk")


@contextmanager
def into(out: Path | str) -> Iterator[None]:
    """Turn errors of the disk that a copy is written to into words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BudgetError(f"the disk that holds {out} is full", "free some space, then try again") from error
        raise StateError(f"{out} can't be written ({error.strerror})",
                         "check the path, the rights and the disk, then try again") from error
