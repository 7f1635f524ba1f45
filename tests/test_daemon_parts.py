"""The parts of the daemon, each by itself: triggers, notifications, settings."""
from __future__ import annotations

import socket
import threading

import numpy as np
import pytest
from helpers_daemon import serving, until
from helpers_state import vectors

from edgecl.errors import BadInput
from edgecl.results import Prediction
from edgecl.rounds.board import Readings, Zone
from edgecl.rounds.limits import Limits, Need, Verdict, may_run
from edgecl.runtime.counters import Histogram
from edgecl.runtime.debounce import SURE, UNKNOWN, Debounce, evidence_of
from edgecl.runtime.events import MOST_LISTENERS, QUEUED_EVENTS, Hub
from edgecl.runtime.settings import read_settings
from edgecl.runtime.systemd import Notifier
from edgecl.runtime.triggers import PageHinkley, Policy, Situation, StartRound, Wait, decide
from edgecl.settings import Settings

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


# events, counters  --------------------------------------------------------------------------


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


def changes(times, *answers):
    """The places of the answers (label, confidence) that make a label stable."""
    changed = Debounce(times)
    return [place for place, answer in enumerate(answers, 1) if changed(*answer)]


def test_a_label_needs_more_answers_that_are_less_sure():
    sure, unsure, even = ("a", 0.95), ("a", 0.6), ("a", 0.5)
    assert changes(3, *[sure] * 9) == changes(3, *[("a", SURE)] * 9) == [3]
    assert changes(3, *[unsure] * 9) == [7]
    assert changes(3, *[even] * 99, *[("a", 0.1)] * 99) == []
    assert changes(3, sure, sure, unsure, unsure, unsure) == [5]
    assert changes(1, even, unsure, unsure, unsure, unsure) == [4]
    assert changes(0, even, ("b", 0.1), ("b", 0.1)) == [1, 2, 3]


def test_a_doubtful_answer_takes_little_away_and_a_sure_one_everything():
    sure, other = ("a", 0.9), ("b", 0.55)
    assert changes(3, sure, sure, other, sure, sure) == [5]
    assert changes(3, sure, sure, ("b", 0.999), sure, sure, sure) == [6]
    assert changes(3, *[sure] * 30, *[("b", 0.9)] * 3) == [3, 33]      # nothing is saved up


def test_unknown_is_a_label_of_less_evidence():
    stranger, rest = Prediction("", "a", 0.99, True, 1.0), Prediction("", None, 0.99, True, 1.0, "like `nothing`")
    sure, early = Prediction("", "a", 0.99, False, 1.0), Prediction("", "a", 0.8, None, 1.0, "too few samples")
    assert [evidence_of(each) for each in (stranger, rest, sure, early)] == [
        (None, UNKNOWN), (None, 0.99), ("a", 0.99), ("a", 0.8)]
    assert changes(3, *[evidence_of(sure)] * 3, *[evidence_of(stranger)] * 9) == [3, 10]
    assert changes(3, *[evidence_of(sure)] * 3, *[evidence_of(rest)] * 9) == [3, 6]


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
