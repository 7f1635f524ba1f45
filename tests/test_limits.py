"""What the machine offers, from recorded readings and made-up sysfs trees, and whether a round may run on it."""
from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecl.commands import doctor
from edgecl.errors import BadInput
from edgecl.files.tables import checked
from edgecl.rounds import board as module
from edgecl.rounds.board import Readings, Zone, ask_firmware, read
from edgecl.rounds.limits import Limits, Need, Reason, may_run
from edgecl.rounds.run import ASKED

RECORDED = Path(__file__).parent / "recorded"
NEED = Need(memory=400_000_000, seconds=120, threads=1)


def recorded(name):
    return Readings.from_json(json.dumps(json.loads((RECORDED / f"{name}.json").read_text())["readings"]))


# recorded machines ------------------------------------------------------------------------------

CASES = [  # machine, limits, why no round starts, why a running one stops
    ("desk_pc", {}, [], []),
    ("desk_pc", {"memory": 390_000_000}, ["takes 400 MB of memory, rounds may take 390 MB"], []),
    ("desk_pc", {"memory": 300_000_000}, ["rounds may take 300 MB"], ["rounds may take 375 MB"]),
    ("desk_pc", {"time": 100.0}, ["takes 120 s, rounds may take 100 s"], []),
    ("desk_pc", {"time": 90.0}, ["rounds may take 90 s"], ["rounds may take 112 s"]),
    ("raspberry_pi_4_hot", {}, ["cpu-thermal is at 86 C, rounds start below 75 C", "capped now (throttled=0xe0006)",
                                "it is throttled now"],
     ["a running round stops at 80 C: cool the board, or raise heat", "it is throttled now"]),
    ("raspberry_pi_4_hot", {"heat": 100.0}, ["below 85 C since it trips at 90 C", "capped", "throttled"],
     ["throttled"]),
    ("raspberry_pi_5_undervoltage", {}, ["voltage is too low now (throttled=0x50005)", "it is throttled"],
     ["voltage is too low", "it is throttled"]),
    ("jetson_orin_nano_warm", {}, ["cpu-thermal is at 91 C, rounds start below 75 C"], ["stops at 80 C"]),
    ("jetson_orin_nano_warm", {"heat": 95.0}, ["91 C, rounds start below 90 C since it trips at 95 C"], []),
    ("jetson_orin_nano_warm", {"heat": 100.0, "heat_margin": 0.0, "frequency": 80.0}, ["clock is capped at 75 %"], []),
    ("jetson_orin_nano_warm", {"heat": 100.0, "heat_margin": 0.0, "frequency": 90.0}, ["start from 90 %"],
     ["stops below 80 %"]),
    ("laptop_on_battery", {}, ["battery is at 20 %, rounds start from 30 %"], ["a running round stops below 25 %"]),
    ("laptop_on_battery", {"battery": 25.0}, ["rounds start from 25 %"], []),
    ("laptop_on_battery", {"battery": 0.0}, [], []),
    ("container_512mb", {}, ["436 MB of memory are available, the round takes 400 MB and leaves 100 MB"], []),
    ("container_512mb", {"reserve": 900_000_000}, ["leaves 900 MB"], ["a running round stops below 450 MB"]),
    ("busy_machine", {}, ["load 4 processors with 5.63 tasks, rounds start below 2.80"],
     ["4.63 tasks", "stops at 4.00"]),
    ("busy_machine", {"load": 1.0}, ["below 4.00"], []),
]


@pytest.mark.parametrize(("name", "limits", "start", "stop"), CASES)
def test_a_recorded_machine_says_why_not(name, limits, start, stop):
    for running, expected in ((False, start), (True, stop)):
        verdict = may_run(recorded(name), Limits(**limits), NEED, running)
        text = "\n".join(map(str, verdict.reasons))
        assert all(part in text for part in expected), text
        assert verdict.allowed == bool(verdict) == (not expected)
        assert len(verdict.reasons) <= max(len(expected), 1), text


def test_every_recording_says_where_it_is_from_and_survives_json():
    for path in RECORDED.glob("*.json"):
        origin = json.loads(path.read_text())["origin"]
        assert origin.startswith("recorded with") == (path.stem == "this_machine") != origin.startswith("reconstructed")
        assert Readings.from_json(recorded(path.stem).to_json()) == recorded(path.stem)


