"""Files to samples: photos, recordings, arrays, folders."""
from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgecl.errors import BadInput
from edgecl.images import MAX_PIXELS, fit_array, read_image
from edgecl.samples import Refusal, Sample
from edgecl.sources import class_folders, read, read_labelled, stack
from edgecl.sources.recordings import load_csv, read_annotated
from edgecl.sources.spec import Spec

SPEC = Spec(rate=10, window=1.0, hop=0.5)


def test_a_photo_is_turned_upright_as_its_exif_says(tmp_path):
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[:, :30, 0] = 255  # red on the left as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise: the left becomes the top
    Image.fromarray(pixels).save(tmp_path / "p.png", exif=exif)
    seen = read_image(tmp_path / "p.png", 30, 30)
    assert seen.shape == (30, 30, 3)
    assert seen[3, 15, 0] > 200 > 50 > seen[26, 15, 0]


def test_the_middle_of_a_wide_picture_is_kept():
    pixels = np.zeros((100, 300, 1), np.uint8)
    pixels[:, 100:200] = 200
    fitted = fit_array(pixels, 32, 32)
    assert fitted.shape == (32, 32, 3)
    assert fitted.min() > 150


def test_pixels_are_counted_before_they_are_decoded(tmp_path):
    side = int(MAX_PIXELS ** 0.5) + 2
    Image.new("1", (side, side)).save(tmp_path / "big.png")
    with pytest.raises(BadInput, match="pixels"):
        read_image(tmp_path / "big.png", 32, 32)


def test_formats_off_the_list_are_not_decoded(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "x.pcx")
    (tmp_path / "x.pcx").rename(tmp_path / "x.png")
    with pytest.raises(BadInput, match="can't be read as a photo"):
        read_image(tmp_path / "x.png", 32, 32)


@pytest.mark.parametrize("text", ["1,2\n3,4\n", "a,b\n1,2\n3,4\n", "1;2\n3;4\n", "1\t2\n3\t4", "1 2\n\n3 4\n",
                                  "time,a,b\n0,1,2\n1,3,4\n", "\ufeffa,b\n1,2\n3,4\n"])
def test_tables_as_people_write_them(tmp_path, text):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    assert load_csv(tmp_path / "t.csv").tolist() == [[1, 2], [3, 4]]


def test_windows_name_their_recording_and_place(tmp_path):
    np.savetxt(tmp_path / "r.csv", np.arange(40).reshape(20, 2), delimiter=",")
    samples = list(read(tmp_path / "r.csv", SPEC, "walk"))
    assert [s.data[0, 0] for s in samples] == [0, 10, 20]
    assert {s.group for s in samples} == {str(tmp_path / "r.csv")}
    assert samples[1].source.endswith("@0.50s")
    assert {s.label for s in samples} == {"walk"}
    first = Spec(rate=10, window=1.0, hop=0.5, seconds=1)
    assert len(list(read(tmp_path / "r.csv", first))) == 1
    rows = list(read(tmp_path / "r.csv", Spec(vectors=True)))
    assert len(rows) == 20
    assert rows[0].data.shape == (2,)


def test_a_folder_refuses_single_files_and_keeps_the_rest(tmp_path):
    np.savetxt(tmp_path / "a.csv", np.zeros((20, 2)), delimiter=",")
    (tmp_path / "b.csv").write_text("1,2\n3\n")
    (tmp_path / ".hidden.csv").write_text("no")
    (tmp_path / "notes.txt").write_text("no")
    items = list(read(tmp_path, SPEC))
    assert [type(item) for item in items] == [Sample] * 3 + [Refusal]
    with pytest.raises(BadInput, match="no photo or recording"):
        list(read(_empty(tmp_path), SPEC))


def _empty(path):
    (path / "empty").mkdir()
    return path / "empty"


def test_arrays_by_the_contract(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=[0, 0, 1, 1, 1, 0], x_test=x[:2], y_test=[1, 0],
             class_names=["p", "q"], session_train=["s", "s", "s", "t", "t", "t"])
    known = list(read(tmp_path / "d.npz", SPEC, "q"))
    assert [s.data[0] for s in known] == [4, 6, 8]
    assert [s.session for s in known] == ["s", "t", "t"]
    assert len({s.group for s in known}) == 2
    assert [s.session for s in read_labelled(tmp_path / "d.npz", SPEC)] == ["", ""]
    assert [s.label for s in read_labelled(tmp_path / "d.npz", SPEC)] == ["q", "p"]
    for wrong, word in ((dict(x_train=x), "no x_train and y_train"), (dict(x_train=x, y_train=[0]), "y_train"),
                        (dict(x_train=x, y_train=[0, 0, 0, 0, 0, 7], class_names=["p"]), "class 7"),
                        (dict(x_train=np.array([None] * 6), y_train=[0] * 6), "can't be read"),
                        (dict(x_train=x, y_train=[0] * 6, session_train=[1]), "session_train"),
                        (dict(x_train=x, y_train=[0] * 6, session_train=[[1]] * 6), "session_train")):
        np.savez(tmp_path / "w.npz", **wrong)
        with pytest.raises(BadInput, match=word):
            list(read(tmp_path / "w.npz", SPEC))
    (tmp_path / "t.npz").write_text("no zip")
    with pytest.raises(BadInput, match=r"can't be read as \.npz"):
        list(read(tmp_path / "t.npz", SPEC))


@pytest.mark.parametrize("sessions", [[3, 3, 4, 4], ["3", "3", "4", "4"], np.array([b"3", b"3", b"4", b"4"])])
def test_sessions_of_arrays_are_names(tmp_path, sessions):
    np.savez(tmp_path / "d.npz", x_train=np.eye(4, dtype=np.float32), y_train=["a", "b", "a", "b"],
             session_train=sessions)
    assert [s.session for s in read_labelled(tmp_path / "d.npz", SPEC, "train")] == ["3", "3", "4", "4"]


def test_all_classes_of_a_labelled_recording_are_one_session_named_by_its_content(tmp_path):
    rows = "".join(f"{i},{i % 7},{'walk' if i < 30 else 'run' if i < 60 else ''}\n" for i in range(70))
    found = {}
    for name, text in (("a.csv", rows), ("b.csv", rows), ("c.csv", rows.replace("3,", "4,"))):
        (tmp_path / name).write_text("x,y,label\n" + text)
        samples = [*read_annotated(tmp_path / name, SPEC)]
        assert [s.label for s in samples] == ["walk"] * 5 + ["run"] * 5
        assert len({s.session for s in samples}) == 1
        assert len({s.group for s in samples}) == 2
        found[name] = samples[0].session
    assert found["a.csv"] == found["b.csv"] != found["c.csv"]
    assert "" not in found.values()


def test_calibration_is_spread_over_the_whole_source():
    items = [Sample(np.full((2, 2), i, np.float32)) for i in range(100)]
    chosen = stack(items, 5)[:, 0, 0]
    assert chosen.tolist() == [0, 24, 49, 74, 99]
    with pytest.raises(BadInput, match="no sample"):
        stack([Refusal("x", "y")], 5)


def test_class_folders_are_folders(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / ".git").mkdir()
    assert [f.name for f in class_folders(tmp_path)] == ["a", "b"]
    with pytest.raises(BadInput, match="no subfolders"):
        class_folders(tmp_path / "a")
