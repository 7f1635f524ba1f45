"""The tables of trust: what tools/trust.py measures on digits, by the product's own head."""
from __future__ import annotations

import numpy as np
import pytest
import trust_measures as measures
import trust_sets
import trust_tables as trust


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return trust_sets.all_sets({}, tmp_path_factory.mktemp("cache"), "digits")["digits"]


def test_digits_are_right_and_as_sure_as_they_are_right(digits):
    found = measures.accuracy_and_trust(digits, measures.drawn(digits, 60, 0))
    assert found["accuracy"] > 0.95
    assert found["ece"] < 0.06 and found["sure"] < 0.03
    assert found["figures"] == 10 and found["figure"] < 0.09


def test_neither_the_numbers_of_recordings_nor_the_order_of_classes_change_an_answer(digits):
    found = measures.differences(digits, measures.first(digits, 40), (4, 4), 20_000)    # of 400 samples, half fit
    assert found["draws other answers"] == found["orders other answers"] == 0
    assert found["draws difference"] < 1e-4 and found["orders difference"] < 1e-4


def test_untaught_digits_are_told_from_taught_ones_and_other_scores_accept_as_many(digits):
    told = measures.strangers(digits, 5, 60, 0)
    assert told["edgecl"]["known"] < 0.2
    assert told["edgecl"]["near"] > 0.4 and told["edgecl"]["noise"] == 1
    for score in ("max-softmax", "kNN"):
        assert abs(told[score]["known"] - told["edgecl"]["known"]) < 0.02


def test_a_calibration_error_is_the_mean_distance_of_confidence_and_accuracy():
    sure = np.array([0.95, 0.95, 0.55, 0.55])
    assert measures.calibration_error(sure, np.array([True, False, True, False])) == pytest.approx((0.45 + 0.05) / 2)


def test_the_same_table_shows_another_commit_beside_its_own(tmp_path):
    now, before = trust.Results(tmp_path / "now.json"), trust.Results(None)
    row = {"accuracy": 0.99, "ece": 0.01, "sure": 0.0, "figure": None, "refused": 0.02, "kind": "slda"}
    for results, accuracy in ((now, 0.99), (before, 0.95)):
        results("a digits all first", lambda value: row | {"accuracy": value}, accuracy)
    assert now("a digits all first", lambda: {}) == row     # made once
    assert trust.Results(tmp_path / "now.json").of == now.of
    assert "| digits | 95.0 → 99.0 | 0.010 → 0.010 | 0.0 → 0.0 | - → - | 2.0 → 2.0 |" in trust.tables(now, before)
    assert "| digits | 99.0 |" in trust.tables(now, None)
