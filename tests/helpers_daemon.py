"""Daemons for tests: in this process on small vectors, and as processes of their own."""
from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from helpers_state import create, vectors
from PIL import Image

from edgecl.runtime.client import Client, NoDaemon
from edgecl.runtime.control import Control
from edgecl.runtime.loop import Loop
from edgecl.runtime.service import Service
from edgecl.runtime.settings import DaemonSettings, SourceSettings
from edgecl.runtime.source_threads import SourceThread
from edgecl.samples import Sample


def until(condition, seconds=240.0):
    """Wait until something holds; its value. seconds: an upper bound for a slow machine."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.005)
    return found


class Tap:
    """A source that a test turns on: what is put comes out, an error is raised, None ends it."""

    def __init__(self):
        self.waiting = queue.Queue()

    def put(self, *items):
        for item in items:
            self.waiting.put(Sample(item, "tap") if isinstance(item, np.ndarray) else item)

    def read(self):
        while True:
            item = self.waiting.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item


@contextmanager
def serving(path, classes=("ant", "wasp"), sources=("tap",), control=None, debounce=3, queue=None, **settings):
    """A service on a state of vectors: service, loop, and a tap per source. control: idle and slow seconds of its
    control socket."""
    learner = create(path)
    for name in classes:
        learner.learn(vectors(name, 25), name)
    service = Service(learner, DaemonSettings(path, rounds="off", **settings))
    loop, taps = Loop(service.classifier.classify), {name: Tap() for name in sources}
    threads = [SourceThread(SourceSettings(f"udp:{name}", name, debounce=debounce, queue=queue), service.spec,
                            service.hub.say, loop.offer, tap.read, pause=0.01) for name, tap in taps.items()]
    loop.follow(threads)
    service.sources.follow(threads)
    service.start()
    door = Control(path / "control.sock", service, (), *control) if control else None
    if door:
        door.start()
    try:
        yield service, loop, taps
    finally:
        for thread in threads:
            thread.stop()
        for tap in taps.values():
            tap.put(None)
        loop.stop()
        if door:
            door.stop()
        assert service.stop(60.0)


def photos(folder, count=6, seed=0):
    """A folder of photos, of two colours by turns."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(0, 60, (48, 48, 3)).astype(np.uint8)
        pixels[8:40, 8:40, i % 2] += 180
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


class Running:
    """A daemon process. folder: where its robot.toml and log are."""

    def __init__(self, folder: Path, text: str, state: str = "state", **environment: str) -> None:
        self.environment = environment
        self.folder, self.state, self.log = folder, folder / state, folder / "daemon.log"
        (folder / "robot.toml").write_text(text)
        self.begin()

    def begin(self):
        self.begun = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgecl.cli", "daemon", "--config", "robot.toml"], cwd=self.folder, stderr=log,
                stdout=log, env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
                                 **self.environment})

    def client(self, seconds=240.0):
        end = time.monotonic() + seconds
        while True:
            try:
                return Client(self.state / "control.sock", 240.0)
            except NoDaemon:
                assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
                time.sleep(0.01)

    def ask(self, command, **values):
        with self.client() as client:
            return client.ask(command, **values)

    def end(self, number=signal.SIGTERM):
        """Send a signal; seconds until it has ended, and its exit code."""
        begun = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(240)
        return time.monotonic() - begun, code

    @property
    def children(self):
        """The processes that it has started."""
        return psutil.Process(self.process.pid).children()


@contextmanager
def running(folder, text, **environment):
    made = Running(folder, text, **environment)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
            made.process.wait(240)


def cli(folder, *arguments):
    """An `edgecl` command in a process of its own: (exit code, stdout, stderr)."""
    done = subprocess.run([sys.executable, "-m", "edgecl.cli", *map(str, arguments)], cwd=folder, capture_output=True,
                          text=True, timeout=240,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])})
    return done.returncode, done.stdout, done.stderr


def told(text):
    """The JSON of a command."""
    return json.loads(text)
