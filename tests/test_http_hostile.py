"""The HTTP door against strangers: nonsense, floods, slow and greedy clients. It answers on, and grows by nothing."""
from __future__ import annotations

import io
import json
import random
import socket
import struct
import threading
import zipfile
import zlib
from contextlib import suppress

import numpy as np
import pytest
from helpers_daemon import until
from helpers_http import HEAD, Apart, everything, in_chunks, packed, photo, steady, web, with_length
from helpers_state import vectors

from edgecl.runtime.http import bodies, events, guards, media, server

MOST = media.MOST_BODY


@pytest.fixture(name="steady")
def _steady(tmp_path):
    with steady(tmp_path / "state") as found:
        yield found


@pytest.fixture(name="apart", scope="module")
def _apart(tmp_path_factory):
    made = Apart(tmp_path_factory.mktemp("apart"))
    yield made
    made.close()


def replies_of(answer):
    """Status codes of what came back; every refusal is JSON with its cure."""
    codes = []
    while answer.startswith(b"HTTP/1.1 "):
        head, _, rest = answer.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        codes.append(int(head[9:12]))
        length = int(fields.get(b"content-length", b"0"))
        body, answer = rest[:length], rest[length:]
        if codes[-1] >= 400 and body:
            found = json.loads(body)
            assert found["error"] and found["cure"]
    return codes


def nonsense(rng):
    """Malformed requests, one of each kind."""
    noise = rng.randbytes(rng.randrange(1, 400))
    good = b"POST /api/learn?class=x HTTP/1.1\r\n" + HEAD
    return [
        noise,
        noise + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HEAD + noise + b"\r\n\r\n",
        b"GET /" + noise.replace(b"\n", b"") + b" HTTP/1.1\r\n" + HEAD + b"\r\n",
        b"GET / HTTP/9.9\r\n" + HEAD + b"\r\n",
        b"GET /\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise,
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HEAD + HEAD + b"\r\n",
        b"GET /%00%ff%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n" + HEAD + b"\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
        b"TRACE / HTTP/1.1\r\n" + HEAD + b"\r\n",
        b"GET / HTTP/1.1\r\n" + HEAD + b"X: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HEAD + b"a: b\r\n" * 4000 + b"\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HEAD + b"\r\n",
        b"GET / HTTP/1.1\r\n" + HEAD + b" folded: 1\r\n\r\n",
        good + b"Content-Length: -1\r\n\r\n",
        good + b"Content-Length: 99999999999999999999\r\n\r\n",
        good + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        good + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        good + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        good + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        good + b"Transfer-Encoding: gzip\r\n\r\n" + noise,
        good + b"Content-Length: 400\r\nContent-Type: image/jpeg\r\n\r\n" + noise,
        good + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(noise) + noise,
        good + b"Content-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(noise) + noise,
        good + b"Content-Type: application/x-npz\r\nContent-Length: %d\r\n\r\n" % (len(noise) + 2) + b"PK" + noise,
        b"GET /api/events HTTP/1.1\r\n" + HEAD + b"Upgrade: websocket\r\nConnection: upgrade\r\n"
                                               b"Sec-WebSocket-Key: x\r\n\r\n",
        b"GET /api/review/" + b"9" * 3000 + b" HTTP/1.1\r\n" + HEAD + b"\r\n",
        b"GET /api/exemplars?" + b"class=a&" * 1000 + b" HTTP/1.1\r\n" + HEAD + b"\r\n",
        b"GET / HTTP/1.1\r\n" + HEAD + b"Cookie: " + noise.hex().encode() + b"=\"\\x;;=\r\n\r\n",
    ]


def codes_of(asked, client):
    """All codes that the replies to malformed requests have."""
    seen = set()
    for request, answer in zip(asked, client.burst(asked)):
        codes = replies_of(answer)
        seen.update(codes)
        assert not set(codes) & {500, 502}, (request, answer)
        assert answer == b"" or codes, (request, answer)
    return seen


