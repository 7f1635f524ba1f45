"""Heads of older generations whose files are damaged or missing: solved again, so that the ways back stay open."""
from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from edgecl.errors import BudgetError, StateError
from edgecl.state.integrity import HEAD, named_files

if TYPE_CHECKING:
    from edgecl.learning.repository import Repository
    from edgecl.state.generations import Generation
    from edgecl.state.store import Store

TRAINED = "trained"     # begins the kind of a head that is not in closed form
SAME = "the same bit for bit"
SIMILAR = "from what is still stored of that time, so its confidence may differ"
CLOSED_FORM = "in closed form, since the one that a learning round had trained is in no other file"


def without_head(store: Store) -> list[Generation]:
    """The generations whose head is named, but damaged or missing."""
    with store.reading():
        hurt = {name for name, about in named_files(store).items()
                if about.kind == HEAD and not store.blobs.intact(name)}
        return [g for g in store.alive() if g.head in hurt]


def solve_again(repository: Repository) -> list[str]:
    """Solve every damaged or missing head again from what its generation knew, and write it, as far as there is room;
    what was done. A damaged file is set aside. Raises StateError."""
    store, done = repository.store, list[str]()
    for g in without_head(store):
        with store.exclusive():
            if g.head is None or store.blobs.intact(g.head):    # by one that was solved for another generation
                continue
            try:
                how = _solved_again(repository, g, g.head)
            except BudgetError as error:
                done.append(f"the head of generation {g.id} was not solved again: {error.what}")
            except StateError:  # its statistics are not to be had: the report says so
                continue
            else:
                done.append(f"the head of generation {g.id} was solved again, {how}")
    return done


def _solved_again(repository: Repository, g: Generation, name: str) -> str:
    """How the head of a generation was solved again and written, inside `Store.exclusive`. Raises StateError,
    BudgetError."""
    store = repository.store
    if g.id not in store.computable():
        raise StateError(f"what generation {g.id} knew is not known any more", "go back to another one")
    solved = repository.heads.solution(g, repository.load(g.id))
    same = hashlib.sha256(solved.head).hexdigest() == name.partition(".")[0]
    if same:
        store.ledger.ask(store.naming_bytes(solved.head, {}), "the head")
        store.blobs.write(solved.head, "onnx")
    else:
        store.name_head(g, solved.head, solved.summary)
        store.commit_rows()
    trained = str(g.detail.get("head", "")).startswith(TRAINED)
    return SAME if same else CLOSED_FORM if trained else SIMILAR
