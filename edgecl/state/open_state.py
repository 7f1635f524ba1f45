"""A state directory, opened: its database, log and folder of files, read transactions, and codecs of samples."""
from __future__ import annotations

import json
import sqlite3
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgecl.errors import BadInput, StateError
from edgecl.exemplars.codebook import Codebook
from edgecl.exemplars.codecs import Float32, Int8
from edgecl.exemplars.stored import StoredSample
from edgecl.settings import Settings
from edgecl.state.blobs import Blobs
from edgecl.state.database import MODELS, damaged, is_damage, is_failure, translated
from edgecl.state.open_database import OpenDatabase
from edgecl.state.quota import Ledger, Usage, segment_bytes
from edgecl.state.rows import SENSELESS, Rows
from edgecl.state.set_aside import SetAside
from edgecl.state.write_ahead_log import WriteAheadLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgecl.exemplars.codecs import FeatureCodec

REBUILT = "the next change writes it again"
NO_CHANGE = "nothing can be learned until the disk gives it back"


class OpenState:
    """A state directory, opened. Raises StateError if there is none, or it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path, self.set_aside = path, SetAside(path)
        self.blobs = Blobs(path / MODELS, self.set_aside)
        self.log = WriteAheadLog(path, self.codec, lambda: self._start_over())
        self.writing = False
        self.started_over: Callable[[], None] = lambda: None  # for who keeps what a generation of that number knew
        self.dropped: list[str] = []  # what this open has cut off the log, one line each
        self._taken: Rows | None = None
        self.meta: dict[str, Any] = {}
        self.books: dict[str, Codebook] = {}
        with translated(path):
            self.database = OpenDatabase(path)
        try:
            self.refresh()
            self.settings = self._settings()
        except BaseException:
            self.close()
            raise
        self.ledger, self.segment = Ledger(path, self.settings.quota), segment_bytes(self.settings.exemplars)

    def _settings(self) -> Settings:
        try:
            return Settings(**{"quota": None, **self.meta["settings"]})
        except (TypeError, BadInput) as error:
            raise damaged(self.path, "its settings can't be read") from error

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection to the database, or to its rows in memory."""
        return self.database.connection

    @property
    def writable(self) -> bool:
        """Whether this process may write the state."""
        return self.database.writable

    @property
    def found(self) -> list[str]:
        """Damage that opening has found, one line each."""
        if self.database.damage is None:
            return self.dropped
        return [*self.dropped,
                f"{self.database.path} can't be used: {self.database.damage}; {self.database.served_by} serves in its "
                f"place, and {REBUILT if self.database.failure is None else NO_CHANGE}"]

    def close(self) -> None:
        """Close the database; the store must not be used afterwards."""
        self.database.close()

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows of a statement. Raises StateError, BudgetError."""
        with translated(self.path):
            return self.connection.execute(statement, values).fetchall()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A read transaction: files that are named now stay until it ends, and each is looked at once at most."""
        if self.connection.in_transaction:
            yield
            return
        self.begin()
        try:
            with self.blobs.one_look():
                yield
        finally:
            if self.connection.in_transaction:
                self.query("ROLLBACK")

    def begin(self, how: str = "") -> None:
        """Begin a transaction on the newest intact rows, wherever they are. Raises StateError, BudgetError."""
        with translated(self.path):
            if self.database.moved():
                self._open_again()
            self.database.begin(how)
            try:
                self._take(self.database.read())
            except (sqlite3.Error, *SENSELESS) as error:
                if not (is_damage(error) or is_failure(error)):
                    raise
                self._open_again()      # the file was damaged meanwhile
                self.database.begin(how)
                self._take(self.database.read())

    def _open_again(self) -> None:
        self.database.close()
        self.database.open()
        self._start_over()

    def _start_over(self) -> None:
        """Drop what is kept for the number of a generation: it may be another one's by now, as somebody may have copied
        older files over these."""
        self.books.clear()
        self.started_over()

    def _take(self, rows: Rows, mine: bool = False) -> None:
        """Have rows count from now on. mine: whether this process has written them. Raises StateError if they are of
        another state."""
        if rows is self._taken:
            return
        meta = rows.parsed_meta()
        if self._taken is not None and meta["id"] != self.meta["id"]:
            self.connection.execute("ROLLBACK")
            raise StateError(f"{self.path} holds another state than the one that was opened",
                             "restart what uses it, so that it opens this one")
        others = self._taken is not None and not (mine or self.database.changed) and rows != self._taken
        self._taken, self.meta = rows, meta
        if others:
            self._start_over()

    def refresh(self) -> None:
        """Read again what another process may have set."""
        if self.connection.in_transaction:
            with translated(self.path):
                self._take(self.database.read())
        else:
            with self.reading():
                pass

    def value(self, key: str, default: Any) -> Any:
        """A value of the table meta as it is now."""
        found = self.query("SELECT value FROM meta WHERE key = ?", key)
        return json.loads(found[0][0]) if found else default

    @property
    def epoch(self) -> str:
        """The epoch of the current log."""
        return str(self.value("epoch", ""))

    def blob_path(self, name: str) -> Path:
        """The path of a content-addressed file. Raises StateError if it is missing or altered."""
        try:
            return self.blobs.path(name, "go back with `edgecl rollback N`, see `edgecl history`")
        except StateError as error:
            if any(name == g[4] for g in self.database.rows.generations):
                raise StateError(error.what, "restore it from a copy, or create a new state") from error
            raise

    def codec(self, name: str) -> FeatureCodec:
        """The feature codec of a name, as this state uses it. Raises StateError if its codebook is damaged."""
        if name == "raw":
            return Float32()
        if "foundation" not in self.meta:
            self.refresh()
        if name == "int8-feature":
            return Int8(self.meta["foundation"]["power"])
        return self._codebook(name, 0).codec

    @property
    def codebook(self) -> Codebook | None:
        """The codebook of exemplars that do not stay as they were learned; None if there is none, or it is damaged."""
        books = self.meta.get("codebooks")
        return self._codebook(*books[-1]) if books and self.blobs.intact(books[-1][0]) else None

    def _codebook(self, name: str, classes: int) -> Codebook:
        if name not in self.books:
            data = self.blob_path(name).read_bytes()
            self.books[name] = Codebook.read(name, data, self.meta["foundation"]["power"], classes)
        return replace(self.books[name], classes=classes)

    @property
    def exact(self) -> FeatureCodec:
        """The codec in which features are learned, and can be forgotten exactly."""
        return self.exact_codec()

    def exact_codec(self, foundation: dict[str, Any] | None = None) -> FeatureCodec:
        """The same for a foundation that is not committed yet."""
        about = foundation or self.meta["foundation"]
        return Float32() if (about["codec"], about["kind"]) == ("raw", "feature") else Int8(about["power"])

    def by_codec(self, rows: list[StoredSample]) -> list[tuple[list[StoredSample], FeatureCodec]]:
        """The samples that are as they were learned, and those of each codebook, with their codec."""
        return [([row for row in rows if row.coded == name], self.codec(name) if name else self.exact)
                for name in sorted({row.coded for row in rows})]

    def used_bytes(self) -> int:
        """Bytes of the whole directory, counted in pages; what is only reserved does not count."""
        return self.usage().total

    def usage(self) -> Usage:
        """The same by what they are for. Raises StateError if the directory is gone."""
        with translated(self.path):
            return self.ledger.usage()