def test_a_malformed_request_of_each_kind(steady):
    client, _ = steady
    assert {200, 400, 403, 404, 405, 413} <= codes_of(nonsense(random.Random(1)), client)


@pytest.mark.slow
def test_a_thousand_malformed_requests(apart):
    rng = random.Random(7)
    seen = set()
    with apart.steady() as client:
        for number in range(10):
            seen |= codes_of([rng.choice(nonsense(rng)) for _ in range(100)], client)
            if number == 1:
                warm = apart.resident()
        assert {200, 400, 403, 404, 405, 413} <= seen
        assert apart.resident() - warm < 8 * 2 ** 20


# too much -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [with_length, in_chunks])
def test_a_body_of_8_mb_is_read_and_one_byte_more_is_not(steady, form):
    client, _ = steady
    assert replies_of(client.raw(form(MOST))) == [400]      # read, and no photo
    assert replies_of(client.raw(form(MOST + 1))) == [413]


def test_a_length_that_lies(steady):
    client, _ = steady
    with socket.create_connection(client.address, timeout=240) as line:
        line.sendall(with_length(100, declared=10) + b"\r\n\r\n")
        assert replies_of(everything(line)) == [400, 400]                                # no photo; then no request
    assert client.burst([with_length(10, declared=100)]) == [b""]                        # it waits for the rest
    with socket.create_connection(client.address, timeout=240) as line:      # told before it is sent
        line.sendall(with_length(0, declared=10**12))
        assert b" 413 " in line.recv(1000)


def test_a_body_without_end_is_given_up(apart):
    with apart.steady() as client, socket.create_connection(client.address, timeout=240) as line:
        before = apart.resident()
        line.sendall(in_chunks(0)[:-5])
        sent, part = 0, b"10000\r\n" + b"x" * 65536 + b"\r\n"
        with suppress(OSError):
            while sent < 4 * bodies.MOST_DISCARDED:
                line.sendall(part)
                sent += len(part)
    assert sent < 2 * bodies.MOST_DISCARDED
    assert apart.resident() - before < 24 * 2 ** 20


def test_json_is_held_shorter_than_photos(steady):
    client, _ = steady
    text = b'{"samples": [[' + b"1," * media.MOST_JSON + b"1]]}"
    client.refused(413, "POST", "/api/predict", text, Content_Type="application/json")


def bomb():
    """A .npz that would unpack to 256 MB of honest numbers."""
    file = io.BytesIO()
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (2**13, 2**13)})
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packing, packing.open("x.npy", "w") as member:
        member.write(head.getvalue())
        for _ in range(256):
            member.write(bytes(2 ** 20))
    return file.getvalue()