def test_threads_are_asked_for_once_at_the_start():
    one_core = Readings(cores=0.5, processors=8)
    assert may_run(one_core, Limits(), NEED)
    two = dataclasses.replace(NEED, threads=2)
    assert [str(r) for r in may_run(one_core, Limits(threads=2), two).reasons] == [
        "the round takes 2 threads, this process may use 0.5 cores: lower threads"]
    assert "rounds may take 1: raise threads" in str(may_run(Readings(cores=4), Limits(), two).reasons[0])
    assert may_run(one_core, Limits(), two, running=True)


def test_of_several_zones_the_one_nearest_its_own_bound_decides():
    zones = (Zone("gpu", 70.0), Zone("skin", 52.0, 55.0), Zone("cpu", 74.0, 95.0))
    [reason] = may_run(Readings(zones=zones), Limits(), NEED).reasons
    assert reason == Reason("skin is at 52 C, rounds start below 50 C since it trips at 55 C",
                            "cool the board, or lower heat_margin")


def test_what_is_not_known_does_not_refuse_and_a_gauge_without_mains_does():
    assert may_run(Readings(), Limits(), NEED) and may_run(Readings(load=9.0), Limits(), NEED)
    assert not may_run(Readings(battery=10.0), Limits(), NEED)
    assert may_run(Readings(battery=10.0, mains=True), Limits(), NEED)


# limits -----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "value"), [
    ("memory", 0), ("memory", "400"), ("reserve", -1), ("reserve", None), ("time", 0.0), ("time", float("nan")),
    ("threads", 0), ("threads", 1.5), ("threads", True), ("heat", 200.0), ("heat", None), ("heat_margin", -1.0),
    ("battery", 101), ("frequency", -1), ("load", 0.0), ("load", "0.7"), ("time", float("inf"))])
def test_a_limit_out_of_range_names_its_value_and_the_cure(name, value):
    with pytest.raises(BadInput, match=re.escape(f"{name} is {value!r}")) as raised:
        Limits(**{name: value})
    assert raised.value.cure.startswith("give ")


def test_limits_are_read_from_a_table():
    table = {"memory": "400MB", "time": "60s", "threads": 1, "heat": 70, "battery": 30, "reserve": 10**6}
    assert checked(Limits, table, "limits") == Limits(memory=400_000_000, time=60.0, heat=70, reserve=10**6)
    assert checked(Limits, {}, "limits") == Limits()
    for wrong in ({"heats": 70}, {"memory": "much"}, {"time": "soon"}, {"heat": "70"}):
        with pytest.raises(BadInput):
            checked(Limits, wrong, "limits")


# properties -------------------------------------------------------------------------------------

def maybe(values):
    return st.none() | values


degrees = st.floats(-40, 126, allow_nan=False)
zones = st.builds(Zone, st.just("cpu-thermal"), degrees, maybe(st.floats(40, 126)))
machines = st.builds(
    Readings, memory=maybe(st.integers(0, 2**33)), cores=maybe(st.floats(0.1, 64)),
    processors=maybe(st.integers(1, 64)), load=maybe(st.floats(0, 100)), zones=st.lists(zones, max_size=3).map(tuple),
    frequency=maybe(st.floats(0, 100)), throttled=maybe(st.integers(0, 2**20 - 1)), battery=maybe(st.floats(0, 100)),
    mains=maybe(st.booleans()))
bounds = st.builds(
    Limits, memory=maybe(st.integers(1, 2**33)), reserve=st.integers(0, 2**30), time=maybe(st.floats(1, 1000)),
    threads=st.integers(1, 8), heat=st.floats(1, 125), heat_margin=st.floats(0, 50), battery=st.floats(0, 100),
    frequency=st.floats(0, 100), load=st.floats(0.01, 10))
needs = st.builds(Need, st.integers(0, 2**32), st.floats(0, 2000), st.integers(1, 8))


@given(machines, bounds, needs, st.booleans(), st.floats(0, 100), st.integers(0, 2**32))
def test_a_better_machine_never_turns_a_yes_into_a_no(machine, limits, need, running, change, more):
    better = dataclasses.replace(
        machine, memory=machine.memory and machine.memory + more, cores=machine.cores and machine.cores + change,
        zones=tuple(dataclasses.replace(zone, degrees=zone.degrees - change) for zone in machine.zones),
        load=machine.load and max(machine.load - change, 0), battery=machine.battery and machine.battery + change,
        frequency=machine.frequency and machine.frequency + change, throttled=0, mains=True)
    if may_run(machine, limits, need, running):
        assert may_run(better, limits, need, running)


@given(machines, bounds, needs)
def test_what_stops_a_running_round_would_not_let_it_start(machine, limits, need):
    if may_run(machine, limits, need):
        assert may_run(machine, limits, need, running=True)


