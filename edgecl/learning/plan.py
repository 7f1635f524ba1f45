"""Plans what fits a quota: the precision of the stored backbone, and the form of the statistics."""
from __future__ import annotations

from typing import NamedTuple

from edgecl.errors import BudgetError
from edgecl.heads.unknown import rows_bytes
from edgecl.settings import format_size
from edgecl.state.quota import PAGE, pages, segment_bytes
from edgecl.statistics.class_statistics import ClassStatistics
from edgecl.statistics.form import Form

LOG_SHARE = 2               # the log may grow to this many times the statistics or the exemplars before a rewrite,
SHORTEST_LOG = 2 ** 16      # and always to this many bytes
ARRAY_FRAME_BYTES, MOMENT_FRAME_BYTES = 1_280, 250  # of the statistics per transform, apart from numbers
NAME_LENGTH = 16            # characters of a class name, if none is known
DATABASE = 36 * PAGE        # tables and history after a long life, what a change adds, and a rollback journal of both
KEYS_SHARE = 16             # the quota divided by this is for the keys of samples, at most, and if there is room
PLANNED_CLASSES = 50        # classes that a plan has room for; a state accepts more as long as they fit
FEW_CLASSES = 20            # ... if there is no room for so many in an exact form


class StoragePlan(NamedTuple):
    """What fits the quota: the precision of the stored backbone, and the form of the statistics."""

    precision: str
    form: Form


def plan_statistics(quota: int, exemplars: int, backbones: dict[str, int], dimension: int,
                    forms: list[Form]) -> StoragePlan:
    """The first of `forms` that fits; exact statistics take priority over the precision of the backbone.

    quota, exemplars: bytes; backbones: precision -> bytes of the file, best first; dimension: of the features; forms:
    richest first. Raises BudgetError, which names the bytes needed, if nothing fits.
    """
    smallest = min(backbones, key=lambda name: backbones[name])
    found = fitting(quota, exemplars, backbones, dimension, forms, PLANNED_CLASSES) \
        or fitting(quota, exemplars, {smallest: backbones[smallest]}, dimension, forms[-1:], 2)
    if found is not None:
        return found
    least = state_bytes(backbones[smallest], exemplars, dimension, 2, forms[-1])
    raise BudgetError(
        f"a quota of {format_size(quota)} ({quota} bytes) has no room for the backbone ({backbones[smallest]} bytes), "
        f"{exemplars} bytes of exemplars and two classes",
        f"give --quota {least} --exemplars {exemplars}, or more")


def fitting(quota: int, exemplars: int, backbones: dict[str, int], dimension: int, forms: list[Form],
            classes: int) -> StoragePlan | None:
    """The first of `forms` that fits with so many classes; None if none does. The others: see `plan_statistics`."""
    return next((StoragePlan(precision, form) for form in forms for precision, size in backbones.items()
                 if state_bytes(size, exemplars, dimension, classes, form) <= quota), None)


def statistics_bytes(dimension: int, classes: int, form: Form, name: int = NAME_LENGTH) -> int:
    """Bytes of the file of statistics, at most, without Gaussians. name: characters of the longest class name."""
    lengths = [dimension, *([form.projected] if form.projected else [])]
    arrays = sum(ClassStatistics.bytes_at_rest(d, classes, form.second_moment, form.rank) for d in lengths)
    moments = 0 if not form.second_moment else 2 if form.rank is None else 3    # arrays, with their rounding
    return arrays + len(lengths) * (classes * (8 + 4 * name) + ARRAY_FRAME_BYTES + MOMENT_FRAME_BYTES * moments)


def head_bytes(dimension: int, classes: int, form: Form, names: int, rows: int = 0) -> int:
    """Bytes of a head of any kind as a file, at most. names: bytes of the class names in JSON; rows: of
    `unknown.rows_bytes`."""
    size = max(dimension, form.projected or 0)
    numbers = classes * (size + 2 * min(classes, size) + 8) + 2 * size
    return 4 * numbers + dimension * (form.projected or 0) + names + rows + PAGE


def state_bytes(backbone: int, exemplars: int, dimension: int, classes: int, form: Form) -> int:
    """Peak bytes of a state: during a commit, statistics and head exist twice."""
    statistics = statistics_bytes(dimension, classes, form)
    head = 4 * classes * (dimension + 3 * classes + 8) + PAGE
    if form.projected:
        head = max(head, 4 * classes * (form.projected + 3 * classes) + dimension * form.projected + PAGE)
    head += rows_bytes(exemplars, True, dimension, classes)
    samples = pages(exemplars) + 2 * segment_bytes(exemplars)
    return pages(backbone) + samples + DATABASE + 2 * PAGE + 2 * (pages(statistics) + pages(head))
