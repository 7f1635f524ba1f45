"""One class as an anomaly detector: what docs/anomaly.md says, command by command."""
from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from edgecl.cli import main

PAGE = Path(__file__).parent.parent / "docs/anomaly.md"
RATE, TURNS = 200, 25.0     # samples and turns per second
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)


def fan(seconds, seed, worn=0.0, size=1.0):
    """Acceleration [n, 3] of a fan. worn: size of the impacts of a bearing; size: of the fan's own vibration."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    turn = 2 * np.pi * TURNS * t * rng.uniform(0.98, 1.02) + rng.uniform(0, 6)
    signal = np.stack([np.sin(turn), np.cos(turn), 0.3 * np.sin(2 * turn)], 1) * rng.uniform(0.9, 1.1) * size
    impacts = np.exp(-((turn * 3.58 / (2 * np.pi)) % 1) * 8) * np.sin(2 * np.pi * 80 * t)
    return signal + worn * impacts[:, None] + 0.15 * rng.standard_normal((len(t), 3))


def write(path, *parts):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, np.concatenate(parts), fmt="%.5f", delimiter=",", header="x,y,z", comments="")


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """The recordings that the page speaks of; today, the bearing is worn from the tenth second on."""
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        write(Path(f"fan/normal/{number}.csv"), fan(15, number))
    for number in range(4):
        write(Path(f"fan/worn/{number}.csv"), fan(10, 20 + number, 2.0))
        write(Path(f"fan/off/{number}.csv"), fan(10, 30 + number, 0.0, 0.0))
    write(Path("fan/today.csv"), fan(10, 50), fan(10, 51, 2.0))
    for name, signal in (("normal", fan(10, 60)), ("worn bearing", fan(10, 61, 2.0)), ("nothing", fan(10, 62, 0, 0))):
        write(Path("fan/check") / name / "0.csv", signal)


def run(capsys, block):
    """What the commands of a block print, the last one's as JSON lines."""
    out = ""
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "edgecl"
        last = words[1:] + (["--json"] if words[1] == "evaluate" else [])
        assert main(last) == 0, line
        out = capsys.readouterr().out
    return [json.loads(line) for line in out.splitlines()]


def test_the_page_works_as_it_is_written(recorded, capsys):
    detect, name, rest = BLOCKS
    today = run(capsys, detect)
    normal, worn = today[:18], today[21:]       # of 39 windows, those without both
    assert {each["label"] for each in today} == {"normal"}
    assert sum(each["unknown"] for each in normal) <= 2
    assert sum(each["unknown"] for each in worn) >= len(worn) - 1
    named = run(capsys, name)
    assert [each["label"] for each in named[:18]] == ["normal"] * 18
    assert [each["label"] for each in named[21:]] == ["worn bearing"] * 18
    checked = run(capsys, rest)[0]
    assert checked["per_class"]["nothing"] == 1.0
    assert checked["accuracy"] >= 0.95


def test_a_dead_sensor_is_told_and_init_says_what_to_do_next(recorded, capsys):
    lines = BLOCKS[0].splitlines()
    assert main(shlex.split(lines[0])[1:]) == 0
    said = capsys.readouterr().out
    assert "--class normal" in said
    assert "docs/anomaly.md" in said
    assert main(shlex.split(lines[1])[1:]) == 0
    write(Path("fan/dead.csv"), np.full((400, 3), 0.98))
    capsys.readouterr()
    assert main(["predict", "--state", "fan-state", "fan/dead.csv"]) == 0
    for line in capsys.readouterr().out.splitlines():
        answer = json.loads(line)
        assert (answer["label"], answer["unknown"], answer["reason"]) == (None, True, "the window is constant")


def test_a_state_for_anomalies_is_a_state_like_any_other(recorded, capsys):
    for name, more in (("plain", []), ("anomaly", ["--anomaly"])):
        assert main(["init", "--state", name, "--rate", "200", "--window", "1", "--json", *more]) == 0
        told = json.loads(capsys.readouterr().out)
        assert set(told) == {"state", "backbone", "quota_bytes", "used_bytes"}
