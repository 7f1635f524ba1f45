"""Where stored samples came from: what is kept of it, what it costs, and that it travels with them."""
from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers_daemon import serving, until
from helpers_http import web
from helpers_state import create, directory_bytes, vectors
from hypothesis import example, given
from hypothesis import strategies as st

from edgecl.cli import main
from edgecl.commands.direct_or_daemon import Parcel
from edgecl.errors import BadInput
from edgecl.exemplars.codecs import Float32, Int8
from edgecl.exemplars.origin import MOST_NAME, NOWHERE, Origin, origins_of, stored_name
from edgecl.exemplars.stored import PLAIN, StoredSample, Widths, pack, packed_bytes, rows_of, unpack
from edgecl.learner import Learner
from edgecl.runtime.client import Client
from edgecl.runtime.commands import samples_of
from edgecl.samples import UNITS, Place, Sample
from edgecl.sources import read
from edgecl.sources.recordings import read_annotated
from edgecl.sources.spec import Spec

NAMES = st.text(st.characters(), max_size=300) | st.binary(max_size=300).map(os.fsdecode)
PLACES = st.builds(Place, st.sampled_from(["", "walk.csv", 'a "b" \\ c', "ä" * 40]), st.just(None)) | st.builds(
    Place, st.sampled_from(["walk.csv", "camera:/dev/video0", ""]),
    st.integers(-2 ** 60, 2 ** 60) | st.floats(-2e9, 2e9) | st.floats(), st.sampled_from([*UNITS]))


def told(learner, label=None):
    """What is stored about where samples came from."""
    return sorted((row.source, row.at if row.at is not None else -1, row.origin.unit)
                  for row in learner.repository.known().stored if label in (None, row.label))


def stored(places, taught=1_700_000_000, d=4, inputs=0):
    """Committed samples from these places."""
    rng = np.random.default_rng(len(places))
    return [StoredSample(7 << 32 | i, 7, "abc"[i % 3], 2 ** 62 + i, rng.standard_normal(d).astype(np.float32),
                         b"x" * (inputs * i % 300), bool(i % 2), "", i % 5 == 0, i % 7 == 0, *origin)
            for i, origin in enumerate(origins_of(places, taught))]


# names -------------------------------------------------------------------------------------------


@given(NAMES)
@example("ä" * 200)
@example("/x" * 127 + "ä")
@example(os.fsdecode(b"\xff" * 200))
@example("\ud800\n\x1b[0m\u2028")
def test_a_stored_name_is_short_printable_and_the_end_of_what_was_given(name):
    found = stored_name(name)
    assert len(found.encode()) <= MOST_NAME
    assert not any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in found)
    if name.isprintable():
        assert name.endswith(found)
        assert found == name or len(found.encode()) > MOST_NAME - 4
    assert stored_name(found) == found


def test_file_names_that_are_not_utf_8_stay_readable():
    assert stored_name(os.fsdecode(b"caf\xe9/a.jpg")) == r"caf\xe9/a.jpg"
    assert stored_name("Überflug 猫.csv") == "Überflug 猫.csv"
    assert stored_name("two\nlines") == r"two\nlines"


# records -----------------------------------------------------------------------------------------


@given(st.lists(PLACES, max_size=40), st.integers(0, 2 ** 33), st.integers(0, 2))
def test_every_place_survives_its_file_and_its_bytes_are_an_upper_bound(places, taught, inputs):
    rows = stored(places, taught, inputs=inputs)
    parts = [(rows[::2], Float32()), (rows[1::2], Int8())]
    file = pack(parts)
    assert len(file) <= packed_bytes(parts)
    assert packed_bytes(parts) - len(file) < 400
    again = rows_of(file, lambda name: Int8() if name == "int8-feature" else Float32(), "file")
    assert [row[:4] + row[5:] for row in again] == [row[:4] + row[5:] for part, _ in parts for row in part]
    for row in again:
        place = places[row.id & 0xFFFFFFFF]
        assert row.source == stored_name(place.name)
        if place.at is None or not -2 ** 53 < place.at < 2 ** 53:
            assert row.at is None
        else:
            assert row.at == pytest.approx(place.at, abs=0.51 / UNITS[place.unit].steps)
        assert row.taught == (0 if row.origin == NOWHERE else taught)


