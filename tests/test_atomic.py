"""Files are written whole or not at all."""
from __future__ import annotations

import errno
import os

import pytest

from edgecl.files.atomic import write_atomically


@pytest.fixture
def calls(monkeypatch):
    """The names of the calls that make a file survive, in order."""
    made = []
    for name in ("fsync", "rename", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, real=real: (made.append(name), real(*given))[1])
    return made


def test_the_file_is_synced_before_it_has_its_name_and_the_folder_after(tmp_path, calls):
    write_atomically(tmp_path / "file", b"old")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert calls == 2 * ["fsync", "replace", "fsync"]
    assert os.listdir(tmp_path) == ["file"]


def test_what_can_be_computed_again_is_not_synced(tmp_path, calls):
    write_atomically(tmp_path / "file", b"new", sync=False, mode=0o600)
    assert calls == ["replace"]
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "models").mkdir()
    write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "file", b"new", scratch=tmp_path / "models")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["file", "models"]
    assert os.listdir(tmp_path / "models") == []
