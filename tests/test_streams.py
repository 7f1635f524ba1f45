"""Streams: names, windows by device time, gaps, other rates, tables, and a real firmware behind a pty."""
from __future__ import annotations

import contextlib
import io
import json
import select
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers_needs import need

from edgecl.cli import main
from edgecl.errors import BadInput, LinkError
from edgecl.learner import Learner
from edgecl.samples import Refusal, Sample
from edgecl.sources import is_stream, read
from edgecl.sources.spec import Spec
from edgecl.sources.streams import open_link, parse_stream
from edgecl.sources.timeline import Gap, Timeline, Window
from edgecl.sources.windows import cut

SPEC = Spec(rate=50, window=1.0, hop=0.5)


@pytest.mark.parametrize(("text", "says"), [
    ("serial:", "does not name a stream"), ("serial:/dev/ttyACM0?speed=9", "option 'speed'"),
    ("udp:x?baud=9", "option 'baud'"),
    ("csv:a.csv?rate", "rate"), ("serial:/dev/ttyACM0?baud=fast", "baud is 'fast'"), ("udp:here:", "port is ''"),
    ("udp:127.0.0.1:70000", "port is '70000'")])
def test_a_stream_that_is_named_wrongly_is_refused_with_what_is_right(text, says):
    with pytest.raises(BadInput, match=says):
        open_link(parse_stream(text))


def test_a_stream_is_named_by_its_prefix_unless_a_file_has_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_stream(Path("serial:/dev/ttyACM0?baud=115200"))
    assert not is_stream(Path("walk.csv"))
    Path("csv:odd").write_text("1,2\n")
    assert not is_stream(Path("csv:odd"))


# windows by device time --------------------------------------------------------------------------


def pushed(timeline, times, values, size):
    return [made for at in range(0, len(times), size)
            for made in timeline.push(times[at:at + size], values[at:at + size])]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_without_gaps_windows_are_those_of_the_file(size):
    values = np.random.default_rng(0).standard_normal((237, 3)).astype(np.float32)
    times = 1234.5 + np.round(np.arange(237) * 20_000) / 1e6
    made = pushed(Timeline(50, 1.0, 0.5, 50), times, values, size)
    expected = cut(values, 50, 1.0, 0.5)
    assert len(made) == len(expected) == 8
    for number, window in enumerate(made):
        np.testing.assert_allclose(window.data, expected[number], rtol=0, atol=1e-6)
        assert window.start == pytest.approx(1234.5 + number * 0.5)


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_a_missing_sample_ends_the_windows_that_hold_it(size):
    times, values = np.arange(300) / 50, np.arange(300, dtype=np.float32)[:, None]
    there = np.arange(300) != 120
    timeline = Timeline(50, 1.0, 0.5, 50)
    made = pushed(timeline, times[there], values[there], size)
    windows, gaps = [m for m in made if isinstance(m, Window)], [m for m in made if isinstance(m, Gap)]
    assert gaps == [Gap(119 / 50, 121 / 50, 2)]  # those from 75 and from 100 had begun
    assert timeline.dropped == 2
    assert [w.data[0, 0] for w in windows] == [0, 25, 50, 121, 146, 171, 196, 221, 246]
    assert {w.segment for w in windows} == {0, 1}
    assert all(np.diff(w.data[:, 0]).max() == 1 for w in windows)
    assert timeline.taken == pytest.approx(299 / 50)


def test_a_sample_that_is_not_finite_is_missing():
    values = np.zeros((200, 2), np.float32)
    values[70, 1], values[71, 0] = np.nan, np.inf
    made = pushed(Timeline(50, 1.0, 0.5, 50), np.arange(200) / 50, values, 1)
    assert [m.dropped for m in made if isinstance(m, Gap)] == [2]
    assert all(np.isfinite(m.data).all() for m in made if isinstance(m, Window))


def test_a_source_that_is_far_too_slow_is_refused():
    with pytest.raises(BadInput, match=r"0\.001 Hz, windows are cut at 50"):
        Timeline(50, 1.0, 0.5, 0.001)


