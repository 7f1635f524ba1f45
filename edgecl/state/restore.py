"""A state from a backup: it appears whole and checked, or not at all."""
from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from edgecl.errors import BadInput, StateError
from edgecl.files.atomic import appearing, make_parents
from edgecl.settings import format_size
from edgecl.state.backup import check_new, into, write_folder
from edgecl.state.backup_tar import files_of
from edgecl.state.database import DATABASE_FILE, MODELS
from edgecl.state.frozen import frozen
from edgecl.state.integrity import named_files
from edgecl.state.reader import StateReader
from edgecl.state.rows import COPY_FILE
from edgecl.state.store import Store
from edgecl.state.write_ahead_log import LOG_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from edgecl.state.backup import Progress
    from edgecl.state.frozen import StateFile

CURE = ("give another backup, or unpack this one with `tar`, and restore what `edgecl check --repair --state FOLDER` "
        "makes of it")
NOT_OURS = "name a folder or a .tar that `edgecl backup` wrote"


class Restored(NamedTuple):
    """A state that was made from a backup. unreserved: bytes of its quota that the disk could not reserve."""

    generation: int
    files: int
    bytes: int
    unreserved: int


def restore(parts: Iterable[StateFile], source: str, path: Path, progress: Progress) -> Restored:
    """A new state in the folder `path` from the files of a backup; it appears whole and checked, or not at all.

    source: the backup's name, for errors; progress: called with the number of bytes written. Raises BadInput if the
    backup is not whole and intact, BudgetError, StateError.
    """
    check_new(path)
    for outer in path.resolve().parents:
        if (outer / DATABASE_FILE).is_file() and (outer / MODELS).is_dir():
            raise BadInput(f"{path} is inside the state {outer}", "choose a place outside")
    with into(path):
        make_parents(path)
        with appearing(path) as making:
            write_folder(parts, making, progress)
            files, size = _checked(making, source)
            with closing(Store(making)) as state:
                generation = state.current
                unreserved = state.ledger.unreserved()
    return Restored(generation, files, size, unreserved)


def _checked(making: Path, source: str) -> tuple[int, int]:
    """Delete what the state does not name; number and bytes of the files left. Raises BadInput unless all it names is
    there and intact."""
    try:
        with closing(StateReader(making)) as state, state.reading():
            named = named_files(state)
            wrong = [f"{MODELS}/{name} ({about.what})" for name, about in named.items() if not state.blobs.intact(name)]
            wrong += [LOG_FILE] if state.log_problems() else []
            wrong += [DATABASE_FILE] if state.database.damage else []
            wrong += [COPY_FILE] if (making / COPY_FILE).exists() and state.database.stale else []
            if state.used_bytes() > state.ledger.quota:
                raise BadInput(f"{source} takes {state.used_bytes()} bytes, more than its quota of "
                               f"{format_size(state.ledger.quota)}", "give what `edgecl backup` wrote")
    except StateError as error:
        what = error.what.replace(f"{making}/", "").replace(str(making), "it")
        raise BadInput(f"{source} can't be restored: {what}", CURE) from error
    if wrong:
        raise BadInput(f"{source} can't be restored: {', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''} "
                       f"{'is' if len(wrong) == 1 else 'are'} missing or damaged in it", CURE)
    for path in (making / MODELS).iterdir():
        if path.name not in named:
            path.unlink()
    sizes = [path.stat().st_size for path in making.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


@contextmanager
def parts_of(source: Path, stream: BinaryIO | None = None) -> Iterator[Iterable[StateFile]]:
    """The files of a backup: a folder, a tar, or a stream of a tar. Raises BadInput, StateError."""
    if stream is not None:
        yield files_of(stream.read, "the backup on stdin")
    elif source.is_dir():
        if not any((source / name).exists() for name in (DATABASE_FILE, COPY_FILE)):
            raise BadInput(f"{source} is not a backup: there is no {DATABASE_FILE} in it", NOT_OURS)
        with frozen(source) as state:
            yield state.parts
    else:
        try:
            file = source.open("rb")
        except OSError as error:
            raise BadInput(f"{source} can't be read ({error.strerror})", NOT_OURS) from error
        with file:
            yield files_of(file.read, str(source))
