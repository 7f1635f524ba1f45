"""JSON that is whole by its digest and yet of the wrong form: refused in words, or left out, never a traceback."""
from __future__ import annotations

import json
import os
import sqlite3
import struct
from contextlib import closing

import pytest
from helpers_state import error_of, vectors

from edgecl.errors import EdgeclError
from edgecl.exemplars.stored import HEADER, MAGIC, unpack
from edgecl.exemplars.stored import _digest as digest_of
from edgecl.learner import Learner
from edgecl.learning.repair import check
from edgecl.state.acknowledged import _digest
from edgecl.state.rows import copy_of, read_rows, write_rows

DEEP = "[" * 5000 + "]" * 5000


def record(about, body):
    """A record of any JSON, with the digests that belong to it."""
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    return HEADER.pack(MAGIC, len(text), len(body), digest_of(text), digest_of(body)) + text + body


def every_command(state):
    """Whatever refuses does so with an EdgeclError."""
    error_of(lambda: check(state))
    try:
        learner = Learner.open(state)
    except EdgeclError:
        return
    for work in (learner.status, learner.classes, learner.history, lambda: learner.damage,
                 lambda: learner.predict(vectors("ant", 2)), lambda: learner.learn(vectors("dog", 4, 1), "dog"),
                 lambda: learner.forget("cat"), learner.close):
        error_of(work)


@pytest.mark.parametrize(("key", "value"), [
    ("damage", "null"), ("damage", '"x"'), ("damage", "[[1, 2]]"), ("foundation", "5"), ("foundation", "{}"),
    ("lost", "null"), ("lost", '["x"]'), ("numbered", "1e999"), ("numbered", "9" * 30), ("log_noted", "null"),
    ("codebooks", "[[1, 2]]"), ("codebooks", '"x"'), ("evicted", "null"), ("before", "[]"), ("settings", "[]"),
    ("epoch", "5"), ("settings", DEEP), ("id", "[]")])
def test_values_of_meta(state, key, value):
    path = state / "edgecl.db"
    with closing(sqlite3.connect(path)) as connection:
        rows = read_rows(connection)
    rows = rows._replace(meta={**rows.meta, key: value}).sealed()
    path.unlink()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        write_rows(connection, rows)
    (state / "edgecl.copy").unlink()
    if value != DEEP:
        (state / "edgecl.copy").write_bytes(copy_of(rows))
    every_command(state)


@pytest.fixture
def logged(state):
    """A log with one generation: the file, its first record, and JSON and samples of the other."""
    learner = Learner.open(state)
    for name in ("bee", "dog"):
        learner.learn(vectors(name, 20), name)
    learner.close()
    path, records = state / "learned.log", []
    data = path.read_bytes()
    for start, end, found in unpack(data, lambda name: learner.store.codec(name)):
        records.append((data[start:end], found.about))
    whole, about = next((whole, about) for whole, about in records if about.get("action") == "learn")
    return path, records[0][0], about, whole[HEADER.size + HEADER.unpack_from(whole)[1]:]


@pytest.mark.parametrize("text", [b"5", b"null", b"[]", b"{}", b"\xff", DEEP.encode(), b'"x"'])
def test_records_that_are_no_table(logged, text):
    path, first, _, body = logged
    path.write_bytes(first + record(text, body))
    every_command(path.parent)
    path.write_bytes(record(text, b""))
    every_command(path.parent)


@pytest.mark.parametrize(("key", "value"), [
    ("id", None), ("id", 2 ** 70), ("id", -1), ("id", True), ("detail", None), ("detail", {"class": []}),
    ("labels", None), ("labels", [5]), ("labels", []), ("d", None), ("d", 2 ** 30), ("codecs", "x"),
    ("codecs", [["raw", 2 ** 30]]), ("codecs", [["../x", 5]]), ("widths", [9, 9, 9]), ("origins", [[1, 2, 3]]),
    ("created", 5), ("action", [])])
def test_values_of_a_record(logged, key, value):
    path, first, about, body = logged
    path.write_bytes(first + record({**about, key: value}, body))
    every_command(path.parent)


@pytest.mark.parametrize("key", ["id", "detail", "labels", "d", "codecs", "created", "action"])
def test_values_that_a_record_lacks(logged, key):
    path, first, about, body = logged
    path.write_bytes(first + record({name: value for name, value in about.items() if name != key}, body))
    every_command(path.parent)


@pytest.mark.parametrize(("tag", "generation"), [(None, 2 ** 63), (None, 2 ** 31), (None, 2 ** 30), (b"\xff" * 12, 5)])
def test_how_far_the_log_was_acknowledged(logged, tag, generation):
    path, _, about, _ = logged
    data = struct.pack("<12sQQ", tag or about["log"].encode(), os.path.getsize(path) + 10, generation)
    (path.parent / "acknowledged").write_bytes(data + _digest(data))
    every_command(path.parent)
