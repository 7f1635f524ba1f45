"""The files of the exemplar buffer: each holds the classes of one stretch of the alphabet, so that a flood of one class
rewrites few of them. They are rewritten one at a time, the shrinking ones first, so that the change takes room for one
more file, and the files never hold more than before and after it.
"""
from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from edgecl.errors import StateError
from edgecl.exemplars.stored import packed_bytes
from edgecl.state.quota import PAGE, pages
from edgecl.state.reader import EXEMPLARS

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgecl.exemplars.origin import Origin
    from edgecl.exemplars.stored import StoredSample
    from edgecl.state.transaction import Transaction


class Replacement(NamedTuple):
    """Files `names` whose place files of the samples `parts` take. tuned, newest: see `Transaction.add_samples`."""

    names: list[str]
    parts: list[list[StoredSample]]
    kind: str
    tuned: int | None = None
    newest: int | None = None


def arrangement(state: Transaction, alive: Callable[[StoredSample], bool], kept: list[StoredSample] | None,
                spent: list[str]) -> list[Replacement]:
    """What makes the files hold exactly the exemplars `kept` (None: those in them that are `alive`), and deletes the
    files `spent`; reads only."""
    found: dict[str, list[StoredSample]] = {}
    for name, *_ in state.files(EXEMPLARS):
        try:
            found[name] = state.rows(name)
        except StateError:  # damaged exemplars, which nothing else needs
            spent = [*spent, name]
    if kept is None:
        kept = [row for rows in found.values() for row in rows if alive(row)]
    names = sorted(found, key=lambda name: min(map(place_of, found[name])))
    parts = _cut(kept, [min(map(place_of, found[name])) for name in names])
    steps: list[tuple[list[str], list[StoredSample]]] = []
    for name, part in zip(names or [""], parts):
        old, rows = steps[-1] if steps else ([], [])
        small = 2 * min(_bytes(state, rows), _bytes(state, part)) < state.segment
        if steps and small and _bytes(state, rows + part) <= state.segment:
            steps[-1] = [*old, name], rows + part
        else:
            steps.append(([name], part))
    changed = [(old, rows) for old, rows in steps
               if len(old) > 1 or not old[0] or [*map(_as_stored, rows)] != sorted(map(_as_stored, found[old[0]]))]
    changed.sort(key=lambda step: _bytes(state, step[1]) - sum(_bytes(state, found[name]) for name in step[0] if name))
    every = [Replacement([name for name in old if name], split(state, rows), EXEMPLARS) for old, rows in changed]
    return [each for each in [*every, Replacement(spent, [], EXEMPLARS)] if each.names or each.parts]


def replace_files(state: Transaction, replacement: Replacement) -> None:
    """Write the new files, delete the old ones, and commit. Raises BudgetError."""
    state.ledger.ask(replacing_bytes(state, replacement, state.journal_bytes()), "packing samples")
    state.connection.executemany("DELETE FROM files WHERE name = ?", [(name,) for name in replacement.names])
    for rows in replacement.parts:
        state.add_samples(rows, replacement.kind, replacement.tuned, replacement.newest)
    state.step()


def replacing_bytes(state: Transaction, replacement: Replacement, journal: int) -> int:
    """Bytes that `replace_files` takes at its peak. journal: of SQLite."""
    return sum(pages(_bytes(state, rows)) + PAGE for rows in replacement.parts) + journal + 2 * PAGE


Place = tuple[str, "Origin", int, int]


def place_of(row: StoredSample) -> Place:
    """Where a sample stands among all: the samples of one origin lie in one file, or in successive ones, so that they
    share it there."""
    return row.label, row.origin, row.key, row.id or 0


def _as_stored(row: StoredSample) -> tuple[Place, str, bool, bool, bool, bytes]:
    return place_of(row), row.coded, row.spare, row.trained, row.judges, row.feature.tobytes()


def _cut(rows: list[StoredSample], starts: list[Place]) -> list[list[StoredSample]]:
    """The samples in their order, cut where the files begin; the first takes what comes before it."""
    parts: list[list[StoredSample]] = [[] for _ in range(max(len(starts), 1))]
    for row in sorted(rows, key=place_of):
        parts[max(bisect_right(starts, place_of(row)) - 1, 0)].append(row)
    return parts


def split(state: Transaction, rows: list[StoredSample]) -> list[list[StoredSample]]:
    """The samples in as many parts as it takes for each to fit a segment."""
    count = -(-_bytes(state, rows) // state.segment) if rows else 0
    return [rows[len(rows) * number // count:len(rows) * (number + 1) // count] for number in range(count)]


def _bytes(state: Transaction, rows: list[StoredSample]) -> int:
    return packed_bytes(state.by_codec(rows))
