"""The control socket: who may ask, and what it does with what is malformed, slow, or too much."""
from __future__ import annotations

import json
import os
import random
import socket
import stat
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_daemon import serving, until
from helpers_state import vectors

from edgecl.commands.direct_or_daemon import Parcel
from edgecl.errors import BadInput, EdgeclError, StateError
from edgecl.learner import Learner
from edgecl.runtime import control, control_clients
from edgecl.runtime.client import Client, NoDaemon
from edgecl.runtime.commands import COMMANDS
from edgecl.runtime.control import Control
from edgecl.runtime.control_clients import MOST_CLIENTS
from edgecl.runtime.protocol import MOST_LINE, Refused
from edgecl.samples import sample_keys


@pytest.fixture
def daemon(tmp_path):
    with serving(tmp_path / "state", control=(240.0, 240.0)) as (service, _, _):
        yield service, tmp_path / "state" / "control.sock"


def connected(path):
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(240.0)
    made.connect(str(path))
    return made


def line_of(client):
    answer = b""
    while not answer.endswith(b"\n"):
        block = client.recv(1 << 16)
        if not block:
            return None
        answer += block
    return json.loads(answer)


def code_of(answer):
    assert answer["ok"] is False and answer["error"]["what"] and answer["error"]["cure"]
    return answer["error"]["code"]


def parcel(batch):
    made = Parcel()
    for data in batch:
        made.add(data)
    return made


def test_it_is_a_socket_of_mode_0660_that_goes_with_the_daemon(tmp_path):
    with serving(tmp_path / "state", control=(240.0, 240.0)):
        about = (tmp_path / "state/control.sock").stat()
        assert stat.S_ISSOCK(about.st_mode) and stat.S_IMODE(about.st_mode) == 0o660
        with pytest.raises(StateError, match="another daemon listens"):
            Control(tmp_path / "state/control.sock", None)
    with pytest.raises(NoDaemon):
        Client(tmp_path / "state/control.sock")


def test_a_socket_that_a_killed_daemon_left_is_taken_over(tmp_path):
    left = socket.socket(socket.AF_UNIX)
    (tmp_path / "state").parent.mkdir(exist_ok=True)
    left.bind(str(tmp_path / "left.sock"))
    left.close()
    made = Control(tmp_path / "left.sock", None)
    made.start()
    made.stop()
    assert not (tmp_path / "left.sock").exists()


def test_a_path_longer_than_sockets_take(tmp_path):
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    made = Control(folder / "control.sock", None)
    made.start()
    with Client(folder / "control.sock") as client, pytest.raises(Refused, match="no command"):
        client.ask("dance")
    made.stop()


def test_every_read_answers_what_json_can_say(daemon):
    service, path = daemon
    with Client(path) as client:
        for name, command in COMMANDS.items():
            if not (command.writes or command.samples or command.streams or command.needs):
                client.ask(name)
        assert client.ask("status") == json.loads(json.dumps(service.status()))
        assert [each["name"] for each in client.ask("classes")] == ["ant", "wasp"]


def test_learn_predict_forget_and_back_through_the_socket(daemon):
    service, path = daemon
    with Client(path) as client, parcel(vectors("cat", 20)) as cats, parcel(vectors("cat", 5, 9)) as ask:
        learned = client.ask("learn", cats.seal(), label="cat", groups=cats.groups)
        assert learned["samples"] == 20 and learned["generation"] == service.status()["generation"]
        assert [each["label"] for each in client.ask("predict", ask.seal())] == ["cat"] * 5
        assert client.ask("forget", label="cat")["exact"] is True
        assert "cat" not in {each["label"] for each in client.ask("predict", ask.seal())}
        with pytest.raises(BadInput, match="no class is called 'cat'"):
            client.ask("forget", label="cat")
        with pytest.raises(StateError, match="can't be restored"):
            client.ask("rollback", generation=77)