def test_a_clock_that_goes_back_is_a_gap():
    timeline = Timeline(50, 1.0, 0.5, 50)
    timeline.push(np.arange(30) / 50, np.zeros((30, 1), np.float32))
    assert isinstance(timeline.push(np.array([0.0]), np.zeros((1, 1), np.float32))[0], Gap)


@pytest.mark.parametrize("source", [200.0, 130.0, 40.0, 51.3])
def test_another_rate_is_resampled_to_the_right_times(source):
    count = int(source * 6)
    times = 7 + np.arange(count) / source
    values = np.stack([np.sin(2 * np.pi * 1.5 * times), times], 1).astype(np.float32)
    made = pushed(Timeline(50, 1.0, 1.0, source), times, values, 11)
    assert len(made) == (6 if source > 75 else 5)  # where it is averaged, a window ends half a period later
    got = np.concatenate([m.data for m in made])
    at = 7 + np.arange(len(got)) / 50
    np.testing.assert_allclose(got[1:, 1], at[1:], atol=2e-3)
    np.testing.assert_allclose(got[1:, 0], np.sin(2 * np.pi * 1.5 * at[1:]), atol=0.03)


def test_what_is_faster_than_the_rate_can_hold_is_averaged_away():
    times = np.arange(4000) / 1000
    hum = np.sin(2 * np.pi * 350 * times).astype(np.float32)[:, None]  # would fold onto 0 Hz at 50 Hz
    made = pushed(Timeline(50, 1.0, 1.0, 1000), times, hum, 64)
    assert max(np.abs(m.data[1:]).max() for m in made) < 0.1


def test_a_timeline_keeps_no_more_than_a_window():
    size, timeline = 50, Timeline(50, 1.0, 0.5, 200)
    for block in range(400):
        times = (block * size + np.arange(size)) / 200
        timeline.push(times, np.zeros((size, 2), np.float32))
        assert len(timeline._times) < 2 * size
        assert len(timeline._kept) < 50 + size


# tables ------------------------------------------------------------------------------------------


def test_a_table_as_a_stream_is_cut_by_its_clock(tmp_path):
    times = np.delete(np.arange(300) / 100, slice(150, 160))
    np.savetxt(tmp_path / "t.csv", np.stack([times, times * 2, -times], 1), delimiter=",", header="t,a,b", comments="",
               fmt="%.6f")
    made = list(read(Path(f"csv:{tmp_path}/t.csv"), SPEC))
    samples, refusals = [m for m in made if isinstance(m, Sample)], [m for m in made if isinstance(m, Refusal)]
    assert [s.data.shape for s in samples] == [(50, 2)] * len(samples)
    assert len(samples) == 3  # from 0 s and 0.5 s (its last average ends at the gap), and from 1.6 s
    assert "0.11 s at 1.49 s" in refusals[0].reason


def test_a_table_without_a_clock_goes_by_the_rate(tmp_path):
    np.savetxt(tmp_path / "t.csv", np.arange(200).reshape(100, 2), delimiter=",")
    assert len(list(read(Path(f"csv:{tmp_path}/t.csv"), SPEC))) == 3
    assert len(list(read(Path(f"csv:{tmp_path}/t.csv?rate=25"), SPEC))) == 6
    assert len(list(read(Path(f"csv:{tmp_path}/t.csv"), Spec(rate=50, window=1, hop=.5, seconds=1.5)))) == 2


def test_rows_of_a_table_are_vectors_where_the_state_takes_vectors(tmp_path):
    (tmp_path / "t.csv").write_text("t,a,b\n0,1,2\n0.5,3,4\n1.5,5,6\n")
    made = list(read(Path(f"csv:{tmp_path}/t.csv"), Spec(vectors=True, seconds=1.0)))
    assert [m.data.tolist() for m in made] == [[1, 2], [3, 4]]


@pytest.mark.parametrize(("text", "says"), [("1,2\n3,x\n", "line 2"), ("1,2\n3\n", "line 2 has 1"),
                                            ("1,nan\n", "finite"), ("", "no samples")])
