"""The sources of a daemon: queues, the loop that takes turns, restarts, and what is kept of what they saw."""
from __future__ import annotations

import time

import numpy as np
import pytest
from helpers_bridge import need
from helpers_daemon import Tap, until

from edgecl.errors import BadInput, LinkError
from edgecl.runtime.events import Hub
from edgecl.runtime.loop import Loop
from edgecl.runtime.settings import SourceSettings
from edgecl.runtime.source_threads import Ring, SourceThread
from edgecl.samples import Refusal, Sample
from edgecl.sources.spec import Spec
from firmware_bridge.simulator import Simulator

# queues ---------------------------------------------------------------------------------------------


class Fake:
    """A classifier that only remembers what it was asked."""

    def __init__(self):
        self.seen, self.fail = [], None

    def classify(self, source, sample):
        if self.fail:
            raise self.fail
        self.seen.append((source.name, sample.source))


def source_of(loop, uri, name, read=iter, pause=0.001, **more):
    return SourceThread(SourceSettings(uri, name, **more), Spec, Hub().say, loop.offer, read, pause)


def frames(count, dtype=np.uint8, shape=(2, 2, 3)):
    return [Sample(np.zeros(shape, dtype), str(i)) for i in range(count)]


def test_of_a_camera_the_newest_frame_wins_and_of_windows_the_last_sixteen():
    fake = Fake()
    loop = Loop(fake.classify)
    camera, imu = source_of(loop, "camera:", "camera"), source_of(loop, "serial:x", "imu")
    loop.follow([camera, imu])
    for frame, window in zip(frames(40), frames(40, np.float32, (5, 6))):
        loop.offer(camera, frame)
        loop.offer(imu, window)
    assert (camera.dropped, imu.dropped) == (39, 24)
    while loop.step(0.0):
        pass
    assert [source for name, source in fake.seen if name == "camera"] == ["39"]
    assert [source for name, source in fake.seen if name == "imu"] == [str(i) for i in range(24, 40)]
    assert (camera.frames, imu.frames) == (1, 16)


def test_sources_take_turns():
    fake = Fake()
    loop = Loop(fake.classify)
    sources = [source_of(loop, "udp:1", name, queue=50) for name in "abc"]
    loop.follow(sources)
    for frame in frames(10):
        for source in sources:
            loop.offer(source, frame)
    for _ in range(9):
        loop.step(0.0)
    assert [name for name, _ in fake.seen] == list("abcabcabc")


def test_the_watchdog_is_fed_by_answers_and_by_silence_but_not_by_failures():
    beats, fake = [], Fake()
    loop = Loop(fake.classify, lambda: beats.append(1))
    source = source_of(loop, "camera:", "c")
    loop.follow([source])
    assert not loop.step(0.0) and len(beats) == 1      # no frame is due
    loop.offer(source, frames(1)[0])
    assert loop.step(0.0) and len(beats) == 2
    fake.fail = RuntimeError("the session is broken")
    loop.offer(source, frames(1)[0])
    assert loop.step(0.0) and len(beats) == 2
    fake.fail = BadInput("windows of another shape", "look at its settings")
    loop.offer(source, frames(1)[0])
    assert loop.step(0.0) and len(beats) == 3 and "another shape" in source.error


def test_a_ring_keeps_bytes_and_moments():
    ring = Ring(10 * 12)
    for i in range(25):
        ring.put(np.full((2, 2, 3), i, np.uint8), float(i))
    assert [int(each[0, 0, 0]) for each in ring.since(0.0)] == list(range(15, 25))
    assert [int(each[0, 0, 0]) for each in ring.since(22.0)] == [22, 23, 24]
    small = Ring(0)
    small.put(np.zeros(5, np.uint8), 1.0)
    small.put(np.ones(5, np.uint8), 2.0)
    assert len(small.since(0.0)) == 1 and small.newest[0] == 1