def test_recordings_stay_recordings_on_the_way(daemon):
    made = Parcel()
    for name, count in (("walk", 3), ("", 2), ("run", 2), ("walk", 1)):
        for data in vectors("x", count):
            made.add(data, name)
    with made:
        assert made.groups == [["1", 3], ["", 2], ["2", 2], ["1", 1]]
        from edgecl.runtime.commands import samples_of

        found = [*samples_of(made.seal(), made.groups)]
        assert [each.group for each in found] == ["1"] * 3 + [""] * 2 + ["2"] * 2 + ["1"]
        assert np.array_equal(np.stack([each.data for each in found[:3]]), vectors("x", 3))
        with pytest.raises(Refused, match="add up"):
            [*samples_of(made.seal(), [["1", 99]])]


def test_sessions_keep_their_names_on_the_way(daemon):
    from edgecl.runtime.commands import samples_of

    service, path = daemon
    with Parcel() as made:
        for data, group, session in zip(vectors("cat", 6), ["a", "a", "", "", "b", ""], ["x", "x", "x", "", "y", "x"]):
            made.add(data, group, session=session)
        found = [*samples_of(made.seal(), made.groups, made.sessions)]
        assert [each.session for each in found] == ["x", "x", "x", "", "y", "x"]
        assert len({each.group for each in found[:2]} | {found[4].group}) == 2
        assert found[3].group == ""
        with Client(path) as client:
            client.ask("learn", made.seal(), label="cat", groups=made.groups, sessions=made.sessions)
            with pytest.raises(Refused, match="sessions"):
                client.ask("learn", made.seal(), label="cat", groups=made.groups, sessions=["x"])
    rows = [row for row in Learner.open(service.path).repository.known().stored if row.label == "cat"]
    x = sample_keys(vectors("cat", 1), sessions=["x"])[0] >> 32
    assert [row.key >> 32 == x for row in rows] == [True, True, True, False, False, True]


@pytest.fixture
def stranger(monkeypatch):
    """Clients are another user, whose number it is."""
    real = control_clients.CREDENTIALS

    class Stranger:
        size = real.size

        @staticmethod
        def unpack(data):
            pid, uid, gid = real.unpack(data)
            assert (pid, uid) == (os.getpid(), os.getuid())
            return pid, 54321, gid

    monkeypatch.setattr(control_clients, "CREDENTIALS", Stranger)
    return 54321


def test_only_the_daemons_user_may_have_code_of_their_own_run(daemon, stranger, monkeypatch, tmp_path):
    service, path = daemon
    monkeypatch.setattr(control.pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=stranger))
    made = Control(path.with_name("other.sock"), service, ["operator"])
    made.start()
    (tmp_path / "own.toml").write_text('paper = "x"\nrate = 0.1\n[constraint]\nwhere = "mine:Mine"\n')
    with Client(path.with_name("other.sock")) as client:
        with pytest.raises(EdgeclError, match=r"own\.toml names code of its author's own, mine:Mine"):
            client.ask("start_round", method=str(tmp_path / "own.toml"))
        with pytest.raises(EdgeclError, match="own_code"):
            client.ask("start_round", method=str(tmp_path / "own.toml"), own_code=True)
        with pytest.raises(EdgeclError, match="no method"):
            client.ask("start_round", method="nope")
    made.stop()
    assert not service.round_result()["running"]


def test_only_some_may_change_things(daemon, stranger):
    service, path = daemon
    before = service.history()
    with Client(path) as client, parcel(vectors("cat", 5)) as cats:
        for name, command in COMMANDS.items():
            if command.writes:
                values = {key: "cat" if rule.kind is str else 1 for key, rule in command.needs.items()}
                with pytest.raises(Refused, match="user 54321 may not change") as caught:
                    client.ask(name, cats.seal() if command.samples else None, **values)
                assert caught.value.code == "forbidden"
        assert len(client.ask("classes")) == 2
        assert client.ask("predict", cats.seal())[0]["label"]
    assert service.history() == before
    with pytest.raises(BadInput, match="control_users"):
        Control(path.with_name("other.sock"), service, ["nobody-of-that-name"])


