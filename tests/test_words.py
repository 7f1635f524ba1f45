"""How counts and names of files read in messages."""
from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from helpers_check import checked
from helpers_state import create, flip, refused, vectors

from edgecl.cli import main
from edgecl.learner import Learner
from edgecl.settings import counted, short_names
from edgecl.state.rows import COPY_FILE

NAME = "0123456789abcdef" * 4


def test_a_count_of_one_is_not_a_plural():
    assert [counted(n, "sample") for n in (0, 1, 2, 1000)] == ["0 samples", "1 sample", "2 samples", "1000 samples"]
    assert [counted(n, "class") for n in (0, 1, 2)] == ["0 classes", "1 class", "2 classes"]


def test_of_a_hash_people_see_the_first_digits():
    assert short_names(f"models/{NAME}.onnx and {NAME}") == "models/0123456789ab….onnx and 0123456789ab…"
    for other in ("no name", NAME[:63], NAME + "0", NAME.upper(), f"x{NAME}"):
        assert short_names(other) == other


@pytest.fixture
def one(tmp_path):
    """A state with one class of one sample."""
    learner = create(tmp_path / "state")
    learner.learn(vectors("ant", 1), "ant")
    learner.close()
    return tmp_path / "state"


def test_a_state_of_one_class_and_one_sample(one, tmp_path, capsys):
    other = create(tmp_path / "other")
    other.learn(vectors("bee", 1), "bee")
    other.close()
    for command in ("classes", "status", "check", f"backup {tmp_path / 'out'}", f"merge {tmp_path / 'other'}",
                    "rollback 2", "status"):
        assert main([*command.split(), "--state", str(one)]) == 0
    out, err = capsys.readouterr()
    for wrong in ("1 samples", "1 classes", "1 states", "1 files", "1 exemplars"):
        assert not any(line.startswith(wrong) or f" {wrong}" in line for line in (out + err).splitlines()), wrong
    assert "1 class" in out and "1 sample" in out and "merged 1 state" in out


def test_whole_hashes_are_in_the_json_alone(one, capsys):
    learner = Learner.open(one)
    snapshot = learner.store.newest.snapshot
    learner.close()
    flip(one / "models" / snapshot)
    code, report = checked(capsys, one)
    assert code == 1 and any(snapshot in each["file"] for each in report["files"])
    for command in ("check", "status", "doctor", "classes"):
        main([command, "--state", str(one)])
        out, err = capsys.readouterr()
        assert snapshot not in out + err, command
        assert command == "classes" or snapshot[:12] in out + err, command
    main(["status", "--json", "--state", str(one)])
    assert snapshot in capsys.readouterr().out


def test_what_is_missing_is_said_once(one, capsys):
    (one / "edgecl.db").unlink()
    assert main(["check", "--state", str(one)]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "edgecl.db" in line]
    assert line.count("MISSING") == 1 and "it is missing" not in line
    (one / COPY_FILE).write_bytes(b"{}")
    assert "it is missing" not in refused(capsys, "status", "--state", one)


@pytest.mark.parametrize(("kind", "words"), [(tarfile.SYMTYPE, "a link"), (tarfile.LNKTYPE, "a link"),
                                             (tarfile.FIFOTYPE, "a FIFO"), (tarfile.CHRTYPE, "a device")])
def test_what_a_tar_holds_is_named_in_words(tmp_path, capsys, kind, words):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        about = tarfile.TarInfo("edgecl-state/edgecl.db")
        about.type, about.linkname = kind, "elsewhere" if words == "a link" else ""
        archive.addfile(about)
    Path(tmp_path / "made.tar").write_bytes(file.getvalue())
    line = refused(capsys, "restore", tmp_path / "made.tar", "--state", tmp_path / "new")
    assert f"'edgecl-state/edgecl.db', which is {words};" in line
