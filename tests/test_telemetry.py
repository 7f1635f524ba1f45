"""Nothing leaves the machine and nothing is written outside the state: ONNX Runtime's telemetry is off everywhere."""
from __future__ import annotations

import ipaddress
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers_needs import need
from PIL import Image
from round_states import conv_backbone

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"sa_family=AF_INET6?,.*?(?:inet_addr\(\"|inet_pton\(AF_INET6, \")([0-9a-fA-F.:]+)\"")
DAEMON = """
import time
from pathlib import Path
from edgecl.learner import Learner
from edgecl.runtime.client import Client
from edgecl.runtime.daemon import Daemon
from edgecl.runtime.settings import DaemonSettings, SourceSettings
source = SourceSettings("fake:dark?fps=20", "desk")
daemon = Daemon(DaemonSettings(Path("state"), (source,), rounds="off"), Learner.open)
daemon.start()
for _ in range(1200):
    with Client(Path("state/control.sock")) as client:
        if client.ask("latest").get("desk"):
            break
    time.sleep(0.1)
else:
    raise SystemExit("no answer came")
assert daemon.stop()
"""
LIBRARY = """
import edgecl
learner = edgecl.Learner.open("state")
assert len(learner.classes()) == 2
import numpy as np
learner.features(np.zeros((1, 32, 32, 3), np.uint8))
"""


@pytest.fixture
def run(tmp_path):
    """Run Python in a folder with an empty home, traced; the addresses outside the machine that it asked for."""
    need("strace", "strace")
    (tmp_path / "home").mkdir()
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "EDGECL_CACHE")}
    environment |= {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}

    def python(*arguments: object) -> list[str]:
        log = tmp_path / "network.log"
        done = subprocess.run(["strace", "-f", "-qq", "-e", "trace=network", "-o", log, sys.executable,
                               *map(str, arguments)], cwd=tmp_path, env=environment, capture_output=True, text=True,
                              timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not list((tmp_path / "home").rglob("*")), arguments
        return outside(log.read_text())

    return python


def outside(log: str) -> list[str]:
    """The addresses in a trace that are not this machine's own."""
    return [address for address in OUTSIDE.findall(log) if not ipaddress.ip_address(address).is_loopback]


def test_the_trace_is_read_as_strace_writes_it():
    log = ('7 connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("10.0.0.2")}, 16) = 0\n'
           '7 sendto(4, "x", 1, 0, {sa_family=AF_INET6, sin6_port=htons(443), sin6_flowinfo=htonl(0), '
           'inet_pton(AF_INET6, "2001:db8::1", &sin6_addr), sin6_scope_id=0}, 28) = 1\n'
           '7 connect(3, {sa_family=AF_INET, sin_port=htons(9), sin_addr=inet_addr("127.0.0.1")}, 16) = 0\n'
           '7 connect(3, {sa_family=AF_UNIX, sun_path="state/control.sock"}, 110) = 0\n')
    assert outside(log) == ["10.0.0.2", "2001:db8::1"]


def photos(folder, shade):
    folder.mkdir()
    for number in range(12):
        pixels = np.random.default_rng([shade, number]).integers(0, 60, (40, 40, 3)) + shade
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")


@pytest.mark.slow
def test_no_command_writes_outside_the_state_or_asks_for_an_address_outside_the_machine(run, tmp_path):
    for name, shade in (("dark", 10), ("light", 150)):
        photos(tmp_path / name, shade)
    (tmp_path / "both").mkdir()
    for name in ("dark", "light"):
        (tmp_path / "both" / name).symlink_to(tmp_path / name)
    (tmp_path / "small.onnx").write_bytes(conv_backbone())
    cli = ("-m", "edgecl.cli")
    assert run(*cli, "init", "--state", "state", "--backbone", "small.onnx") == []
    for name in ("dark", "light"):
        assert run(*cli, "learn", "--state", "state", "--class", name, name) == []
    assert run(*cli, "predict", "--state", "state", "dark/00.png") == []
    assert run(*cli, "evaluate", "--state", "state", "both") == []
    assert run(*cli, "export", "--state", "state", "out.onnx") == []
    assert run(*cli, "doctor", "--state", "state") == []
    assert run("-c", LIBRARY) == []
    assert run("-c", DAEMON) == []
    assert run(*cli, "round", "--state", "state", "--time", "10m", "--memory", "2GB", "--epochs", "1", "--method",
               "er") == []
