"""The files of the exemplar buffer: each holds the classes of one stretch of the alphabet, so that a flood of one class
rewrites few of them. They are written anew one at a time, the shrinking ones first, so that the change takes room for
one file more and the buffer never passes its bytes, at no step.
"""
from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from edgecl.errors import StateError
from edgecl.exemplars.stored import packed_bytes
from edgecl.state.quota import PAGE, pages
from edgecl.state.reader import EXEMPLARS

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgecl.exemplars.stored import StoredSample
    from edgecl.state.store import Store


def arrange(store: Store, alive: Callable[[StoredSample], bool], kept: list[StoredSample] | None,
            spent: list[str]) -> None:
    """Make the files hold exactly the exemplars `kept` (None: those in them that are `alive`), then delete the files
    `spent`. Commits. Raises BudgetError."""
    found: dict[str, list[StoredSample]] = {}
    for name, *_ in store.files(EXEMPLARS):
        try:
            found[name] = store.rows(name)
        except StateError:  # damaged exemplars, which nothing else needs
            spent = [*spent, name]
    if kept is None:
        kept = [row for rows in found.values() for row in rows if alive(row)]
    names = sorted(found, key=lambda name: min(map(place_of, found[name])))
    parts = _cut(kept, [min(map(place_of, found[name])) for name in names])
    steps: list[tuple[list[str], list[StoredSample]]] = []
    for name, part in zip(names or [""], parts):
        old, rows = steps[-1] if steps else ([], [])
        small = 2 * min(_bytes(store, rows), _bytes(store, part)) < store.segment
        if steps and small and _bytes(store, rows + part) <= store.segment:
            steps[-1] = [*old, name], rows + part
        else:
            steps.append(([name], part))
    changed = [(old, rows) for old, rows in steps
               if len(old) > 1 or not old[0] or [*map(_as_stored, rows)] != sorted(map(_as_stored, found[old[0]]))]
    changed.sort(key=lambda step: _bytes(store, step[1]) - sum(_bytes(store, found[name]) for name in step[0] if name))
    for old, rows in changed:
        put(store, [name for name in old if name], split(store, rows), EXEMPLARS)
    put(store, spent, [], EXEMPLARS)
    store.drop_codebooks()


def put(store: Store, names: list[str], parts: list[list[StoredSample]], kind: str, tuned: int | None = None) -> None:
    """Write samples as one file a part in the place of the files `names`; tuned: see `Store.add_file`. Commits. Raises
    BudgetError."""
    if not names and not parts:
        return
    need = sum(pages(_bytes(store, rows)) + PAGE for rows in parts) + store.journal_bytes() + 2 * PAGE
    store.ledger.ask(need, "packing samples")
    store.connection.executemany("DELETE FROM files WHERE name = ?", [(name,) for name in names])
    for rows in parts:
        store.add_file(rows, kind, tuned)
    store.step()


def place_of(row: StoredSample) -> tuple[str, int, int]:
    """Where a sample stands among all."""
    return row.label, row.key, row.id or 0


def _as_stored(row: StoredSample) -> tuple[tuple[str, int, int], str, bool, bool, bytes]:
    return place_of(row), row.coded, row.trained, row.judges, row.feature.tobytes()


def _cut(rows: list[StoredSample], starts: list[tuple[str, int, int]]) -> list[list[StoredSample]]:
    """The samples in their order, cut where the files begin; the first takes what comes before it."""
    parts: list[list[StoredSample]] = [[] for _ in range(max(len(starts), 1))]
    for row in sorted(rows, key=place_of):
        parts[max(bisect_right(starts, place_of(row)) - 1, 0)].append(row)
    return parts


def split(store: Store, rows: list[StoredSample]) -> list[list[StoredSample]]:
    """The samples in as many parts as it takes for each to fit a segment."""
    count = -(-_bytes(store, rows) // store.segment) if rows else 0
    return [rows[len(rows) * number // count:len(rows) * (number + 1) // count] for number in range(count)]


def _bytes(store: Store, rows: list[StoredSample]) -> int:
    return packed_bytes(store.by_codec(rows))
