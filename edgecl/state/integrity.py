"""What a state directory consists of, and what of it is intact; nothing is changed by looking."""
from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from edgecl.errors import StateError
from edgecl.exemplars.stored import described, unpack
from edgecl.files.regular import is_something_else, read_regular
from edgecl.settings import counted
from edgecl.state.acknowledged import ACKNOWLEDGED_FILE
from edgecl.state.blobs import OURS, TEMPORARY
from edgecl.state.database import DATABASE_FILE, MODELS
from edgecl.state.gathered_file import GATHERED_FILE, read_gathered
from edgecl.state.open_database import read_copy
from edgecl.state.quota import RESERVE
from edgecl.state.reader import EXEMPLARS, FEATURES, JOURNAL, PARTS
from edgecl.state.rows import COPY_FILE, FORMAT
from edgecl.state.set_aside import SET_ASIDE, SetAside
from edgecl.state.write_ahead_log import LOG_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from edgecl.state.reader import StateReader

BACKBONE, HEAD, STATISTICS, CODEBOOK = "backbone", "head", "statistics", "codebook"
WHAT = {EXEMPLARS: "exemplars", JOURNAL: "samples", FEATURES: "features", PARTS: "memory of the method"}
INTACT, DAMAGED, MISSING, NOTED = "intact", "damaged", "missing", "noted"    # verdicts; the next ones are no damage
ASIDE, LEFT_OVER, FOREIGN = "set aside", "left over", "foreign"
BAD = {DAMAGED, MISSING, NOTED}


class CheckedFile(NamedTuple):
    """A file of a state, by its path in it, or damage that was noted. what: it is; verdict: one of the above; problem,
    cure, lost: what is wrong, what `edgecl check --repair` makes of it, and what is lost, "" for nothing."""

    file: str
    what: str
    verdict: str
    bytes: int = 0
    problem: str = ""
    cure: str = ""
    lost: str = ""


class NamedFile(NamedTuple):
    """A file in models/ that a state names. kind: what it is; oldest, newest: the generations that it is of."""

    kind: str
    oldest: int
    newest: int

    @property
    def what(self) -> str:
        """The same in words."""
        if self.kind == CODEBOOK:
            return "codebook of exemplars"
        if self.oldest == self.newest:
            return f"{self.kind} of generation {self.oldest}"
        return f"{self.kind} of generations {self.oldest} to {self.newest}"


def named_files(state: StateReader) -> dict[str, NamedFile]:
    """Every file in models/ that a state names. To be called in `StateReader.reading`."""
    found: dict[str, NamedFile] = {}
    alive = state.alive()
    logged = state.logged_heads()
    for g in alive:
        for name, kind in ((g.backbone, BACKBONE), (g.snapshot, STATISTICS), (g.head, HEAD)):
            if name and (kind != HEAD or not g.logged or name in logged):
                found[name] = NamedFile(kind, found[name].oldest if name in found else g.id, g.id)
    for kind, what in WHAT.items():
        found |= {name: NamedFile(what, oldest, newest) for name, oldest, newest in state.files(kind)}
    return found | {name: NamedFile(CODEBOOK, 0, 0) for name, _ in state.meta.get("codebooks", [])}


def check_rights(state: StateReader, names: Iterable[str]) -> None:
    """Raise StateError if this user may not read a file in models/, or one beside it: it is not damaged."""
    beside = [state.path / name for name in (COPY_FILE, ACKNOWLEDGED_FILE)]
    for path in [*beside, *(state.blobs.folder / name for name in names)]:
        if path.exists() and not os.access(path, os.R_OK):
            raise StateError(f"{path} can't be read by this user", "run it as its owner, or give the rights")


def survey(state: StateReader) -> list[CheckedFile]:
    """Every file of a state, read whole. Raises StateError if this user may not."""
    with state.reading():
        state.refresh()
        named = named_files(state)
        check_rights(state, named)
        found = [*_top(state), *(_named(state, name, about) for name, about in sorted(named.items()))]
        noted = [CheckedFile("", f"noted on {when}", NOTED, problem=what) for when, what in state.value("damage", [])]
    return [*found, *_others(state.path, set(named)), *noted]


def survey_without_rows(folder: Path, error: StateError) -> list[CheckedFile]:
    """The same if neither the database nor its copy is intact, so that it is not known what the files are."""
    found = [CheckedFile(DATABASE_FILE, "settings, history, names of files", DAMAGED, _size(folder / DATABASE_FILE),
                     error.what, "", "everything but the files: " + error.cure)]
    for path in sorted((folder / MODELS).iterdir()) if (folder / MODELS).is_dir() else []:
        found.append(CheckedFile(f"{MODELS}/{path.name}", "file of a state", FOREIGN, _size(path)))
    return found


