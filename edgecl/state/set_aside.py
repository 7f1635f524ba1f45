"""STATE/set-aside/: damaged files that another one has replaced, or that are no longer named. They count in the quota;
only `forget`, since they may hold the class, and `edgecl check --discard` delete them.
"""
from __future__ import annotations

import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from edgecl.errors import StateError
from edgecl.files.atomic import make_folder, sync_folder
from edgecl.settings import format_size

if TYPE_CHECKING:
    from pathlib import Path

SET_ASIDE = "set-aside"


class SetAside:
    """What is set aside in a state directory. Changes are made under the state's lock."""

    def __init__(self, state: Path) -> None:
        self.folder = state / SET_ASIDE

    def keep(self, path: Path) -> Path | None:
        """Move a file or folder of the state here as NAME.1, NAME.2, ..., and sync; its new path, None if there was
        nothing to move. Raises StateError if something else lies in the folder's place, OSError."""
        if not os.path.lexists(path):
            return None
        if not self._is_there:
            if os.path.lexists(self.folder):
                raise StateError(f"{self.folder} is not a folder, so nothing can be set aside", "move it elsewhere")
            make_folder(self.folder)
        number = 1
        while os.path.lexists(target := self.folder / f"{path.name}.{number}"):
            number += 1
        path.rename(target)
        sync_folder(self.folder)
        sync_folder(path.parent)
        return target

    def files(self) -> list[Path]:
        """What is set aside, sorted by name."""
        return sorted(self.folder.iterdir()) if self._is_there else []

    @property
    def _is_there(self) -> bool:
        """Whether there is the folder; a link in its place is none, since what it leads to is not the state's."""
        return self.folder.is_dir() and not self.folder.is_symlink()

    def discard(self) -> int:
        """Delete everything that is set aside, and sync; the number of files. Raises OSError."""
        found = self.files()
        for path in found:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if self._is_there:
            sync_folder(self.folder)
            self.folder.rmdir()
            sync_folder(self.folder.parent)
        return len(found)

    def describe(self) -> list[str]:
        """One line that says how much is set aside; [] if nothing is."""
        found = self.files()
        if not found:
            return []
        size = 0
        for path in found:
            with suppress(OSError):  # deleted by another process just now
                size += path.lstat().st_size
        return [f"{len(found)} damaged file{'s are' if len(found) > 1 else ' is'} set aside in {self.folder} "
                f"({format_size(size)}); `edgecl check` says more, `edgecl check --discard` deletes what is set aside"]
