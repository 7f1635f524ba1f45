"""The daemon as a process: commands through it, signals, kills, and a round."""
from __future__ import annotations

import os
import signal
import socket
import threading
import time

import numpy as np
import pytest
from helpers_daemon import cli, photos, running, told, until
from helpers_needs import need_module
from round_states import conv_backbone

from edgecl.commands.direct_or_daemon import Parcel
from edgecl.errors import EdgeclError
from edgecl.learner import Learner

BASE = """
state = "state"
backbone = "small.onnx"
quota = "60MB"
codec = "raw"
rounds = "off"
[[source]]
name = "cam"
uri = "fake:photos?fps=50"
"""


@pytest.fixture
def folder(tmp_path):
    photos(tmp_path / "photos")
    (tmp_path / "small.onnx").write_bytes(conv_backbone((8, 16)))
    return tmp_path


def seen(daemon, count=5):
    until(lambda: daemon.ask("counters")["frames_total"]["cam"] >= count)


def test_commands_go_through_the_daemon(folder):
    with running(folder, BASE) as daemon:
        seen(daemon)
        code, out, err = cli(folder, "learn", "--state", "state", "--class", "mug", "--last", "5s", "--json")
        assert code == 0, err
        assert told(out)["class"] == "mug" and told(out)["samples"] >= 5
        code, out, err = cli(folder, "learn", "--config", "robot.toml", "--class", "cup", "photos")
        assert code == 0 and "cup: 6 samples learned" in out
        code, out, _ = cli(folder, "predict", "--state", "state", "photos", "photos/00.png")
        assert code == 0 and len(out.splitlines()) == 7 and told(out.splitlines()[0])["source"] == "photos/00.png"
        code, out, _ = cli(folder, "classes", "--state", "state", "--json")
        assert [each["name"] for each in told(out)] == ["cup", "mug"]
        code, out, _ = cli(folder, "status", "--config", "robot.toml")
        assert code == 0 and "fake:photos?fps=50" in out and "rounds are off" in out
        status = told(cli(folder, "status", "--state", "state", "--json")[1])
        history = told(cli(folder, "history", "--state", "state", "--json")[1])
        assert [g["action"] for g in history] == ["init", "learn", "learn"]
        code, out, _ = cli(folder, "rollback", "--state", "state", "--json")
        assert told(out)["classes"] == 1
        assert told(cli(folder, "forget", "--state", "state", "--class", "mug", "--json")[1])["exact"] is True
        for arguments, word in ((("forget", "--class", "mug"), "no class is called"),
                                (("rollback", "99"), "restorable"),
                                (("learn", "--class", "../x", "--last", "1s"), "contains '/'"),
                                (("learn", "--class", "x", "--last", "1s", "--source", "y"), "there are: cam"),
                                (("learn", "--class", "x", "--last", "1s", "photos"), "no other source"),
                                (("round",), "a round needs 2 classes"),
                                (("learn", "--class", "x", "robot.toml"), "kind")):
            code, out, err = cli(folder, *arguments, "--state", "state")
            assert code == 1 and word in err and err.count("\n") == 1 and "Traceback" not in err
        assert daemon.end() == (pytest.approx(0, abs=120.0), 0)
        assert not (folder / "state/control.sock").exists()
    after = told(cli(folder, "status", "--state", "state", "--json")[1])
    assert set(after) == set(status)
    code, _, err = cli(folder, "learn", "--state", "state", "--class", "mug", "--last", "5s")
    assert code == 1 and "no daemon serves" in err


def test_a_client_of_the_daemon_loads_nothing_heavy(folder):
    with running(folder, BASE) as daemon:
        seen(daemon)
        from test_walls import loaded

        for command in ("status", "history", "classes", "forget", "rollback", "learn"):
            more = {"forget": ["--class", "x"], "learn": ["--class", "x", "--last", "1s"], "rollback": ["9"]}
            modules, _ = loaded("from edgecl.cli import main\nmain(sys.argv[1:])", command, "--state",
                                folder / "state", "--json", *more.get(command, []))
            assert not modules & {"numpy", "onnxruntime", "sqlite3", "PIL", "onnx", "torch", "psutil"}, command


def test_the_daemon_loads_no_torch(folder):
    with running(folder, BASE) as daemon:
        seen(daemon)
        daemon.ask("learn_last", label="mug", seconds=5)
        maps = open(f"/proc/{daemon.process.pid}/maps").read()
        assert "onnxruntime" in maps and "torch" not in maps


