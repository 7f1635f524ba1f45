"""What `edgecl learn` says: accuracy with its counts, and one line of what changed beyond noise."""
from __future__ import annotations

import pytest

from edgecl.commands.learned import beyond_noise, changes, summary
from edgecl.results import Learned


def learned(accuracy, judged, **more):
    return Learned("mug", 20, 1.5, 7, 1000, accuracy, judged=judged, **more)


@pytest.mark.parametrize(("before", "after", "told"), [
    ((19, 20), (8, 10), False), ((95, 100), (80, 100), True), ((80, 100), (95, 100), True), ((4, 4), (0, 4), True),
    ((3, 4), (1, 4), False), ((10, 10), (10, 10), False), ((0, 9), (0, 12), False), ((50, 100), (60, 100), False),
    ((5000, 10000), (5200, 10000), True)])
def test_a_change_counts_beyond_two_standard_errors(before, after, told):
    assert beyond_noise(before, after) is told
    assert beyond_noise(after, before) is told


def test_one_line_names_what_has_changed():
    judged = {"mug": (None, [9, 10]), "fork": ([95, 100], [80, 100]), "cup": ([20, 25], [21, 25]),
              "pan": ([3, 3], [0, 3]), "pot": (None, [9, 9])}
    assert changes(learned({}, judged)) == ["  changed: fork 95.0 % -> 80.0 % (80 of 100)"]
    judged["fork"] = ([95, 100], [94, 100])
    assert changes(learned({}, judged)) == ["  no change beyond noise: the other 2 classes"]
    assert changes(learned({}, {"mug": (None, [9, 10]), "pan": ([3, 3], [0, 3])})) == []
    many = {f"class {number:02}": ([100, 100], [10, 100]) for number in range(15)}
    line, = changes(learned({}, many))
    assert line.count("->") == 12
    assert line.endswith("and 3 more")


def test_the_class_has_its_counts_and_nothing_below_four():
    text = summary(learned({"mug": (None, 0.91)}, {"mug": (None, [23, 25])}, left_out=3), 0, 10_000)
    assert "mug: 91.0 % (23 of 25) right" in text
    assert "left out: 3 that show nothing" in text
    assert "too few samples" in summary(learned({"mug": (None, None)}, {"mug": (None, [2, 3])}), 0, 10_000)
    assert "%" in summary(learned({}, {}, blank=2), 0, 10_000)
