"""States that commit 651cae2 made open, answer as recorded, say the same to programs, and go on learning.

The states are as that commit left them. Their heads are solved and judged again, since what chose and calibrated them
then is no longer used; so what is recorded are the answers of the code that last changed them, and another processor
gives the same to what the order of a sum changes.
"""
from __future__ import annotations

import pytest
from helpers_recorded import MERGED, NAMES, differences, keys, play, recorded, state_of, unpack


def compare(part, name, folder):
    """Play a part of a recording on a fresh copy; what is printed otherwise."""
    wanted, named, wrong = recorded(name)[part], unpack(name, folder), []
    for (line, found), (_, before) in zip(play([line for line, _ in wanted], named), wanted, strict=True):
        wrong += differences(found, before, " ".join(line))
    return wrong


@pytest.mark.parametrize("part", ["look", "changes"])
@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_state_answers_the_same_and_goes_on_learning_forgetting_and_rolling_back(name, part, tmp_path):
    assert compare(part, name, tmp_path) == []


@pytest.mark.parametrize("name", MERGED)
def test_recorded_states_merge(name, tmp_path):
    assert compare("merge", name, tmp_path) == []


def test_the_methods_are_those_that_were_recorded(tmp_path):
    named = unpack("vectors", tmp_path)
    for line, before in recorded("commands")["same"]:
        [(_, found)] = play([line], named)
        assert found == before, line


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_what_measures_this_machine_prints_the_same_keys(tmp_path):
    for line, before in recorded("commands")["keys"]:
        [(_, found)] = play([line], unpack(state_of(line), tmp_path / line[0]))
        assert keys(found) == before, line


def test_a_difference_is_found():
    assert differences([{"a": 1.0, "b": "x"}], [{"a": 1.0, "b": "x"}]) == []
    assert differences({"a": 1.0}, {"a": 1.0000001}) == []
    assert differences({"a": 1.0}, {"a": 1.01}) == [".a: 1.0, recorded 1.01"]
    for found, wanted in (({"a": 1}, {"b": 1}), ([1], [1, 1]), (1, 1.0), (True, 1), (0.5, 0.6), ("a", "b"), ([], None)):
        assert differences(found, wanted)


@pytest.mark.parametrize("name", ["windows", "round"])
def test_a_head_of_an_earlier_edgecl_is_judged_again_before_it_answers(name, tmp_path):
    named = unpack(name, tmp_path)
    lines = (["predict", "{ask}"], ["status"], ["predict", "{ask}"])
    (_, first), _, (_, last) = play(lines, named)
    assert first == last
