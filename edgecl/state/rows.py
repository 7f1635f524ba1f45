"""The rows of a state's database under one digest, and edgecl.copy, which holds the same rows as JSON.

SQLite has no checksums of its own, so a flipped bit in a row would be read as if it had been written. The digest is a
row of table meta; it covers all other rows, in a fixed order, and the newest id that was given out.
"""
from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from functools import lru_cache
from typing import Any, NamedTuple

from edgecl.files.forms import COUNT, has_form, have_forms
from edgecl.state.generations import DETAIL, Generation

COPY_FILE = "edgecl.copy"
FORMAT = 3          # of a state directory
MOST_NOTES = 20     # of damage
OLDEST_FORMAT = 2   # that can be read; it is brought over when it is opened for writing
FILES = "CREATE TABLE files (name TEXT PRIMARY KEY, oldest INTEGER NOT NULL, newest INTEGER NOT NULL, origin TEXT);"
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE generations (
    id INTEGER PRIMARY KEY AUTOINCREMENT, created TEXT NOT NULL, action TEXT NOT NULL, detail TEXT NOT NULL,
    backbone TEXT, head TEXT, snapshot TEXT, journaled INTEGER NOT NULL, undone INTEGER NOT NULL DEFAULT 0);
""" + FILES
MASTER = "SELECT type, name, tbl_name, sql FROM sqlite_master"
TEXT, NAME, NUMBER = (str,), (str, type(None)), (int,)
GENERATION = (NUMBER, TEXT, TEXT, TEXT, NAME, NAME, NAME, NUMBER, NUMBER)   # types of the columns
FILE = (TEXT, NUMBER, NUMBER, NAME)
META = {"id": str, "epoch": str, "settings": dict, "foundation": dict, "damage": [(str, str)], "lost": [(COUNT, COUNT)],
        "numbered": COUNT, "log_noted": (str, [str]), "codebooks": [(str, COUNT)], "evicted": COUNT,
        "before": (str, str)}   # forms of the values of meta
SENSELESS = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)


class Rows(NamedTuple):
    """All rows of a database. meta: the JSON of each key; generations, files: columns as in SCHEMA; last: the newest
    id that a generation was given."""

    meta: dict[str, str]
    generations: list[tuple[Any, ...]]
    files: list[tuple[Any, ...]]
    last: int

    @property
    def format(self) -> int:
        """Format of the state directory."""
        return int(json.loads(self.meta["format"]))

    @property
    def revision(self) -> int:
        """Number of commits; 0 in format 2, where they are not counted."""
        return int(json.loads(self.meta.get("revision", "0")))

    @property
    def digest(self) -> str:
        """SHA-256 of all rows but the digest itself."""
        rest = sorted((key, value) for key, value in self.meta.items() if key != "digest")
        text = json.dumps([rest, sorted(self.generations, key=_first), sorted(self.files, key=_first), self.last])
        return hashlib.sha256(text.encode()).hexdigest()

    def sealed(self) -> Rows:
        """The same rows, one revision later, with their digest."""
        meta = {**self.meta, "revision": json.dumps(self.revision + 1)}
        return self._replace(meta={**meta, "digest": json.dumps(self._replace(meta=meta).digest)})

    def check(self) -> Rows:
        """Raise ValueError, TypeError or another of SENSELESS if a row is not as it was written."""
        for rows, types in ((self.generations, GENERATION), (self.files, FILE)):
            for row in rows:
                if len(row) != len(types) or not all(isinstance(value, kind) for value, kind in zip(row, types)):
                    raise TypeError("a value is of another type")
        if self.format >= FORMAT and json.loads(self.meta["digest"]) != self.digest:
            raise ValueError("its rows do not match their digest")
        if self.format < FORMAT and {"digest", "revision"} & set(self.meta):
            raise ValueError("its format does not match its rows")
        meta, ids = self.parsed_meta(), [row[0] for row in self.generations]
        if "id" not in meta or not have_forms(meta, META) or not has_form([*ids, self.last], [COUNT]):
            raise TypeError("a value is of another type")
        if not all(have_forms(g.detail, DETAIL) for g in self.parsed_generations()):
            raise TypeError("a detail is of another type")
        return self

    def parsed_meta(self) -> dict[str, Any]:
        """The values of meta."""
        return {key: json.loads(value) for key, value in self.meta.items()}

    def parsed_generations(self) -> list[Generation]:
        """The generations, the oldest first."""
        return [Generation(row[0], row[1], row[2], json.loads(row[3]), row[4], row[5], row[6], bool(row[7]),
                           bool(row[8])) for row in self.generations]

    def names(self) -> set[str]:
        """Names of the files in models/ that a row names."""
        books = json.loads(self.meta.get("codebooks", "[]"))
        return {name for *_, backbone, head, snapshot, _, undone in self.generations if not undone
                for name in (backbone, head, snapshot) if name} | {name for name, *_ in self.files} | {
                    name for name, _ in books}


def _first(row: tuple[Any, ...]) -> Any:
    return row[0]


@lru_cache
def schema_of(state_format: int) -> set[tuple[str, str, str, str]]:
    """The tables and indices of a database of that format, as table sqlite_master holds them."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA if state_format == FORMAT else SCHEMA.replace(", origin TEXT", ""))
        return set(connection.execute(MASTER))


