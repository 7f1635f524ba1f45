"""`.csv` recordings: a row per sample, a column per channel, an optional header; cut into windows."""
from __future__ import annotations

import csv
import hashlib
import io
import warnings
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgecl.errors import BadInput
from edgecl.samples import Sample
from edgecl.sources.spec import shown
from edgecl.sources.windows import cut

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.sources.spec import Spec

CLOCK_COLUMNS = {"t", "time", "timestamp", "seconds"}  # header names of columns that are not channels
LABEL_COLUMNS = {"label", "class", "activity"}         # header names of the column with the class of each row
CSV_CURE = "give a row per sample with the same number of columns, all finite numbers"


def read_recording(path: Path, spec: Spec, label: str | None) -> Iterator[Sample]:
    """The windows of a recording, float32 [time, channels], or its rows if they are feature vectors (`spec.vectors`).

    Raises BadInput if the file can't be read, is shorter than a window, or contains NaN or infinity.
    """
    values = load_csv(path)
    if spec.vectors:
        for i, row in enumerate(values):
            yield Sample(row, shown(path), label=label, at=i + 1, unit="row")
        return
    if spec.rate is None or spec.window is None:
        raise BadInput(f"{path} is a recording, but this state has no rate and window",
                       "create the state with `edgecl init --rate 50 --window 3`")
    hop = spec.hop or spec.window / 2
    if spec.seconds is not None:
        values = values[:round(spec.seconds * spec.rate)]
    windows = cut(values, spec.rate, spec.window, hop)
    if not len(windows):
        raise BadInput(f"{path} lasts {len(values) / spec.rate:.3g} s, less than a window of {spec.window:.3g} s",
                       "give a longer recording, or create the state with a shorter --window")
    for i, window in enumerate(windows):
        yield Sample(window, shown(path), shown(path), label, i * hop, "s")


def read_annotated(path: Path, spec: Spec) -> Iterator[Sample]:
    """The windows of a recording with one of LABEL_COLUMNS, each within a stretch of one label; rows without a label
    are left out. All are of one session, named by the content of the file. Raises BadInput if the table can't be read
    or has no such column."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
        dialect = csv.Sniffer().sniff(text.partition("\n")[0], ",;\t")
        header, *rows = csv.reader(io.StringIO(text, ""), dialect)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise BadInput(f"{path} can't be read as a table with a header ({error})", CSV_CURE) from error
    names = [name.strip().lower() for name in header]
    at = next((i for i, name in enumerate(names) if name in LABEL_COLUMNS), None)
    if at is None:
        raise BadInput(f"{path} has no column named {' or '.join(sorted(LABEL_COLUMNS))}",
                       f"its columns are {', '.join(header)}")
    if spec.rate is None or spec.window is None:
        raise BadInput(f"{path} is a recording, but this state has no rate and window",
                       "create the state with `edgecl init --rate 50 --window 3`")
    keep = [i for i, name in enumerate(names) if i != at and name not in CLOCK_COLUMNS]
    hop, session = spec.hop or spec.window / 2, hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    row = 0
    for label, stretch in groupby(rows, lambda cells: cells[at].strip() if len(cells) == len(names) else ""):
        cells = list(stretch)
        try:
            values = np.array([[float(line[i]) for i in keep] for line in cells if label], np.float32)
        except ValueError as error:
            raise BadInput(f"{path}: near row {row + 2}: {error}", CSV_CURE) from error
        if label:
            for i, window in enumerate(cut(values, spec.rate, spec.window, hop)):
                yield Sample(window, shown(path), f"{shown(path)}#{row}", label, row / spec.rate + i * hop, "s",
                             session)
        row += len(cells)


def load_csv(path: Path) -> NDArray[np.float32]:
    """A table float32 [rows, columns] without its header and its CLOCK_COLUMNS. Raises BadInput if it can't be read."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} can't be read as text ({error})", CSV_CURE) from error
    return parse_csv(text, str(path))


def parse_csv(text: str, path: str) -> NDArray[np.float32]:
    """`load_csv` of a text; `path` names it in errors."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise BadInput(f"{path} is empty", CSV_CURE)
    comma = next((mark for mark in ",;\t" if mark in lines[0]), None)
    header = [] if _is_number(lines[0].split(comma)[0]) else [name.strip() for name in lines[0].split(comma)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            values = np.loadtxt(lines[1:] if header else lines, np.float32, delimiter=comma, ndmin=2)
    except (ValueError, UserWarning) as error:
        raise BadInput(f"{path}: {str(error).splitlines()[0]}", CSV_CURE) from error
    if header and len(header) != values.shape[1]:
        raise BadInput(f"{path}: {values.shape[1]} columns under a header of {len(header)}", CSV_CURE)
    keep = [i for i, name in enumerate(header) if name.lower() not in CLOCK_COLUMNS]
    values = values[:, keep] if header else values
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        raise BadInput(f"{path}: row {bad[0] + 1} contains NaN or infinity", CSV_CURE)
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
