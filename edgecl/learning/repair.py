"""`edgecl check`: what of a state is damaged, what can be restored and how, and what is lost; `--repair` does it.

A repair throws no bytes away: damaged files that are replaced, or no longer named, are set aside. What is known is
written again as one new generation, so that a kill leaves the state as it was before it or after it.
"""
from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from edgecl.errors import BudgetError, StateError
from edgecl.learning.backbone_file import backbone_file, had_again
from edgecl.learning.rebuilding import rebuilt_from_stored
from edgecl.learning.repository import Repository
from edgecl.learning.solved_again import solve_again
from edgecl.state.database import LOCK_TIMEOUT, MODELS
from edgecl.state.gathered_file import GATHERED_FILE, discard_gathered, read_gathered
from edgecl.state.generations import Rewrite
from edgecl.state.integrity import (
    BACKBONE,
    BAD,
    CODEBOOK,
    HEAD,
    STATISTICS,
    WHAT,
    CheckedFile,
    NamedFile,
    check_rights,
    named_files,
    survey,
    survey_without_rows,
)
from edgecl.state.reader import EXEMPLARS, FEATURES, JOURNAL, PARTS, StateReader
from edgecl.state.recovery import rebuild

if TYPE_CHECKING:
    from pathlib import Path

    from edgecl.state.generations import Generation
    from edgecl.state.store import Store

ROOM = "copy set-aside/ elsewhere and delete it with `edgecl check --discard`, or forget a class, then try again"
BEYOND = "`edgecl restore` of a backup is what is left"


