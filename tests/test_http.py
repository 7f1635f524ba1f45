"""The HTTP door: every route on a real service, what comes out, and what is refused with which code."""
from __future__ import annotations

import json
import re
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers_daemon import until
from helpers_http import Web, image_state, packed, photo, shades, web, web_of
from helpers_state import create, vectors
from prometheus_client.parser import text_string_to_metric_families

from edgecl.learner import Learner
from edgecl.runtime import http as door
from edgecl.runtime.service import Service
from edgecl.runtime.settings import DaemonSettings
from edgecl.settings import Settings


@pytest.fixture
def served(tmp_path):
    with web(tmp_path / "state", review_below=1.0) as found:
        yield found


@pytest.fixture(scope="module")
def unchanging(tmp_path_factory):
    """One server for the tests that change nothing."""
    with web(tmp_path_factory.mktemp("unchanging") / "state", review_below=1.0) as found:
        yield found


@pytest.fixture
def photos(tmp_path):
    with web_of(image_state(tmp_path / "state")) as found:
        yield found


def test_info_says_what_the_service_says_and_which_states_there_are(served):
    client, service, _, _ = served
    info = client.get("/api/info")
    assert info.pop("state") == "state" and info.pop("states") == ["state"]
    assert info.pop("uptime_seconds") >= 0
    assert info == {name: value for name, value in service.info().items() if name != "uptime_seconds"}
    assert info["classes"] == ["ant", "wasp"]


@pytest.mark.parametrize("name", ["status", "classes", "history", "rounds", "review", "latest"])
def test_looking_routes_give_what_the_service_gives(served, name):
    client, service, _, _ = served
    assert client.get(f"/api/{name}") == json.loads(json.dumps(getattr(service, name)()))


def test_budget(served):
    client, _, _, _ = served
    found = client.get("/api/budget")
    assert found["quota_bytes"] == 1_000_000 and 0 < found["used_bytes"] < 1_000_000 and found["rss_bytes"] > 10**7


def test_vectors_are_learned_and_told_as_json(served):
    client, _, _, _ = served
    learned = client.post("/api/learn?class=cat", {"samples": vectors("cat", 25).tolist()})
    assert learned["label"] == "cat" and learned["samples"] == 25
    answers = client.post("/api/predict", vectors("cat", 3, seed=1).tolist())
    assert [answer["label"] for answer in answers] == ["cat"] * 3
    assert client.post("/api/predict", vectors("ant", 1)[0].tolist())[0]["label"] == "ant"
    assert "cat" in client.get("/api/info")["classes"]


def test_arrays_are_learned_and_told_as_npz(served):
    client, _, _, _ = served
    kind = {"Content_Type": "application/x-npz"}
    assert client.post("/api/learn?class=cat", packed(x=vectors("cat", 25)), **kind)["samples"] == 25
    assert client.post("/api/predict", packed(anything=vectors("cat", 2, seed=1)), **kind)[1]["label"] == "cat"


def test_a_name_of_any_script_goes_through_the_query(served):
    client, _, _, _ = served
    learned = client.post("/api/learn?class=%E7%8C%AB%20%C3%A9", {"samples": vectors("cat", 5).tolist()})
    assert learned["label"] == "猫 é"


def test_photos_are_learned_told_and_shown(photos):
    client, _ = photos
    for level, label in ((20, "dark"), (150, "light")):
        for form in ("PNG", "JPEG", "WEBP"):
            kind = {"Content_Type": f"image/{form.lower()}; charset=x"}
            assert client.post("/api/predict", photo(level, form), **kind)[0]["label"] == label
    assert client.post("/api/learn?class=grey", photo(85), Content_Type="image/png")["samples"] == 1
    shown = client.get("/api/exemplars?class=dark")
    assert len(shown) == 4 and all(each["image"].startswith("data:image/jpeg;base64,") for each in shown)


def test_windows_come_as_csv_and_are_shown_as_curves(tmp_path):
    rng = np.random.default_rng(0)
    settings = Settings(backbone="rocket", quota=3_000_000, exemplars=300_000, rate=10, window=2.0, codec="raw")
    learner = Learner.create(tmp_path / "state", settings)
    learner.learn(rng.normal(0, 1, (20, 20, 3)).astype(np.float32), "still")
    learner.learn(rng.normal(0, 9, (20, 20, 3)).astype(np.float32), "shaken")
    with web_of(learner) as (client, _):
        rows = "t,x,y,z\n" + "\n".join(f"{i},{x},{y},{z}" for i, (x, y, z) in enumerate(rng.normal(0, 9, (60, 3))))
        answers = client.post("/api/predict", rows.encode(), Content_Type="text/csv")
        assert [answer["label"] for answer in answers] == ["shaken"] * 5   # 60 rows, 20 a window, half over each other
        shown = client.get("/api/exemplars?class=still")
        assert [np.shape(each["curves"]) for each in shown] == [(3, 20)] * len(shown) and shown
        assert "has 3 rows" in client.refused(400, "POST", "/api/predict", b"1,2,3\n" * 3, Content_Type="text/csv")
        client.refused(400, "POST", "/api/predict", photo(20), Content_Type="image/png")


