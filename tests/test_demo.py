"""The demo, whole: real recordings, people never seen."""
from __future__ import annotations

import json

import pytest
from helpers_needs import need

from edgecl.cli import main
from edgecl.errors import BadInput, BudgetError
from edgecl.evaluation import demo as demo_module
from edgecl.evaluation import demo_serial


@pytest.mark.slow
def test_demo_learns_without_forgetting(tmp_path, capsys, warm):
    assert main(["demo", "--out", str(tmp_path / "d"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    steps = told["steps"]
    assert len(steps) == 7
    assert steps[-1]["edgecl"] >= 0.86
    assert steps[-1]["fine_tuning"] < 0.5
    assert steps[-1]["joint"] > 0.8
    assert all(step["used_bytes"] <= demo_module.QUOTA for step in steps)
    assert told["exported_accuracy"] == pytest.approx(steps[-1]["edgecl"])
    report = (tmp_path / "d/report.html").read_text()
    assert report.count("<svg") == 1
    assert report.count("<table") == 2      # the steps, and the checks of the learning round
    assert f"{steps[-1]['edgecl']:.3f}" in report
    assert (tmp_path / "d/model.onnx").stat().st_size > 0
    assert main(["evaluate", str(tmp_path / "d/recordings/test"), "--state", str(tmp_path / "d/state"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(told["round"]["accuracy"])
    assert told["round"]["accuracy"] > steps[-1]["edgecl"] - 0.02       # whatever the gate said
    assert main(["history", "--state", str(tmp_path / "d/state"), "--json"]) == 0
    last = json.loads(capsys.readouterr().out)[-1]
    assert last["action"] == "round"
    assert ("refused" in last) == (not told["round"]["accepted"])


def test_a_round_that_other_programs_leave_no_time_gets_more_and_then_is_done_without(tmp_path):
    asked, said, done = [], [], demo_module.Demo([], 0, ([], []), "", 0.0, 0, tmp_path)

    class Busy:
        def round(self, request):
            asked.append(request.seconds)
            raise BudgetError("the worker was not done", "give --time 84s or more")

    assert demo_module.tuned(Busy(), {}, done, said.append) is done
    assert asked == [40, 160]
    assert said[1:] == ["  the worker was not done"] * 2


def test_demo_clears_no_folder_of_somebody_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("the only copy")
    with pytest.raises(BadInput, match="already contains something else"):
        demo_module.run(tmp_path, print)
    assert (tmp_path / "thesis.txt").read_text() == "the only copy"


@pytest.mark.slow
def test_through_firmware_and_serial_line_the_windows_and_answers_are_those_of_the_files(tmp_path, capsys):
    need("gcc", "gcc")
    done = demo_serial.run(tmp_path / "d", print, classes=2, recordings=2)
    assert [row.learned[0] for row in done.rows] == [row.learned[1] for row in done.rows]
    assert all(row.asked[0] == row.asked[1] > 20 for row in done.rows)
    assert abs(done.from_serial - done.from_file) <= 0.005
    assert done.from_serial > 0.5
