"""Metrics of a run over a scenario. A matrix is a list of rows: matrix[i][j] is the accuracy, in 0..1, on the test
samples of step j after step i."""
from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Matrix = Sequence[Sequence[float]]


def accuracy(truth: NDArray[np.int64], answers: NDArray[np.int64]) -> float:
    """The share of correct answers among answers [n], n >= 1."""
    return float((truth == answers).mean())


def accuracy_row(truth: NDArray[np.int64], answers: NDArray[np.int64],
                 tests: Sequence[NDArray[np.int64]]) -> list[float]:
    """One row of the matrix: the accuracy of answers [n] on each step's test samples, given as indices into truth."""
    return [accuracy(truth[test], answers[test]) for test in tests]


def step_accuracy(truth: NDArray[np.int64], answers: NDArray[np.int64], seen: Sequence[int]) -> float:
    """Accuracy on all test samples of all classes seen so far, not an average of averages (Rebuffi 2017, 4.1)."""
    known = np.isin(truth, np.asarray(seen))
    return accuracy(truth[known], answers[known])


def average_incremental_accuracy(steps: Sequence[float], first: bool = True) -> float:
    """Mean of the step accuracies (Rebuffi 2017, 4.1). first: include the first step, which some papers leave out.

    A single step is always included.
    """
    return fmean(steps if first or len(steps) == 1 else steps[1:])


def forgetting(matrix: Matrix) -> float:
    """Mean, over all steps but the last, of the best earlier accuracy minus the last one (Chaudhry 2018, section 3);
    0.0 for one step. Negative if later steps helped."""
    last = len(matrix) - 1
    return fmean(max(row[j] for row in matrix[:last]) - matrix[last][j] for j in range(last)) if last else 0.0


def backward_transfer(matrix: Matrix) -> float:
    """Mean, over all steps but the last, of the last accuracy minus the one right after that step (Lopez-Paz 2017,
    section 2); 0.0 for one step."""
    last = len(matrix) - 1
    return fmean(matrix[last][j] - matrix[j][j] for j in range(last)) if last else 0.0


def task_aware_accuracy(row: Sequence[float]) -> float:
    """Mean over steps of the accuracy if answers are limited to a step's own classes (ACC of Lopez-Paz 2017)."""
    return fmean(row)


def accuracy_per_byte(share: float, count: int) -> float | None:
    """Accuracy per byte that is kept between steps; None if no bytes are kept."""
    return share / count if count else None


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, minimum, maximum)."""
    return median(values), min(values), max(values)
