"""Bytes: what a state directory holds, what the quota can afford, and what a person is told when it can't."""
from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from edgecl.config import format_size
from edgecl.errors import BudgetError
from edgecl.statistics import ClassStatistics

if TYPE_CHECKING:
    from pathlib import Path

PAGE = 4096                 # files and folders are counted in whole pages, as file systems store them
DATABASE = 28 * PAGE        # tables and history, and as much again for the rollback journal
RESERVE = "reserved"
PURPOSES = {".onnx": "models", ".parts": "models", ".npz": "statistics", ".exemplars": "exemplars",
            ".codebook": "exemplars", ".journal": "journal", ".features": "journal", "learned.log": "journal",
            "edgecl.db": "database", "edgecl.db-journal": "database"}
PLANNED_CLASSES = 50        # room that a plan keeps for classes; more are taken as long as they fit


def pages(count: int) -> int:
    """Bytes that a file of `count` bytes takes in whole pages."""
    return -(-count // PAGE) * PAGE


def _sizes(path: Path | str, seen: set[int] | None = None) -> dict[str, int]:
    """Bytes of every file and folder below a folder, itself included; a file with two names counts once."""
    found = {str(path): max(pages(os.stat(path).st_size), PAGE)}
    seen = set() if seen is None else seen
    with os.scandir(path) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # a temporary of another process that is gone already
                about = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    found |= _sizes(entry.path, seen)
                elif about.st_ino not in seen:
                    seen.add(about.st_ino)
                    found[entry.path] = pages(about.st_size)
    return found


class Usage(NamedTuple):
    """Bytes of a state directory by what they are for, in whole pages. scratch: temporaries, and folders themselves."""

    models: int = 0
    statistics: int = 0
    exemplars: int = 0
    journal: int = 0
    database: int = 0
    scratch: int = 0

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

    def usage(self) -> Usage:
        """What there is now. Raises OSError."""
        used = dict.fromkeys(Usage._fields, 0)
        for path, size in _sizes(self.folder).items():
            name = os.path.basename(path)
            if name != RESERVE:
                used[PURPOSES.get(name) or PURPOSES.get(os.path.splitext(name)[1], "scratch")] += size
        return Usage(**used)

    def reserved(self) -> int:
        """Bytes of the disk that are held for what is yet to come."""
        path = self.folder / RESERVE
        return path.stat().st_size if path.exists() else 0

    def fits(self, need: int) -> bool:
        """Whether the quota has room for `need` more bytes."""
        return self.usage().total + need <= self.quota

    def ask(self, need: int, what: str) -> None:
        """Make room on the disk for `need` more bytes. Raises BudgetError, with the figures, past the quota."""
        used = self.usage().total
        if used + need > self.quota:
            raise BudgetError(
                f"{what} needs {need} bytes but only {max(self.quota - used, 0)} of the quota of "
                f"{format_size(self.quota)} are left",
                f"create a state with --quota {used + need}, or, where classes are known, forget one")
        self.release(need, used)

    def release(self, need: int, used: int | None = None) -> None:
        """Take `need` bytes off the reserve, or all of it. Raises OSError."""
        used = self.usage().total if used is None else used
        keep = max(self.quota - used - need, 0) // PAGE * PAGE
        with suppress(FileNotFoundError):
            if os.stat(self.folder / RESERVE).st_size > keep:
                os.truncate(self.folder / RESERVE, keep)

    def hold(self) -> None:
        """Reserve what the quota has left, where the file system can. To be called under the state's lock. Raises
        OSError on a full disk."""
        left = max(self.quota - self.usage().total, 0) // PAGE * PAGE
        descriptor = os.open(self.folder / RESERVE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
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


class Form(NamedTuple):
    """What is kept of the class statistics.

    second_moment: whether G is kept at all; rank: None for the exact G, else the number of directions kept beside
    the diagonal; projected: length of the random projection whose statistics are kept as well, 0 for none.
    """

    second_moment: bool
    rank: int | None = None
    projected: int = 0

    def describe(self, dimension: int) -> str:
        """For people: `exact 1280 x 1280`."""
        if not self.second_moment:
            return "class means only"
        plain = f"exact {dimension} x {dimension}" if self.rank is None else f"diagonal + rank {self.rank}"
        return plain + (f", and {self.projected} random projections" if self.projected else "")


class Plan(NamedTuple):
    """What the quota affords: the precision of the stored backbone, and the form of the statistics."""

    precision: str
    form: Form


def plan_statistics(quota: int, exemplars: int, backbones: dict[str, int], dimension: int, forms: list[Form]) -> Plan:
    """The first of `forms` that fits: exact statistics before the backbone's precision.

    quota, exemplars: bytes; backbones: precision -> bytes of the file, best first; dimension: of the feature;
    forms: richest first. Raises BudgetError with the bytes needed where nothing fits.
    """
    smallest = min(backbones, key=lambda name: backbones[name])
    for form in forms:
        for precision, size in backbones.items():
            if state_bytes(size, exemplars, dimension, PLANNED_CLASSES, form) <= quota:
                return Plan(precision, form)
    least = state_bytes(backbones[smallest], exemplars, dimension, 2, forms[-1])
    if least <= quota:
        return Plan(smallest, forms[-1])
    raise BudgetError(
        f"a quota of {format_size(quota)} ({quota} bytes) can't hold the backbone ({backbones[smallest]} bytes), "
        f"{exemplars} bytes of exemplars and two classes",
        f"give --quota {least} --exemplars {exemplars}, or more")


def statistics_bytes(dimension: int, classes: int, form: Form, name: int = 16) -> int:
    """Bytes of the statistics file of one lift; name: characters of the longest class name."""
    arrays = ClassStatistics.bytes_at_rest(dimension, classes, form.second_moment, form.rank)
    return arrays + classes * (8 + 4 * name) + PAGE // 2


def state_bytes(backbone: int, exemplars: int, dimension: int, classes: int, form: Form) -> int:
    """Bytes a state needs at its peak: during a commit, statistics and head exist twice."""
    statistics = statistics_bytes(dimension, classes, form)
    head = 4 * classes * (dimension + 3 * classes + 8) + PAGE
    if form.projected:
        statistics += statistics_bytes(form.projected, classes, form)
        head = max(head, 4 * classes * (form.projected + 3 * classes) + dimension * form.projected + PAGE)
    samples = pages(exemplars) + 2 * segment_bytes(exemplars)
    return pages(backbone) + samples + DATABASE + 2 * PAGE + 2 * (pages(statistics) + pages(head))