def test_it_ends_while_it_learns(folder):
    with running(folder, BASE) as daemon:
        seen(daemon)

        def teach():
            try:
                with daemon.client() as client:
                    while True:
                        client.ask("learn_last", label="mug", seconds=5)
            except EdgeclError:
                pass

        thread = threading.Thread(target=teach)
        thread.start()
        time.sleep(0.3)
        seconds, code = daemon.end()
        thread.join(240)
        assert (code, seconds < 120.0) == (0, True), daemon.log.read_text()


def test_it_ends_while_it_answers_a_large_request(folder):
    with running(folder, BASE) as daemon:
        seen(daemon)
        daemon.ask("learn_last", label="mug", seconds=5)
        with daemon.client() as client, Parcel() as many:
            for _ in range(20_000):
                many.add(np.zeros((32, 32, 3), np.uint8))
            caught = []

            def predict():
                try:
                    client.ask("predict", many.seal())
                except EdgeclError as error:
                    caught.append(str(error))

            thread = threading.Thread(target=predict)
            thread.start()
            time.sleep(0.3)
            seconds, code = daemon.end()
            thread.join(240)
        assert (code, seconds < 120.0) == (0, True), daemon.log.read_text()
        assert caught and ("stopping" in caught[0] or "did not answer" in caught[0])


def test_after_a_kill_every_acknowledged_teaching_is_there(folder):
    acknowledged: dict[str, int] = {}
    with running(folder, BASE) as daemon:
        for turn in range(4):
            seen(daemon, 1)
            with daemon.client() as client:
                for number in range(turn + 2):
                    learned = client.ask("learn_last", label=f"class {number}", seconds=0.5)
                    acknowledged[learned["label"]] = acknowledged.get(learned["label"], 0) + learned["samples"]
                line = b'{"command":"learn_last","label":"late","seconds":5}\n'
                client._socket.sendall(line)   # in the middle of this one
                time.sleep(0.01 * turn)
                assert daemon.end(signal.SIGKILL)[1] == -signal.SIGKILL
            learner = Learner.open(folder / "state")
            known = {each.name: each.samples for each in learner.classes()}
            learner.close()
            assert known.get("late", 0) >= acknowledged.get("late", 0)
            if "late" in known:     # on the disk, and killed before it said so
                acknowledged["late"] = known["late"]
            assert {name: known.get(name) for name in acknowledged} == acknowledged
            daemon.begin()
            answer = until(lambda: daemon.ask("latest"))
            assert time.monotonic() - daemon.begun < 120.0  # what is promised is 2 s: tools/soak.py measures it
            assert answer["cam"]["label"] in known


def test_a_second_daemon_is_refused(folder):
    with running(folder, BASE) as daemon:
        seen(daemon)
        code, _, err = cli(folder, "daemon", "--config", "robot.toml")
        assert code == 1 and "another daemon" in err
        daemon.ask("status")
    assert cli(folder, "daemon", "--state", "nowhere/x", "--config", "none.toml")[0] == 1


def test_settings_are_read_again(folder):
    with running(folder, BASE) as daemon:
        seen(daemon)
        first = daemon.ask("info")["sources"]
        photos(folder / "more", seed=9)
        (folder / "robot.toml").write_text(BASE + '[[source]]\nname = "second"\nuri = "fake:more?fps=50"\n')
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: daemon.ask("counters")["frames_total"].get("second"))
        frames = daemon.ask("counters")["frames_total"]
        assert frames["cam"] > 0 and [s["name"] for s in first] == ["cam"]
        (folder / "robot.toml").write_text(BASE + "colour = 1\n")
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "settings were not taken" in daemon.log.read_text())
        (folder / "robot.toml").write_text(BASE.replace('"state"', '"other"'))
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "restart the daemon" in daemon.log.read_text())
        assert [s["name"] for s in daemon.ask("info")["sources"]] == ["cam", "second"]
        (folder / "robot.toml").write_text(BASE.replace('"cam"', '"eye"').replace('rounds = "off"', 'rounds = "idle"'))
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: daemon.ask("counters")["frames_total"].get("eye"))
        assert [s["name"] for s in daemon.ask("info")["sources"]] == ["eye"]
        threads = lambda: len(os.listdir(f"/proc/{daemon.process.pid}/task"))  # noqa: E731
        before = threads()  # may hold one of an old source, or of a question, that is about to end
        for number in range(6):
            (folder / "robot.toml").write_text(BASE.replace('"cam"', f'"eye {number}"'))
            daemon.process.send_signal(signal.SIGHUP)
            until(lambda: daemon.ask("counters")["frames_total"].get(f"eye {number}"))  # noqa: B023
        until(lambda: threads() <= before)  # six sources came, and six went
        assert daemon.end()[1] == 0