def test_records_of_format_2_are_read_with_an_empty_source():
    text = (b'{"id":7,"labels":["a","B\xc3\xa4r"],"d":2,"codecs":[["raw",2]]}')
    index = np.array([(7 << 32, 5, 1, 1, 3), (7 << 32 | 1, 2 ** 62, 0, 6, 0)],
                     [("id", "<u8"), ("key", "<u8"), ("label", "<u2"), ("flags", "u1"), ("input", "<u4")])
    body = index.tobytes() + np.array([1, 2, 3, 4], "<f4").tobytes() + b"abc"
    import hashlib
    import struct

    digests = [hashlib.blake2b(part, digest_size=16).digest() for part in (text, body)]
    file = struct.pack("<4sII16s16s", b"\xecCL1", len(text), len(body), *digests) + text + body
    first, second = rows_of(file + pack([(stored([Place("x")]), Float32())]), lambda _: Float32(), "file")[:2]
    assert first[:4] == (7 << 32, 7, "Bär", 5) and first.feature.tolist() == [1, 2]
    assert (first.input, first.spare, first.trained, first.judges) == (b"abc", True, False, False)
    assert second[:4] == (7 << 32 | 1, 7, "a", 2 ** 62) and second.feature.tolist() == [3, 4]
    assert (second.input, second.spare, second.trained, second.judges) == (b"", False, True, True)
    for row in first, second:
        assert (row.source, row.at, row.taught, row.origin) == ("", None, 0, NOWHERE)


def test_samples_are_decoded_only_when_they_are_asked_for():
    file = pack([(stored([Place("x")] * 3), Float32())], {"id": 7})
    asked = []

    def codec(name):
        asked.append(name)
        return Float32()

    [(_, _, record)] = unpack(file, codec)
    assert record.intact and record.about["id"] == 7 and not asked
    assert len(record.rows) == 3 and record.rows is record.rows and asked == ["raw"]
    [(_, _, record)] = unpack(file[:-1] + bytes([file[-1] ^ 1]), codec)
    assert not record.intact and record.rows is None and record.about["id"] == 7


def test_a_row_grows_by_what_its_record_needs():
    """Bytes for each sample beside its feature: 23 in format 2."""
    assert PLAIN.dtype().itemsize == 23
    for places, each in (([Place("")] * 300, 23), ([Place("d.npz", i, "index") for i in range(250)], 20),
                         ([Place("walk.csv", i * 1.5, "s") for i in range(300)], 21),
                         ([Place(f"{i // 100}.csv", i % 100 * 1.5, "s") for i in range(300)], 22),
                         ([Place(f"{i}.jpg") for i in range(300)], 21)):
        rows = stored(places)
        origins = {row.origin for row in rows} - {NOWHERE}
        assert Widths.of(rows, len(origins)).dtype().itemsize == each


def test_more_sources_than_two_bytes_count():
    rows = stored([Place(f"{i}.jpg") for i in range(70_000)], d=1)
    parts = [(rows, Int8())]
    file = pack(parts)
    assert len(file) <= packed_bytes(parts)
    assert [row.source for row in rows_of(file, lambda _: Int8(), "file")][::9999] == [
        f"{i}.jpg" for i in range(0, 70_000, 9999)]


# sources -----------------------------------------------------------------------------------------


def test_each_kind_of_source_says_the_same_to_people_and_to_the_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savetxt("walk.csv", np.arange(80).reshape(40, 2), delimiter=",")
    Path("marked.csv").write_text("x,label\n" + "\n".join(f"{i},{'run' if i >= 20 else 'sit'}" for i in range(40)))
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.savez("d.npz", x_train=x, y_train=[0, 0, 1, 1, 1, 0], x_test=x[:2], y_test=[1, 0], class_names=["p", "q"])
    windows, rows = Spec(rate=10, window=1.0, hop=0.5), Spec(vectors=True)
    for found, source, place in (
            ([*read(Path("walk.csv"), windows)][3], "walk.csv@1.50s", ("walk.csv", 1.5, "s")),
            ([*read(Path("walk.csv"), rows)][4], "walk.csv:5", ("walk.csv", 5, "row")),
            ([*read(Path("csv:walk.csv?rate=10"), windows)][3], "csv:walk.csv?rate=10@1.50s",
             ("csv:walk.csv?rate=10", 1.5, "s")),
            ([*read(Path("csv:walk.csv?rate=10"), rows)][4], "csv:walk.csv?rate=10@0.400s",
             ("csv:walk.csv?rate=10", 0.4, "ms")),
            ([*read_annotated(Path("marked.csv"), windows)][-1], "marked.csv@3.00s", ("marked.csv", 3.0, "s")),
            ([*read(Path("d.npz"), rows, "q")][1], "d.npz[3]", ("d.npz", 3, "index"))):
        assert found.source == source
        assert found.place == place


