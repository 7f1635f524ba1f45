"""End to end: one daemon with a fake camera and an IMU on a serial line, taught by command line, HTTP and page, through
a round and its swap, a kill and a restart. A state takes samples of one kind: the IMU has a state of its own."""
from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from contextlib import suppress
from http.client import HTTPException
from importlib.resources import files

import numpy as np
import pytest
from helpers_browser import browser, need_browser
from helpers_daemon import cli, running, told, until
from helpers_http import Web
from helpers_needs import need
from PIL import Image
from round_states import conv_backbone
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from edgecl.evaluation.demo import watch_rate, write_recordings
from edgecl.learner import Learner
from edgecl.settings import Settings
from edgecl.sources import read, stack
from edgecl.sources.spec import Spec
from firmware_bridge.simulator import Simulator

pytestmark = pytest.mark.slow
DIGITS = ("zero", "one", "two", "three", "four")
TAUGHT, ASKED = 30, 20       # photos of each digit
WINDOW, HOP = 1.0, 0.1       # seconds: ten windows a second


def photos(folder):
    """Handwritten digits of scikit-learn as photos: folder/{train,test}/NAME/*.png."""
    text = files("sklearn").joinpath("datasets/data/digits.csv.gz")
    table = np.loadtxt(text, delimiter=",")
    for number, name in enumerate(DIGITS):
        pictures = table[table[:, -1] == number, :-1].reshape(-1, 8, 8)
        for i, pixels in enumerate(pictures[:TAUGHT + ASKED]):
            path = folder / ("train" if i < TAUGHT else "test") / name / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 - pixels * 15.9).astype(np.uint8)).resize((64, 64), Image.Resampling.BICUBIC) \
                .convert("RGB").save(path)
    return folder


class Camera:
    """The folder that the fake camera shows. frames: how many of its frames were classified."""

    def __init__(self, folder):
        self.folder, self.frames = folder, lambda: 0
        folder.mkdir()

    def show(self, photos):
        """These from now on; when it returns, they are seen."""
        old = list(self.folder.iterdir())
        for photo in photos:
            shutil.copy(photo, self.folder / f"{photo.parent.name}-{photo.name}")
        for photo in old:
            photo.unlink()
        if old:
            self.wait(3)     # the first may still be an old one

    def wait(self, count):
        """Until so many more frames were classified."""
        before = self.frames()
        until(lambda: self.frames() >= before + count)


def one_recording(parts, path, rows=30_000):
    """Recordings in a row, over and over, as one: the simulator pauses between two files."""
    head, *_ = parts[0].read_text().splitlines()
    lines = [line for part in parts for line in part.read_text().splitlines()[1:]]
    path.write_text("\n".join([head, *(lines[i % len(lines)] for i in range(rows))]) + "\n")
    return path


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def acknowledged(client, name, photos, again=0):
    """Teach photos one by one over HTTP."""
    for photo in photos:
        learned = client.post(f"/api/learn?class={name}&again={again}", photo.read_bytes(), Content_Type="image/png")
        assert learned["label"] == name and learned["samples"] == 1


def samples(client, state=""):
    return {each["name"]: each["samples"] for each in client.get(f"/api/classes{state}")}


def dropped(client):
    text = client.get("/metrics").decode()
    return {source: int(count) for source, count in
            re.findall(r'edgecl_frames_dropped_total\{.*?source="(\w+)"\} (\d+)', text)}


def teach_by_page(url, camera, pictures):
    """Digits three, by choosing files, and four, by holding the button while the camera shows them."""
    with browser() as driver:
        driver.get(url)
        until(lambda: "classes" in driver.find_element(By.ID, "about").text)
        name, said = driver.find_element(By.ID, "name"), driver.find_element(By.ID, "said")
        name.send_keys("three")
        driver.find_element(By.ID, "files").send_keys("\n".join(str(path) for path in pictures["three"]))
        until(lambda: said.text.startswith(f"Learned {TAUGHT} samples of three"))
        camera.show(pictures["four"])
        name.clear()
        name.send_keys("four")
        hold = driver.find_element(By.ID, "hold")
        ActionChains(driver).click_and_hold(hold).pause(1.5).release().perform()
        until(lambda: re.match(r"Learned \d+ samples of four", said.text))
        until(lambda: len(driver.find_elements(By.CSS_SELECTOR, "#known .class")) == 5)
        until(lambda: driver.find_element(By.CSS_SELECTOR, ".view .label").text == "four")
        until(lambda: len(driver.find_elements(By.CSS_SELECTOR, "#known .thumbs img")) >= 5)
        assert not [line for line in driver.get_log("browser") if line["level"] == "SEVERE"]


