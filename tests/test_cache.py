"""The cache of built backbones: used, checked, and never in the way."""
from __future__ import annotations

from pathlib import Path

import pytest

from edgecl.backbones.cache import cache_folder, cached


def test_builds_once_and_again_when_damaged(tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECL_CACHE", str(tmp_path / "cache"))
    built: list[int] = []

    def build() -> bytes:
        built.append(1)
        return b"content"

    assert [cached("key", build) for _ in range(3)] == [b"content"] * 3 and len(built) == 1
    assert cached("key2", build) == b"content" and len(built) == 2
    file = next((tmp_path / "cache").rglob("key.*"))
    file.write_bytes(b"conten")
    assert cached("key", build) == b"content" and len(built) == 3
    assert file.read_bytes() == b"content"
    assert len(list(file.parent.iterdir())) == 2


def test_an_unusable_cache_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("EDGECL_CACHE", str(tmp_path / "file" / "cache"))
    assert cached("key", lambda: b"content") == b"content"


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECL_CACHE", "/a/b")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert cache_folder() == Path("/a/b")
    monkeypatch.delenv("EDGECL_CACHE")
    assert cache_folder() == Path("/c/edgecl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/d")
    assert cache_folder() == Path("/d/.cache/edgecl")
