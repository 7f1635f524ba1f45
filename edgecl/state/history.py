"""The history of a state: generations of the database and of the log, as one list."""
from __future__ import annotations

import json
from operator import itemgetter
from typing import TYPE_CHECKING

from edgecl.state.corrections import Living
from edgecl.state.database import damaged, translated
from edgecl.state.generations import Generation
from edgecl.state.log_entries import LoggedGeneration
from edgecl.state.open_state import OpenState
from edgecl.state.rows import Rows

if TYPE_CHECKING:
    from pathlib import Path

MOST_SIZES = 1000   # of details that are remembered
HISTORY = 50  # generations that the history names; merges, and the last forget that was not exact, stay in it for good


class History(OpenState):
    """A state directory, opened, with its history."""

    def __init__(self, path: Path) -> None:
        self._listed: tuple[object, list[Generation]] = (None, [])
        self._parsed: tuple[Rows | None, list[Generation]] = (None, [])
        self._alive: tuple[object, list[Generation]] = (None, [])
        self._held: object = None   # what the history was listed of inside a change
        self._detail_bytes: dict[tuple[int, str | None], int] = {}
        super().__init__(path)

    def _start_over(self) -> None:
        self._detail_bytes.clear()
        super()._start_over()

    def generations(self) -> list[Generation]:
        """The history, the oldest generation first, as a list that is not to be changed. Raises StateError if it is
        damaged."""
        if self.writing and self._held == (self.connection.total_changes, self.log.seen):
            return self._listed[1]      # nobody else can have changed it
        with self.reading(), translated(self.path):
            entries, rows = self.logged(), self.database.read()
            key = id(rows), self.log.seen
            self._held = (self.connection.total_changes, self.log.seen) if self.writing else None
            if self._parsed[0] is not rows or self._listed[0] != key:
                if self._parsed[0] is not rows:
                    self._parsed = rows, rows.parsed_generations()
                stored, logged = self._parsed[1], [entry.generation for entry in entries]
                backbone = next((g.backbone for g in reversed(stored) if g.backbone and not g.undone), None)
                self._listed = key, sorted([*stored, *(
                    g._replace(backbone=backbone) for g in logged if g.head or g.id > logged[-1].id - HISTORY)],
                    key=itemgetter(0))
            return self._listed[1]

    def detail_bytes(self, g: Generation) -> int:
        """Bytes of a logged generation's detail as the database will hold it."""
        key = g.id, g.head
        if key not in self._detail_bytes:
            if len(self._detail_bytes) > MOST_SIZES:
                self._detail_bytes.clear()
            self._detail_bytes[key] = len(json.dumps(g.detail))
        return self._detail_bytes[key]

    def logged(self) -> list[LoggedGeneration]:
        """The generations that stand in the log, with their samples."""
        if self.writing and self._held == (self.connection.total_changes, self.log.seen):
            return self.log.entries_seen
        with self.reading():
            epoch = self.query("SELECT value FROM meta WHERE key = 'epoch'")
            with translated(self.path):
                return self.log.entries(json.loads(epoch[0][0])) if epoch else []

    @property
    def current(self) -> int:
        """Id of the current generation: the newest that was not rolled back."""
        alive = self.alive()
        return alive[-1].id if alive else 0

    @property
    def newest(self) -> Generation:
        """The current generation."""
        alive = self.alive()
        if not alive:
            raise damaged(self.path, "it names no generation")
        return alive[-1]

    def alive(self) -> list[Generation]:
        """The generations that were not rolled back, the oldest first, as a list that is not to be changed."""
        every = self.generations()
        if self._alive[0] is not every:
            self._alive = every, [g for g in every if not g.undone]
        return self._alive[1]

    def living(self, until: int | None = None) -> Living:
        """Which stored samples live at generation `until`, or now."""
        return Living(self.generations(), until)

    def tuned(self, until: int | None = None) -> int | None:
        """The newest generation, up to `until`, to which a backbone came from a learning round; None without any."""
        rounds = [g.id for g in self.alive() if g.action == "round" or "tuned" in g.detail]
        return max((number for number in rounds if until is None or number <= until), default=None)
