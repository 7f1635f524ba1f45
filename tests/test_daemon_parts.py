"""The parts of the daemon, each by itself: triggers, queues, restarts, review list, notifications, settings."""
from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pytest
from helpers_bridge import need
from helpers_daemon import Tap, serving, until
from helpers_state import vectors

from edgecl.errors import BadInput, LinkError
from edgecl.results import Prediction
from edgecl.rounds.board import Readings, Zone
from edgecl.rounds.limits import Limits, Need, Verdict, may_run
from edgecl.runtime.counters import Histogram
from edgecl.runtime.debounce import Debounce
from edgecl.runtime.events import MOST_LISTENERS, QUEUED_EVENTS, Hub
from edgecl.runtime.loop import Loop
from edgecl.runtime.review import MOST_ENTRIES, Review
from edgecl.runtime.settings import SourceSettings, read_settings
from edgecl.runtime.source_threads import Ring, SourceThread
from edgecl.runtime.systemd import Notifier
from edgecl.runtime.triggers import PageHinkley, Policy, Situation, StartRound, Wait, decide
from edgecl.samples import Refusal, Sample
from edgecl.settings import Settings
from edgecl.sources.spec import Spec
from firmware_bridge.simulator import Simulator

# triggers -----------------------------------------------------------------------------------------

DUE = dict(able=True, classes=5, new_samples=150, drifted=False, running=False, since_taught=90.0, since_round=None,
           verdict=Verdict())


def judged(**readings):
    return may_run(Readings(**readings), Limits(memory=400 * 10**6, time=120.0), Need(400 * 10**6, 120.0))


@pytest.mark.parametrize(("change", "policy", "word"), [
    ({}, {}, None),
    ({"since_taught": None}, {}, None),
    ({}, {"wanted": False}, "rounds are off"),
    ({"running": True}, {}, "a round is running"),
    ({"able": False}, {}, "torch"),
    ({"classes": 1}, {}, "two classes"),
    ({"new_samples": 99}, {}, "99 samples taught since the last round; a round needs 100"),
    ({"new_samples": 99}, {"samples": 99}, None),
    ({"new_samples": 1, "drifted": True}, {}, None),
    ({"new_samples": 0, "drifted": True}, {}, "review list"),
    ({"since_taught": 59.0}, {}, "taught 59 s ago"),
    ({"since_taught": 60.0}, {}, None),
    ({"since_round": 3599.0}, {}, "ended 3599 s ago"),
    ({"since_round": 3600.0}, {}, None),
    ({"drifted": True, "since_round": 10.0}, {}, "ended 10 s ago"),
    ({"verdict": judged(zones=(Zone("cpu", 80.0),))}, {}, "cpu is at 80 C"),
    ({"verdict": judged(zones=(Zone("cpu", 70.0),))}, {}, None),
    ({"verdict": judged(battery=20.0, mains=False)}, {}, "the battery is at 20 %"),
    ({"verdict": judged(battery=20.0, mains=True)}, {}, None),
    ({"verdict": judged(load=3.0, processors=2)}, {}, "other programs load"),
    ({"verdict": judged(memory=300 * 10**6)}, {}, "of memory are available"),
])
def test_when_a_round_is_due(change, policy, word):
    found = decide(Situation(**{**DUE, **change}), Policy(**policy))
    if word is None:
        assert isinstance(found, StartRound)
    else:
        assert isinstance(found, Wait) and word in found.reason


def test_page_hinkley_alarms_at_a_fall_and_not_at_noise_or_a_rise():
    rng = np.random.default_rng(0)
    steady = np.clip(0.9 + 0.05 * rng.standard_normal(20_000), 0, 1)
    test = PageHinkley()
    assert not any(map(test.add, steady))
    fallen = [test.add(value) for value in np.clip(0.6 + 0.05 * rng.standard_normal(200), 0, 1)]
    assert 20 <= fallen.index(True) <= 60  # about threshold / (0.3 - delta) answers
    test.reset()
    assert not test.fallen
    assert not any(map(test.add, np.linspace(0.5, 1.0, 5000)))


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