def read_rows(connection: sqlite3.Connection) -> Rows:
    """All rows of an open database, as they are. Raises sqlite3.Error, UnicodeDecodeError."""
    run = connection.execute
    meta = dict(run("SELECT key, value FROM meta"))
    generations = run("SELECT * FROM generations ORDER BY id").fetchall()
    files = [row if len(row) > len(FILE) - 1 else (*row, None) for row in run("SELECT * FROM files ORDER BY name")]
    last = max((seq for seq, in run("SELECT seq FROM sqlite_sequence WHERE name = 'generations'")), default=0)
    return Rows(meta, generations, files, last)


def write_rows(connection: sqlite3.Connection, rows: Rows) -> None:
    """Make an empty database one with these rows. Raises sqlite3.Error."""
    connection.executescript(SCHEMA)
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO meta VALUES (?, ?)", sorted(rows.meta.items()))
    connection.executemany(f"INSERT INTO generations VALUES ({', '.join('?' * len(GENERATION))})", rows.generations)
    connection.executemany(f"INSERT INTO files VALUES ({', '.join('?' * len(FILE))})", rows.files)
    connection.execute("DELETE FROM sqlite_sequence")
    connection.execute("INSERT INTO sqlite_sequence VALUES ('generations', ?)", (rows.last,))
    connection.execute("COMMIT")


def copy_of(rows: Rows) -> bytes:
    """Content of edgecl.copy."""
    generations = [[*row[:3], json.loads(row[3]), *row[4:]] for row in rows.generations]
    return json.dumps({"meta": {key: json.loads(value) for key, value in sorted(rows.meta.items())}, "last": rows.last,
                       "generations": generations, "files": rows.files}).encode()


def rows_of_copy(data: bytes) -> Rows:
    """The rows that edgecl.copy holds. Raises ValueError or another of SENSELESS if it is damaged."""
    found = json.loads(data)
    generations = [(*row[:3], json.dumps(row[3]), *row[4:]) for row in found["generations"]]
    meta = {key: json.dumps(value) for key, value in found["meta"].items()}
    rows = Rows(meta, generations, [*map(tuple, found["files"])], found["last"]).check()
    if rows.format != FORMAT:
        raise ValueError("another format")
    return rows


def bit_apart(one: str, other: str) -> bool:
    """Whether two texts differ in a single bit."""
    pairs = [*zip(one.encode(), other.encode())]
    return len(one.encode()) == len(other.encode()) and sum((a ^ b).bit_count() for a, b in pairs) == 1
