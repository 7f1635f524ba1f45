"""What a folder holds, found from names and sizes alone: files that can be read, kinds that can't, links; and how data
sets are laid out.

Links are followed, to files and to folders, and no folder is gone through twice, so that a loop ends. Hidden files and
folders, and those that systems leave behind (Thumbs.db, __MACOSX, @eaDir, lost+found), are skipped without a word.
"""
from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from edgecl.errors import BadInput
from edgecl.samples import Refusal
from edgecl.sources.kinds import READABLE, can_be_read, kinds_in_words
from edgecl.sources.spec import shown

SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "picasa.ini"}
SYSTEM_FOLDERS = {"__macosx", "__pycache__", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot",
                  "lost+found", "$recycle.bin", "recycler", "system volume information"}
PARTS = {"train", "training", "val", "valid", "validation", "test", "testing", "eval", "dev", "holdout"}
SESSIONS = re.compile(     # folders that tell when or by whom, not what: dates, folders of cameras, numbered takes
    r"(19|20)\d\d([-_. ]?(0[1-9]|1[0-2])([-_. ]?[0-3]\d)?)?([\W_].*)?|(?=(.*\d){6})[\d\s._:-]+|[1-9]\d\d[A-Z0-9_]{5}|"
    r"(day|session|take|part|batch|run|trial|clip|video|recording|person|subject|participant|user)[ _-]*\d+", re.I)
SHOWN = 5   # names in a line


@dataclass
class FolderContents:
    """What a folder holds, its subfolders included. files: that can be read, in the order of their names, and sizes:
    their bytes; kinds: suffix -> files of a kind that can't be read; refused: what can't be opened; dead, again: links
    that lead nowhere, and to a folder gone through already; special: what is neither a file nor a folder."""

    path: Path
    files: list[Path] = field(default_factory=list)
    sizes: dict[Path, int] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    refused: list[Refusal] = field(default_factory=list)
    dead: int = 0
    again: int = 0
    special: int = 0

    def notes(self) -> list[str]:
        """What was left out, a line for each reason, with its cure."""
        lines = kinds_in_words(self.kinds)
        return lines + [f"{count} {what}{'s' * (count > 1)}{why}" for count, what, why in (
            (self.dead, "link", " to nothing"), (self.again, "link", " to a folder that is gone through anyway"),
            (self.special, "pipe, socket or device", "")) if count]

    def subfolders(self) -> list[str]:
        """Names of the direct subfolders that hold a file that can be read; [] if there are such files beside them."""
        inside = [file.relative_to(self.path).parts for file in self.files]
        return sorted({parts[0] for parts in inside}) if all(len(parts) > 1 for parts in inside) else []

    def empty(self) -> BadInput:
        """The error if nothing can be read."""
        left = f" ({'; '.join(self.notes())})" if self.notes() else ""
        return BadInput(f"{self.path} contains no photo or recording{left}", f"give files of {', '.join(READABLE)}")


def look(path: Path) -> FolderContents:
    """What a folder holds. Raises BadInput if it can't be opened."""
    found = FolderContents(path)
    try:
        seen = {_identity(each.stat()) for each in path.resolve().parents}
        os.scandir(path).close()
    except OSError as error:
        raise BadInput(f"{path} can't be opened ({error.strerror})", "check its permissions") from None
    real, linked = [path], list[Path]()     # folders to go through: a link only after all that are there themselves
    while real or linked:
        _look(real.pop() if real else linked.pop(0), found, seen, real, linked)
    found.files.sort()
    return found


def _look(folder: Path, found: FolderContents, seen: set[tuple[int, int]], real: list[Path],
          linked: list[Path]) -> None:
    """One folder. seen: folders gone through."""
    try:
        identity = _identity(folder.stat())
        if identity in seen:
            found.again += 1
            return
        seen.add(identity)
        with os.scandir(folder) as entries:
            here = [*entries]
    except OSError as error:
        found.refused.append(Refusal(shown(folder), f"it can't be opened ({error.strerror})"))
        return
    for entry in here:
        if skipped(entry.name):
            continue
        path = Path(entry.path)
        try:
            status = entry.stat()
        except OSError as error:
            if entry.is_symlink():
                found.dead += 1
            else:
                found.refused.append(Refusal(shown(path), f"it can't be opened ({error.strerror})"))
            continue
        if S_ISDIR(status.st_mode):
            (linked if entry.is_symlink() else real).append(path)
        elif not S_ISREG(status.st_mode):
            found.special += 1
        elif can_be_read(path.suffix.lower()):
            found.files.append(path)
            found.sizes[path] = status.st_size
        else:
            found.kinds[path.suffix.lower()] += 1


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def skipped(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left behind by a system."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES or name.lower() in SYSTEM_FOLDERS


# layouts --------------------------------------------------------------------------------------------


def check_layout(folder: Path, classes: Iterable[FolderContents]) -> None:
    """Raises BadInput if the subfolders of a folder are parts of a data set, such as train and test, or hold classes
    themselves, rather than being classes."""
    classes = [each for each in classes if each.files]
    parts = [each for each in classes if each.path.name.lower() in PARTS]
    nested = [each for each in parts if each.subfolders()]
    if nested or (len(parts) > 1 and len(parts) == len(classes)):
        names = ", ".join(each.path.name for each in parts)
        teach = next((each for each in nested if each.path.name.lower().startswith("train")), (nested or parts)[0])
        raise BadInput(f"{folder} holds parts of a data set ({names}), not classes", (
            f"did you mean --from {teach.path}? It holds {_some(teach.subfolders())}; if {names} are classes, add "
            "--subfolders") if nested else f"if {names} are classes, add --subfolders")
    for each in classes:
        check_one_class(each, each.path.name)


def check_one_class(found: FolderContents, label: str) -> None:
    """Raises BadInput if a folder that is to show one class has several subfolders of photos or recordings and none
    beside them, unless their names tell when or by whom."""
    inside = found.subfolders()
    if len(inside) > 1 and not all(SESSIONS.fullmatch(name) for name in inside):
        parts = sorted((name for name in inside if name.lower() in PARTS), key=lambda name: name[:5].lower() != "train")
        meant = found.path / parts[0] if parts else found.path
        raise BadInput(f"{found.path} holds the subfolders {_some(inside)}, and no photo or recording beside them",
                       f"did you mean --from {meant}? If all of them show {label}, add --subfolders")


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


# copies ---------------------------------------------------------------------------------------------


def copies(found: Iterable[FolderContents]) -> Iterator[list[Path]]:
    """Files with the same content, the first of each group being the first by name. Only files of one size are read,
    and as a rule only three pieces of them."""
    of_size: dict[int, list[Path]] = {}
    for each in found:
        for path in each.files:
            of_size.setdefault(each.sizes[path], []).append(path)
    for size, paths in of_size.items():
        if len(paths) > 1:
            for group in _equal(paths, size, whole=False):
                yield from _equal(group, size, whole=True)


PIECE = 4096    # bytes


def _equal(paths: list[Path], size: int, whole: bool) -> Iterator[list[Path]]:
    import hashlib

    groups: dict[bytes, list[Path]] = {}
    for path in paths:
        digest = hashlib.blake2b(digest_size=16)
        try:
            with path.open("rb") as file:
                if whole:
                    while block := file.read(2 ** 20):
                        digest.update(block)
                else:
                    for place in (0, size // 2, max(size - PIECE, 0)):
                        file.seek(place)
                        digest.update(file.read(PIECE))
        except OSError:     # it is refused when it is read
            continue
        groups.setdefault(digest.digest(), []).append(path)
    yield from (group for group in groups.values() if len(group) > 1)