def test_what_can_not_be_read_is_counted_and_the_end_of_a_table_is_no_failure():
    tap = Tap()
    source = started(tap.read, uri="csv:x")
    tap.put(Refusal("a.jpg", "it is empty"), *frames(3), None)
    assert source.join(240.0)
    assert (source.refused, source.restarts, source.error, source.alive) == (1, 0, "", False)


def test_a_source_gives_no_more_than_was_asked_for():
    tap = Tap()
    source = started(tap.read, fps=0.001, keep=10**6)
    tap.put(*frames(50), None)
    until(lambda: tap.waiting.empty())
    assert len(source.ring.since(0.0)) == 1 and source.dropped == 0
    source.stop()
    tap.put(None)


# review, events, counters --------------------------------------------------------------------------


def said(confidence, unknown=False):
    return Prediction("s", "mug", confidence, unknown, 1.0)


def test_the_review_list_takes_what_is_uncertain_once(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("edgecl.runtime.review.time.monotonic", lambda: clock[0])
    review, rng = Review(0.6), np.random.default_rng(0)
    frame = np.zeros((4, 4, 3), np.uint8)
    for _ in range(500):  # what it usually sees: the spread of features
        review.see(said(0.95), frame, rng.standard_normal(64).astype(np.float32))
    assert review.to_json() == []
    strange = rng.standard_normal(64).astype(np.float32)
    for _ in range(20):
        clock[0] += 2
        review.see(said(0.3), frame, strange + 0.05 * rng.standard_normal(64).astype(np.float32))
    assert len(review.to_json()) == 1                                     # no near-duplicates
    for _ in range(5):
        review.see(said(0.9, unknown=True), frame, rng.standard_normal(64).astype(np.float32))
    assert len(review.to_json()) == 2                                     # one a second
    for _ in range(100):
        clock[0] += 2
        review.see(said(0.9, unknown=True), frame, rng.standard_normal(64).astype(np.float32))
    shown = review.to_json()
    assert len(shown) == MOST_ENTRIES and shown[0]["age_seconds"] == 0.0 and shown[0]["unknown"]
    review.discard(shown[0]["id"])
    assert len(review.to_json()) == MOST_ENTRIES - 1
    with pytest.raises(BadInput, match="not on the review list"):
        review.get(shown[0]["id"])


def test_the_review_list_is_bounded_in_bytes(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("edgecl.runtime.review.time.monotonic", lambda: clock[0])
    review, rng = Review(0.6), np.random.default_rng(0)
    for _ in range(10):
        clock[0] += 2
        review.see(said(0.1), np.zeros((700, 700, 3), np.uint8), rng.standard_normal(8).astype(np.float32))
    assert 1 <= len(review.to_json()) <= 2


def test_a_listener_that_sleeps_keeps_the_newest_events():
    hub = Hub()
    listener = hub.subscribe()
    for number in range(QUEUED_EVENTS + 10):
        hub.say({"number": number})
    assert listener.get(0)["number"] == 10
    waiter = threading.Thread(target=lambda: [listener.get(10) for _ in range(QUEUED_EVENTS)])
    waiter.start()
    listener.close()
    waiter.join(240.0)
    assert not waiter.is_alive() and not hub.heard and listener.get(0) is None
    assert [hub.subscribe() is None for _ in range(MOST_LISTENERS + 1)] == [False] * MOST_LISTENERS + [True]


def test_histograms_are_cumulative():
    histogram = Histogram((0.01, 0.1))
    for value in (0.01, 0.02, 0.5, 0.001):
        histogram.add(value)
    assert histogram.to_json() == {"buckets": [[0.01, 2], [0.1, 3], ["+Inf", 4]], "sum": pytest.approx(0.531),
                                   "count": 4}


# systemd ---------------------------------------------------------------------------------------------


def test_notifications_reach_the_manager_and_are_not_more_than_needed(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("edgecl.runtime.systemd.time.monotonic", lambda: clock[0])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(240.0)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"})
        notifier.ready("2 classes")
        assert manager.recv(200) == b"READY=1\nSTATUS=2 classes"
        assert notifier.beat == 0.1
        for _ in range(35):
            notifier.alive()
            clock[0] += 0.01
        notifier.reloading()
        notifier.stopping()
        heard = [manager.recv(200)]
        while heard[-1] != b"STOPPING=1":
            heard.append(manager.recv(200))
        assert 3 <= heard.count(b"WATCHDOG=1") <= 4
        assert heard[-2].startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        notifier.close()


def test_without_a_manager_nothing_is_said():
    notifier = Notifier({})
    assert notifier.beat is None
    notifier.ready()
    notifier.alive()
    notifier.close()


# settings --------------------------------------------------------------------------------------------

GOOD = """
state = "s"
quota = "64MB"
round_heat = 70
round_time = "90s"
round_idle = "2m"
control_users = ["root"]
[[source]]
name = "desk"
uri = "fake:photos?fps=10"
keep = "2MB"
[[source]]
uri = "serial:/dev/ttyACM0"
state = "imu"
"""


def test_settings_are_read(tmp_path):
    path = tmp_path / "robot.toml"
    path.write_text(GOOD)
    found = read_settings(path)
    assert [source.name for source in found.sources] == ["desk", "serial2"]
    assert found.sources[0].keep == 2_000_000 and found.sources[1].state == "imu"
    assert (found.limits.heat, found.limits.time, found.round_idle) == (70, 90.0, 120.0)
    assert found.learner == Settings(quota=64_000_000) and found.socket.as_posix() == "s/control.sock"
    assert read_settings(path, tmp_path).state == tmp_path
    assert read_settings(None).sources == ()


@pytest.mark.parametrize(("text", "word"), [
    ("colour = 1", "unknown keys: colour"), ("source = 3", "list of tables"), ("[[source]]\nname = 'x'", "no uri"),
    ("[[source]]\nuri = 'csv:x'\nspeed = 1", "unknown keys: speed"), ("rounds = 'always'", "rounds"),
    ("[[source]]\nuri = 'csv:x'\nname = 'a'\n[[source]]\nuri = 'csv:y'\nname = 'a'", "two sources"),
    ("[[source]]\nuri = 'csv:x'\ndebounce = 0", "debounce"), ("[[source]]\nuri = 5", "uri is 5"),
    ("[[source]]\nuri = 'csv:x'\nkeep = 'much'", "not a size"), ("round_heat = 'hot'", "heat"),
    ("mqtt_port = 99999", "mqtt_port"), ("review_below = 2.0", "review_below"), ("control_users = 'pi'", "list"),
    ("http_listen = 8470", "http_listen")])
def test_settings_are_strict(tmp_path, text, word):
    path = tmp_path / "robot.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=word):
        read_settings(path)


# a service -------------------------------------------------------------------------------------------


def test_a_label_counts_once_it_came_often_enough_in_a_row():
    changed = Debounce(3)
    assert [label for label in "aabaaabbbbabbbccaccc" if changed(label)] == ["a", "b", "c"]
    each, every = Debounce(1), Debounce(0)
    assert [label for label in "aabba" if each(label)] == ["a", "b", "a"]
    assert [label for label in "aabba" if every(label)] == [*"aabba"]


def test_labels_are_debounced(tmp_path):
    with serving(tmp_path / "state") as (service, loop, taps):
        events = service.subscribe()
        source = service.sources.threads[0]
        ant, wasp = vectors("ant", 1, 7)[0], vectors("wasp", 1, 7)[0]
        order = [ant, ant, wasp, ant, ant, ant, wasp, wasp, wasp]
        source.start()
        shown = []
        for each in order:
            taps["tap"].put(each)
            until(lambda: source.waiting)
            loop.step(1.0)
            shown.append(service.latest()["tap"]["stable"])
        assert shown == [None] * 5 + ["ant"] * 3 + ["wasp"]
        told = [event for _ in range(10) if (event := events.get(0)) and event["type"] == "prediction"]
        assert [event["changed"] for event in told] == [False] * 5 + [True, False, False, True]