def test_a_bad_row_of_a_stream_is_named(tmp_path, text, says):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(BadInput, match=says):
        list(read(Path(f"csv:{tmp_path}/t.csv"), SPEC))


# the command line --------------------------------------------------------------------------------


def two_recordings(folder):
    """A slow and a fast movement, 40 s each at 50 Hz."""
    times, rng = np.arange(2000) / 50, np.random.default_rng(0)
    for name, speed in (("slow", 0.7), ("fast", 3.0)):
        phase = 2 * np.pi * speed * times[:, None] + np.arange(6)
        values = np.sin(phase) + 0.1 * rng.standard_normal((2000, 6))
        np.savetxt(folder / f"{name}.csv", values, delimiter=",", fmt="%.5f")


@pytest.fixture
def taught(tmp_path):
    """A state that knows both movements, from files."""
    two_recordings(tmp_path)
    state = str(tmp_path / "state")
    assert main(["init", "--state", state, "--rate", "50", "--window", "2", "--quota", "8MB", "--calibrate",
                 str(tmp_path / "slow.csv")]) == 0
    for name in ("slow", "fast"):
        assert main(["learn", "--state", state, "--class", name, str(tmp_path / f"{name}.csv")]) == 0
    return state


@pytest.fixture
def simulated(tmp_path):
    """Starts the compiled firmware on a recording."""
    need("gcc", "gcc")
    from firmware_bridge.simulator import Simulator

    with contextlib.ExitStack() as stack:
        yield lambda *options, csv="fast.csv": stack.enter_context(Simulator(
            tmp_path, [tmp_path / csv], "--rate", "50", "--fast", *options))