def _top(state: StateReader) -> Iterator[CheckedFile]:
    """The files beside models/."""
    folder, database = state.path, state.database
    what = "settings, history, names of files"
    size = _size(folder / DATABASE_FILE)
    if database.damage is not None:
        verdict, wrong = (DAMAGED, database.damage) if os.path.lexists(folder / DATABASE_FILE) else (MISSING, "")
        cure = f"built again from {database.served_by}" if database.failure is None else ""
        yield CheckedFile(DATABASE_FILE, what, verdict, size, wrong, cure)
    else:
        yield CheckedFile(DATABASE_FILE, what, INTACT, size)
    what, size = "the same once more", _size(folder / COPY_FILE)
    if database.rows.format == FORMAT:
        if read_copy(folder) is None and os.path.lexists(folder / COPY_FILE):
            yield CheckedFile(COPY_FILE, what, DAMAGED, size, _kind(folder / COPY_FILE), "written again")
        elif database.stale:
            yield CheckedFile(COPY_FILE, what, LEFT_OVER, size, "not of the last change; the next one writes it")
        else:
            yield CheckedFile(COPY_FILE, what, INTACT, size)
    log, size = state.log, _size(folder / LOG_FILE)
    problems = state.log_problems()
    what = "samples learned last"
    if log.failure:
        yield CheckedFile(LOG_FILE, what, DAMAGED, size, f"it can't be read ({log.failure})")
    for problem in problems:
        yield CheckedFile(LOG_FILE, what, DAMAGED, size, problem.line, "set aside; what is intact stays")
    if not (problems or log.failure):
        note = f"no whole record at its end ({counted(log.tail, 'byte')}); {log.tail_is_lost}" if log.tail else ""
        yield CheckedFile(LOG_FILE, what, INTACT, size, note)
    if os.path.lexists(folder / GATHERED_FILE):
        yield _gathered(folder)
    if wrong := _kind(folder / RESERVE):
        yield CheckedFile(RESERVE, "room that the quota has left", DAMAGED, _size(folder / RESERVE), wrong,
                          "set aside, and made again")
    if os.path.lexists(models := folder / MODELS) and not models.is_dir():
        yield CheckedFile(MODELS, "folder of files", DAMAGED, _size(models), "not a folder",
                          "set aside, and another one is made")
    if os.path.lexists(folder / ACKNOWLEDGED_FILE):
        verdict, cure = (INTACT, "") if log.acknowledged() else (DAMAGED, "written again")
        path = folder / ACKNOWLEDGED_FILE
        yield CheckedFile(path.name, "how far the log is acknowledged", verdict, _size(path), _kind(path), cure)


def _gathered(folder: Path) -> CheckedFile:
    path, problem = folder / GATHERED_FILE, ""
    try:
        read_gathered(folder)
    except StateError as error:
        problem = _kind(path) or error.what.removeprefix(f"{path} ")
    return CheckedFile(path.name, "frames gathered for review", DAMAGED if problem else INTACT, _size(path), problem,
                       "deleted" if problem else "", "the frames in it, of which none was taught" if problem else "")


def _kind(path: Path) -> str:
    """What is wrong with something else than a regular file; "" for one."""
    return "not a regular file" if is_something_else(path) else ""


def _named(state: StateReader, name: str, about: NamedFile) -> CheckedFile:
    path = state.blobs.folder / name
    size = _size(path)
    if not os.path.lexists(path):
        return CheckedFile(f"{MODELS}/{name}", about.what, MISSING, 0, lost=_lost(state, name))
    try:
        state.blobs.path(name, "")
    except StateError as error:
        problem = error.what.removeprefix(f"{path} ").removeprefix("is damaged: ")
        return CheckedFile(f"{MODELS}/{name}", about.what, DAMAGED, size, problem, lost=_lost(state, name))
    return CheckedFile(f"{MODELS}/{name}", about.what, INTACT, size)


def _lost(state: StateReader, name: str) -> str:
    """What a damaged file of samples has held, as far as its records say so."""
    if name.rpartition(".")[2] not in (EXEMPLARS, JOURNAL, FEATURES):
        return ""
    try:
        records = [record for _, _, record in unpack(read_regular(state.blobs.folder / name), state.codec)]
        lost = [described(record.about) for record in records if record.rows is None]
    except (OSError, StateError):
        lost = []
    return ", ".join(lost) or "samples, nobody can tell of which class"


def _others(folder: Path, named: set[str]) -> Iterator[CheckedFile]:
    """What is set aside, left over, or not edgecl's."""
    aside = SetAside(folder)
    for path in aside.files():
        yield CheckedFile(f"{SET_ASIDE}/{path.name}", "was damaged, or not named", ASIDE, _size(path))
    models = folder / MODELS
    for path in sorted(models.iterdir()) if models.is_dir() else []:
        if path.name not in named:
            ours = not path.is_dir() and (OURS.fullmatch(path.name) or TEMPORARY.fullmatch(path.name))
            yield CheckedFile(f"{MODELS}/{path.name}", "nothing names it" if ours else "not made by edgecl",
                          LEFT_OVER if ours else FOREIGN, _size(path))
    known = {DATABASE_FILE, COPY_FILE, LOG_FILE, ACKNOWLEDGED_FILE, RESERVE, GATHERED_FILE, MODELS,
             SET_ASIDE}
    for path in sorted(folder.iterdir()):
        with suppress(OSError):
            if path == aside.folder and (path.is_symlink() or not path.is_dir()):
                yield CheckedFile(path.name, "not made by edgecl, and not a folder: nothing can be set aside", FOREIGN,
                                  _size(path))
            elif path.name == f"{DATABASE_FILE}-journal":
                yield CheckedFile(path.name, "of a change that was cut off, or goes on", LEFT_OVER, _size(path))
            elif path.name not in known and not stat.S_ISSOCK(path.lstat().st_mode):
                yield CheckedFile(path.name, "not made by edgecl", FOREIGN, _size(path))


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