@given(machines, bounds, needs, st.booleans())
def test_every_reason_is_one_line_with_a_number_and_a_cure(machine, limits, need, running):
    for reason in may_run(machine, limits, need, running).reasons:
        assert re.search("[0-9]", reason.what) and reason.cure and "\n" not in str(reason)
        assert "None" not in str(reason) and "inf" not in str(reason)


@given(machines)
def test_readings_survive_json(machine):
    assert Readings.from_json(machine.to_json()) == machine


@pytest.mark.parametrize("text", ["", "[]", "7", "{\"heat\": 3}", "{\"zones\": 3}", "{\"zones\": [{\"name\": \"a\"}]}"])
def test_readings_of_another_form_are_refused(text):
    with pytest.raises(BadInput):
        Readings.from_json(text)


# trees like those of the system -----------------------------------------------------------------

def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else f"{text}\n".encode())
    return root


def look(root, files, answer="", memory=None):
    return read(tree(root, files), vcgencmd=lambda: answer, memory=lambda: memory)


def zone(number, name, temp, *trips):
    here = f"sys/class/thermal/thermal_zone{number}"
    return {f"{here}/type": name, f"{here}/temp": temp} | {
        f"{here}/trip_point_{n}_{part}": value for n, trip in enumerate(trips)
        for part, value in zip(("type", "temp"), trip)}


def test_an_empty_system_offers_nothing(tmp_path):
    assert look(tmp_path, {}) == look(tmp_path / "nowhere", {}) == Readings()


def test_zones_with_their_lowest_trip_that_slows_down_or_stops(tmp_path):
    found = look(tmp_path, zone(0, "cpu-thermal", 47400, ("critical", 110000), ("active", 50000), ("active", 60000))
                 | zone(1, "soc-thermal", 61111, ("passive", 75000), ("passive", 85000), ("critical", 115000))
                 | zone(2, "x86_pkg_temp", 54000, ("passive", 0), ("passive", -274000))
                 | zone(10, "B0D4", 66000, ("critical", 98000), ("hot", 97000), ("passive", 89000), ("active", 86000)))
    assert found.zones == (Zone("cpu-thermal", 47.4, 110.0), Zone("soc-thermal", 61.111, 75.0),
                           Zone("x86_pkg_temp", 54.0), Zone("B0D4", 66.0, 89.0))


@pytest.mark.parametrize("temp", [
    "-274000", "-256000", "0", "127000", "32767000", "", "hot", "41.5", b"\xff\xfe\0", "9" * 30])
def test_an_absurd_temperature_is_not_offered(tmp_path, temp):
    assert look(tmp_path, zone(0, "iwlwifi_1", temp) | zone(1, "CPU-therm", 34000)).zones == (Zone("CPU-therm", 34.0),)


def test_the_jetson_zone_that_always_says_100_degrees_is_left_out_and_frost_is_not(tmp_path):
    found = look(tmp_path, zone(0, "PMIC-Die", 100000) | zone(1, "GPU-therm", -12500))
    assert found.zones == (Zone("GPU-therm", -12.5),)


@pytest.mark.parametrize("trip", [("passive", "-32768000"), ("passive", "16800"), ("passive", "x"), ("\0", "60000")])
def test_an_absurd_trip_point_is_not_offered(tmp_path, trip):
    assert look(tmp_path, zone(0, "tj-thermal", 50000, trip)).zones == (Zone("tj-thermal", 50.0),)


