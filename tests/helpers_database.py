"""What a state's database holds, and whether the state says that it was damaged."""
from __future__ import annotations

from helpers_state import answers

from edgecl.state.reader import StateReader

NOTES = {"digest", "revision", "damage"}    # what a database that was built again has otherwise


def rows_of(store):
    """All rows but the notes about them."""
    rows = store.database.rows
    return ({key: value for key, value in rows.meta.items() if key not in NOTES}, sorted(rows.generations),
            sorted(rows.files), rows.last)


def shown(learner):
    """What a state answers and knows."""
    return answers(learner), [(c.name, c.samples) for c in learner.classes()], rows_of(learner.store)


def noted(state):
    """Whether a state says that its database was damaged."""
    with_notes = StateReader(state)
    try:
        return bool(with_notes.found) or "edgecl.db" in str(with_notes.meta.get("damage", ""))
    finally:
        with_notes.close()