class Report(NamedTuple):
    """What `check` has found. generation: the current one, 0 if it is not known; done: what a repair has done."""

    generation: int
    findings: list[CheckedFile]
    done: list[str]

    @property
    def intact(self) -> bool:
        """Whether nothing is damaged, missing, or noted as damaged."""
        return not any(finding.verdict in BAD for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {"intact": self.intact, "generation": self.generation, "done": self.done,
                "files": [finding._asdict() for finding in self.findings]}


def check(path: Path) -> Report:
    """Read everything in a state directory; changes nothing. Raises StateError if there is none, or it is of another
    format."""
    try:
        reader = StateReader(path)
    except StateError as error:
        if not (path / MODELS).is_dir() or "is damaged" not in error.what:
            raise
        return Report(0, survey_without_rows(path, error), [])
    with closing(reader) as state, state.reading():
        found, named = survey(state), named_files(state)
        explain = _Explain(Repository(cast("Store", state), state.settings), named)
        return Report(state.current, [explain(finding) if finding.verdict in BAD else finding for finding in found], [])


def repair(repository: Repository) -> Report:
    """Restore what can be restored, and clear what was noted; what is left is in the report. Raises StateError for a
    state that may not be written, BudgetError; then what was done so far stays."""
    store, done = repository.store, list[str]()
    store.blobs.make_folder()
    with store.reading():
        check_rights(store, named_files(store))
    with store.exclusive():     # which has set aside a damaged log, and built a damaged database again
        books = store.meta.get("codebooks", [])
        kept = [book for book in books if store.blobs.intact(book[0])]
        if kept != books:
            store.set_meta("codebooks", kept)
            store.commit_rows()
            done.append("a damaged codebook was dropped, with the exemplars that it coded")
        try:
            read_gathered(store.path)
        except StateError:
            discard_gathered(store.path)
            done.append(f"{GATHERED_FILE} was deleted, with the frames gathered for review in it")
    repository.release()
    foundation = repository.foundation
    if foundation is not None:
        backbone = store.newest.backbone
        if backbone is not None and not store.blobs.intact(backbone):
            with suppress(StateError):  # the report says so
                if isinstance(backbone_file(store, foundation, backbone), bytes):
                    raise BudgetError(f"the quota has no room for the backbone beside the damaged one ({backbone})",
                                      ROOM)
                done.append(f"{MODELS}/{backbone}, the backbone, was had again")
        done += solve_again(repository)
        if kept != books or _touched(store) or _log_rotted(store):
            done += _write_again(repository)
    done += _let_go(store)
    return check(store.path)._replace(done=done)


def discard(store: Store) -> int:
    """Delete everything that is set aside, and a damaged database if the quota has no room for an intact one beside it;
    the number of files. Raises StateError, BudgetError."""
    deleted = 0
    if store.writable and store.database.damage is not None:
        deleted = rebuild(store, LOCK_TIMEOUT, discard=True)
    with store.exclusive():
        return deleted + store.set_aside.discard()


def _touched(store: Store) -> bool:
    """Whether damage is in what is known now, or in what the log names."""
    with store.reading():
        named, alive = named_files(store), store.alive()
        base = max((g.id for g in alive if g.snapshot), default=0)
        hurt = {name: about for name, about in named.items() if not store.blobs.intact(name)}
        logged = {g.head for g in alive if g.logged}
        return bool(store.log.damaged) or any(
            name in logged or about.kind in (WHAT[EXEMPLARS], WHAT[FEATURES])
            or (about.kind in (HEAD, STATISTICS) and about.newest in (store.current, base))
            or (about.kind == WHAT[JOURNAL] and about.newest > base) for name, about in hurt.items())


def _log_rotted(store: Store) -> bool:
    """Whether the log was damaged after this process has read it: what it has read is written again."""
    with closing(StateReader(store.path)) as fresh:
        return bool(fresh.log_problems()) and not store.log_problems()


def _write_again(repository: Repository) -> list[str]:
    """Write statistics, exemplars and head again as a new generation; what was done: nothing if nothing that is stored
    gives the statistics. Raises BudgetError."""
    store = repository.store
    try:
        with store.exclusive():
            try:
                knowledge, detail, how = repository.known(), {}, "from what is intact"
            except StateError:
                rebuilt = rebuilt_from_stored(repository)
                if rebuilt is None:
                    return []
                knowledge, how = rebuilt.knowledge, rebuilt.figures
                detail = {"exact": False, "known_samples": rebuilt.known, "taught_samples": rebuilt.taught}
            repository.commit(knowledge, Rewrite("repair", detail))
    except BudgetError as error:
        raise BudgetError(error.what, ROOM) from error
    return [f"statistics, exemplars and head were written again, {how}"]


def _let_go(store: Store) -> list[str]:
    """No longer name damaged files that only ways back need, and clear what was noted; what was done."""
    done = []
    with store.exclusive():
        run, newest = store.connection.execute, store.newest
        base = max((g for g in store.alive() if g.snapshot), default=newest, key=lambda g: g.id)
        for name, about in named_files(store).items():
            if store.blobs.intact(name) or name in (newest.backbone, base.snapshot):
                continue
            if about.kind == BACKBONE:
                run("UPDATE generations SET backbone = NULL WHERE backbone = ?", (name,))
            elif about.kind == HEAD:
                run("UPDATE generations SET head = NULL WHERE head = ?", (name,))
            elif about.kind == STATISTICS:
                run("UPDATE generations SET snapshot = NULL WHERE snapshot = ?", (name,))
            else:
                _let_go_of_samples(store, name, about)
            done.append(f"{MODELS}/{name} ({about.what}) is set aside or was missing, and is no longer named")
        if store.value("damage", []):
            store.set_meta("damage", [])
            done.append("what was noted is cleared")
        store.commit_rows()
    return done


def _let_go_of_samples(store: Store, name: str, about: NamedFile) -> None:
    """Replace a damaged file of samples by one of those that are intact."""
    store.connection.execute("DELETE FROM files WHERE name = ?", (name,))
    if about.kind == WHAT[PARTS]:
        return
    rows = store.intact_rows(name, 0 if about.kind == WHAT[FEATURES] else about.oldest, about.newest)
    if about.kind == WHAT[FEATURES]:
        store.add_samples(rows, FEATURES, about.newest)     # an empty one, too: without any, older features would count
    elif about.kind == WHAT[JOURNAL]:
        store.add_samples(rows, JOURNAL, newest=about.newest)
        store.note_lost([[about.oldest, store.current]])
    else:
        store.add_samples(rows, EXEMPLARS)


class _Explain:
    """Says of damage what a repair makes of it, and what is lost."""

    def __init__(self, repository: Repository, named: dict[str, NamedFile]) -> None:
        self.repository, self.named = repository, named
        alive = repository.store.alive()
        self.newest, self.computable = alive[-1], repository.store.computable()
        self.base: Generation | None = next((g for g in reversed(alive) if g.snapshot), None)

    def __call__(self, finding: CheckedFile) -> CheckedFile:
        about = self.named.get(finding.file.removeprefix(f"{MODELS}/"))
        if about is None:
            return finding
        cure, lost = self._about(finding.file.removeprefix(f"{MODELS}/"), about, finding.lost)
        return finding._replace(cure=cure, lost=lost)

    def _about(self, name: str, about: NamedFile, held: str) -> tuple[str, str]:
        """Cure and loss. held: what a damaged file of samples has held."""
        way_back = f"the way back to generation {about.newest}"
        if about.kind == BACKBONE:
            return self._backbone(name, way_back)
        if about.kind == STATISTICS:
            return self._statistics(name, way_back)
        if about.kind == HEAD:
            if about.newest == self.newest.id:
                return "solved again from what is known", ""
            return ("solved again from what was known then", "") if about.newest in self.computable else ("", way_back)
        if about.kind == CODEBOOK:
            return "dropped; another one is made if exemplars need it", "the exemplars that it coded"
        if about.kind == WHAT[EXEMPLARS]:
            return "left out; what was learned from them stays in the statistics", held
        if about.kind == WHAT[JOURNAL] and self.base is not None and about.newest <= self.base.id:
            return "left out; what was learned from them stays in the statistics", f"ways back, {held}"
        if about.kind == WHAT[PARTS]:
            return "", "what the method remembers; the next round begins without it"
        return "left out", held

    def _backbone(self, name: str, way_back: str) -> tuple[str, str]:
        foundation = self.repository.foundation
        if name != self.newest.backbone or foundation is None:
            return "", way_back
        try:
            return f"had again from {had_again(foundation, name)[1]}", ""
        except StateError as error:
            return "", f"all answers: {error.what}; {error.cure}"

    def _statistics(self, name: str, way_back: str) -> tuple[str, str]:
        if self.base is None or name != self.base.snapshot:
            return "", way_back
        try:
            self.repository.load(self.newest.id)
            return "computed again from what is stored, exactly", ""
        except StateError:
            rebuilt = rebuilt_from_stored(self.repository)
        if rebuilt is None:
            return "", f"what was learned, except for the head; {BEYOND}"
        return f"computed again from what is stored, {rebuilt.figures}", "what the other samples taught"
