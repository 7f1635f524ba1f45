"""No flipped bit, cut, swap or deletion of any file of a state passes without a word, or as a traceback."""
from __future__ import annotations

import os
import shutil

import pytest
from helpers_state import JOBS

FLIPS = int(os.environ.get("EDGECL_FLIPS", "200"))
PARTS = 4   # of all trials, a test each, so that several processes share them
VIEW = {"answers": [["ant", 0.9, False]], "classes": [["ant", 20, 5]], "means": {"ant": [1.0]}, "moment": [1.0],
        "residual": 0, "exemplars": 5, "stored": "digest", "history": [], "damage": [], "warnings": [],
        "learn": "new class", "then": {"ant": 20, "new class": 20}, "close": None,
        "again": {"ant": 20, "new class": 20}, "broken": [],
        "repaired": {"counts": {"ant": 20}, "learn": "new class"}}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The states that are damaged, each looked at as it is."""
    import corrupt

    folder = tmp_path_factory.mktemp("prepared")
    corrupt.prepare(folder)
    return folder


@pytest.fixture
def folder(prepared, fast_path):
    return shutil.copytree(prepared, fast_path / "prepared")


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_damage_is_harmless_or_said(folder, part):
    import corrupt

    flips = FLIPS // PARTS
    found = corrupt.campaign(folder, flips, flips // 3, JOBS, seed=part)
    assert len(found) == flips + flips // 3
    assert [row for row in found if row[-3] in corrupt.BAD] == []
    newest = sum(row[-3] in corrupt.NEWEST for row in found)
    assert newest >= 0.5 * len(found), "\n".join(corrupt.table(found))


@pytest.mark.parametrize(("changed", "word"), [
    ({}, "harmless"), ({"damage": ["x"]}, "said"), ({"damage": ["x"], "stored": "other"}, "said"),
    ({"stored": "other"}, "SILENT"), ({"answers": [["bee", 0.9, False]]}, "SILENT"),
    ({"answers": [["bee", 0.9, False]], "damage": ["x"]}, "older"), ({"answers": "refused: x"}, "refused"),
    ({"learn": "refused: x", "then": {"ant": 20}, "again": {"ant": 20}}, "no learning"),
    ({"seen": {**VIEW, "stored": "other"}}, "SILENT"),
    ({"seen": {**VIEW, "stored": "other", "damage": ["x"]}}, "harmless"),
    ({"seen": {"refused": "x"}}, "harmless"), ({"broken": ["looking has changed edgecl.copy"]}, "BROKEN"),
    ({"repaired": {"counts": {"ant": 19}, "learn": "new class"}}, "BROKEN"),
    ({"repaired": {"counts": {"ant": 19}, "learn": "new class"}, "means": "refused: x", "learn": "refused: x"},
     "no learning"),     # the statistics were lost, and `classes` counts from the history
    ({"repaired": {"counts": {"ant": 20}, "learn": "refused: x"}}, "BROKEN"), ({"repaired": "refused: x"}, "harmless"),
    ({"again": {"ant": 20}}, "BROKEN"), ({"again": {"ant": 20}, "damage": ["x"]}, "BROKEN"),
    ({"refused": "x"}, "refused"), ({"crashed": "x"}, "CRASHED")])
def test_what_a_damaged_state_shows_is_compared_with_a_whole_one(changed, word):
    from corrupt import judge

    found = {**VIEW, **changed}
    assert judge({"seen": found, **found}, VIEW)[0] == word


def test_a_run_that_was_stopped_goes_on(folder):
    import corrupt

    first = corrupt.campaign(folder, 4, 0, 1)
    every = corrupt.campaign(folder, 6, 2, 1)
    assert [row for row in every if row in first] == first
    assert [row[0] for row in every] == list(range(8))
