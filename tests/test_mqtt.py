"""MQTT: topics and payloads by hand, and a real broker: discovery, last will, birth message, and its end."""
from __future__ import annotations

import json
import queue
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers_daemon import serving
from helpers_needs import need
from helpers_state import vectors

from edgecl.errors import BadInput
from edgecl.results import Prediction
from edgecl.runtime.mqtt import Publisher, Topics, discovery, password, slug, start
from edgecl.samples import Sample

STATE = Path("state")
INFO = {"generation": 7, "classes": ["mug", "pen"], "round_running": False,
        "sources": [{"name": "front camera"}, {"name": "imu"}]}
BUDGET = {"used_bytes": 1000, "quota_bytes": 64_000, "exemplar_bytes": 400}


class Stand:
    """Stands for the daemon's service; its events are put in by the test."""

    def __init__(self) -> None:
        self.events: queue.Queue = queue.Queue()

    def info(self) -> dict:
        return INFO

    def budget(self) -> dict:
        return BUDGET

    def stable(self) -> list[Prediction]:
        return []

    def subscribe(self) -> Stand:
        return self

    def get(self, timeout: float) -> dict | None:
        try:
            return self.events.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> None:
        self.events.put(None)


def prediction(label: str, changed: bool = True, unknown: bool = False) -> dict:
    return {"type": "prediction", "source": "imu", "label": label, "confidence": 0.91234, "unknown": unknown,
            "changed": changed}


class Sent(list):
    """A client of a broker that only notes what is published: (topic, value)."""

    def publish(self, topic: str, payload: str, **_: object) -> None:
        self.append((topic, payload if payload == "online" else json.loads(payload)))

    def labels(self) -> list[str]:
        return [value["label"] for topic, value in self if "/source/" in topic]


def test_a_label_is_published_when_it_has_changed_and_unknown_is_one():
    sent = Sent()
    publisher = Publisher(Stand(), sent, Topics("desk"))
    for event in (prediction("pen", changed=False), prediction("mug"), prediction("mug", changed=False)):
        publisher.take(event)
    assert sent == [("edgecl/desk/source/imu", {"label": "mug", "unknown": False, "confidence": 0.9123})]
    publisher.take(prediction("mug", unknown=True))
    assert sent[-1][1]["label"] == "unknown"
    publisher.take({"type": "generation", "generation": 8})
    assert sent[-1] == ("edgecl/desk/state", {"generation": 7, "classes": 2, "round_running": False, **BUDGET})


@pytest.mark.parametrize("debounce", [1, 2, 5])
def test_labels_are_published_by_the_debounce_of_their_source(tmp_path, debounce):
    with serving(tmp_path / "state", debounce=debounce) as (service, loop, _):
        source, events, sent = service.sources.threads[0], service.subscribe(), Sent()
        publisher = Publisher(service, sent, Topics("desk"))

        def show(name: str, times: int) -> None:
            for number in range(times):
                loop.offer(source, Sample(vectors(name, 1, 7 + number)[0], "tap"))
                assert loop.step(0.0)
                publisher.take(events.get(0))

        show("ant", debounce)
        assert sent.labels() == ["ant"]
        show("wasp", debounce - 1)     # too short
        show("ant", debounce)
        assert sent.labels() == ["ant"]
        show("wasp", debounce + 1)
        assert sent.labels() == ["ant", "wasp"]
        show("ant", 1)
        assert sent.labels() == ["ant", "wasp"] + ["ant"] * (debounce == 1)


def test_a_new_connection_is_given_the_labels_that_are_stable_already(tmp_path):
    with serving(tmp_path / "state") as (service, loop, _):     # before anybody listens
        sent = Sent()
        publisher = Publisher(service, sent, Topics("desk"))
        publisher.announce()
        assert sent.labels() == []
        for number in range(5):
            loop.offer(service.sources.threads[0], Sample(vectors("ant", 1, number)[0], "tap"))
            assert loop.step(0.0)
        publisher.announce()
        assert sent.labels() == ["ant"]


