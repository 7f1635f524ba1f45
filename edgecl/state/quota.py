"""Bytes: what a state directory holds, what fits its quota, and the error if something does not fit."""
from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from edgecl.errors import BudgetError
from edgecl.files.atomic import give_owner
from edgecl.files.regular import NotRegular, open_regular
from edgecl.settings import format_size
from edgecl.state.gathered_file import GATHERED_FILE
from edgecl.state.rows import COPY_FILE
from edgecl.state.set_aside import SET_ASIDE

if TYPE_CHECKING:
    from pathlib import Path

PAGE = 4096                 # files and folders are counted in whole pages, as file systems store them
RESERVE = "reserved"
SETTLED = 10**8             # nanoseconds after which a change has changed a folder's time, however coarse its clock is
SLACK, SLACK_SHARE = 2 ** 20, 128  # bytes that may be missing from the reserve: at most, and of the quota one in ...
PURPOSES = {".onnx": "models", ".parts": "models", ".npz": "statistics", ".exemplars": "exemplars",
            ".codebook": "exemplars", ".journal": "journal", ".features": "journal", "learned.log": "journal",
            "acknowledged": "journal", "edgecl.db": "database", "edgecl.db-journal": "database",
            COPY_FILE: "database"}
GIVE_WAY = GATHERED_FILE, COPY_FILE     # files that are deleted if a change needs their room, in this order


