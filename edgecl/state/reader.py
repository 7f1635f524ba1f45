"""What lies in a state directory, as it is read: settings, generations, files of samples, codecs.

    STATE/edgecl.db              the truth: settings, generations, and which files hold the stored samples
    STATE/edgecl.copy            its rows once more as JSON, which serve if it is damaged
    STATE/learned.log            generations that only added samples, until they move into the database
    STATE/reserved               what the quota has left, kept on the disk
    STATE/models/<sha256>.onnx   backbones and heads;  .npz  snapshots of class statistics;  .journal  samples learned
                                 between two snapshots;  .exemplars  the exemplar buffer;  .codebook  of its codec;
                                 .features  of older samples by a tuned backbone;  .parts  what its method keeps
    STATE/set-aside/             damaged files, until they are discarded

What a generation knows is its latest snapshot at or before it plus the samples journaled since. Files are
content-addressed: written, fsynced and renamed before the transaction that names them, deleted after the one
that no longer does. All writing happens inside one exclusive transaction, so a kill leaves before or after.
Samples lie in files, not in a table: each is checked by its hash, and deleting one leaves no copy behind, which a
b-tree does when it rebalances, `secure_delete` or not (1 of 800 deleted rows, measured).
"""
from __future__ import annotations

import json
import sqlite3
from contextlib import contextmanager
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from edgecl.errors import BadInput, StateError
from edgecl.exemplars.codebook import Codebook
from edgecl.exemplars.codecs import Float32, Int8
from edgecl.exemplars.stored import StoredSample, rows_of, unpack
from edgecl.files.regular import read_regular
from edgecl.settings import Settings
from edgecl.state.blobs import Blobs
from edgecl.state.database import damaged, is_damage, translated
from edgecl.state.generations import Generation
from edgecl.state.log_damage import LogProblem, cut_log, damaged_part, wrong_log
from edgecl.state.open_database import OpenDatabase
from edgecl.state.quota import Ledger, Usage, segment_bytes
from edgecl.state.rows import COPY_FILE, SENSELESS, Rows
from edgecl.state.set_aside import SetAside
from edgecl.state.write_ahead_log import TAG, LoggedGeneration, WriteAheadLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgecl.exemplars.codecs import FeatureCodec

JOURNAL, EXEMPLARS = "journal", "exemplars"  # suffixes of the files that hold samples,
FEATURES, PARTS = "features", "parts"        # and of what a learning round leaves
MOST_SIZES = 1000   # of details that are remembered
KEPT_HEADS = 8  # each makes a generation restorable
HISTORY = 50  # generations that the history names; merges, and the last forget that was not exact, stay in it for good