def watched_round(client):
    """Start a round and wait for its end: (its entry, frames dropped in the second before and after the swap)."""
    counts, done, swapped = [], threading.Event(), []

    def count():
        while not done.wait(0.1):
            counts.append((time.monotonic(), dropped(client)))

    def listen():
        with socket.create_connection(client.address, timeout=1000) as line:
            line.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            for text in line.makefile("rb"):
                if text.startswith(b"event: generation"):
                    swapped.append(time.monotonic())
                if done.is_set():
                    return
    threads = [threading.Thread(target=work, daemon=True) for work in (count, listen)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert client.post("/api/round", {"time": 240, "memory": 800_000_000}, status=202) == {"started": True}
    round_ = until(lambda: client.get("/api/rounds"))[0]
    time.sleep(1.5)
    done.set()
    assert swapped, round_
    before = [found for at, found in counts if at < swapped[-1] - 1.0][-1]
    after = next(found for at, found in counts if at > swapped[-1] + 1.0)
    return round_, {source: after[source] - before[source] for source in after}


def right(client, pictures):
    """Share of test photos that are named rightly."""
    hits = [client.post("/api/predict", path.read_bytes(), Content_Type="image/png")[0]["label"] == name
            for name in DIGITS for path in pictures[name]]
    return sum(hits) / len(hits)


def test_a_robot_from_the_first_class_to_a_kill(tmp_path):
    need_browser()
    need("gcc", "gcc")
    sets = photos(tmp_path / "photos")
    train = {name: sorted((sets / "train" / name).iterdir()) for name in DIGITS}
    test = {name: sorted((sets / "test" / name).iterdir()) for name in DIGITS}
    (tmp_path / "conv.onnx").write_bytes(conv_backbone((8, 16)))         # a larger one leaves a round nothing to gain
    recordings, _, _ = write_recordings(tmp_path / "watch")
    rate = watch_rate(recordings)
    moves = one_recording(sorted(sorted((recordings / "train").iterdir())[0].glob("*.csv")), tmp_path / "moves.csv")
    calibration = stack(read(recordings / "train", Spec(rate=rate, window=WINDOW, hop=HOP * 5)), 256)
    Learner.create(tmp_path / "imu", Settings(backbone="rocket", quota=16 * 10**6, exemplars=10**6, rate=rate,
                                              window=WINDOW, hop=HOP), calibration).close()
    camera, listen = Camera(tmp_path / "camera"), port()
    camera.show(train["zero"])
    text = f"""
state = "state"
backbone = "{tmp_path / 'conv.onnx'}"
quota = "100MB"
exemplars = "8MB"
codec = "raw"
rounds = "off"
http_listen = "127.0.0.1:{listen}"
[[source]]
name = "camera"
uri = "fake:camera?fps=30"
queue = 100
[[source]]
name = "imu"
uri = "serial:{tmp_path / 'port'}?channel=imu"
state = "imu"
"""
    client = Web(f"http://127.0.0.1:{listen}/")
    with Simulator(tmp_path, [moves], "--rate", f"{rate:g}", "--type", "f32", "--repeat"), \
            running(tmp_path, text) as daemon:
        daemon.client().close()
        camera.frames = lambda: daemon.ask("counters")["frames_total"]["camera"]
        # the command line: files, then what the camera shows
        code, out, err = cli(tmp_path, "learn", "--state", "state", "--class", "zero", "--json", *train["zero"])
        assert code == 0 and told(out)["samples"] == TAUGHT, err
        camera.show(train["one"])
        begun = time.monotonic()
        camera.wait(TAUGHT)
        shown = f"{1000 * (time.monotonic() - begun):.0f}ms"
        code, out, err = cli(tmp_path, "learn", "--state", "state", "--class", "one", "--last", shown, "--json")
        assert code == 0 and told(out)["samples"] >= 15, err
        # HTTP
        acknowledged(client, "two", train["two"])
        learned = until(lambda: client.ask("POST", "/api/learn_last?state=imu", {"class": "moving", "seconds": 5})[2]
                        .get("samples", 0) > 20 or None, 30)
        assert learned
        # the page
        teach_by_page(f"http://127.0.0.1:{listen}/", camera, train)
        assert set(samples(client)) == set(DIGITS)
        share = right(client, test)
        assert share >= 0.7, share
        for name in ("two", "four"):
            camera.show(test[name])
            until(lambda name=name: client.get("/api/latest")["camera"]["stable"] == name)
        assert until(lambda: client.get("/api/latest?state=imu").get("imu"))["label"] == "moving"
        camera.show([path for name in DIGITS for path in test[name][:4]])
        frames = re.search(r'edgecl_serial_frames_total\{.*?source="imu",result="accepted"\} (\d+)',
                           client.get("/metrics").decode())
        assert frames and int(frames[1]) > 20
        # a round, and its swap
        round_, lost = watched_round(client)
        assert round_["taken"], round_
        assert client.get("/api/info")["generation"] == round_["generation"]
        assert lost == {"camera": 0, "imu": 0}
        after = right(client, test)
        assert after >= 0.7, after
        frames = until(lambda: at_speed(client))
        print(f"\nright {share:.3f} before the round, {after:.3f} after it; {round_['seconds']} s; sources {frames}")
        # a kill in the middle of teaching
        known, extra = samples(client), [0]

        def teach_on():
            with suppress(OSError, HTTPException):
                while True:
                    acknowledged(client, "five", train["three"][:1], again=1)
                    extra[0] += 1
        teaching = threading.Thread(target=teach_on)
        teaching.start()
        until(lambda: extra[0] >= 5)
        daemon.process.kill()
        daemon.process.wait(240)
        teaching.join(240)
        daemon.begin()
        daemon.client().close()
        until(lambda: answers(client))
        first = time.monotonic() - daemon.begun
        found = samples(client)
        assert {name: found[name] for name in known} == known
        assert extra[0] <= found["five"] <= extra[0] + 1
        assert client.get("/api/info")["generation"] >= round_["generation"] + extra[0]
        assert samples(client, "?state=imu")["moving"] > 20
        print(f"first answer {first:.2f} s after the restart; {extra[0]} teachings acknowledged before the kill")
        assert daemon.end()[1] == 0


def at_speed(client):
    """Samples a second of each source, once both come as they should; nothing before."""
    found = {each["name"]: each for state in ("", "?state=imu") for each in client.get(f"/api/info{state}")["sources"]}
    return all(each["fps"] > 8 for each in found.values()) and {name: each["fps"] for name, each in found.items()}


def answers(client):
    try:
        return client.get("/api/latest").get("camera")
    except OSError:
        return None