def pages(count: int) -> int:
    """Bytes that a file of `count` bytes takes in whole pages."""
    return -(-count // PAGE) * PAGE


def _sizes(path: Path | str, seen: set[int], besides: str = "") -> dict[str, int]:
    """Bytes of every file and folder below a folder, itself included, but `besides`. seen: numbers of the files with
    several names that were counted, each of which counts once."""
    found = {str(path): max(pages(os.stat(path).st_size), PAGE)}
    with os.scandir(path) as entries:
        for entry in entries:
            try:
                if entry.path == besides:
                    continue
                about = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    found |= _sizes(entry.path, seen)
                elif about.st_nlink < 2 or about.st_ino not in seen:
                    if about.st_nlink > 1:
                        seen.add(about.st_ino)
                    found[entry.path] = -(-about.st_size // PAGE) * PAGE
            except FileNotFoundError:  # a temporary of another process that is gone already
                continue
    return found


class Usage(NamedTuple):
    """Bytes of a state directory by what they are for, in whole pages. scratch: temporaries, folders themselves, and
    what is gathered for review; set_aside: damaged files, see `edgecl.state.set_aside`."""

    models: int = 0
    statistics: int = 0
    exemplars: int = 0
    journal: int = 0
    database: int = 0
    scratch: int = 0
    set_aside: int = 0

    @property
    def total(self) -> int:
        """All of them; what is only reserved does not count."""
        return sum(self)


class Ledger:
    """The one account of a state directory's bytes: asked before every write, and keeper of the reserve.

    What the quota has left is kept on the disk as one file without content, `reserved`, so that a disk that fills up
    later can't stop learning: what a write needs is taken off that file first.
    """

    def __init__(self, folder: Path, quota: int) -> None:
        self.folder, self.quota = folder, quota
        self._models: tuple[object, set[int], Usage] = (None, set(), Usage())   # time of change, numbers, bytes

    def usage(self) -> Usage:
        """The bytes in use now. Raises OSError."""
        models = os.path.join(self.folder, "models")
        seen, used = self._counted(models) if os.path.isdir(models) else (set[int](), Usage())
        rest = self._by_purpose(_sizes(self.folder, {*seen}, models if used.total else ""))
        return Usage(*map(sum, zip(used, rest)))

    def _by_purpose(self, sizes: dict[str, int]) -> Usage:
        used, aside = dict.fromkeys(Usage._fields, 0), os.path.join(self.folder, SET_ASIDE)
        for path, size in sizes.items():
            name = path.rpartition(os.sep)[2]
            if path == aside or path.startswith(f"{aside}{os.sep}"):
                used["set_aside"] += size
            elif name != RESERVE:
                used[PURPOSES.get(name) or PURPOSES.get(f".{name.rpartition('.')[2]}", "scratch")] += size
        return Usage(**used)

    def _counted(self, models: str) -> tuple[set[int], Usage]:
        """The numbers of the files of models/ that have several names, and the bytes of all, which never change: they
        are counted again only if one has come or gone since."""
        about = os.stat(models)
        key = about.st_ino, about.st_mtime_ns
        if self._models[0] != key:
            seen: set[int] = set()
            self._models = None, seen, self._by_purpose(_sizes(models, seen))
            if not seen and time.time_ns() - about.st_mtime_ns > SETTLED:   # a log under another name may grow
                self._models = key, *self._models[1:]
        return self._models[1:]

    def reserved(self) -> int:
        """Bytes of the disk that are held for what is yet to come."""
        try:
            about = os.lstat(self.folder / RESERVE)
        except FileNotFoundError:
            return 0
        return about.st_size if stat.S_ISREG(about.st_mode) else 0

    def giving_way(self, *names: str) -> int:
        """Bytes of the files that give way if a change needs their room, all of them by default: what is gathered for
        review, and the database's copy, which is written again after the change."""
        found = 0
        for name in names or GIVE_WAY:
            with suppress(OSError):
                about = os.lstat(self.folder / name)
                found += pages(about.st_size) if stat.S_ISREG(about.st_mode) else 0
        return found

    def check(self, used: int, need: int, what: str) -> None:
        """Raise BudgetError, with the figures, if `need` more bytes than `used` pass the quota."""
        if used + need > self.quota:
            raise BudgetError(
                f"{what} needs {need} bytes but only {max(self.quota - used, 0)} of the quota of "
                f"{format_size(self.quota)} are left",
                f"create a state with --quota {used + need}, or, if classes are known, forget one" + (
                    f"; or discard the {format_size(aside)} that are set aside with `edgecl check --discard`"
                    if (aside := self.usage().set_aside) else ""))

    def ask(self, need: int, what: str) -> None:
        """Make room on the disk for `need` more bytes. Raises BudgetError, with the figures, past the quota."""
        used = self.usage().total
        self.check(used - self.giving_way(), need, what)
        self.release(need, used)

    @property
    def slack(self) -> int:
        """The reserve is a multiple of this, so that small changes need not resize it."""
        return max(min(SLACK, self.quota // SLACK_SHARE) // PAGE, 1) * PAGE

    def release(self, need: int, used: int | None = None) -> None:
        """Take `need` bytes off the reserve, or all of it, and delete what gives way if that is not enough. Raises
        OSError."""
        used = self._making_way(need, self.usage().total if used is None else used)
        self._shrink(min(self.reserved(), self._left(used)) - pages(need))

    def give_way(self, need: int, used: int) -> None:
        """Take off the reserve only what `need` more bytes would push past the quota. used: bytes without what gives
        way. Raises OSError."""
        left = self._left(self._making_way(need, used + self.giving_way())) - pages(need)
        if self.reserved() > left:
            self._shrink(left // self.slack * self.slack)

    def _making_way(self, need: int, used: int) -> int:
        """Bytes in use, `used` or less: what gives way is deleted as far as `need` more would not fit beside it."""
        for name in GIVE_WAY:
            if used + need > self.quota and (size := self.giving_way(name)):
                (self.folder / name).unlink(missing_ok=True)
                used -= size
        return used

    def unreserved(self) -> int:
        """Bytes that `hold` could not reserve. Raises OSError."""
        return max(self._wanted() - self.reserved(), 0)

    def _wanted(self) -> int:
        return self._left(self.usage().total) // self.slack * self.slack

    def _left(self, used: int) -> int:
        return max(self.quota - used, 0) // PAGE * PAGE

    def _shrink(self, size: int) -> None:
        if self.reserved() > max(size, 0):
            with suppress(FileNotFoundError):
                os.truncate(self.folder / RESERVE, max(size, 0))

    def hold(self) -> None:
        """Reserve what the quota has left, in multiples of `slack`, if the file system can. To be called under the
        state's lock. Raises OSError on a full disk."""
        left = self._wanted()
        try:
            descriptor = open_regular(self.folder / RESERVE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except NotRegular:  # left alone: then nothing is reserved
            return
        try:
            give_owner(descriptor, self.folder)
            have = os.fstat(descriptor).st_size
            if have > left:
                os.ftruncate(descriptor, left)
            elif have < left:
                os.posix_fallocate(descriptor, have, left - have)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        finally:
            os.close(descriptor)


def segment_bytes(exemplars: int) -> int:
    """Bytes of one file of samples: they are rewritten one at a time, so that no change needs room for all twice."""
    return max(4 * PAGE, pages(exemplars // 8))