BAD = [b"", b"hello", b"[]", b"1", b"{}", b'{"command": 5}', b'{"command": "learn_last"}', b"\xff\xfe", b"[" * 30_000,
       b'{"command": "learn_last", "label": 5, "seconds": 1}',
       b'{"command": "learn_last", "label": "x", "seconds": "1"}',
       b'{"command": "learn_last", "label": "x", "seconds": NaN}', b'{"command": "rollback", "generation": true}',
       b'{"command": "learn_last", "label": "x", "seconds": 1e999}', b'{"command": "rollback", "generation": 1.5}',
       b'{"command": "rollback", "generation": ' + b"9" * 400 + b"}", b'{"command": "status", "colour": 1}',
       b'{"command": "learn", "label": "x"}', b'{"command": "predict"}', b'{"command": "__init__"}',
       b'{"command": "learn", "label": "x", "groups": "y"}', b'{"command": "a\\u0000b"}', b'null', b'"' + b"x" * 9000]


def test_a_thousand_malformed_requests(daemon):
    service, path = daemon
    rng, before = random.Random(0), service.history()
    handles, codes = len(os.listdir("/proc/self/fd")), set()
    client = connected(path)
    for number in range(1000):
        line = BAD[number % len(BAD)] if number % 2 else bytes(rng.choices(range(256), k=rng.randrange(200)))
        client.sendall(line.replace(b"\n", b" ") + b"\n")
        codes.add(code_of(line_of(client)))
    client.close()
    assert codes == {"bad-request", "unknown-command"}
    with Client(path) as again:
        assert again.ask("history") == before
    until(lambda: len(os.listdir("/proc/self/fd")) <= handles)


def test_ten_thousand_requests_in_one_go(daemon):
    _, path = daemon
    client = connected(path)
    thread = threading.Thread(target=client.sendall, args=(b"\n" * 10_000,))
    thread.start()
    answers = b""
    while answers.count(b"\n") < 10_000:
        answers += client.recv(1 << 16)
    thread.join()
    client.close()
    assert answers.count(b'"bad-request"') == 10_000


def test_a_line_without_an_end(daemon):
    _, path = daemon
    client = connected(path)
    client.sendall(b"x" * (MOST_LINE + 10))
    assert code_of(line_of(client)) == "too-long"
    with suppress(ConnectionResetError):  # it did not read all
        assert client.recv(10) == b""


def test_a_line_that_is_never_ended_and_a_client_that_asks_nothing(tmp_path):
    with serving(tmp_path / "state", control=(1.0, 0.5)):
        begun = time.monotonic()
        slow, idle = connected(tmp_path / "state/control.sock"), connected(tmp_path / "state/control.sock")
        slow.sendall(b'{"command"')
        assert code_of(line_of(slow)) == "timeout" and slow.recv(10) == b""
        assert time.monotonic() - begun > 0.4
        assert code_of(line_of(idle)) == "timeout" and idle.recv(10) == b""
        assert time.monotonic() - begun > 0.9


@pytest.mark.parametrize("slow", [240.0, 0.5])
def test_a_reader_that_sleeps_keeps_nobody_waiting_and_is_let_go(tmp_path, slow):
    with serving(tmp_path / "state", control=(240.0, slow)), connected(tmp_path / "state/control.sock") as sleeper:
        request, sent = b'{"command": "history"}\n', 0
        sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        sleeper.settimeout(1.0)
        with suppress(OSError):  # its answers wait, so it is not read any more
            while sent < 20_000:
                sleeper.sendall(request)
                sent += 1
        assert 0 < sent < 20_000
        if slow > 1.0:
            with Client(tmp_path / "state/control.sock") as other:
                other.ask("status")
            sleeper.settimeout(0.1)
            with pytest.raises(TimeoutError):
                sleeper.sendall(request)
            return

        def gone():
            try:
                return sleeper.sendall(request)
            except OSError as error:
                return not isinstance(error, TimeoutError)

        until(gone)