def liar(shape, descr="<f4"):
    """A .npz whose header says another shape than it holds."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": descr, "fortran_order": False, "shape": shape})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packing:
        packing.writestr("x.npy", head.getvalue() + bytes(256))
    return file.getvalue()


def large_png(width, height):
    """A small PNG file of many pixels."""
    def part(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = zlib.compressobj()
    body = b"".join(rows.compress(bytes(width + 1)) for _ in range(height)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) + \
        part(b"IDAT", body) + part(b"IEND", b"")


@pytest.mark.slow
def test_bombs_are_seen_before_they_go_off(apart):
    kind = {"Content_Type": "application/x-npz"}
    shells = [bomb(), liar((2**40, 16)), liar((2**62, 2**62)), liar((0, 16)), liar((-1, 16)), liar((4,), "|O"),
              liar((4, 4), "|V10"), packed(x=np.zeros((4, 4)), y=np.zeros(3), z=np.zeros(2))[:-30], packed(a=1, b=2),
              packed(x=np.array("text")), packed(x=np.zeros((5000, 16), np.float32))]
    with apart.steady() as client:
        before = apart.resident()
        for shell in shells:
            assert len(shell) < MOST
            client.refused(400, "POST", "/api/predict", shell, **kind)
        assert apart.resident() - before < 16 * 2 ** 20


def test_a_photo_of_too_many_pixels(apart):
    with apart.steady("photos") as client:
        before = apart.resident()
        for size in ((7100, 7100), (20_000, 9_000)):
            error = client.refused(400, "POST", "/api/predict", large_png(*size), Content_Type="image/png")
            assert "pixels" in error
        assert apart.resident() - before < 40 * 2 ** 20
        assert client.post("/api/predict", photo(20), Content_Type="image/png")[0]["label"] == "dark"


# too many -------------------------------------------------------------------------------------------


def at_once(count, work):
    """The results of threads that begin together."""
    found, gate = [], threading.Barrier(count)

    def run():
        gate.wait()
        found.append(work())
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert len(found) == count
    return found


def test_a_hundred_clients_at_once_are_all_served(steady):
    client, _ = steady
    body = vectors("ant", 5).tolist()
    assert at_once(100, lambda: client.post("/api/predict", body)[0]["label"]) == ["ant"] * 100


@pytest.mark.slow
def test_a_hundred_large_uploads_take_the_memory_of_few(apart):
    shot = with_length(MOST)
    with apart.steady() as client:
        client.raw(shot)
        peak, done = [apart.resident()], threading.Event()

        def watch():
            while not done.wait(0.01):
                peak.append(apart.resident())
        watcher = threading.Thread(target=watch)
        watcher.start()
        found = at_once(100, lambda: replies_of(client.raw(shot, timeout=240)))
        done.set()
        watcher.join()
    assert {code for codes in found for code in codes} <= {400, 429}    # read and no photo, or told to come again
    assert sum(codes == [400] for codes in found) >= 3
    assert max(peak) - peak[0] < 140 * 2 ** 20, (max(peak) - peak[0]) / 2 ** 20


def test_past_the_most_connections_new_ones_are_closed_and_later_served(steady):
    client, _ = steady
    lines = [socket.create_connection(client.address, timeout=240) for _ in range(server.MOST_CONNECTIONS + 40)]
    for line in lines:
        line.setblocking(False)
    until(lambda: sum(map(is_closed, lines)) >= 39)
    assert sum(map(is_closed, lines)) <= 41
    for line in lines:
        line.close()
    until(lambda: client.ask("GET", "/api/info")[0] == 200)


def is_closed(line):
    try:
        return line.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_past_the_most_streams_of_events_new_ones_are_told_429(steady):
    client, _ = steady
    lines = []
    for _ in range(events.MOST_STREAMS):
        line = socket.create_connection(client.address, timeout=240)
        line.sendall(b"GET /api/events HTTP/1.1\r\n" + HEAD + b"\r\n")
        assert b" 200 " in line.recv(4096)
        lines.append(line)
    client.refused(429, "GET", "/api/events")
    for line in lines:
        line.close()
    until(lambda: b"retry" in first_bytes(client))


def first_bytes(client):
    with socket.create_connection(client.address, timeout=240) as line:
        line.sendall(b"GET /api/events HTTP/1.1\r\n" + HEAD + b"\r\n")
        text = b""
        while b"retry" not in text and b" 429 " not in text:
            text += line.recv(4096)
        return text


def test_past_the_most_requests_503(tmp_path, monkeypatch):
    monkeypatch.setattr(guards, "MOST_REQUESTS", 2)
    with web(tmp_path / "state") as (client, service, _, _):
        held, entered = threading.Event(), threading.Semaphore(0)
        service.status = lambda: entered.release() or (held.wait(240) and {})
        threads = [threading.Thread(target=client.get, args=("/api/status",)) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert entered.acquire(timeout=240) and entered.acquire(timeout=240)
        client.refused(503, "GET", "/api/info")
        held.set()
        for thread in threads:
            thread.join()
        del service.status
        assert client.get("/api/info")
