"""No flipped bit, cut, swap or deletion of any file of a state passes without a word, or as a traceback."""
from __future__ import annotations

import os

import pytest

FLIPS = int(os.environ.get("EDGECL_FLIPS", "200"))
VIEW = {"answers": [["ant", 0.9, False]], "classes": [["ant", 20, 5]], "means": {"ant": [1.0]}, "moment": [1.0],
        "residual": 0, "exemplars": 5, "stored": "digest", "history": [], "damage": [], "warnings": [],
        "learn": "new class", "then": {"ant": 20, "new class": 20}, "close": None,
        "again": {"ant": 20, "new class": 20}, "broken": [],
        "repaired": {"counts": {"ant": 20}, "learn": "new class"}}


@pytest.mark.slow
def test_damage_is_harmless_or_said(fast_path):
    import corrupt

    found = corrupt.campaign(fast_path, FLIPS, FLIPS // 3, os.cpu_count() or 1)
    assert len(found) == FLIPS + FLIPS // 3
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


def test_a_run_that_was_stopped_goes_on(fast_path):
    import corrupt

    first = corrupt.campaign(fast_path, 4, 0, 1)
    every = corrupt.campaign(fast_path, 6, 2, 1)
    assert [row for row in every if row in first] == first
    assert [row[0] for row in every] == list(range(8))