def test_what_a_source_shows_is_seen_taught_and_reviewed(served):
    client, service, loop, taps = served
    threading.Thread(target=loop.run, daemon=True).start()
    for source in service.sources.threads:
        source.start()
    assert "shown nothing" in client.refused(404, "GET", "/api/picture?source=tap")
    taps["tap"].put(*vectors("ant", 3, seed=5))
    assert until(lambda: client.get("/api/latest").get("tap", {}).get("label")) == "ant"
    assert np.shape(client.get("/api/picture?source=tap")["curves"]) == (1, 16)
    learned = client.post("/api/learn_last", {"class": "seen", "seconds": 30, "source": "tap"})
    assert learned["label"] == "seen" and learned["samples"] == 3
    for share in np.linspace(0.4, 0.6, 13, dtype=np.float32):  # between two classes: somewhere it is not sure
        taps["tap"].put(share * vectors("ant", 25).mean(0) + (1 - share) * vectors("wasp", 25).mean(0))
    cluster = until(lambda: client.get("/api/review")["clusters"])[0]
    assert client.get(f"/api/review/frames/{cluster['typical']}")["curves"]
    assert client.post(f"/api/review/{cluster['id']}", {"class": "named"})["label"] == "named"
    assert not [each for each in client.get("/api/review")["clusters"] if each["id"] == cluster["id"]]
    client.refused(404, "GET", f"/api/review/{cluster['id']}")
    client.refused(404, "POST", f"/api/review/{cluster['id']}", {"class": "named"})
    client.refused(404, "DELETE", f"/api/review/{cluster['id']}")
    client.refused(404, "DELETE", f"/api/review/frames/{cluster['typical']}")


def test_forgetting_and_going_back(served):
    client, _, _, _ = served
    before = client.get("/api/info")["generation"]
    client.post("/api/learn?class=cat", {"samples": vectors("cat", 5).tolist()})
    assert client.post("/api/rollback", {"generation": before})["restored"] == before
    assert client.get("/api/info")["classes"] == ["ant", "wasp"]
    assert client.post("/api/forget", {"class": "wasp"})["class"] == "wasp"
    assert client.get("/api/info")["classes"] == ["ant"]
    assert "can't be restored" in client.refused(409, "POST", "/api/rollback", {"generation": before})
    client.refused(400, "POST", "/api/forget", {"class": "wasp"})


def test_a_round_is_started_once(tmp_path):
    learner = create(tmp_path / "state")
    learner.learn(vectors("ant", 5), "ant")
    with web_of(learner) as (client, service):
        asked = []
        service.start_round = lambda method, time, memory: asked.append((method, time, memory)) or {"started": True}
        assert client.post("/api/round", {"method": "er", "time": 5, "memory": 10**8}, status=202) == {"started": True}
        assert asked == [("er", 5, 10**8)]
        del service.start_round
        assert "no method" in client.refused(400, "POST", "/api/round", {"method": "no-such-method"})
        client.post("/api/round", {"method": "packnet"}, status=202)    # one that no state can serve: it ends at once
        assert client.get("/api/info")["round_running"]
        assert "is running" in client.refused(409, "POST", "/api/round")


# refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "method", "path", "body", "headers"), [
    (404, "GET", "/nowhere", None, {}),
    (404, "GET", "/api/", None, {}),
    (404, "GET", "/../../etc/passwd", None, {}),
    (404, "GET", "/api/info?state=other", None, {}),
    (405, "DELETE", "/api/info", None, {}),
    (405, "GET", "/api/learn?class=a", None, {}),
    (400, "POST", "/api/learn", {"samples": [[1.0] * 16]}, {}),
    (400, "POST", "/api/learn?class=../x", {"samples": [[1.0] * 16]}, {}),
    (400, "POST", "/api/learn?class=" + "x" * 256, {"samples": [[1.0] * 16]}, {}),
    (400, "POST", "/api/learn?class=a", b"", {"Content_Type": "application/json"}),
    (400, "POST", "/api/learn?class=a", b"{", {"Content_Type": "application/json"}),
    (400, "POST", "/api/learn?class=a", b"[" * 100_000, {"Content_Type": "application/json"}),
    (400, "POST", "/api/learn?class=a", b"[[NaN" + b",1" * 15 + b"]]", {"Content_Type": "application/json"}),
    (400, "POST", "/api/learn?class=a", {"samples": [[1.0] * 15]}, {}),
    (400, "POST", "/api/learn?class=a", {"samples": [["a"] * 16]}, {}),
    (400, "POST", "/api/learn?class=a", {"samples": [[1, 2], [3]]}, {}),
    (400, "POST", "/api/learn?class=a", b"GIF89a", {"Content_Type": "image/gif"}),
    (400, "POST", "/api/learn?class=a", b"PK\x03\x04nothing", {"Content_Type": "application/x-npz"}),
    (415, "POST", "/api/learn?class=a", b"x", {"Content_Type": "application/x-pickle"}),
    (415, "POST", "/api/learn?class=a", b"x", {}),
    (415, "POST", "/api/forget", b'{"class": "ant"}', {"Content_Type": "text/plain"}),
    (400, "POST", "/api/forget", {"class": 1}, {}),
    (400, "POST", "/api/forget", {"klass": "ant"}, {}),
    (400, "POST", "/api/forget", ["ant"], {}),
    (400, "POST", "/api/forget", {}, {}),
    (413, "POST", "/api/forget", b'"' + b"x" * 20_000 + b'"', {"Content_Type": "application/json"}),
    (400, "POST", "/api/learn_last", {"class": "a", "seconds": -1}, {}),
    (400, "POST", "/api/learn_last", {"class": "a", "seconds": True}, {}),
    (400, "POST", "/api/learn_last", b'{"class": "a", "seconds": NaN}', {"Content_Type": "application/json"}),
    (400, "POST", "/api/learn_last", {"class": "a", "seconds": 1, "source": "none"}, {}),
    (409, "POST", "/api/rollback", {"generation": 10**9}, {}),
    (400, "POST", "/api/rollback", {"generation": 10**30}, {}),
    (400, "GET", "/api/exemplars?class=none", None, {}),
    (400, "GET", "/api/picture?source=none", None, {}),
    (404, "GET", "/api/review/99999999999999999999", None, {}),
])
def test_refusals_have_the_right_code_and_change_nothing(unchanging, status, method, path, body, headers):
    client, service, _, _ = unchanging
    before = service.status()
    client.refused(status, method, path, body, **headers)
    assert service.status() == before


def test_every_reply_carries_the_headers(unchanging):
    client, _, _, _ = unchanging
    for method, path in (("GET", "/"), ("GET", "/app.js"), ("GET", "/api/info"), ("GET", "/nowhere"), ("PUT", "/")):
        _, headers, _ = client.ask(method, path)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert "server" not in headers and "access-control-allow-origin" not in headers


# events, metrics, states ----------------------------------------------------------------------------


def events_of(client, wanted, do):
    """Events that come after `do`, until there are that many."""
    with socket.create_connection(client.address, timeout=240) as line:
        line.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        text = b""
        while b"retry" not in text:
            text += line.recv(1 << 16)
        do()
        while text.count(b"\ndata: ") < wanted:
            text += line.recv(1 << 16)
    return [(kind.decode(), json.loads(data)) for kind, data in re.findall(rb"event: (\w+)\ndata: (.*)\n\n", text)]


def test_events_come_to_all_who_listen_and_cost_one_thread(served):
    client, service, _, _ = served
    found = []
    threads = [threading.Thread(target=lambda: found.append(events_of(client, 2, lambda: None))) for _ in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: service.hub.heard)
    time.sleep(0.3)
    assert len([t for t in threading.enumerate() if t.name == "http events"]) == 1
    service.hub.say({"type": "prediction", "source": "tap", "label": "é\n"})
    client.post("/api/learn?class=cat", {"samples": vectors("cat", 5).tolist()})
    for thread in threads:
        thread.join(240)
    assert len(found) == 6
    for events in found:
        assert events[0] == ("prediction", {"type": "prediction", "source": "tap", "label": "é\n"})
        assert events[1][0] == "generation" and events[1][1]["classes"] == 3
    until(lambda: not service.hub.heard)  # nobody listens: the subscription ends
    until(lambda: not [t for t in threading.enumerate() if t.name == "http events"])