def test_a_hundred_clients(daemon):
    _, path = daemon
    handles = len(os.listdir("/proc/self/fd"))
    clients = [connected(path) for _ in range(100)]
    answers = []
    for client in clients:
        with suppress(BrokenPipeError):   # one that is turned away is told so all the same
            client.sendall(b'{"command": "status"}\n')
        answers.append(line_of(client))
    served = [answer for answer in answers if answer and answer["ok"]]
    busy = [answer for answer in answers if answer and not answer["ok"]]
    assert (len(served), len(busy)) == (MOST_CLIENTS, 100 - MOST_CLIENTS)
    assert {code_of(answer) for answer in busy} == {"busy"}
    for client in clients:
        client.close()
    until(lambda: len(os.listdir("/proc/self/fd")) <= handles)
    with Client(path) as again:
        again.ask("status")


def test_it_stops_whatever_its_clients_are_at(tmp_path):
    with serving(tmp_path / "state") as (service, _, _):
        made, held, begun = Control(tmp_path / "control.sock", service, (), 240.0, 240.0), threading.Event(), []
        handles = len(os.listdir("/proc/self/fd"))
        made.start()
        service.writer.submit(lambda _: begun.append(1) or held.wait(240), changes=False)
        until(lambda: begun)
        clients = [connected(tmp_path / "control.sock") for _ in range(4)]
        idle, half, sleeper, waits = clients
        half.sendall(b'{"command"')
        waits.sendall(b'{"command": "forget", "label": "ant"}\n')     # behind what holds the writer
        sleeper.settimeout(0.5)
        with suppress(TimeoutError):
            while True:
                sleeper.sendall(b'{"command": "history"}\n')
        idle.sendall(b'{"command": "status"}\n')
        assert line_of(idle)["ok"]
        made.stop()
        assert not (tmp_path / "control.sock").exists()
        for client in (idle, half, waits):
            assert client.recv(10) == b""
        with suppress(ConnectionError):
            while sleeper.recv(1 << 16):
                pass
        for client in clients:
            client.close()
        held.set()
        until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("control")])
        assert len(os.listdir("/proc/self/fd")) <= handles - 1


def test_several_clients_are_paced_so_that_the_loop_gets_its_turn(daemon, monkeypatch):
    _, path = daemon
    monkeypatch.setattr(control, "PACE_SECONDS", 0.02)
    with Client(path) as client, Client(path) as other:
        other.ask("status")
        begun = time.monotonic()
        for _ in range(10):
            client.ask("status")
        assert time.monotonic() - begun >= 0.2


def test_samples_that_are_none(daemon):
    service, path = daemon
    handles, before = len(os.listdir("/proc/self/fd")), service.history()
    wrong = [b"", b"hello", b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': False, 'shape': (2, 2), }"
             + b" " * 60 + b"\n"]
    made = parcel(vectors("cat", 20))
    whole = os.pread(made.seal(), 10**6, 0)
    wrong += [whole[:-5], whole[:100], whole.replace(b"(20, 16)", b"(99, 16)"), whole.replace(b"<f4", b"<c8"),
              whole.replace(b"(20, 16)", b"(-9, 16)"), whole.replace(b"(20, 16)", b"(2**9,) ")]
    with Client(path) as client:
        for data in wrong:
            file = os.memfd_create("wrong")
            os.write(file, data)
            with pytest.raises((BadInput, Refused)):
                client.ask("learn", file, label="cat")
            os.close(file)
        with pytest.raises(BadInput):
            client.ask("learn", made.seal(), label="../cat")
    made._file.close()
    assert service.history() == before
    until(lambda: len(os.listdir("/proc/self/fd")) <= handles)
