"""`edgecl doctor` on serial ports: who may open them, who has them open, who takes them away."""
from __future__ import annotations

import grp
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from edgecl.commands import doctor
from firmware_bridge import wires

RULES = Path(__file__).resolve().parents[1] / "configs" / "70-edgecl.rules"


@pytest.fixture
def one_port(tmp_path, monkeypatch):
    """A file that stands for the only serial port."""
    port = tmp_path / "ttyACM0"
    port.touch()
    monkeypatch.setattr(wires, "ports", lambda: [str(port)])
    monkeypatch.setattr(doctor, "_running", set)
    return port


def found():
    return doctor.ports(Namespace())


def test_a_free_port_is_shown_as_it_is_used(one_port):
    (finding,) = found()
    assert (finding.level, f"edgecl predict serial:{one_port}" in finding.detail) == ("ok", True)


def test_a_port_that_another_program_has_open_names_it(one_port):
    with one_port.open() as file:
        other = subprocess.Popen([sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(file.fileno(),))
        try:
            other.stdout.readline()
            (finding,) = found()
            assert finding.level == "note"
            assert f"({other.pid})" in finding.detail
        finally:
            other.communicate()


def test_a_port_without_permission_names_the_group(one_port, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    group = grp.getgrgid(one_port.stat().st_gid).gr_name
    (finding,) = found()
    assert finding.level == "bad"
    assert f"usermod -aG {group}" in finding.cure


def test_a_group_joined_since_the_login_needs_a_new_login(one_port, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(wires, "group_of", lambda _: "dialout")
    monkeypatch.setattr(grp, "getgrnam", lambda _: grp.struct_group(("dialout", "x", 20, ["someone"])))
    monkeypatch.setattr("getpass.getuser", lambda: "someone")
    assert "log out and in again" in found()[0].cure


@pytest.mark.parametrize(("thief", "cure"), [("ModemManager", RULES.name), ("brltty", "apt remove brltty")])
def test_programs_that_take_ports_are_named_with_what_stops_them(one_port, monkeypatch, thief, cure):
    monkeypatch.setattr(doctor, "_running", lambda: {thief, "bash"})
    finding = found()[-1]
    assert finding.check == thief
    assert cure in finding.cure


def test_the_rules_keep_modemmanager_away_from_the_usual_boards():
    rules = [line for line in RULES.read_text().splitlines() if line and not line.startswith("#")]
    for vendor in ("2341", "2e8a", "303a", "0483", "1a86", "10c4", "0403"):
        assert any(vendor in rule and 'ENV{ID_MM_DEVICE_IGNORE}="1"' in rule for rule in rules), vendor
    assert sum('GROUP="dialout"' in rule for rule in rules) == 2