# sources --------------------------------------------------------------------------------------------


def started(read, uri="udp:1", restarts=3, **more):
    loop = Loop(Fake().classify)
    source = source_of(loop, uri, "s", read, restarts=restarts, **more)
    loop.follow([source])
    source.start()
    return source


def test_a_source_that_fails_is_restarted_so_many_times_and_then_given_up():
    tries = []

    def read():
        tries.append(time.monotonic())
        raise LinkError("no device", "plug it in")
        yield

    source = started(read, restarts=4)
    assert source.join(240.0)
    assert len(tries) == 5 and source.restarts == 4 and not source.alive
    assert source.error == "given up after 4 restarts: no device; plug it in"
    pauses = np.diff(tries)
    assert pauses[3] > 2 * pauses[0] or pauses[3] >= 0.008  # 1, 2, 4, 8 ms at least


def test_a_source_that_comes_back_is_alive_again():
    tap = Tap()
    source = started(tap.read)
    tap.put(np.zeros((2, 2, 3), np.uint8))
    until(lambda: source.alive)
    tap.put(OSError("unplugged"))
    until(lambda: source.restarts == 1)
    assert not source.alive and "unplugged" in source.error
    tap.put(np.zeros((2, 2, 3), np.uint8))
    until(lambda: source.alive and not source.error)
    source.stop()
    tap.put(None)
    assert source.join(240.0)


def test_frames_of_a_link_are_counted_over_restarts(monkeypatch):
    links = [{"accepted": 5, "corrupt": 1}, {"accepted": 2, "corrupt": 0}]
    left = [*links]

    def read(_path, _spec, watch):
        if not left:
            return
        watch(left.pop(0))
        raise LinkError("the cable is loose", "plug it in")
        yield

    monkeypatch.setattr("edgecl.sources.read", read)
    source = source_of(Loop(Fake().classify), "serial:x", "s", None, restarts=2)
    assert source.serial_frames == {}
    source.start()
    assert source.join(240.0)
    assert source.serial_frames == {"accepted": 7, "corrupt": 1}
    links[1]["accepted"] += 3     # the open link goes on counting
    assert source.serial_frames == {"accepted": 10, "corrupt": 1}


@pytest.mark.slow
def test_frames_of_a_noisy_serial_line_are_counted_by_result(tmp_path):
    need("gcc", "gcc")
    table = np.random.default_rng(0).normal(0, 1, (2000, 6))
    np.savetxt(tmp_path / "still.csv", table, delimiter=",", fmt="%.4f")
    seen, loop = [], Loop(Fake().classify)
    with Simulator(tmp_path, [tmp_path / "still.csv"], "--rate", "50", "--repeat") as board:
        source = SourceThread(SourceSettings(f"serial:{board.port}", "imu"), lambda: Spec(rate=50, window=1.0),
                              seen.append, loop.offer)
        source.start()
        until(lambda: source.serial_frames.get("accepted", 0) > 5)
        board.tell("flood 4000")
        until(lambda: sum(source.serial_frames.values()) > source.serial_frames["accepted"])
        assert until(lambda: seen)[0]["alive"]
        source.stop()
        assert source.join(240.0)


def test_what_can_not_be_read_is_left_out_and_the_end_of_a_table_is_not_a_failure():
    tap = Tap()
    source = started(tap.read, uri="csv:x")
    tap.put(Refusal("a.jpg", "it is empty"), *frames(3), None)
    assert source.join(240.0)
    assert (source.restarts, source.error, source.alive, source.ring.newest is None) == (0, "", False, False)


def test_a_source_gives_no_more_than_was_asked_for():
    tap = Tap()
    source = started(tap.read, fps=0.001, keep=10**6)
    tap.put(*frames(50), None)
    until(lambda: tap.waiting.empty())
    assert len(source.ring.since(0.0)) == 1 and source.dropped == 0
    source.stop()
    tap.put(None)
