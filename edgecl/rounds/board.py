"""What the machine offers a learning round: memory, cores, load, heat, power supply and battery.

A missing, unreadable or absurd value is left out; nothing here raises because of one. Only available memory comes from
psutil: its temperatures have no trip points, its battery is the first one, even a mouse's, its clock does not show a
cap, and it reads /sys in place, not from a recorded tree.
"""
from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from glob import glob
from pathlib import Path

from edgecl.errors import BadInput

COLDEST, HOTTEST = -40.0, 126.0  # degrees C; what lies beyond, and exactly 0, is a sentinel: -274, -273.25, 127, 32767
LOWEST_TRIP = 40.0               # ACPI tables hold trip points that a processor always exceeds
NOT_SENSORS = {"PMIC-Die"}       # 100 C on every Jetson Nano, TX1 and TX2
CGROUP_FILES = (("max", "current", "inactive_file"), ("high", "current", "inactive_file"),
          ("limit_in_bytes", "usage_in_bytes", "total_inactive_file"))  # limit, usage, reclaimable cache


@dataclass(frozen=True)
class Zone:
    """One thermal zone, in degrees C. trip: its lowest point where the kernel slows down or shuts down."""

    name: str
    degrees: float
    trip: float | None = None


@dataclass(frozen=True)
class Readings:
    """What a machine offers at one moment; None for what it does not tell.

    memory: bytes available, also within this process's cgroup; cores: usable by this process, by its affinity and CPU
    quota; processors: online in the machine; load: tasks that run or wait in it, mean over a minute; frequency: the
    most capped core's maximum clock, in percent of its hardware maximum; throttled: bits of a Raspberry Pi's firmware,
    0 to 3 are under-voltage, capped, throttled, soft temperature limit, all now; battery: percent, mean of several;
    mains: whether it has external power.
    """

    memory: int | None = None
    cores: float | None = None
    processors: int | None = None
    load: float | None = None
    zones: tuple[Zone, ...] = ()
    frequency: float | None = None
    throttled: int | None = None
    battery: float | None = None
    mains: bool | None = None

    def to_json(self) -> str:
        """One line that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Readings:
        """Recorded readings. Raises BadInput for text that `to_json` did not write."""
        try:
            values = json.loads(text)
            return cls(**{**values, "zones": tuple(Zone(**zone) for zone in values.get("zones", ()))})
        except (ValueError, TypeError, AttributeError) as error:
            raise BadInput(f"these are not readings: {error}", "give what Readings.to_json wrote") from error


def system_memory() -> int | None:
    """Bytes available in the whole machine without swapping."""
    try:
        import psutil
        return int(psutil.virtual_memory().available)
    except (ImportError, OSError, ValueError, KeyError):
        return None


def ask_firmware() -> str:
    """What `vcgencmd get_throttled` prints; empty if there is no such command, or no answer within two seconds."""
    command = shutil.which("vcgencmd")
    try:
        return subprocess.run([command, "get_throttled"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=2, check=True).stdout if command else ""
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""


def read(root: Path = Path("/"), vcgencmd: Callable[[], str] = ask_firmware,
         memory: Callable[[], int | None] = system_memory) -> Readings:
    """The current readings. root: the folder that holds proc and sys; vcgencmd, memory: see the two defaults."""
    online = _cpus(_text(root / "sys/devices/system/cpu/online"))
    allowed = _cpus(_found(r"^Cpus_allowed_list:\s*(\S+)$", _text(root / "proc/self/status")))
    usable = len(online & allowed or online or allowed)  # the allowed ones may not all exist
    load = _found(r"^([0-9]{1,6}\.[0-9]{1,4}) ", _text(root / "proc/loadavg"))
    clocks = [(_number(folder / "scaling_max_freq") or 0, _number(folder / "cpuinfo_max_freq") or 0)
              for folder in _inside(root / "sys/devices/system/cpu", "cpu[0-9]*/cpufreq")]
    battery, mains = _supply(root)
    return Readings(
        memory=min((room for room in (memory(), *_group_memory(root)) if room is not None), default=None),
        cores=min([float(usable), *_quotas(root)]) if usable else None,
        processors=len(online) or None,
        load=float(load) if load else None,
        zones=tuple(_zones(root)),
        frequency=min((min(100 * now / most, 100.0) for now, most in clocks if min(now, most) > 0), default=None),
        throttled=_throttled(root, vcgencmd),
        battery=battery, mains=mains)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except (OSError, ValueError):  # ValueError: a null byte in a path that the system named
        return ""


def _number(path: Path) -> int | None:
    return int(text) if re.fullmatch("-?[0-9]{1,19}", text := _text(path)) else None


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else ""


def _inside(folder: Path, pattern: str) -> list[Path]:
    return [folder / name for name in sorted(glob(pattern, root_dir=folder), key=lambda name: (len(name), name))]


def _cpus(text: str) -> set[int]:
    """The numbers of `0-3,5`."""
    spans = re.findall("([0-9]{1,4})(?:-([0-9]{1,4}))?", text) if re.fullmatch("[0-9,-]+", text) else []
    return {cpu for first, last in spans for cpu in range(int(first), int(last or first) + 1)}


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the cgroups that may limit this process, versions 1 and 2: its own and all its ancestors."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        mounts = ["", "unified"] if not controllers else [controller] if controller in controllers.split(",") else []
        parts = [] if ".." in path.split("/") else path.strip("/").split("/")  # ..: above its namespace
        yield from (root.joinpath("sys/fs/cgroup", mount, *parts[:depth])
                    for mount in mounts for depth in range(len(parts) + 1))


def _group_memory(root: Path) -> Iterator[int]:
    for folder in _groups(root, "memory"):
        for limit, usage, cache in CGROUP_FILES:
            most = _number(folder / f"memory.{limit}")
            if most is not None and most < 2**60:  # version 1 writes no limit as 2**63 - 4096
                cached = int(_found(f"^{cache} ([0-9]{{1,18}})$", _text(folder / "memory.stat")) or 0)
                yield max(most - max((_number(folder / f"memory.{usage}") or 0) - cached, 0), 0)


def _quotas(root: Path) -> Iterator[float]:
    """Cores of CPU time that each cgroup allows."""
    for folder in _groups(root, "cpu"):
        old = f"{_text(folder / 'cpu.cfs_quota_us')} {_text(folder / 'cpu.cfs_period_us')}"
        match = re.fullmatch("([1-9][0-9]{0,14}) ([1-9][0-9]{0,14})", _text(folder / "cpu.max") or old)
        if match:
            yield int(match[1]) / int(match[2])


def _degrees(path: Path) -> float | None:
    degrees = (_number(path) or 0) / 1000
    return degrees if degrees and COLDEST <= degrees <= HOTTEST else None


def _zones(root: Path) -> Iterator[Zone]:
    for folder in _inside(root / "sys/class/thermal", "thermal_zone*"):
        name, degrees = _text(folder / "type") or folder.name, _degrees(folder / "temp")
        trips = [_degrees(path.with_name(path.name.replace("_type", "_temp"))) or 0
                 for path in _inside(folder, "trip_point_*_type") if _text(path) in ("passive", "critical")]
        if degrees is not None and name not in NOT_SENSORS:
            yield Zone(name, degrees, min((trip for trip in trips if trip >= LOWEST_TRIP), default=None))


def _throttled(root: Path, vcgencmd: Callable[[], str]) -> int | None:
    for path in _inside(root / "sys/devices/platform", "soc*/*firmware/get_throttled"):
        if re.fullmatch("(0x)?[0-9a-fA-F]{1,8}", _text(path)):
            return int(_text(path), 16)
    answer = re.fullmatch("throttled=0x([0-9a-fA-F]{1,8})", vcgencmd().strip())
    return int(answer[1], 16) if answer else None


def _supply(root: Path) -> tuple[float | None, bool | None]:
    """Mean charge of the batteries in percent, and whether the machine has external power."""
    charges, states, online = list[int](), set[str](), list[bool]()
    for folder in _inside(root / "sys/class/power_supply", "*"):
        kind, charge, plugged = _text(folder / "type"), _number(folder / "capacity"), _number(folder / "online")
        own = _text(folder / "scope") != "Device"  # not the battery of a mouse or a gamepad
        if own and kind == "Battery" and _number(folder / "present") != 0:
            states.add(_text(folder / "status"))
            charges += [charge] if charge is not None and 0 <= charge <= 100 else []
        elif own and kind.startswith(("Mains", "Wireless", "USB")):
            online += [plugged > 0] if plugged is not None else []
    battery = sum(charges) / len(charges) if charges else None
    if states & {"Charging", "Discharging"}:  # more reliable than `online`: a charger can be too weak, or not listed
        return battery, "Discharging" not in states
    return battery, any(online) if online else True if states & {"Full", "Not charging"} else None