def test_metrics_are_prometheus_text(served):
    client, service, _, _ = served
    client.post("/api/learn?class=cat", {"samples": vectors("cat", 5).tolist()})
    client.refused(404, "GET", "/nowhere")
    assert b"serial_frames" not in client.get("/metrics")
    service.sources.threads[0]._watch({"accepted": 7, "corrupt": 2})
    _, headers, text = client.ask("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    values = {(s.name, *sorted(s.labels.items())): s.value for family in families.values() for s in family.samples}
    assert values["edgecl_build_info", ("version", service.info()["version"])] == 1
    assert values["edgecl_samples_learned_total", ("state", "state")] == 5
    assert values["edgecl_buffer_limit_bytes", ("state", "state")] == 20_000
    assert values["edgecl_buffer_bytes", ("state", "state")] == service.budget()["exemplar_bytes"]
    assert values["edgecl_learn_duration_seconds_count", ("state", "state")] == 1
    assert values["edgecl_frames_total", ("source", "tap"), ("state", "state")] == 0
    assert values["edgecl_http_replies_total", ("code", "404")] == 1
    for result, count in (("accepted", 7), ("corrupt", 2)):
        assert values["edgecl_serial_frames_total", ("result", result), ("source", "tap"), ("state", "state")] == count
    assert values["edgecl_rounds_total", ("state", "state"), ("verdict", "refused")] == 0
    for name in ("edgecl_inference_duration_seconds", "edgecl_learn_duration_seconds"):
        assert families[name].type == "histogram"
        buckets = [s.value for s in families[name].samples if s.name.endswith("_bucket")]
        assert buckets == sorted(buckets)
    assert families["edgecl_bytes_written"].type == "counter"
    assert families["process_resident_memory_bytes"].type == "gauge"


def test_labels_are_escaped():
    from edgecl.runtime.http.metrics import _family

    text = "\n".join(_family("x_total", "counter", "X.", [({"source": 'a"b\\c\nd'}, 1)])) + "\n"
    assert next(iter(text_string_to_metric_families(text))).samples[0].labels == {"source": 'a"b\\c\nd'}


def test_two_states_in_one_daemon(tmp_path):
    learners = {name: create(tmp_path / name / "state") for name in ("a", "b")}
    services = {}
    for name, learner in learners.items():
        learner.learn(vectors(name, 25), name)
        services[tmp_path / name / "state"] = Service(learner, DaemonSettings(learner.store.path, rounds="off"))
    for service in services.values():
        service.start()
    handle = door.start(services, DaemonSettings(tmp_path / "b" / "state", http_listen="127.0.0.1:0"))
    try:
        client = Web(handle.url)
        assert client.get("/api/info")["states"] == ["state", "state-2"]
        assert client.get("/api/info")["classes"] == ["b"]
        assert client.get("/api/info?state=state-2")["classes"] == ["a"]
        client.post("/api/learn?class=cat&state=state-2", {"samples": vectors("cat", 5).tolist()})
        assert client.get("/api/info")["classes"] == ["b"]
        families = text_string_to_metric_families(client.get("/metrics").decode())
        generations = {s.labels["state"]: s.value for f in families if f.name == "edgecl_generation" for s in f.samples}
        assert generations == {"state": 2, "state-2": 3}
    finally:
        handle.close()
        for service in services.values():
            service.stop(240.0)


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(served):
    client, _, _, _ = served
    page = client.get("/").decode()
    folder = Path(door.__file__).parents[1] / "page"
    wanted = set(re.findall(r'(?:src|href)="(/[^"]*)"', page)) | {
        f"/{name}" for file in folder.glob("*.js") for name in re.findall(r"from '\./([^']+)'", file.read_text())}
    for path in wanted:
        assert client.ask("GET", path)[0] == 200, path
    for file in folder.iterdir():
        text = file.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), file
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)[^\s'\"]*", text), file


def test_closing_does_not_wait_for_a_client_that_listens(tmp_path):
    learner = create(tmp_path / "state")
    service = Service(learner, DaemonSettings(tmp_path / "state", rounds="off"))
    service.start()
    handle = door.start({tmp_path / "state": service}, DaemonSettings(tmp_path / "state", http_listen="127.0.0.1:0"))
    with socket.create_connection(Web(handle.url).address) as line:
        line.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        line.recv(100)
        handle.close()
        handle.thread.join(240)
        assert not handle.thread.is_alive()
    assert service.stop(240.0)


def test_shades_are_told_apart_through_npz(photos):
    client, _ = photos
    answers = client.post("/api/predict", packed(x=shades(150, 3, seed=7)), Content_Type="application/zip")
    assert [answer["label"] for answer in answers] == ["light"] * 3