@pytest.mark.slow
def test_learn_and_predict_from_a_serial_port(taught, simulated, tmp_path, capsys):
    board = simulated()
    capsys.readouterr()
    assert main(["learn", "--state", taught, "--class", "fast again", f"serial:{board.port}", "--seconds", "20",
                 "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["refused"]) == (19, 0)  # windows of 2 s, 1 s apart
    assert main(["forget", "--state", taught, "--class", "fast again"]) == 0
    capsys.readouterr()
    board.tell("reset")
    time.sleep(0.2)
    assert main(["predict", "--state", taught, f"serial:{board.port}?channel=imu", "--seconds", "20"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["label"] for line in lines] == ["fast"]  # said once
    board.tell("reset")
    time.sleep(0.2)
    assert main(["predict", "--state", taught, f"serial:{board.port}", "--seconds", "20", "--debounce", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 19


@pytest.mark.slow
def test_a_channel_that_the_device_lacks_is_refused_with_those_it_has(taught, simulated, capsys):
    board = simulated()
    assert main(["predict", "--state", taught, f"serial:{board.port}?channel=sonar", "--seconds", "2"]) == 1
    assert "the device has imu" in capsys.readouterr().err


@pytest.mark.slow
def test_windows_with_a_gap_are_dropped_and_counted(taught, simulated, tmp_path, capsys):
    board = simulated("--flips", "3e-5", "--seed", "4", "--batch", "8")
    capsys.readouterr()
    assert main(["learn", "--state", taught, "--class", "third", f"serial:{board.port}", "--seconds", "20",
                 "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["refused"] == err.count("dropped") > 0
    assert told["samples"] < 19


@pytest.mark.slow
def test_a_device_does_not_change_what_is_known(taught, simulated, tmp_path):
    """Whatever comes over the wire: answers only. Learning is started by a person's command."""
    def known():
        learner = Learner.open(taught)
        with contextlib.closing(learner):
            return learner.status().generation, [c.name for c in learner.classes()]

    before, board = known(), simulated("--flips", "1e-4", "--split")
    board.tell("flood 20000")
    assert main(["predict", "--state", taught, f"serial:{board.port}", "--seconds", "10"]) == 0
    assert known() == before


def test_a_stream_without_an_end_is_not_learned_from(taught, capsys):
    assert main(["learn", "--state", taught, "--class", "x", "serial:/dev/ttyACM7"]) == 1
    assert "--seconds 20" in capsys.readouterr().err


def test_a_stream_stands_alone_in_predict(taught, tmp_path, capsys):
    assert main(["predict", "--state", taught, "serial:/dev/ttyACM7", str(tmp_path / "slow.csv")]) == 1
    assert "among other sources" in capsys.readouterr().err


def test_a_missing_port_is_one_line(taught, capsys):
    assert main(["predict", "--state", taught, "serial:/dev/ttyACM77"]) == 1
    err = capsys.readouterr().err
    assert "does not exist" in err
    assert len(err.splitlines()) == 1


def test_predict_reads_a_live_table_from_standard_input(taught, tmp_path, capsys, monkeypatch):
    capsys.readouterr()
    text = (tmp_path / "slow.csv").read_text() + (tmp_path / "fast.csv").read_text()
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["predict", "--state", taught, "csv:-"]) == 0
    assert [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()] == ["slow", "fast"]


@pytest.mark.slow
def test_a_board_speaks_over_udp_as_over_a_wire(taught, simulated, capsys):
    """A relay carries the firmware's bytes in datagrams, as a board on Wi-Fi would send them."""
    from firmware_bridge.wires import SerialWire

    board = simulated()
    wire, udp = SerialWire(str(board.port), 921600), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    udp.settimeout(0.005)
    stop = threading.Event()

    def relay():
        peer = None
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                data, peer = udp.recvfrom(65536)
                wire.write(data)
            data = wire.read() if select.select([wire], [], [], 0)[0] else b""
            if data and peer:
                udp.sendto(data, peer)

    thread = threading.Thread(target=relay)
    thread.start()
    try:
        assert main(["predict", "--state", taught, f"udp:127.0.0.1:{udp.getsockname()[1]}", "--seconds", "15"]) == 0
    finally:
        stop.set()
        thread.join()
        wire.close()
        udp.close()
    assert [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()[-1:]] == ["fast"]


def test_nobody_at_the_other_end_is_said_after_some_seconds(monkeypatch):
    monkeypatch.setattr("edgecl.sources.streams.HELLO_TIMEOUT", 0.3)
    with pytest.raises(LinkError, match="said hello"):
        list(read(Path("udp:47391"), SPEC))


@pytest.mark.slow
def test_a_pulled_cable_is_said_and_answers_go_on_after_it(taught, tmp_path, capsys):
    need("gcc", "gcc")
    from firmware_bridge.simulator import Simulator

    capsys.readouterr()
    with Simulator(tmp_path, [tmp_path / "slow.csv"], "--rate", "50", "--repeat") as board:
        threading.Timer(3.2, board.tell, ["unplug 1"]).start()
        assert main(["predict", "--state", taught, f"serial:{board.port}", "--seconds", "6", "--debounce", "0"]) == 0
    out, err = capsys.readouterr()
    assert "has gone; waiting" in err
    assert "unfinished window" in err
    assert 3 <= len(out.splitlines()) <= 5


def test_ctrl_c_ends_a_stream_as_it_should_end(taught, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        yield from read(Path(f"csv:{tmp_path}/slow.csv"), Spec(rate=50, window=2, hop=1, seconds=9))
        raise KeyboardInterrupt

    monkeypatch.setattr("edgecl.sources.read", interrupted)
    capsys.readouterr()
    assert main(["predict", "--state", taught, "serial:/dev/ttyACM0"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["label"] == "slow"
    assert "stopped after 8 windows" in err


@pytest.mark.slow
def test_a_wrong_baud_rate_is_what_an_error_points_at(taught, simulated, capsys, monkeypatch):
    monkeypatch.setattr("edgecl.sources.streams.HELLO_TIMEOUT", 1.5)
    board = simulated()
    assert main(["predict", "--state", taught, f"serial:{board.port}?baud=115200", "--seconds", "2"]) == 1
    err = capsys.readouterr().err
    assert "not frames of this protocol" in err
    assert "?baud=" in err
