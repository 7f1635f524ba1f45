"""What lies in a state directory, as it is read: settings, generations, files of samples, codecs.

    STATE/edgecl.db              the truth: settings, generations, and which files hold the stored samples
    STATE/edgecl.copy            its rows once more as JSON, which serve if it is damaged
    STATE/learned.log            generations that only added samples, until they move into the database
    STATE/reserved               what the quota has left, kept on the disk
    STATE/edgecl.gathered        frames gathered for review; nothing that was taught
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
import os

from edgecl.errors import StateError
from edgecl.exemplars.stored import StoredSample, rows_of, unpack
from edgecl.files.regular import read_regular
from edgecl.settings import counted
from edgecl.state.database import translated
from edgecl.state.epoch import TAG
from edgecl.state.history import History
from edgecl.state.log_damage import LogProblem, cut_log, damaged_part, wrong_log

JOURNAL, EXEMPLARS = "journal", "exemplars"  # suffixes of the files that hold samples,
FEATURES, PARTS = "features", "parts"        # and of what a learning round leaves
KEPT_HEADS = 8  # each makes a generation restorable


class StateReader(History):
    """An open state directory, to be read. Raises StateError if there is none, or it is damaged."""

    def restorable(self) -> set[int]:
        """Ids of the generations that can be gone back to exactly, all files that this takes being intact. A head that
        was not written, or is damaged, is solved again, as long as no exemplar was evicted since."""
        with self.reading():
            whole, last = self.computable(), self._last_eviction()
            return {g.id for g in self.alive() if g.id in whole and (
                not g.detail.get("classes") or g.id > last or (g.head is not None and self.blobs.intact(g.head)))}

    def computable(self) -> set[int]:
        """Ids of the generations whose statistics and backbone are there, whatever has become of their heads."""
        with self.reading():
            found: set[int] = set()
            alive = self.alive()
            hurt = [span for name, *span in self.files(JOURNAL) if not self.blobs.intact(name)]
            lost = [*self.value("lost", []), *([problem.lost[0], alive[-1].id] for problem in self.log_problems()
                                               if problem.lost)]
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
                if complete and (backbones[g.backbone] if g.backbone else tuned is None):
                    found.add(g.id)
            return found

    def _last_eviction(self) -> int:
        """The newest generation since which exemplars may have been evicted."""
        last = max((g.id for g in self.alive() if g.snapshot), default=0)
        return max([last, *(json.loads(n) for n, in self.query("SELECT value FROM meta WHERE key = 'evicted'"))])

    def damage(self) -> list[str]:
        """What is damaged, one line each: what was noted, what is set aside, what this open has found, and every named
        file that is not intact. Changes nothing."""
        with self.reading():
            lines = [f"{when}: {what}" for when, what in self._noted()]
            if self.log.failure:
                lines.append(f"{self.log.path} can't be read ({self.log.failure}): what can't be read is left out, and "
                             "nothing can be learned")
            lines += [problem.line for problem in self.log_problems()]
            if not self.writable and self.log.odd_tail:
                lines.append(f"{self.log.path.name} does not end with a whole record, as after a power cut or a kill; "
                             f"{self.log.tail_is_lost}; left out: {counted(self.log.tail, 'byte')}")
            if self.blobs.folder.is_dir():
                lines += [problem for name in sorted(self._named()) if (problem := self.blobs.problem(name))]
            else:
                what = "not a folder" if os.path.lexists(self.blobs.folder) else "missing"
                lines.append(f"{self.blobs.folder} is {what}, and with it all that was learned and is not in the log")
        return list(dict.fromkeys([*lines, *self.found, *self.set_aside.describe()]))

    def _noted(self) -> list[tuple[str, str]]:
        """What `Transaction.note_damage` has noted: when, and what."""
        return [(when, what) for when, what in self.value("damage", [])]

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
        with translated(self.path):
            return self.database.read().names() | self.logged_heads()

    def logged_heads(self) -> set[str]:
        """The names of the newest heads that the log names. If a part of it is lost, later names may have been in it,
        so one from before the damage that is missing was swept, and does not count."""
        heads = [(entry.generation.id, entry.generation.head) for entry in self.logged() if entry.generation.head]
        missing = [name for _, name in heads[-KEPT_HEADS:] if not os.path.lexists(self.blobs.folder / name)]
        hidden = self._newest_before_damage() if missing else 0
        return {name for number, name in heads[-KEPT_HEADS:] if number > hidden or name not in missing}

    def _newest_before_damage(self) -> int:
        """The newest generation that may have been given when the current log was damaged; 0 if it never was."""
        noted = [self.value("numbered", 0)] if self.noted_keys() else []
        return max([0, *noted, *(problem.newest for problem in self.log_problems())])

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
        `damage` names what is left out."""
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
        found: dict[int, StoredSample] = {}
        for name, oldest, newest in [*self.files(EXEMPLARS), *self.files(JOURNAL)]:
            if oldest <= until:
                found |= {row.id or 0: row for row in self.intact_rows(name, oldest, newest)}
        for entry in self.logged():
            if entry.generation.id <= until:
                found |= {row.id or 0: row for row in entry.rows or ()}
        rows = self.living(until).of(row for _, row in sorted(found.items()) if (row.generation or 0) <= until)
        tuned = self.tuned(until)
        if tuned is None or not (names := [name for name, number, _ in self.files(FEATURES) if number == tuned]):
            return rows
        moved = {row.id: row for name in names for row in self.intact_rows(name, 0, tuned)}
        return [_moved(row, moved[row.id]) if row.id in moved else row for row in rows
                if row.id in moved or (row.generation or 0) > tuned]

    def parts(self) -> bytes | None:
        """What the method of the latest learning round keeps; None if there is none, or it is damaged."""
        tuned = self.tuned()
        names = [name for name, number, _ in self.files(PARTS) if number == tuned]
        return (self.blobs.folder / names[0]).read_bytes() if names and self.blobs.intact(names[0]) else None


def _moved(row: StoredSample, after: StoredSample) -> StoredSample:
    """A stored sample with its feature by a later backbone."""
    return row._replace(feature=after.feature, trained=after.trained, judges=after.judges)
