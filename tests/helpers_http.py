"""The HTTP server in this process on a service of vectors, and clients of it: well-behaved, and raw."""
from __future__ import annotations

import http.client
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
from helpers_daemon import serving, until
from PIL import Image

from edgecl.backbones.graph import GraphBuilder, finish_backbone
from edgecl.learner import Learner
from edgecl.runtime import http as door
from edgecl.runtime.service import Service
from edgecl.runtime.settings import DaemonSettings
from edgecl.settings import Settings

HEAD = b"Host: localhost\r\n"


class Web:
    """A client of one server. headers: of every request."""

    def __init__(self, url, **headers):
        self.url, self.address = url, (urlsplit(url).hostname, urlsplit(url).port)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def ask(self, method, path, body=None, **headers):
        """Status, headers and body; the body parsed where it is JSON."""
        connection = http.client.HTTPConnection(*self.address, timeout=240)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            if isinstance(body, (dict, list)):
                body, given = json.dumps(body).encode(), {"Content-Type": "application/json", **given}
            connection.request(method, path, body, {**self.headers, **given})
            answer = connection.getresponse()
            text = answer.read()
            found = json.loads(text) if answer.headers["content-type"] == "application/json" else text
            return answer.status, answer.headers, found
        finally:
            connection.close()

    def get(self, path, **headers):
        """The value of a GET that must succeed."""
        status, _, found = self.ask("GET", path, **headers)
        assert status == 200, found
        return found

    def post(self, path, body=None, status=200, **headers):
        """The value of a POST that must answer so."""
        found_status, _, found = self.ask("POST", path, body, **headers)
        assert found_status == status, found
        return found

    def refused(self, status, method, path, body=None, **headers):
        """The error of a request that must be refused so; error and cure are there."""
        found_status, _, found = self.ask(method, path, body, **headers)
        assert found_status == status, (found_status, found)
        assert found["error"] and found["cure"], found
        return found["error"]

    def raw(self, data, timeout=240.0):
        """The first reply to these bytes, b"" where the other side closes without one."""
        with socket.create_connection(self.address, timeout=timeout) as client:
            with suppress(OSError):
                client.sendall(data)
            return reply_of(client)

    def burst(self, requests, quiet=0.3):
        """What comes back for each of several requests on connections of their own, until all are quiet."""
        lines = [socket.create_connection(self.address, timeout=240) for _ in requests]
        found = dict.fromkeys(lines, b"")
        with selectors.DefaultSelector() as waiting:
            for line, data in zip(lines, requests):
                with suppress(OSError):
                    line.sendall(data)
                waiting.register(line, selectors.EVENT_READ)
            while waiting.get_map() and (ready := waiting.select(quiet)):
                for key, _ in ready:
                    block = b""
                    with suppress(OSError):
                        block = key.fileobj.recv(1 << 16)
                    found[key.fileobj] += block
                    if not block:
                        waiting.unregister(key.fileobj)
        for line in lines:
            line.close()
        return list(found.values())


def reply_of(client):
    """One reply: its head, and as much of a body as its Content-Length says."""
    found = b""
    with suppress(OSError):
        while block := client.recv(1 << 16):
            found += block
            head, end, body = found.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if end and length and len(body) >= int(length[1]):
                break
    return found


def everything(client):
    """What comes until the other side closes."""
    found = b""
    with suppress(OSError):
        while block := client.recv(1 << 16):
            found += block
    return found


@contextmanager
def web(path, token=None, listen="127.0.0.1:0", **settings):
    """A server on a service of vectors: a client, the service, the loop, and its tap."""
    token_file = None
    if token:
        token_file = path.parent / "token"
        token_file.write_text(token)
        token_file.chmod(0o600)
        token_file = str(token_file)
    with serving(path, **settings) as (service, loop, taps):
        handle = door.start({path: service}, DaemonSettings(path, http_listen=listen, http_token_file=token_file))
        try:
            yield Web(handle.url), service, loop, taps
        finally:
            handle.close()
            handle.thread.join(240)
            assert not handle.thread.is_alive()