def test_files_that_cannot_be_read_and_zones_that_disappear(tmp_path, monkeypatch):
    files = zone(0, "cpu-thermal", 50000) | zone(1, "gpu-thermal", 51000) | zone(2, "secret", 52000)
    tree(tmp_path, files)
    thermal = tmp_path / "sys/class/thermal"
    (thermal / "thermal_zone1/temp").unlink()
    (thermal / "thermal_zone1/temp").mkdir()
    (thermal / "thermal_zone3").symlink_to(tmp_path / "gone")
    plain = Path.read_text

    def denied(path, *arguments, **options):
        if "thermal_zone2" in str(path):
            raise PermissionError(13, "denied") if path.name == "type" else OSError(61, "No data available")
        return plain(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", denied)
    assert look(tmp_path, {}).zones == (Zone("cpu-thermal", 50.0),)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_without_permission_nothing_is_offered(tmp_path):
    tree(tmp_path, zone(0, "cpu-thermal", 50000))
    (tmp_path / "sys/class/thermal").chmod(0)
    assert look(tmp_path, {}) == Readings()
    (tmp_path / "sys/class/thermal").chmod(0o700)


GROUP = "sys/fs/cgroup/system.slice/edgecl.service"


@pytest.mark.parametrize(("files", "expected"), [
    ({f"{GROUP}/memory.max": 512 << 20, f"{GROUP}/memory.current": 300 << 20,
      f"{GROUP}/memory.stat": f"anon 9\nfile 7\ninactive_file {100 << 20}\nactive_file 3"}, 312 << 20),
    ({f"{GROUP}/memory.max": "max", f"{GROUP}/memory.current": 300}, 10**9),
    ({f"{GROUP}/memory.max": "max", f"{GROUP}/memory.high": 10**6, f"{GROUP}/memory.current": 300}, 10**6 - 300),
    ({f"{GROUP}/memory.max": 10**6, f"{GROUP}/memory.current": 2 * 10**6}, 0),
    ({f"{GROUP}/memory.max": 10**6}, 10**6),
    ({f"{GROUP}/memory.max": "lots"}, 10**9),
    ({"sys/fs/cgroup/system.slice/memory.max": 10**7, f"{GROUP}/memory.max": 10**8}, 10**7),
    ({"sys/fs/cgroup/memory.max": 10**7, "proc/self/cgroup": "0::/../../elsewhere"}, 10**7)])
def test_memory_of_cgroups_version_2(tmp_path, files, expected):
    found = look(tmp_path, {"proc/self/cgroup": "0::/system.slice/edgecl.service"} | files, memory=10**9)
    assert found.memory == expected


@pytest.mark.parametrize(("limit", "expected"), [(512 << 20, 262 << 20), (2**63 - 4096, 10**9)])
def test_memory_and_quota_of_cgroups_version_1(tmp_path, limit, expected):
    memory, cpu = "sys/fs/cgroup/memory/docker/4f", "sys/fs/cgroup/cpu"
    found = look(tmp_path, {
        "proc/self/cgroup": "12:cpu,cpuacct:/docker/4f\n4:memory:/docker/4f\n1:name=systemd:/\n0::/",
        f"{memory}/memory.limit_in_bytes": limit, f"{memory}/memory.usage_in_bytes": 300 << 20,
        f"{memory}/memory.stat": f"inactive_file 1\ntotal_inactive_file {50 << 20}",
        f"{cpu}/cpu.cfs_quota_us": 150000, f"{cpu}/cpu.cfs_period_us": 100000,
        "sys/devices/system/cpu/online": "0-3"}, memory=10**9)
    assert (found.memory, found.cores, found.processors) == (expected, 1.5, 4)
    assert look(tmp_path, {}, memory=None).memory == (expected if limit < 2**60 else None)


@pytest.mark.parametrize("groups", ["", "x", "0::/\0", "4:memory", "::", "0::" + "/a" * 300])
def test_a_garbled_list_of_cgroups_limits_nothing(tmp_path, groups):
    assert look(tmp_path, {"proc/self/cgroup": groups}, memory=77).memory == 77


@pytest.mark.parametrize(("online", "allowed", "quota", "cores"), [
    ("0-3", "0-3", "max 100000", 4), ("0-3", "0,2", "max 100000", 2), ("0-1", "0-127", "250000 100000", 2),
    ("0-7", "0-7", "50000 100000", 0.5), ("0-1,4", "", "", 3), ("", "1-2", "0 0", 2), ("all 4", "x", "a b", None)])
def test_cores_by_affinity_and_quota(tmp_path, online, allowed, quota, cores):
    found = look(tmp_path, {"sys/devices/system/cpu/online": online, "sys/fs/cgroup/cpu.max": quota,
                            "proc/self/status": f"Name:\tpython\nCpus_allowed_list:\t{allowed}\nMems_allowed:\t1",
                            "proc/self/cgroup": "0::/", "proc/loadavg": "1.25 0.28 0.21 3/88 5111"})
    assert (found.cores, found.load) == (cores, 1.25)


def test_the_most_capped_core_counts(tmp_path):
    clocks = {0: (1800000, 1800000), 1: (600000, 1800000), 2: (0, 1800000), 3: ("<unknown>", 5), 4: (2000000, 1800000)}
    found = look(tmp_path, {f"sys/devices/system/cpu/cpu{cpu}/cpufreq/{name}_max_freq": value for cpu, pair in
                            clocks.items() for name, value in zip(("scaling", "cpuinfo"), pair)})
    assert found.frequency == pytest.approx(100 / 3)


FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"


@pytest.mark.parametrize(("files", "answer", "bits"), [
    ({FIRMWARE: "50005"}, "throttled=0x0", 0x50005), ({FIRMWARE: "0"}, "throttled=0x1", 0),
    ({FIRMWARE: "garbage"}, "throttled=0x80008\n", 0x80008), ({}, "throttled=0x0", 0), ({}, "throttled=0x", None),
    ({}, "VCHI initialization failed", None), ({}, "throttled=0x1 or so", None), ({}, "error=1 throttled=0x1", None)])
def test_the_bits_of_a_raspberry_pi(tmp_path, files, answer, bits):
    assert look(tmp_path, files, answer).throttled == bits


@pytest.mark.parametrize(("script", "answer"), [
    ("echo throttled=0x50000", "throttled=0x50000\n"), ("echo throttled=0x1; exit 1", ""),
    pytest.param("exec sleep 9", "", marks=pytest.mark.slow)])
def test_the_command_of_a_raspberry_pi_is_asked_for_two_seconds_at_most(tmp_path, monkeypatch, script, answer):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "vcgencmd").write_text(f"#!/bin/sh\n[ \"$1\" = get_throttled ] || exit 2\n{script}\n")
    (tmp_path / "vcgencmd").chmod(0o755)
    assert ask_firmware() == answer