def test_systemd_is_told(folder):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.settimeout(240.0)
        with running(folder, BASE, NOTIFY_SOCKET=str(folder / "notify"), WATCHDOG_USEC="800000") as daemon:
            first = [manager.recv(500) for _ in range(4)]
            assert sum(each.startswith(b"READY=1") for each in first) == 1 and first.count(b"WATCHDOG=1") == 3
            daemon.process.send_signal(signal.SIGHUP)
            heard = [manager.recv(500)]
            while not heard[-1].startswith(b"READY=1"):
                heard.append(manager.recv(500))
            assert sum(each.startswith(b"RELOADING=1") for each in heard) == 1
            assert daemon.end()[1] == 0
            while heard[-1] != b"STOPPING=1":
                heard.append(manager.recv(500))


def test_two_states_in_one_daemon(folder):
    rng = np.random.default_rng(0)
    (folder / "imu").mkdir()
    for name, speed in (("slow", 1), ("fast", 5)):
        t = np.arange(400)[:, None] / 20
        values = np.sin(speed * t + rng.uniform(0, 6, 3)) + 0.05 * rng.standard_normal((400, 3))
        np.savetxt(folder / "imu" / f"{name}.csv", values, delimiter=",", fmt="%.4f")
    assert cli(folder, "init", "--state", "wrist", "--rate", 20, "--window", 2, "--quota", "8MB", "--calibrate",
               "imu")[0] == 0
    for name in ("slow", "fast"):
        assert cli(folder, "learn", "--state", "wrist", "--class", name, f"imu/{name}.csv")[0] == 0
    text = BASE + '[[source]]\nname = "imu"\nuri = "csv:imu/fast.csv"\nstate = "wrist"\n'
    with running(folder, text) as daemon:
        seen(daemon)
        status = until(lambda: cli(folder, "status", "--state", "wrist"))
        assert "csv:imu/fast.csv" in status[1] and "fake:" not in status[1]
        code, out, err = cli(folder, "predict", "--state", "wrist", "imu/slow.csv")
        assert code == 0 and told(out.splitlines()[0])["label"] == "slow", err
        code, out, err = cli(folder, "learn", "--state", "wrist", "--class", "run", "--last", "60s", "--json")
        assert code == 0 and told(out)["samples"] == 19, err
        assert daemon.ask("classes") == []
        assert daemon.end()[1] == 0


@pytest.mark.slow
def test_a_round_runs_beside_the_answers_and_can_be_cut_off(folder):
    need_module("torch", "train")
    with running(folder, BASE + "queue = 50\n") as daemon:   # a second of frames: the machine is not this test's
        seen(daemon)
        for name, seed in (("mug", 1), ("cup", 2)):
            photos(folder / name, 24, seed)
            assert cli(folder, "learn", "--state", "state", "--class", name, name)[0] == 0
        before = daemon.ask("counters")
        code, out, err = cli(folder, "round", "--state", "state", "--time", "10m", "--memory", "600MB", "--json")
        assert code == 0, err
        verdict, after = told(out), daemon.ask("counters")
        assert sum(after["rounds_total"].values()) == 1
        assert after["frames_total"]["cam"] > before["frames_total"]["cam"] + 50
        assert after["dropped_total"] == before["dropped_total"]
        shown = daemon.ask("rounds")[0]
        assert shown["taken"] == verdict["accepted"] and shown["seconds"] > 0
        assert daemon.ask("start_round", time=60, memory=600_000_000) == {"started": True}
        with pytest.raises(EdgeclError, match="is running already"):
            daemon.ask("start_round")
        child = until(lambda: daemon.children)[0]
        until(lambda: "edgecl.runtime.round_process" in child.cmdline())    # nothing before it is executed
        learned = daemon.ask("learn_last", label="tin", seconds=1)   # while it runs
        assert learned["samples"] > 0
        seconds, code = daemon.end()
        assert code == 0 and seconds < 120.0
        until(lambda: not child.is_running())
