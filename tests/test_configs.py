"""Everything in configs/: each .toml is one that the daemon takes, and the unit is as closed as it can be."""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_needs import need

from edgecl.cli import main
from edgecl.runtime.settings import read_settings
from edgecl.sources import is_stream
from edgecl.sources.streams import parse_stream

CONFIGS = Path(__file__).parents[1] / "configs"
UNIT = CONFIGS / "edgecl.service"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_example_is_read_and_its_sources_are_streams(path):
    settings = read_settings(path)
    assert all(is_stream(Path(source.uri)) and parse_stream(source.uri) for source in settings.sources)


def test_the_boards_of_the_readme_have_examples():
    boards = {path.stem for path in CONFIGS.glob("*.toml") if read_settings(path).sources}
    assert {"desk", "raspberry-pi-5", "jetson-orin-nano"} <= boards


@pytest.mark.parametrize("name", ["desk", "raspberry-pi-5", "jetson-orin-nano"])
def test_an_example_also_makes_a_state(name, tmp_path):
    done = subprocess.run([sys.executable, "-m", "edgecl.cli", "init", "--config", CONFIGS / f"{name}.toml", "--state",
                           tmp_path / "state"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_settings(CONFIGS / f"{name}.toml").learner.backbone in done.stdout


def test_the_unit_is_hardened():
    need("systemd-analyze", "systemd")
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", UNIT],
                          capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level for edgecl.service: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= 2.0


def test_the_unit_leaves_out_what_would_stop_the_work():
    keys = {line.partition("=")[0] for line in UNIT.read_text().splitlines() if not line.startswith("#")}
    assert not keys & {"ProtectClock", "MemoryDenyWriteExecute", "PrivateDevices", "PrivateNetwork"}
    assert {"Type", "WatchdogSec", "DynamicUser", "StateDirectory", "DevicePolicy"} <= keys


@pytest.mark.parametrize(("uri", "says"), [
    ("cam:1", "does not name a stream"), ("photos", "does not name a stream"), ("fake:.?speed=1", "option 'speed'"),
    ("serial:", "does not name a stream")])
def test_a_source_that_can_never_be_is_refused_before_anything_starts(uri, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("robot.toml").write_text(f'state = "s"\n[[source]]\nuri = "{uri}"\n')
    assert main(["daemon", "--config", "robot.toml"]) == 1
    assert says in capsys.readouterr().err
    assert not Path("s").exists()
