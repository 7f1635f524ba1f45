"""What corrections leave on the disk until no way back needs it: the samples that they have taken out, and their notes.

The functions work on a transaction that is open.
"""
from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgecl.state.corrections import GONE, NOTES, former_names, without_names, without_notes
from edgecl.state.exemplar_files import Replacement, replacing_bytes, split
from edgecl.state.quota import PAGE, pages
from edgecl.state.reader import FEATURES, JOURNAL

if TYPE_CHECKING:
    from edgecl.state.generations import Generation
    from edgecl.state.transaction import Transaction


def for_the_way_back(state: Transaction, since: int) -> list[Replacement]:
    """What writes the samples of `since` that later corrections have taken out into files of their own, which go when
    no way back needs them; nothing if the quota has no room for them beside the exemplars."""
    later = [g.id for g in state.alive() if g.id > since and any(note in g.detail for note in NOTES)]
    now = state.living()
    there = {row.id for name, oldest, newest in state.files(JOURNAL) if newest > since
             for row in state.intact_rows(name, oldest, newest)}
    found = [row for row in state.samples(since) if row.id not in there and not now(row)]
    steps = [Replacement([], [part], JOURNAL, newest=max(later)) for part in split(state, found)]
    usage, journal = state.ledger.usage(), state.journal_bytes()
    packing = max(pages(state.settings.exemplars) - usage.exemplars, 0) + state.segment
    taken = sum(replacing_bytes(state, step, 0) for step in steps) + journal + packing
    return steps if usage.total - state.ledger.giving_way() + taken <= state.ledger.quota else []


def drop_notes(state: Transaction, since: int, arranged: bool) -> None:
    """Drop what corrections have noted of samples that are not on the disk any more, and commit, if there is room.
    arranged: whether the exemplars were written as they are at `since`."""
    details = {g.id: detail for g in state.alive() if g.id <= since
               and (detail := without_notes(g, arranged)) != g.detail}
    names = [name for kind in (JOURNAL, FEATURES) for name, *_ in state.files(kind)]
    if not details or not all(map(state.blobs.intact, names)):
        return
    if state.ledger.usage().total - state.ledger.giving_way() + state.journal_bytes() + 2 * PAGE > state.ledger.quota:
        return
    state.ledger.release(state.journal_bytes() + 2 * PAGE)
    for number, detail in details.items():
        state.connection.execute("UPDATE generations SET detail = ? WHERE id = ?", (json.dumps(detail), number))
    state.step()


def erase_names(state: Transaction, marked: list[Generation]) -> None:
    """Drop the names of the classes that some generations have erased from the history, in the open transaction."""
    every = state.generations()
    for g in marked:
        gone = {*g.detail.get(GONE, []), *([g.detail["class"]] if "class" in g.detail else [])}
        names = former_names(every, gone, g.id)
        for each in every:
            detail = without_names(each, names)
            if detail != each.detail and each.id != g.id:
                state.connection.execute("UPDATE generations SET detail = ? WHERE id = ?",
                                         (json.dumps(detail), each.id))
