"""Cutting recordings into windows, and the real data that packages carry."""
from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edgecl.errors import BadInput
from edgecl.evaluation import datasets
from edgecl.sources.windows import cut

RAMP = np.arange(20.0).reshape(10, 2)


def test_windows_start_one_hop_apart_and_the_tail_is_left_out():
    windows = cut(RAMP, rate=2, window=2, hop=1.5)
    assert windows.dtype == np.float32
    assert windows.shape == (3, 4, 2)
    assert windows[:, 0, 0].tolist() == [0, 6, 12]
    assert windows[1].tolist() == RAMP[3:7].tolist()


def test_windows_are_a_copy_in_c_order():
    windows = cut(RAMP, 1, 5, 1)
    windows[:] = -1
    assert RAMP[0, 1] == 1
    assert windows.flags.c_contiguous


@pytest.mark.parametrize(("window", "count"), [(10, 1), (11, 0)])
def test_a_recording_may_be_one_window_or_none(window, count):
    assert cut(RAMP, 1, window, 1).shape == (count, window, 2)


@pytest.mark.parametrize(("rate", "window", "hop", "says"), [
    (0, 1, 1, "rate is 0"), (float("nan"), 1, 1, "rate is nan"), (50, -1, 1, "window is -1"),
    (50, .009, 1, "0.009 s is shorter than one sample"), (50, 1, 0, "hop is 0"), (50, 1, .001, "hop of 0.001"),
    (50, float("inf"), 1, "window is inf"),
])
def test_numbers_that_cut_nothing_are_refused(rate, window, hop, says):
    with pytest.raises(BadInput, match=says):
        cut(RAMP, rate, window, hop)


def test_a_recording_is_a_table():
    with pytest.raises(BadInput, match=r"shape \(10,\)"):
        cut(RAMP[:, 0], 1, 1, 1)


def test_watch_holds_every_exercise_of_every_person():
    data = datasets.watch()
    assert len(data.recordings) == 140
    assert len(set(zip(data.labels, data.subjects, strict=True))) == 70
    assert data.channels == ("ax", "ay", "az", "wx", "wy", "wz")
    windows, labels, subjects = data.windows(3, 1.5)
    assert windows.shape == (3046, 150, 6)
    assert windows.dtype == np.float32
    assert len(labels) == len(subjects) == 3046


def test_digits_are_split_for_good_and_by_class():
    data = datasets.digits()
    assert data.x_train.shape == (1352, 64)
    assert data.x_test.shape == (445, 64)
    assert data.x_train.dtype == np.float32
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    assert np.bincount(data.y_test).tolist() == [44, 45, 44, 45, 45, 45, 45, 44, 43, 45]


def test_a_package_that_is_missing_or_altered_is_refused(monkeypatch):
    monkeypatch.setattr(datasets, "DIGITS_SHA256", "0" * 64)
    with pytest.raises(BadInput, match="SHA-256 09f66e6debdee2cd"):
        datasets.digits()
    monkeypatch.setattr(datasets, "DIGITS", ("no_such_package_here", "digits.csv.gz"))
    with pytest.raises(BadInput, match=r"pip install \"edgecl\[demo\]\""):
        datasets.digits()


def test_data_come_without_the_packages_that_carry_them():
    code = ("import sys; from edgecl.evaluation.datasets import digits, watch; digits(); watch();"
            "print({'sklearn', 'seglearn', 'scipy', 'pandas', 'torch'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
