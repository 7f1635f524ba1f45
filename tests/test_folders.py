"""Folders as people have them: looked at before anything changes; what is left out is counted, nothing is silent."""
from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers_daemon import cli, serving
from helpers_state import create, refused, tree, vectors
from PIL import Image

from edgecl import images
from edgecl.cli import main
from edgecl.errors import BadInput
from edgecl.learner import Learner
from edgecl.samples import Refusal
from edgecl.sources import class_folders, read, read_labelled
from edgecl.sources.folders import SESSIONS, check_layout, check_one_class, copies, look
from edgecl.sources.kinds import can_be_read, kinds_in_words
from edgecl.sources.spec import Spec

VECTORS = Spec(vectors=True)


def csv(path, name, count=12, seed=0):
    """A .csv of vectors of a class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, vectors(name, count, seed), delimiter=",")
    return path


def photo(path, value=120):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 20, 3), value, np.uint8)).save(path, format="PNG")
    return path


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A state of vectors that knows `old`, in the working directory."""
    monkeypatch.chdir(tmp_path)
    learner = create(tmp_path / "s")
    learner.learn(vectors("old", 20), "old")
    learner.close()
    return tmp_path / "s"


# kinds ----------------------------------------------------------------------------------------------

PHONE = {".HEIC": 40, ".jpg": 5, ".MOV": 2, ".aae": 3}
CAMERA = {".CR2": 10, ".JPG": 2, ".xmp": 10, ".thm": 1}
DOWNLOAD = {".pdf": 1, ".zip": 1, ".jp2": 4, ".png": 3, "": 2}
MIXED = {".tar.gz": 1, ".wav": 2, ".npy": 1, ".txt": 6, ".py": 1, ".json": 1, ".xml": 1, ".yaml": 1, ".md": 1,
         ".bmp": 1}


@pytest.mark.parametrize("kinds", [PHONE, CAMERA, DOWNLOAD, MIXED], ids=["phone", "camera", "download", "mixed"])
def test_every_kind_that_can_not_be_read_is_counted(tmp_path, kinds, monkeypatch):
    monkeypatch.setattr(images, "readable", lambda kind: False)
    for suffix, count in kinds.items():
        for number in range(count):
            touch(tmp_path / f"IMG_{number}{suffix}")
    found = look(tmp_path)
    known = {".jpg", ".png", ".bmp"}
    assert len(found.files) == sum(count for suffix, count in kinds.items() if suffix.lower() in known)
    left_out = Counter({Path(f"x{suffix}").suffix.lower(): count for suffix, count in kinds.items()
                        if suffix.lower() not in known})
    assert found.kinds == left_out
    text = " ".join(found.notes())
    for suffix, count in left_out.items():
        assert f"{count} {suffix or 'without a suffix'}" in text or "of other kinds" in text


def test_kinds_are_named_with_a_cure():
    lines = kinds_in_words({".heic": 40, ".cr2": 1, ".mp4": 2, ".pdf": 1, ".txt": 3, ".avif": 1, ".tar": 1, ".mat": 1})
    text = "\n".join(lines)
    for words in ("40 .heic: pip install 'edgecl[heic]'", "1 .cr2", "JPEG", "2 .mp4", "ffmpeg", "1 .pdf", "pdfimages",
                  "3 .txt (neither photos nor recordings)", "1 .avif: pip install -U pillow", "unpack them", "as .csv"):
        assert words in text
    assert len(kinds_in_words({f".{letter}": 1 for letter in "abcdefgh"})) == 1


def test_heic_counts_as_readable_if_it_is(monkeypatch):
    for able in (True, False):
        monkeypatch.setattr(images, "readable", lambda kind, able=able: able)
        assert can_be_read(".heic") is can_be_read(".avif") is able