class StateReader:
    """An open state directory, to be read. Raises StateError if there is none, or it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path, self.set_aside = path, SetAside(path)
        self.blobs = Blobs(path / "models", self.set_aside)
        self.log = WriteAheadLog(path, self.codec)
        self.writing = False
        self.opened_again: Callable[[], None] = lambda: None  # for who keeps what a generation of that number knew
        self.dropped: list[str] = []  # what this open has cut off the log, one line each
        self._taken: Rows | None = None
        self.meta: dict[str, Any] = {}
        self._listed: tuple[object, list[Generation]] = (None, [])
        self._parsed: tuple[Rows | None, list[Generation]] = (None, [])
        self._alive: tuple[object, list[Generation]] = (None, [])
        self._held: object = None   # what the history was listed of inside a change
        self._detail_bytes: dict[tuple[int, str | None], int] = {}
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
                f"{self.database.path} can't be used: {self.database.damage}; {COPY_FILE} serves in its place"]

    def close(self) -> None:
        """Close the database; the store must not be used afterwards."""
        self.database.close()

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows of a statement. Raises StateError, BudgetError."""
        with translated(self.path):
            return self.connection.execute(statement, values).fetchall()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A read transaction: files that are named now stay until it ends."""
        outermost = not self.connection.in_transaction
        if outermost:
            self.begin()
        try:
            yield
        finally:
            if outermost and self.connection.in_transaction:
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
                if not is_damage(error):
                    raise
                self._open_again()      # the file was damaged meanwhile
                self.database.begin(how)
                self._take(self.database.read())

    def _open_again(self) -> None:
        self.database.close()
        self.database.open()
        self.books.clear()
        self._detail_bytes.clear()
        self.opened_again()

    def _take(self, rows: Rows) -> None:
        """Have rows count from now on. Raises StateError if they are of another state."""
        if rows is self._taken:
            return
        meta = rows.parsed_meta()
        if self._taken is not None and meta["id"] != self.meta["id"]:
            self.connection.execute("ROLLBACK")
            raise StateError(f"{self.path} holds another state than the one that was opened",
                             "restart what uses it, so that it opens this one")
        self._taken, self.meta = rows, meta

    def refresh(self) -> None:
        """Read again what another process may have set."""
        if self.connection.in_transaction:
            with translated(self.path):
                self._take(self.database.read())
        else:
            with self.reading():
                pass

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

    def restorable(self) -> set[int]:
        """Ids of the generations that can be gone back to exactly, all files that this takes being intact. A head that
        was not written, or is damaged, is solved again, as long as no exemplar was evicted since."""
        with self.reading():
            found: set[int] = set()
            alive = self.alive()
            hurt = [span for name, *span in self.files(JOURNAL) if not self.blobs.intact(name)]
            lost = [*self.value("lost", []), *([problem.lost[0], alive[-1].id] for problem in self.log_problems()
                                               if problem.lost)]
            last = max((g.id for g in alive if g.snapshot), default=0)
            last = max([last, *(json.loads(n) for n, in self.query("SELECT value FROM meta WHERE key = 'evicted'"))])
            base: int | None = None
            backbones = {name: self.blobs.intact(name) for name in {g.backbone for g in alive} if name}
            tuned = self.tuned()
            for g in alive:
                if g.action == "init":
                    base = g.id
                elif g.snapshot:
                    base = g.id if self.blobs.intact(g.snapshot) else None
                elif not g.journaled:
                    base = None
                complete = base is not None and not any(oldest <= g.id and newest > base for oldest, newest in hurt)
                complete = complete and not any(base < first <= g.id <= last for first, last in lost)
                complete = complete and (backbones[g.backbone] if g.backbone else tuned is None)
                solvable = not g.detail.get("classes") or g.id > last
                if complete and (solvable or (g.head is not None and self.blobs.intact(g.head))):
                    found.add(g.id)
            return found

    def damage(self) -> list[str]:
        """What is damaged, one line each: what was noted, what is set aside, what this open has found, and every named
        file that is not intact. Changes nothing."""
        with self.reading():
            lines = [f"{when}: {what}" for when, what in self._noted()]
            lines += [problem.line for problem in self.log_problems()]
            if not self.writable and self.log.odd_tail:
                lines.append(f"the last {self.log.tail} bytes of {self.log.path.name} are not a whole record, as a "
                             "power cut or a kill leaves them; nothing that was acknowledged was lost, and they are "
                             "left out")
            lines += [problem for name in sorted(self._named()) if (problem := self.blobs.problem(name))]
        return list(dict.fromkeys([*lines, *self.found, *self.set_aside.describe()]))

    def _noted(self) -> list[tuple[str, str]]:
        """What `Transaction.note_damage` has noted: when, and what."""
        return [(when, what) for when, what in self.value("damage", [])]

    def value(self, key: str, default: Any) -> Any:
        """A value of the table meta as it is now."""
        found = self.query("SELECT value FROM meta WHERE key = ?", key)
        return json.loads(found[0][0]) if found else default

    @property
    def epoch(self) -> str:
        """The epoch of the current log."""
        return str(self.value("epoch", ""))

    def log_has_moved(self) -> bool:
        """Whether the log on the disk is the one that moved into the database last, byte for byte."""
        epoch, digest = self.value("before", ["", ""])
        content = self.log.digest()
        if epoch:
            return not self.log.stale(epoch) and content == digest
        return bool(self.query("SELECT 1 FROM files WHERE name = ?", f"{content}.{JOURNAL}"))  # format 2

    def log_problems(self) -> list[LogProblem]:
        """What is damaged in the log and was not noted yet; changes nothing."""
        with self.reading(), translated(self.path):
            log, epoch, acknowledged = self.log, self.epoch, self.log.acknowledged()
            if log.stale(epoch):
                lost = acknowledged is not None and acknowledged.goes_on(epoch)
                if (self.log_has_moved() and not lost) or not log.stale(epoch):  # another process began it meanwhile
                    return []
                found = [wrong_log(log, acknowledged, max((g.id for g in self.generations()), default=0))]
            else:
                known = {g.id for g in self.generations()} if log.damaged else set()
                found = [damaged_part(log, part, known) for part in log.damaged]
                if acknowledged and acknowledged.tag == epoch[:TAG] and log.length < acknowledged.length:
                    every = self.generations()
                    moved = max((g.id for g in every if not (g.logged or g.undone)), default=0)
                    found.append(cut_log(log, acknowledged, moved, {g.id for g in every}))
            noted = self.noted_keys()
            return [problem for problem in found if problem.key not in noted]

    def noted_keys(self) -> list[str]:
        """The keys of the problems of the current log that were noted."""
        epoch, keys = self.value("log_noted", ["", []])
        return list(keys) if epoch == self.epoch else []

    def _named(self) -> set[str]:
        """The names of all files that a row or a generation names."""
        heads = [entry.generation.head for entry in self.logged() if entry.generation.head]
        with translated(self.path):
            return self.database.read().names() | set(heads[-KEPT_HEADS:])

    def files(self, kind: str) -> list[tuple[str, int, int]]:
        """The files of samples of a kind: name, and the oldest and newest generation in it."""
        return [(str(name), oldest, newest) for name, oldest, newest
                in self.query("SELECT name, oldest, newest FROM files WHERE name LIKE ? ORDER BY oldest, newest, name",
                              f"%.{kind}")]

    def rows(self, name: str) -> list[StoredSample]:
        """The samples of a file. Raises StateError if it is damaged."""
        return rows_of(self.blob_path(name).read_bytes(), self.codec, str(self.blobs.folder / name))

    def intact_rows(self, name: str, oldest: int, newest: int) -> list[StoredSample]:
        """The samples of a file's whole records that are of generations `oldest` to `newest`; none if it can't be read.
        What is left out is told by `damage`."""
        try:
            data = read_regular(self.blobs.folder / name)
            return [row for _, _, record in unpack(data, self.codec) for row in record.rows or ()
                    if oldest <= (row.generation or 0) <= newest]
        except (OSError, StateError):  # StateError: its codebook is damaged
            return []

    def samples_damaged(self) -> bool:
        """Whether any stored sample, or a codebook of some, is damaged."""
        with self.reading(), translated(self.path):
            names = [name for kind in (EXEMPLARS, JOURNAL) for name, *_ in self.files(kind)]
            names += [name for name, _ in self.meta.get("codebooks", [])]
            return bool(self.log.damaged) or not all(map(self.blobs.intact, names))

    def samples(self, until: int) -> list[StoredSample]:
        """All intact samples stored up to generation `until`, in the order in which they came."""
        alive, found = self.living(), dict[int, StoredSample]()
        for name, oldest, newest in [*self.files(EXEMPLARS), *self.files(JOURNAL)]:
            if oldest <= until:
                found |= {row.id or 0: row for row in self.intact_rows(name, oldest, newest)}
        for entry in self.logged():
            if entry.generation.id <= until:
                found |= {row.id or 0: row for row in entry.rows or ()}
        rows = [row for _, row in sorted(found.items()) if alive(row) and (row.generation or 0) <= until]
        tuned = self.tuned(until)
        if tuned is None or not (names := [name for name, number, _ in self.files(FEATURES) if number == tuned]):
            return rows
        moved = {row.id: row for name in names for row in self.intact_rows(name, 0, tuned)}
        return [_moved(row, moved[row.id]) if row.id in moved else row for row in rows
                if row.id in moved or (row.generation or 0) > tuned]

    def tuned(self, until: int | None = None) -> int | None:
        """The newest generation, up to `until`, to which a backbone came from a learning round; None without any."""
        rounds = [g.id for g in self.alive() if g.action == "round" or "tuned" in g.detail]
        return max((number for number in rounds if until is None or number <= until), default=None)

    def parts(self) -> bytes | None:
        """What the method of the latest learning round keeps; None if there is none, or it is damaged."""
        tuned = self.tuned()
        names = [name for name, number, _ in self.files(PARTS) if number == tuned]
        return (self.blobs.folder / names[0]).read_bytes() if names and self.blobs.intact(names[0]) else None

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
        """The codebook of exemplars that are not held back; None if there is none, or it is damaged."""
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

    def living(self) -> Callable[[StoredSample], bool]:
        """A function: whether a stored sample was neither rolled back nor forgotten."""
        every = self.generations()
        undone = {g.id for g in every if g.undone}
        forgotten = {g.detail["class"]: g.id for g in every if g.action == "forget" and "class" in g.detail}
        return lambda row: row.generation not in undone and (row.generation or 0) > forgotten.get(row.label, 0)

    def blob_path(self, name: str) -> Path:
        """The path of a content-addressed file. Raises StateError if it is missing or altered."""
        try:
            return self.blobs.path(name, "go back with `edgecl rollback N`, see `edgecl history`")
        except StateError as error:
            if any(g.backbone == name for g in self.generations()):
                raise StateError(error.what, "restore it from a copy, or create a new state") from error
            raise

    def used_bytes(self) -> int:
        """Bytes of the whole directory, counted in pages; what is only reserved does not count."""
        return self.usage().total

    def usage(self) -> Usage:
        """The same by what they are for. Raises StateError if the directory is gone."""
        with translated(self.path):
            return self.ledger.usage()


def _moved(row: StoredSample, after: StoredSample) -> StoredSample:
    """A stored sample with its feature by a later backbone."""
    return row._replace(feature=after.feature, trained=after.trained, judges=after.judges)