def test_learn_keeps_the_source_as_it_was_given_and_predict_shows_it_as_before(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--state", "s", "--backbone", "identity"]) == 0
    np.savetxt("ant.csv", vectors("ant", 30), delimiter=",")
    before = int(time.time())
    assert main(["learn", "--state", "s", "--class", "ant", "./ant.csv"]) == 0
    learner = Learner.open("s")
    assert told(learner) == [("ant.csv", i, "row") for i in range(1, 31)]
    assert {before <= row.taught <= time.time() for row in learner.repository.known().stored} == {True}
    learner.learn(vectors("wasp", 30), "wasp")
    assert told(learner, "wasp") == [("", -1, "")] * 30
    learner.close()
    assert told(Learner.open("s"), "ant") == [("ant.csv", i, "row") for i in range(1, 31)]
    capsys.readouterr()
    assert main(["predict", "--state", "s", "--json", "ant.csv"]) == 0
    assert '"ant.csv:1"' in capsys.readouterr().out


def test_a_source_travels_through_rewrites_rollback_merge_and_reopening(tmp_path):
    boards = []
    for name in ("one", "two"):
        learner = create(tmp_path / name, quota=1_000_000, exemplars=6_000)
        for number in range(6):
            label = f"{name} {number % 3}"
            learner.learn([Sample(x, f"{name}-{number}.csv", at=i / 2, unit="s")
                           for i, x in enumerate(vectors(label, 40, number))], label)
        boards.append(learner)
        assert learner.store.files("exemplars")
    known = told(boards[0])
    assert {source for source, *_ in known} == {f"one-{number}.csv" for number in range(6)}
    assert told(Learner.open(tmp_path / "one")) == known
    boards[0].rollback()
    assert "one-5.csv" not in {source for source, *_ in told(boards[0])}
    boards[0].merge([tmp_path / "two"])
    sources = {source for source, *_ in told(boards[0])}
    assert {f"two-{number}.csv" for number in range(6)} <= sources
    assert {source for source, *_ in told(Learner.open(tmp_path / "one"))} == sources
    assert directory_bytes(tmp_path / "one", reserve=False) <= 1_000_000


# what a daemon is taught -------------------------------------------------------------------------


def test_places_pass_the_control_socket_and_clients_without_them_are_served(tmp_path):
    odd = os.fsdecode(b"caf\xe9.csv")
    places = [Place("walk.csv", i * 0.5, "s") for i in range(40)] + [Place(odd), Place("")] * 20
    with serving(tmp_path / "state", control=(240.0, 240.0)) as (_, _, _):
        with Client(tmp_path / "state/control.sock") as client, Parcel() as parcel, Parcel() as plain:
            for place, data in zip(places, vectors("cat", 80)):
                parcel.add(data, "", place)
                plain.add(data)
            assert [*map(str, (each.place for each in samples_of(parcel.seal())))] == [*map(str, places)]
            assert parcel.seal() == parcel.seal()
            client.ask("learn", parcel.seal(), label="cat", groups=parcel.groups)
            client.ask("learn", plain.seal(), label="dog")
            client.ask("predict", parcel.seal())
        learner = Learner.open(tmp_path / "state")
        assert told(learner, "cat") == sorted((stored_name(p.name), -1 if p.at is None else p.at, p.unit)
                                              for p in places)
        assert told(learner, "dog") == [("control socket", -1, "")] * 80
        learner.close()


@pytest.mark.parametrize("line", [b"{}", b"[1,2,3]", b'["x",null]', b'["x",1,"miles"]', b'["x",null,"s"]', b"\xff",
                                  b'["x",1,[]]', b"[" * 5000, b"x" * 200_000])
def test_places_that_can_not_be_read_are_refused(line):
    with Parcel() as parcel:
        parcel.add(vectors("cat", 1)[0], "", Place("x"))
        os.pwrite(parcel.seal(), line + b"\n", os.fstat(parcel.seal()).st_size - len(b'["x", null, ""]\n'))
        with pytest.raises(BadInput, match="the place of a sample is"):
            [*samples_of(os.dup(parcel._file.fileno()))]


def test_places_of_any_number_come_through_as_they_are():
    huge = Place("x", 10 ** 400, "row")
    assert origins_of([huge, Place("x", float("nan"), "s"), Place("x", 1.0, "no such unit")], 5) == [
        (Origin("x", "", 5), 0)] * 3


def test_an_upload_is_named_by_its_client(tmp_path):
    with web(tmp_path / "state") as (client, _, _, _):
        client.post("/api/learn?class=cat&file=caf%C3%A9%20cat.json", {"samples": vectors("cat", 25).tolist()})
        client.post("/api/learn?class=dog", {"samples": vectors("dog", 1).tolist()})
        learner = Learner.open(tmp_path / "state")
        assert told(learner, "cat") == [("café cat.json", i, "index") for i in range(25)]
        assert told(learner, "dog") == [("http", -1, "")]
        learner.close()


def test_a_source_of_the_daemon_names_what_it_has_just_shown(tmp_path):
    with serving(tmp_path / "state") as (service, loop, taps):
        service.sources.threads[0].start()
        threading.Thread(target=loop.run, daemon=True).start()
        taps["tap"].put(*[Sample(x, "serial:/dev/ttyACM0", at=i, unit="s") for i, x in enumerate(vectors("cat", 9))])
        until(lambda: service.sources.threads[0].frames == 9)
        service.learn_last("cat", 600.0)
        learner = Learner.open(tmp_path / "state")
        assert told(learner, "cat") == [("tap", i, "s") for i in range(9)]
        learner.close()