def test_a_phone_s_folder_says_what_it_left_out(state, tmp_path, capsys):
    csv(tmp_path / "phone/a.csv", "mug")
    for number in range(40):
        touch(tmp_path / f"phone/{number}.cr3")
    for command in (["learn", "--class", "mug", "phone"], ["predict", "phone"]):
        assert main([command[0], "--state", "s", *command[1:]]) == 0
        assert "left out of phone: 40 .cr3" in capsys.readouterr().err
    touch(tmp_path / "test/mug/x.mp4"), csv(tmp_path / "test/mug/y.csv", "mug", seed=1)
    (tmp_path / "test/none").mkdir()
    assert main(["evaluate", "--state", "s", "test", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["n"] == 12
    assert "left out of test/mug: 1 .mp4" in err and "test/none" in err
    csv(tmp_path / "phone/b.csv", "mug", seed=1)
    assert main(["learn", "--state", "s", "--class", "mug", "phone", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unreadable"] == {".cr3": 40}
    assert "40 .cr3" in refused(capsys, "learn", "--state", "s", "--class", "x", _only(tmp_path / "raw", "x.cr3", 40))
    assert "JPEG" in refused(capsys, "learn", "--state", "s", "--class", "x", "raw/0x.cr3")


def _only(folder, name, count):
    for number in range(count):
        touch(folder / f"{number}{name}")
    return folder


# what is skipped ------------------------------------------------------------------------------------


def test_hidden_and_system_folders_are_skipped_at_every_depth_without_a_word(tmp_path):
    seen = [csv(tmp_path / "f/a/1.csv", "a"), csv(tmp_path / "f/a/deep/er/2.csv", "a")]
    for folder in (".thumbnails", ".trash", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", "#recycle",
                   "$RECYCLE.BIN", "System Volume Information", "__pycache__"):
        for place in ("f", "f/a", "f/a/deep"):
            csv(tmp_path / place / folder / "x.csv", "x")
            touch(tmp_path / place / folder / "x.heic")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._1.csv", ".hidden.csv", "ehthumbs.db"):
        touch(tmp_path / "f/a" / name)
    found = look(tmp_path / "f/a")
    assert (found.files, found.notes(), found.refused) == (seen, [], [])
    assert [folder.name for folder in class_folders(tmp_path / "f")] == ["a"]
    assert {item.label for item in read_labelled(tmp_path / "f", VECTORS)} == {"a"}


def test_links_are_followed_once_and_dead_ones_counted(tmp_path):
    real = csv(tmp_path / "f/a/1.csv", "a")
    csv(tmp_path / "elsewhere/2.csv", "a", seed=1), csv(tmp_path / "elsewhere/3.csv", "a", seed=2)
    links = {"f/a/file.csv": "../../elsewhere/2.csv", "f/a/folder": "../../elsewhere", "f/a/dead.csv": "nowhere.csv",
             "f/a/dead": "/no/where", "f/a/loop": ".", "f/a/up": "..", "f/a/again": "../../elsewhere",
             "f/a/itself.csv": "itself.csv", "f/b": "a"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "f/a/pipe.csv")
    found = look(tmp_path / "f/a")
    names = [str(file.relative_to(tmp_path / "f/a")) for file in found.files]
    assert real in found.files and "file.csv" in names and len(names) == 4
    assert {name.partition("/")[2] for name in names if "/" in name} == {"2.csv", "3.csv"}
    assert (found.dead, found.again, found.special) == (3, 3, 1)
    assert len(found.notes()) == 3
    assert len(look(tmp_path / "f/b").files) == 4       # a class may be a link


def test_a_folder_that_can_not_be_opened_is_named(tmp_path, monkeypatch):
    csv(tmp_path / "a/1.csv", "a"), csv(tmp_path / "a/locked/2.csv", "a")
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)
    monkeypatch.setattr(os, "scandir", locked)
    items = [*read(tmp_path / "a", VECTORS)]
    assert [item.reason for item in items if isinstance(item, Refusal)] == ["it can't be opened (Permission denied)"]
    assert len(items) == 13
    with pytest.raises(BadInput, match="Permission denied"):
        look(tmp_path / "a/locked")


# all or nothing -------------------------------------------------------------------------------------


def empty_folder(path):
    path.mkdir(parents=True)


def raw_only(path):
    _only(path, ".cr2", 3)


def hidden_only(path):
    csv(path / ".trash/x.csv", "x")


def broken_only(path):
    path.mkdir(parents=True)
    (path / "x.csv").write_text("<html>")


def other_shape(path):
    path.mkdir(parents=True)
    np.savetxt(path / "x.csv", np.ones((5, 3)), delimiter=",")


def empty_file(path):
    path.mkdir(parents=True)
    (path / "x.csv").write_text("")


@pytest.mark.parametrize("make", [empty_folder, raw_only, hidden_only, broken_only, other_shape, empty_file])
def test_a_class_without_anything_stops_before_anything_is_learned(state, tmp_path, capsys, make):
    csv(tmp_path / "f/a/x.csv", "a"), csv(tmp_path / "f/b/x.csv", "b"), make(tmp_path / "f/zz_todo")
    before = tree(state)
    assert "zz_todo" in refused(capsys, "learn", "--state", "s", "--from", "f")
    assert tree(state) == before
    assert main(["learn", "--state", "s", "--from", "f", "--skip-empty", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["class"] for line in out.splitlines()] == ["a", "b"]
    assert "zz_todo" in err


def test_all_that_is_empty_is_named_and_only_empty_classes_are_refused(state, tmp_path, capsys):
    for name in ("p", "q", "r", "t"):
        empty_folder(tmp_path / "f" / name)
    said = refused(capsys, "learn", "--state", "s", "--from", "f", "--skip-empty")
    assert all(f"f/{name} " in said for name in "pqr") and "1 more" in said and "--skip-empty" not in said


def test_no_state_is_created_by_what_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "f/a/x.png"), empty_folder(tmp_path / "f/zz"), touch(tmp_path / "bad/x.jpg")
    photo(tmp_path / "ds/train/a/x.png"), photo(tmp_path / "ds/train/b/x.png"), photo(tmp_path / "names/unknown/x.png")
    photo(tmp_path / "mixed/a/x.png"), csv(tmp_path / "mixed/b/x.csv", "b")
    before = tree(tmp_path)
    for arguments in (["--from", "f"], ["--from", "ds"], ["--from", "names"], ["--class", "x", "bad"],
                      ["--from", "mixed"], ["--class", "x", "ds/train"],
                      ["--class", "unknown", "f/a"], ["--class", "x", "gone"],
                      ["--class", "x", "bad/x.jpg"], ["--from", "f/a"], ["--from", "gone"]):
        refused(capsys, "learn", *arguments)
        assert tree(tmp_path) == before, arguments


def test_a_running_daemon_learns_nothing_of_a_folder_with_an_empty_class(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    csv(tmp_path / "f/a/x.csv", "a"), empty_folder(tmp_path / "f/zz")
    with serving(tmp_path / "state", control=(240.0, 240.0)) as (service, _, _):
        refused(capsys, "learn", "--state", "state", "--from", "f")
        assert main(["learn", "--state", "state", "--from", "f", "--dry-run", "--skip-empty", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["left_out_classes"].keys() == {"zz"}
        assert service.info()["classes"] == ["ant", "wasp"]
        assert main(["learn", "--state", "state", "--from", "f", "--skip-empty"]) == 0
        assert service.info()["classes"] == ["a", "ant", "wasp"]


# layouts --------------------------------------------------------------------------------------------

PARTS_OF = [("train", "test"), ("train", "val", "test"), ("Train", "Valid"), ("training", "validation"),
            ("train", "valid", "samples")]


@pytest.mark.parametrize("parts", PARTS_OF)
def test_parts_of_a_data_set_are_not_classes(state, tmp_path, capsys, parts):
    for part in parts:
        for name in ("ant", "bee"):
            csv(tmp_path / "ds" / part / name / "x.csv", name)
    before = tree(state)
    for what in (["--from", "ds"], ["--class", "x", "ds"]):
        assert f"did you mean --from ds/{parts[0]}?" in refused(capsys, "learn", "--state", "s", *what)
    assert "ant, bee" in refused(capsys, "learn", "--state", "s", "--class", "x", f"ds/{parts[0]}")
    assert tree(state) == before
    assert main(["learn", "--state", "s", "--from", f"ds/{parts[0]}"]) == 0
    assert main(["learn", "--state", "s", "--from", "ds", "--subfolders"]) == 0
    assert main(["learn", "--state", "s", "--class", "all", "ds", "--subfolders"]) == 0


def test_parts_that_hold_files_are_not_classes_unless_it_is_said(tmp_path):
    for part in ("train", "test"):
        csv(tmp_path / "ds" / part / "x.csv", part)
    with pytest.raises(BadInput, match="parts of a data set"):
        check_layout(tmp_path / "ds", map(look, class_folders(tmp_path / "ds")))
    csv(tmp_path / "ds/bus/x.csv", "bus")       # a train is a class among others
    check_layout(tmp_path / "ds", map(look, class_folders(tmp_path / "ds")))


DAYS = [("2026-11-29", "2026-11-30"), ("20261129", "20261130"), ("2025", "2026"), ("2026-11 kitchen", "2026-12_garden"),
        ("100APPLE", "101APPLE"), ("day1", "day 2"), ("Person 1", "person_2"), ("take-1", "take-2"),
        ("09.30.2026", "10.01.2026")]
CLASSES = [("cat", "dog"), ("0", "1"), ("1980s", "1990s"), ("train", "car"), ("n01440764", "n01443537"), ("a1", "b2"),
           ("monday", "2026-11-30")]


@pytest.mark.parametrize("names", DAYS)
def test_subfolders_that_tell_when_or_by_whom_are_one_class(tmp_path, names):
    for name in names:
        csv(tmp_path / "mug" / name / "x.csv", "mug")
    check_one_class(look(tmp_path / "mug"), "mug")


@pytest.mark.parametrize("names", CLASSES)
def test_other_subfolders_ask_first(tmp_path, names):
    for name in names:
        csv(tmp_path / "mug" / name / "x.csv", "mug")
    assert not all(SESSIONS.fullmatch(name) for name in names)
    with pytest.raises(BadInput, match=r"did you mean --from .*mug.*add --subfolders"):
        check_one_class(look(tmp_path / "mug"), "mug")
    csv(tmp_path / "mug/beside.csv", "mug")
    check_one_class(look(tmp_path / "mug"), "mug")


def test_one_subfolder_is_no_choice_of_classes(tmp_path):
    csv(tmp_path / "mug/photos/x.csv", "mug"), touch(tmp_path / "mug/labels/x.txt")
    check_one_class(look(tmp_path / "mug"), "mug")


# copies and --dry-run -------------------------------------------------------------------------------


def test_copies_are_found_by_content(tmp_path):
    first, other = csv(tmp_path / "a/1.csv", "a"), csv(tmp_path / "b/9.csv", "b")
    for copy, of in (("a/2.csv", first), ("b/3.csv", first), ("b/8.csv", other)):
        (tmp_path / copy).write_bytes(of.read_bytes())
    big = bytes(200_000)
    for name, place in (("c/1.csv", 50_000), ("c/2.csv", 60_000), ("c/3.csv", 50_000)):
        data = bytearray(big)
        data[place] = 1     # where a look at three pieces does not see it
        (tmp_path / "c").mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    found = sorted(copies([look(tmp_path / name) for name in "abc"]))
    assert [[str(path.relative_to(tmp_path)) for path in group] for group in found] == [
        ["a/1.csv", "a/2.csv", "b/3.csv"], ["b/8.csv", "b/9.csv"], ["c/1.csv", "c/3.csv"]]


def test_a_dry_run_prints_all_and_changes_nothing(state, tmp_path, capsys):
    csv(tmp_path / "f/old/1.csv", "old"), csv(tmp_path / "f/new/1.csv", "new")
    (tmp_path / "f/new/2.csv").write_bytes((tmp_path / "f/old/1.csv").read_bytes())
    touch(tmp_path / "f/new/x.heif2"), touch(tmp_path / "f/new/y.jpg"), csv(tmp_path / "f/loose.csv", "x")
    before = tree(tmp_path)
    assert main(["learn", "--state", "s", "--from", "f", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {row["class"]: row for row in told["classes"]}
    assert told["dry_run"] is True and [*rows] == ["new", "old"]
    assert (rows["new"]["known"], rows["old"]["known"]) == (False, True)
    assert (rows["new"]["files"], rows["new"]["unreadable"]) == (3, {".heif2": 1})
    assert told["in_several_classes"] == told["copies"] == [["f/new/2.csv", "f/old/1.csv"]]
    assert [each["source"] for each in told["refused"]] == ["f/new/y.jpg"]
    assert told["files_of_no_class"] == 1
    assert main(["learn", "--state", "s", "--from", "f", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "nothing was learned" in out and "the same content in several classes: f/new/2.csv, f/old/1.csv" in out
    assert "1 .heif2" in err and "f/new/y.jpg" in err and "belong to no class" in err
    for arguments in (["--class", "mug", "f/new", "--dry-run"], ["--class", "mug", "--last", "5s", "--dry-run"]):
        main(["learn", "--state", "s", *arguments])
    assert tree(tmp_path) == before


def test_a_dry_run_tells_the_sizes_of_photos_and_needs_no_state(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "f/a/1.png"), touch(tmp_path / "f/a/broken.jpg")
    Image.new("RGB", (64, 48)).save(tmp_path / "f/a/2.png")
    assert main(["learn", "--class", "a", "f/a", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["classes"][0]["pixels"] == [[20, 20], [64, 48]]
    assert "known format" in told["refused"][0]["reason"]
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_dry_run_of_arrays_counts_their_samples(state, tmp_path, capsys):
    x = np.concatenate([vectors("p", 5), vectors("q", 3)])
    np.savez(tmp_path / "d.npz", x_train=x, y_train=[0] * 5 + [1] * 3, class_names=["p", "q"])
    assert main(["learn", "--state", "s", "--from", "d.npz", "--dry-run", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["classes"]
    assert {row["class"]: row["samples"] for row in rows} == {"p": 5, "q": 3}
    assert main(["learn", "--state", "s", "--from", "d.npz", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "2 classes, 8 samples" in out and "file" not in out


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_an_array_without_samples_is_refused(state, tmp_path, capsys, dry):
    np.savez(tmp_path / "d.npz", x_train=np.zeros((0, 8), np.float32), y_train=np.array([], str))
    assert "has no samples" in refused(capsys, "learn", "--state", "s", "--from", "d.npz", *dry)


@pytest.mark.parametrize("values", ["abc", "1.5", 1j, np.datetime64(5, "s")],
                         ids=["words", "digits", "complex", "dates"])
def test_arrays_that_are_not_of_real_numbers_are_refused(state, tmp_path, capsys, values):
    np.savez(tmp_path / "d.npz", x_train=np.full((4, *vectors("p", 1).shape[1:]), values), y_train=["p", "q"] * 2)
    assert "give real numbers" in refused(capsys, "learn", "--state", "s", "--from", "d.npz")
    learner = Learner.open(state)
    assert learner.labels == ["old"]
    learner.close()


# file names -----------------------------------------------------------------------------------------

ODD = [b"caf\xe9.csv", b"\xff\xfe.csv", b"\x80\x81 \xc3.csv", "☕ mug.csv".encode(), b"new\nline.csv", b'"quote".csv',
       "cafe\u0301.csv".encode(), b"a\\b.csv"]


@pytest.fixture
def odd(tmp_path):
    """A folder of files with odd names, as bytes."""
    csv(tmp_path / "f/x.csv", "old", 2)
    data = (tmp_path / "f/x.csv").read_bytes()
    (tmp_path / "f/x.csv").unlink()
    for number, name in enumerate(ODD):
        Path(os.fsdecode(os.fsencode(tmp_path / "f") + b"/" + name)).write_bytes(data + b"\n" * number)
    Path(os.fsdecode(os.fsencode(tmp_path / "f") + b"/broken\xff.csv")).write_text("<html>")
    return tmp_path / "f"


@pytest.mark.parametrize("locale", ["C.UTF-8", "C", "POSIX"])
def test_file_names_that_are_not_utf8_end_no_command(state, odd, tmp_path, monkeypatch, locale):
    monkeypatch.setenv("LC_ALL", locale)
    monkeypatch.delenv("PYTHONUTF8", raising=False)
    (tmp_path / "test").mkdir()
    odd.rename(tmp_path / "test/old")
    code, out, err = cli(tmp_path, "predict", "--state", "s", "test/old")
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == 2 * len(ODD)
    assert {answer["label"] for answer in answers} == {"old"}
    assert any(r"caf\xe9.csv" in answer["source"] for answer in answers)
    assert r"broken\xff.csv" in err and "Traceback" not in err
    for command in (["learn", "--class", "old", "test/old"], ["evaluate", "test"],
                    ["learn", "--from", "test", "--dry-run"], ["learn", "--from", "test"], ["history"], ["classes"]):
        for more in ([], ["--json"]):
            code, out, err = cli(tmp_path, command[0], "--state", "s", *command[1:], *more)
            assert code == 0 and "Traceback" not in err, (command, err)
            assert all(json.loads(line) for line in out.splitlines() if more)


def test_one_file_by_its_odd_name(state, odd, tmp_path, capfdbinary):
    for name in ODD[:3]:
        file = os.fsdecode(b"f/" + name)
        assert main(["predict", "--state", "s", file]) == 0
        out, _ = capfdbinary.readouterr()
        assert {json.loads(line)["label"] for line in out.decode("utf-8").splitlines()} == {"old"}
    assert main(["predict", "--state", "s", os.fsdecode(b"f/broken\xff.csv")]) == 1
    assert main(["predict", "--state", "s", os.fsdecode(b"f/gone\xff.csv")]) == 1
    assert main(["learn", "--state", "s", "--class", "x", os.fsdecode(b"gone\xff")]) == 1


def test_odd_names_pass_through_a_daemon(odd, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with serving(tmp_path / "state", control=(240.0, 240.0)) as (service, _, _):
        assert main(["predict", "--state", "state", "f"]) == 0
        assert all(json.loads(line) for line in capsys.readouterr().out.splitlines())
        assert main(["learn", "--state", "state", "--class", "odd", "f"]) == 0
        assert service.info()["classes"] == ["ant", "odd", "wasp"]
        assert "Traceback" not in capsys.readouterr().err


def test_a_class_folder_that_is_not_utf8_is_refused_by_name(state, tmp_path, capsys):
    folder = Path(os.fsdecode(os.fsencode(tmp_path / "f") + b"/caf\xe9"))
    csv(folder / "x.csv", "x")
    before = tree(state)
    assert "not UTF-8; rename the folder" in refused(capsys, "learn", "--state", "s", "--from", "f")
    assert tree(state) == before
