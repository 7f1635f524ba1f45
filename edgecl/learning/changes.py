"""Changes of what is known: how each is made while other processes make theirs, to forget a class, and to go back."""
from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from edgecl.errors import BadInput, ChangedMeanwhile, StateError
from edgecl.learning import certificate
from edgecl.learning.forgetting import REMAINS
from edgecl.learning.status import known_are
from edgecl.state.corrections import DROPPED, runs_of
from edgecl.state.gathered_file import GATHERED_FILE
from edgecl.state.generations import Rewrite

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgecl.learning.repository import Repository
    from edgecl.state.store import Store

T = TypeVar("T")
ATTEMPTS = 20   # to make a change while other processes change the state


def exclusively(store: Store, work: Callable[[], T]) -> T:
    """Do a change that holds the state for writing, and do it again if another process came in between. Raises
    StateError, BudgetError; then nothing has changed."""
    for _ in range(ATTEMPTS - 1):
        with suppress(ChangedMeanwhile), store.exclusive():
            return work()
    with store.exclusive():
        return work()


def forget_class(repository: Repository, label: str, certify: bool = False) -> dict[str, Any]:
    """See `Learner.forget`. To be called in `exclusively`."""
    store = repository.store
    knowledge = repository.known()
    if label not in knowledge.labels:
        raise BadInput(f"no class is called {label!r}", known_are(knowledge.labels))
    shown = store.tuned() is not None and knowledge.shown_to_backbone(label)
    kept = knowledge.kept_ids()
    draft = certificate.drafted(repository, knowledge, label) if certify else None
    exact = knowledge.forget(label) and not shown
    dropped = knowledge.let_go(kept)
    remains = {} if knowledge.remains in ("", REMAINS) else {"remains": knowledge.remains}
    detail: dict[str, Any] = {"class": label, "exact": exact}
    if dropped:     # after a kill they may still be on the disk
        detail[DROPPED] = runs_of(row.id for row in dropped if row.id is not None)
    if draft is not None:
        draft = certificate.completed(draft, knowledge, exact, shown, knowledge.remains)
        detail["certificate"] = certificate.digest(draft)
    change = Rewrite("forget", detail, erase=frozenset({label}))
    discarded, gathered = len(store.set_aside.files()), (store.path / GATHERED_FILE).exists()
    generation = repository.commit(knowledge, change)
    done = {"class": label, "generation": generation, "exact": exact, "discarded": discarded, **remains,
            **({"gathered": True} if gathered else {})}
    return done if draft is None else {**done, "certificate": certificate.issued(draft, store.newest)}


def roll_back(repository: Repository, generation: int | None) -> int:
    """See `Learner.rollback`. To be called in `exclusively`."""
    store = repository.store
    newest, alive = store.newest, [g.id for g in store.generations() if not g.undone]
    possible = sorted(store.restorable() & set(alive[:-1]))
    here = newest.detail.get("to", newest.id)  # after a rollback, the step before where that led
    wanted = max((i for i in alive if i < here), default=None) if generation is None else generation
    if wanted not in possible:
        shown = ", ".join(map(str, possible)) or "none"
        what = "there is no generation before this one" if wanted is None else \
            f"generation {wanted} is the current one" if wanted == newest.id else \
            f"generation {wanted} can't be restored"
        raise StateError(what, f"restorable are: {shown} (see `edgecl history`)")
    knowledge = repository.load(wanted)
    return repository.commit(knowledge, Rewrite("rollback", {"to": wanted}, undo_after=wanted))