def supplies(**supply):
    return {f"sys/class/power_supply/{name}/{key}": value
            for name, about in supply.items() for key, value in about.items()}


BATTERY, MAINS = {"type": "Battery", "present": 1}, {"type": "Mains"}


@pytest.mark.parametrize(("supply", "battery", "mains"), [
    ({"BAT0": {**BATTERY, "capacity": 20, "status": "Discharging"}, "AC": {**MAINS, "online": 0}}, 20, False),
    ({"BAT0": {**BATTERY, "capacity": 9, "status": "Discharging"},
      "BAT1": {**BATTERY, "capacity": 90, "status": "Unknown"}, "AC": {**MAINS, "online": 0}}, 49.5, False),
    ({"BAT0": {**BATTERY, "capacity": 80, "status": "Not charging"}, "AC": {**MAINS, "online": 1}}, 80, True),
    ({"BAT0": {**BATTERY, "capacity": 80, "status": "Discharging"}, "usb": {"type": "USB", "online": 1}}, 80, False),
    ({"BAT0": {**BATTERY, "capacity": 7, "status": "Charging"}, "AC": {**MAINS, "online": 0}}, 7, True),
    ({"max170xx_battery": {"type": "Battery", "capacity": 12}}, 12, None),
    ({"BAT0": {**BATTERY, "capacity": 255, "status": "Full"}}, None, True),
    ({"BAT0": {"type": "Battery", "present": 0, "capacity": 5}, "AC": {**MAINS, "online": 1}}, None, True),
    ({"hidpp_battery_0": {"type": "Battery", "scope": "Device", "capacity": 5, "status": "Discharging", "online": 1}},
     None, None),
    ({"ucsi-source-psy-1-00081": {"type": "USB", "online": 0}}, None, False)])
def test_batteries_and_mains(tmp_path, supply, battery, mains):
    found = look(tmp_path, supplies(**supply))
    assert (found.battery, found.mains) == (battery, mains)


# this machine -----------------------------------------------------------------------------------

def test_the_readings_of_this_machine():
    found = read()
    assert found.memory is not None and found.memory > 0
    assert found.cores is not None and 0 < found.cores <= len(os.sched_getaffinity(0)) <= found.processors
    assert found.load is not None and found.load == pytest.approx(os.getloadavg()[0], abs=1)


def test_without_psutil_the_memory_is_not_offered(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert module.system_memory() is None


@pytest.mark.parametrize("name", sorted(path.stem for path in RECORDED.glob("*.json")))
def test_doctor_tells_whether_a_round_may_start(monkeypatch, name):
    monkeypatch.setattr(module, "read", lambda: recorded(name))
    found = doctor.processor(None)
    rounds = [finding for finding in found if finding.check == "rounds"]
    allowed = may_run(recorded(name), Limits(), Need(0, 0)).allowed
    assert [finding.level for finding in rounds] == ["ok"] if allowed else {f.level for f in rounds} == {"note"}
    assert all(finding.cure for finding in rounds) != allowed
    assert sum(finding.check == "heat" for finding in found) == len(recorded(name).zones)


def test_a_person_may_ask_for_more_time_and_threads_than_an_idle_round_takes():
    readings = Readings(memory=10**10)
    assert may_run(readings, ASKED, Need(10**8, 7200.0, 8))
    assert not may_run(readings, Limits(), Need(10**8, 7200.0, 8))