def image_state(path, classes=("dark", "light"), **settings):
    """A state of 16 x 16 photos on a small exported backbone that knows shades."""
    path.parent.mkdir(parents=True, exist_ok=True)
    g = GraphBuilder()
    pooled = g.node("ReduceMean", [g.node("Cast", ["input"], to=1)], axes=[1], keepdims=0)
    g.node("Flatten", [pooled], "features", axis=1)
    model = g.model("small", {"input": ("uint8", ["n", 16, 16, 3])}, {"features": ("float32", ["n", 48])})
    backbone = path.parent / "small.onnx"
    backbone.write_bytes(finish_backbone(model, "small", "image", [16, 16, 3], 48))
    learner = Learner.create(path, Settings(backbone=str(backbone), **{
        "quota": 3_000_000, "exemplars": 200_000, "codec": "jpeg", **settings}))
    for number, label in enumerate(classes):
        learner.learn(shades(20 + number * 130, 25, number), label)
    return learner


def shades(level, count, seed=0):
    """Photos uint8 [count, 16, 16, 3] about one brightness."""
    return np.random.default_rng(seed).integers(level, level + 60, (count, 16, 16, 3), dtype=np.uint8)


def photo(level, form="PNG", size=(40, 30), seed=0):
    """The bytes of a photo about one brightness."""
    pixels = np.random.default_rng(seed).integers(level, level + 60, (size[1], size[0], 3), dtype=np.uint8)
    packed = BytesIO()
    Image.fromarray(pixels).save(packed, form)
    return packed.getvalue()


@contextmanager
def web_of(learner):
    """A server on any learner: a client and the service."""
    path = learner.store.path
    settings = DaemonSettings(path, rounds="off", http_listen="127.0.0.1:0")
    service = Service(learner, settings)
    service.start()
    handle = door.start({path: service}, settings)
    try:
        yield Web(handle.url), service
    finally:
        handle.close()
        assert service.stop(240.0)


def packed(**arrays):
    """The bytes of an .npz file."""
    file = BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@contextmanager
def steady(path):
    """A client and a service: after the test all that was opened for it is gone again, and nothing has changed."""
    with web(path) as (client, service, _, _), unchanged(
            client, lambda: (service.status(), *handles_and_threads()), ["ant", "wasp"]):
        yield client, service


@contextmanager
def unchanged(client, look, classes):
    """look: the status of the service, the open handles and the server's threads."""
    client.get("/api/info")
    status, handles, threads = look()
    yield
    assert client.get("/api/info")["classes"] == classes
    assert look()[0] == status
    until(lambda: (now := look())[1] <= handles + 1 and now[2] <= threads)


def handles_and_threads():
    return len(os.listdir("/proc/self/fd")), sum(t.name.startswith("http") for t in threading.enumerate())


class Apart:
    """Servers in a process of their own, whose memory is not that of other tests: on a state of vectors and, later, on
    one of photos."""

    def __init__(self, folder):
        self.process = subprocess.Popen([sys.executable, __file__, folder], stdin=subprocess.PIPE, text=True,
                                        stdout=subprocess.PIPE,
                                        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
        self.urls = self._line()

    def _line(self):
        return json.loads(self.process.stdout.readline())

    def look(self, kind):
        """Status of the service, open handles and threads."""
        self.process.stdin.write(kind + "\n")
        self.process.stdin.flush()
        return self._line()

    def resident(self):
        """Resident bytes of the servers."""
        return psutil.Process(self.process.pid).memory_info().rss

    @contextmanager
    def steady(self, kind="vectors"):
        """A client; after the test all that was opened for it is gone again, and nothing has changed."""
        client, classes = Web(self.urls[kind]), {"vectors": ["ant", "wasp"], "photos": ["dark", "light"]}
        with unchanged(client, lambda: self.look(kind), classes[kind]):
            yield client

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(240) == 0


def serve_apart(folder):
    """The process of `Apart`: says its URLs, then answers each line with the status of that service."""
    with web(folder / "vectors") as (first, vectors_service, _, _), \
            web_of(image_state(folder / "photos" / "state")) as (second, photos_service):
        services = {"vectors": vectors_service, "photos": photos_service}
        print(json.dumps({"vectors": first.url, "photos": second.url}), flush=True)
        for line in sys.stdin:
            print(json.dumps([services[line.strip()].status(), *handles_and_threads()]), flush=True)


def with_length(size, declared=None):
    return (b"POST /api/learn?class=x HTTP/1.1\r\n" + HEAD + b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
            % (declared or size)) + b"x" * size


def in_chunks(size, chunk=65536):
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in
                    (b"x" * min(chunk, size - at) for at in range(0, size, chunk)))
    return (b"POST /api/learn?class=x HTTP/1.1\r\n" + HEAD +
            b"Content-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n")


if __name__ == "__main__":
    serve_apart(Path(sys.argv[1]))