def test_the_description_names_every_part_once_and_all_topics_are_ours():
    found = discovery(Topics("desk"), ["front camera", "imu"])
    ids = [part["unique_id"] for part in found["components"].values()]
    assert len(set(ids)) == len(ids) == 8
    assert all(part["state_topic"].startswith("edgecl/desk/") for part in found["components"].values())
    assert all({"platform", "unique_id", "name", "value_template"} <= set(part)
               for part in found["components"].values())
    assert set(found) == {"device", "origin", "availability_topic", "components"}
    assert found["components"]["front_camera"]["state_topic"] == "edgecl/desk/source/front_camera"


@pytest.mark.parametrize(("text", "made"), [("a b/c#+", "a_b_c"), ("/dev/ttyACM0", "dev_ttyACM0"), ("…", "_")])
def test_names_become_parts_of_topics(text, made):
    assert slug(text) == made


def test_a_password_file_that_is_missing_is_named(tmp_path):
    (tmp_path / "secret").write_text("hush \nmore")
    assert password(str(tmp_path / "secret")) == "hush"
    with pytest.raises(BadInput, match="nowhere"):
        password(str(tmp_path / "nowhere"))


# a real broker -----------------------------------------------------------------------------------


class Broker:
    def __init__(self, folder) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.program = need("mosquitto", "mosquitto")
        self.start()

    def start(self) -> None:
        (self.folder / "broker.conf").write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\n")
        self.process = subprocess.Popen([self.program, "-c", str(self.folder / "broker.conf")],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: socket.create_connection(("127.0.0.1", self.port), 0.2).close() is None)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def until(condition, seconds: float = 240.0):
    """Wait for something to come true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if value := condition():
                return value
        except OSError:
            pass
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


class Listener:
    """What a subscriber such as Home Assistant sees."""

    def __init__(self, port: int) -> None:
        from paho.mqtt.client import CallbackAPIVersion, Client

        self.seen: dict[str, list[str]] = {}
        self.ready = threading.Event()
        self.client = Client(CallbackAPIVersion.VERSION2)
        self.client.on_message = lambda _c, _d, m: self.seen.setdefault(m.topic, []).append(m.payload.decode())
        self.client.on_connect = lambda client, *_: client.subscribe("#")
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self.ready.wait(240)

    def last(self, topic: str) -> str | None:
        return self.seen.get(topic, [None])[-1]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def broker(tmp_path):
    broker = Broker(tmp_path)
    yield broker
    broker.stop()


def settings(port: int) -> SimpleNamespace:
    return SimpleNamespace(state=STATE, mqtt_host="127.0.0.1", mqtt_port=port, mqtt_user=None,
                           mqtt_password_file=None, mqtt_device="desk")


def test_home_assistant_finds_the_device_hears_labels_and_its_end(broker):
    service, listener = Stand(), Listener(broker.port)
    handle = start({STATE: service}, settings(broker.port))
    config = until(lambda: listener.last("homeassistant/device/desk/config"))
    assert json.loads(config) == discovery(Topics("desk"), ["front camera", "imu"])
    until(lambda: listener.last("edgecl/desk/availability") == "online")
    service.events.put(prediction("mug"))
    until(lambda: json.loads(listener.last("edgecl/desk/source/imu") or "{}").get("label") == "mug")
    count = len(listener.seen["homeassistant/device/desk/config"])
    listener.client.publish("homeassistant/status", "online")
    until(lambda: len(listener.seen["homeassistant/device/desk/config"]) == count + 1)
    threads = threading.active_count()
    handle.close()
    until(lambda: listener.last("edgecl/desk/availability") == "offline")
    assert threading.active_count() == threads - 2
    listener.close()


def test_a_broker_that_goes_away_is_come_back_to_and_a_killed_device_is_offline(broker):
    handle = start({STATE: Stand()}, settings(broker.port))
    listener = Listener(broker.port)
    until(lambda: listener.last("edgecl/desk/availability") == "online")
    listener.close()
    broker.stop()
    broker.start()
    listener = Listener(broker.port)
    until(lambda: listener.last("edgecl/desk/availability") == "online")
    handle._client.socket().shutdown(socket.SHUT_RDWR)     # as a kill does: without a good-bye
    until(lambda: "offline" in listener.seen["edgecl/desk/availability"])
    handle.close()
    listener.close()
