"""The metrics on matrices worked by hand."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecl.evaluation import metrics

#          step: 1    2    3        after
MATRIX = [[1.0, 0.0, 0.0],       # 1
          [0.6, 0.9, 0.0],       # 2
          [0.7, 0.3, 0.8]]       # 3


def test_forgetting_is_taken_from_the_best_earlier_accuracy():
    assert metrics.forgetting(MATRIX) == pytest.approx(((1.0 - 0.7) + (0.9 - 0.3)) / 2)
    late_best = [[0.5, 0.0, 0.0], [0.8, 0.4, 0.0], [0.2, 0.4, 0.9]]      # step 1 was best after step 2
    assert metrics.forgetting(late_best) == pytest.approx(((0.8 - 0.2) + 0.0) / 2)
    assert metrics.backward_transfer(late_best) == pytest.approx(((0.2 - 0.5) + 0.0) / 2)
    assert metrics.forgetting([[0.5, 0.0], [0.75, 1.0]]) == -0.25        # later steps helped


def test_backward_transfer_is_taken_from_the_diagonal():
    assert metrics.backward_transfer(MATRIX) == pytest.approx(((0.7 - 1.0) + (0.3 - 0.9)) / 2)


def test_one_step_has_nothing_to_forget():
    assert metrics.forgetting([[0.9]]) == metrics.backward_transfer([[0.9]]) == 0.0
    assert metrics.average_incremental_accuracy([0.9], first=False) == 0.9


def test_average_incremental_accuracy_with_and_without_the_first_step():
    assert metrics.average_incremental_accuracy([1.0, 0.8, 0.6]) == pytest.approx(0.8)
    assert metrics.average_incremental_accuracy([1.0, 0.8, 0.6], first=False) == pytest.approx(0.7)


def test_step_accuracy_counts_samples_not_steps():
    truth = np.array([0, 0, 0, 0, 1, 2])
    answers = np.array([0, 0, 0, 1, 0, 2])
    assert metrics.step_accuracy(truth, answers, [0]) == 0.75
    assert metrics.step_accuracy(truth, answers, [0, 1]) == 3 / 5        # the mean of 0.75 and 0 would be wrong
    assert metrics.step_accuracy(truth, answers, [2, 1, 0]) == 4 / 6
    tests = [np.array([0, 1, 2, 3]), np.array([4]), np.array([5])]
    assert metrics.accuracy_row(truth, answers, tests) == [0.75, 0.0, 1.0]


def test_bytes_and_spread():
    assert metrics.accuracy_per_byte(0.5, 200_000) == pytest.approx(2.5e-6)
    assert metrics.accuracy_per_byte(0.5, 0) is None
    assert metrics.spread([0.3, 0.1, 0.2]) == (0.2, 0.1, 0.3)
    assert metrics.task_aware_accuracy([1.0, 0.5]) == 0.75


@given(st.integers(2, 6).flatmap(lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=n,
                                                    max_size=n)))
def test_forgetting_is_at_least_what_was_lost_since_learning(matrix):
    assert metrics.forgetting(matrix) >= -metrics.backward_transfer(matrix) - 1e-9
    assert -1 <= metrics.forgetting(matrix) <= 1
