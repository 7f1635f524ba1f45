"""The HTTP door and clients that are slow, or leave: they are cut off, and hold up nobody."""
from __future__ import annotations

import os
import socket
import struct
import threading
import time
import tracemalloc
from contextlib import suppress

import pytest
from helpers_daemon import until
from helpers_http import HEAD, everything, in_chunks, reply_of, steady, web, with_length

from edgecl.runtime.http import bodies, server


@pytest.fixture(name="steady")
def _steady(tmp_path):
    with steady(tmp_path / "state") as found:
        yield found


def test_clients_that_never_finish_their_headers_are_cut_off(steady, monkeypatch):
    client, _ = steady
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    lines = [socket.create_connection(client.address, timeout=240) for _ in range(60)]
    begun = time.monotonic()
    for number, line in enumerate(lines):
        line.sendall(b"" if number % 3 == 0 else b"GET / HTTP/1.1\r\nHost: loc")
    alive = set(range(2, 60, 3))
    while alive and time.monotonic() - begun < 240:      # a third drips on
        for number in list(alive):
            try:
                lines[number].sendall(b"a")
            except OSError:
                alive.discard(number)
        assert client.get("/api/info")
        time.sleep(0.1)
    assert not alive
    for line in lines:
        assert everything(line) == b""
        line.close()


def test_a_second_request_that_drips_on_the_same_connection_is_cut_off(steady, monkeypatch):
    client, _ = steady
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    with socket.create_connection(client.address, timeout=240) as line:
        line.sendall(b"GET /api/info HTTP/1.1\r\n" + HEAD + b"\r\n")
        assert b" 200 " in reply_of(line)
        line.sendall(b"GET ")
        assert everything(line) == b""


def test_a_body_that_drips_is_told_408(steady, monkeypatch):
    client, _ = steady
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.5)
    with socket.create_connection(client.address, timeout=240) as line:
        line.sendall(with_length(5, declared=1000))
        with suppress(OSError):
            for _ in range(4):
                time.sleep(0.1)
                line.sendall(b"x")
        assert b" 408 " in everything(line)


def test_a_body_that_goes_on_after_its_reply_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    with web(tmp_path / "state") as (client, _, _, _), socket.create_connection(client.address, timeout=240) as line:
        line.sendall(b"POST /api/learn?class=x HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 1000000\r\n\r\n")
        assert b" 403 " in line.recv(4096)
        begun = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - begun < 240:
                line.sendall(b"x" * 100)
                time.sleep(0.05)
        assert time.monotonic() - begun < 240


@pytest.mark.slow
def test_a_client_that_does_not_read_its_events_is_cut_off_and_holds_up_nobody(steady, monkeypatch):
    client, service = steady
    monkeypatch.setattr(server, "WRITE_SECONDS", 1.0)
    with socket.socket() as slow, socket.create_connection(client.address, timeout=240) as quick:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(client.address)
        for line in (slow, quick):
            line.sendall(b"GET /api/events HTTP/1.1\r\n" + HEAD + b"\r\n")
        until(lambda: service.hub.heard)
        time.sleep(0.2)
        stop, heard = threading.Event(), [0]
        handles = len(os.listdir("/proc/self/fd"))

        def shout():
            while not stop.is_set():
                service.hub.say({"type": "prediction", "source": "tap", "label": "x" * 8000})
                time.sleep(0.0005)
        def hear():
            while not stop.is_set():
                heard[0] += len(quick.recv(1 << 16))
        threads = [threading.Thread(target=work) for work in (shout, hear)]
        for thread in threads:
            thread.start()
        tracemalloc.start()  # not the resident size: other tests of this process have theirs in it
        try:
            until(lambda: len(os.listdir("/proc/self/fd")) < handles)    # the slow one is cut off
            until(lambda: heard[0] > 10**6)
        finally:
            stop.set()
            quick.shutdown(socket.SHUT_RD)   # or it would wait for the next heartbeat
            for thread in threads:
                thread.join()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 16 * 2 ** 20
        slow.settimeout(240)
        assert len(everything(slow)) < 2**22        # what the kernels held; then the end
    until(lambda: not service.hub.heard)


def test_clients_that_leave_in_the_middle(steady):
    client, _ = steady
    for asked in (with_length(1000, declared=10**6), b"GET /api/info HTTP/1.1\r\n" + HEAD + b"\r\n",
                  in_chunks(10**5)[:5000], b"GET /api/events HTTP/1.1\r\n" + HEAD + b"\r\n"):
        for _ in range(20):
            with socket.create_connection(client.address, timeout=240) as line:
                line.sendall(asked)
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, not closed
