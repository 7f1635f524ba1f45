"""Bytes: what a state directory holds, what the quota can afford, and what a person is told when it can't."""
from __future__ import annotations

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
PLANNED_CLASSES = 50        # room that a plan keeps for classes; more are taken as long as they fit


def pages(count: int) -> int:
    """Bytes that a file of `count` bytes takes in whole pages."""
    return -(-count // PAGE) * PAGE


def directory_bytes(path: Path | str) -> int:
    """Bytes of all that is in the directory, itself and temporaries included, in whole pages."""
    total = max(pages(os.stat(path).st_size), PAGE)
    with os.scandir(path) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # a temporary of another process that is gone already
                total += directory_bytes(entry.path) if entry.is_dir(follow_symlinks=False) else \
                    pages(entry.stat(follow_symlinks=False).st_size)
    return total


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


def require(used: int, need: int, quota: int, what: str) -> None:
    """Raise BudgetError, with the figures, where `need` more bytes would pass the quota."""
    if used + need > quota:
        raise BudgetError(
            f"{what} needs {need} bytes but only {max(quota - used, 0)} of the quota of {format_size(quota)} are left",
            f"create a state with --quota {used + need}, or, where classes are known, forget one")
