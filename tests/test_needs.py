"""A test that lacks something is skipped with the cure, and fails where CI runs."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers_needs import need, need_module

ASK_ELSEWHERE = re.compile(r"importorskip|shutil\.which\(|environ.*[\"']CI[\"']")
HELPER = Path(__file__).parent / "helpers_needs.py"


@pytest.mark.parametrize(("ask", "cure"), [(lambda: need("edgecl-none", "none"), "apt-get install none"),
                                           (lambda: need_module("edgecl_none", "none"), "pip install")])
def test_what_is_missing_skips_with_the_cure_and_fails_in_ci(ask, cure, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=cure):
        ask()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=cure):
        ask()


def test_what_is_there_is_found(monkeypatch):
    monkeypatch.setenv("CI", "true")
    assert Path(need("sh", "dash")).name == "sh"
    need_module("numpy", "test")


def test_every_other_test_asks_in_that_one_place():
    asking = [path.name for path in HELPER.parent.glob("*.py") if path not in (HELPER, Path(__file__))
              and ASK_ELSEWHERE.search(path.read_text("utf-8"))]
    assert asking == []
