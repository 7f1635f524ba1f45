"""MQTT with Home Assistant's discovery: the label of each source, and the numbers of the state. It only publishes;
nothing that arrives from a broker teaches or changes anything."""
from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl import __version__
from edgecl.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from paho.mqtt.client import Client

    from edgecl.runtime.service import Service
    from edgecl.runtime.settings import DaemonSettings

REPORT_SECONDS = 60.0                     # between two reports of the state
BIRTH_TOPIC = "homeassistant/status"
MOST_QUEUED = 100                         # messages kept while the broker is away
RECONNECT_SECONDS = 1, 60                 # before the first try, and at most


class Topics:
    """The topics of one device. device: its id."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.base = f"edgecl/{device}"
        self.available = f"{self.base}/availability"
        self.state = f"{self.base}/state"
        self.discovery = f"homeassistant/device/{device}/config"

    def source(self, name: str) -> str:
        """The topic of a source's label."""
        return f"{self.base}/source/{slug(name)}"


def slug(text: str) -> str:
    """A text as one level of a topic: letters, digits, _ and -."""
    return re.sub(r"[^a-zA-Z0-9_-]+", "_", text).strip("_") or "_"


def discovery(topics: Topics, sources: list[str]) -> dict[str, Any]:
    """The device's description for Home Assistant: a label and its confidence per source, and the state's numbers."""
    parts: dict[str, dict[str, Any]] = {}

    def sensor(key: str, name: str, topic: str, template: str, **more: Any) -> None:
        parts[key] = {"platform": "sensor", "unique_id": f"edgecl_{topics.device}_{key}", "name": name,
                      "state_topic": topic, "value_template": template, **more}

    for source in sources:
        sensor(slug(source), source, topics.source(source), "{{ value_json.label }}",
               json_attributes_topic=topics.source(source), icon="mdi:eye")
        sensor(f"{slug(source)}_confidence", f"{source} confidence", topics.source(source),
               "{{ (value_json.confidence * 100) | round(1) }}", unit_of_measurement="%", state_class="measurement")
    sensor("classes", "Known classes", topics.state, "{{ value_json.classes }}", icon="mdi:shape",
           entity_category="diagnostic")
    sensor("generation", "Generation", topics.state, "{{ value_json.generation }}", entity_category="diagnostic")
    sensor("used", "Used bytes", topics.state, "{{ value_json.used_bytes }}", unit_of_measurement="B",
           device_class="data_size", state_class="measurement", entity_category="diagnostic")
    parts["round"] = {
        "platform": "binary_sensor", "unique_id": f"edgecl_{topics.device}_round", "name": "Learning round",
        "state_topic": topics.state, "value_template": "{{ 'ON' if value_json.round_running else 'OFF' }}",
        "device_class": "running", "entity_category": "diagnostic"}
    return {"device": {"identifiers": [f"edgecl_{topics.device}"], "name": topics.device, "manufacturer": "edgecl",
                       "model": "continual learner", "sw_version": __version__},
            "origin": {"name": "edgecl", "sw_version": __version__},
            "availability_topic": topics.available, "components": parts}


class Publisher:
    """Publishes the stable label of each source, and the state's numbers, over a connection that may come and go."""

    def __init__(self, service: Service, client: Client, topics: Topics) -> None:
        self._service, self._client, self._topics = service, client, topics
        self._labels = threading.Lock()   # `announce` must not overtake a newer label

    def announce(self) -> None:
        """Publish the description, `online` and all present values; on each connection, and when Home Assistant
        starts."""
        info = self._service.info()
        self._send(self._topics.discovery, discovery(self._topics, [source["name"] for source in info["sources"]]))
        self._client.publish(self._topics.available, "online", qos=1, retain=True)
        with self._labels:
            for answer in self._service.stable():
                self._label(answer.source, answer.label, answer.confidence, answer.unknown)
        self.report()

    def report(self) -> None:
        """Publish the state's numbers."""
        info, budget = self._service.info(), self._service.budget()
        self._send(self._topics.state, {
            "generation": info["generation"], "classes": len(info["classes"]), "round_running": info["round_running"],
            **{name: budget[name] for name in ("used_bytes", "quota_bytes", "exemplar_bytes")}})

    def take(self, event: dict[str, Any]) -> None:
        """Publish an event of the service; of predictions, those that make another label stable."""
        if event["type"] != "prediction":
            self.report()
        elif event["changed"]:
            with self._labels:
                self._label(event["source"], event["label"], event["confidence"], event["unknown"])

    def _label(self, source: str, label: str | None, confidence: float, unknown: bool | None) -> None:
        self._send(self._topics.source(source), {"label": "unknown" if unknown else label, "unknown": unknown,
                                                 "confidence": round(confidence, 4)})

    def _send(self, topic: str, value: dict[str, Any]) -> None:
        self._client.publish(topic, json.dumps(value), qos=1, retain=True)


class ClientHandle:
    """A running publisher."""

    def __init__(self, service: Service, client: Client, topics: Topics, publisher: Publisher) -> None:
        self._client, self._topics, self._publisher = client, topics, publisher
        self._stop, self._events = threading.Event(), service.subscribe()
        self._thread = threading.Thread(target=self._run, name="edgecl-mqtt", daemon=True)
        self._thread.start()
        client.loop_start()

    def _run(self) -> None:
        while not self._stop.is_set():
            event = self._events.get(REPORT_SECONDS)
            if self._stop.is_set():
                return
            if event is None:
                self._publisher.report()
            else:
                self._publisher.take(event)

    def close(self) -> None:
        """Publish `offline` and disconnect."""
        self._stop.set()
        self._events.close()
        self._thread.join(2.0)
        if self._client.is_connected():
            self._client.publish(self._topics.available, "offline", qos=1, retain=True).wait_for_publish(1.0)
        self._client.disconnect()
        self._client.loop_stop()


def start(services: Mapping[Path, Service], settings: DaemonSettings) -> ClientHandle:
    """Publish to the broker in the settings until `close`; a broker that is away is tried again.

    Raises BadInput without paho-mqtt, or if the password file can't be read.
    """
    try:
        from paho.mqtt.client import CallbackAPIVersion, Client, MQTTv311
    except ImportError as error:
        raise BadInput("mqtt_host is set and paho-mqtt is not installed", "pip install 'edgecl[mqtt]'") from error
    assert settings.mqtt_host is not None
    topics = Topics(slug(settings.mqtt_device))
    client = Client(CallbackAPIVersion.VERSION2, client_id=f"edgecl-{topics.device}", protocol=MQTTv311)
    client.max_queued_messages_set(MOST_QUEUED)
    client.reconnect_delay_set(*RECONNECT_SECONDS)
    client.will_set(topics.available, "offline", qos=1, retain=True)
    if settings.mqtt_user is not None:
        client.username_pw_set(settings.mqtt_user, password(settings.mqtt_password_file))
    publisher = Publisher(services[settings.state], client, topics)

    def connected(client: Client, *_: object) -> None:
        client.subscribe(BIRTH_TOPIC)
        publisher.announce()

    def heard(_client: Client, _data: object, message: Any) -> None:
        if message.payload == b"online":
            publisher.announce()

    client.on_connect, client.on_message = connected, heard
    client.connect_async(settings.mqtt_host, settings.mqtt_port)
    return ClientHandle(services[settings.state], client, topics, publisher)


def password(file: str | None) -> str | None:
    """The first line of a file; None without a file. Raises BadInput."""
    if file is None:
        return None
    try:
        return Path(file).read_text("utf-8").split("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"mqtt_password_file {file} can't be read ({error})",
                       "give a file with the password as its first line") from error
