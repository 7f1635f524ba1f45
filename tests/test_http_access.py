"""Who may ask over HTTP: hosts, origins, tokens, and addresses to listen at."""
from __future__ import annotations

import socket

import pytest
from helpers_http import web

from edgecl.errors import BadInput, LinkError
from edgecl.runtime import http as door
from edgecl.runtime.http.access import Access, parse_address, read_token
from edgecl.runtime.settings import DaemonSettings

TOKEN = "x7Hk2mQ9zR4tW8bV1nC5yL3pD6sF0gJa"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One server for the tests that change nothing."""
    with web(tmp_path_factory.mktemp("served") / "state") as found:
        yield found


@pytest.mark.parametrize("path", ["/", "/api/info", "/metrics", "/nowhere"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.0.9", "localhost@evil.example", "",
                                  "[::1", "127.0.0.1:8470:1"])
def test_a_host_that_is_not_this_machine_is_refused(served, host, path):
    client, _, _, _ = served
    answer = client.raw(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403 "), answer
    assert b'"cure"' in answer


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost", "http://127.0.0.1:1", "file://"])
def test_a_page_from_elsewhere_is_refused(served, origin):
    client, service, _, _ = served
    before = service.status()
    for kind in ("application/json", "text/plain"):
        client.refused(403, "POST", "/api/forget", b'{"class": "ant"}', Origin=origin, Content_Type=kind)
    client.refused(403, "GET", "/api/info", Origin=origin)
    client.refused(403, "GET", "/api/info", Sec_Fetch_Site="cross-site")
    client.refused(403, "OPTIONS", "/api/forget", Origin=origin, Access_Control_Request_Method="POST")
    assert service.status() == before


def test_the_page_itself_may_ask(served):
    client, _, _, _ = served
    host = f"localhost:{client.address[1]}"
    client.get("/api/info", Host=host, Origin=f"http://{host}", Sec_Fetch_Site="same-origin")
    client.get("/", Sec_Fetch_Site="cross-site")  # a link to it


# the token ------------------------------------------------------------------------------------------


def test_with_a_token_everything_but_the_bare_page_asks_for_it(tmp_path):
    with web(tmp_path / "state", token=TOKEN, listen="0.0.0.0:0") as (client, _, _, _):
        client.address = ("127.0.0.1", client.address[1])
        for path in ("/", "/app.js", "/style.css"):
            assert client.ask("GET", path)[0] == 200
        for wrong in ({}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {TOKEN[:-1]}b"},
                      {"Authorization": f"Basic {TOKEN}"}, {"Authorization": "Bearer é"},
                      {"Cookie": "edgecl=" + "0" * 64}, {"Cookie": f"edgecl={TOKEN}"}, {"Cookie": "edgecl=;;=,\x7f"}):
            for method, path in (("GET", "/api/info"), ("GET", "/metrics"), ("GET", "/api/events"), ("GET", "/nowhere"),
                                 ("POST", "/api/learn?class=a")):
                client.refused(401, method, path, **wrong)
        assert client.get("/api/info", Authorization=f"Bearer {TOKEN}")["classes"] == ["ant", "wasp"]
        assert client.get("/metrics", Authorization=f"bearer {TOKEN}")
        client.refused(401, "POST", "/api/login", {"token": "wrong"})
        status, headers, _ = client.ask("POST", "/api/login", {"token": TOKEN})
        cookie = headers["set-cookie"]
        assert status == 200 and TOKEN not in cookie
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
        assert client.get("/api/info", Cookie=cookie.split(";")[0])["classes"] == ["ant", "wasp"]
        client.refused(403, "POST", "/api/forget", {"class": "ant"}, Cookie=cookie.split(";")[0], Origin="http://evil.example")
        assert client.ask("GET", "/", Host=f"192.168.0.9:{client.address[1]}")[0] == 200
        client.refused(403, "GET", "/", Host="evil.example")


def test_an_address_that_others_reach_needs_a_token(tmp_path):
    for listen in ("0.0.0.0:0", "[::]:0", "192.168.0.9:80"):
        with pytest.raises(BadInput, match="without a token"):
            door.start({}, DaemonSettings(tmp_path, http_listen=listen))


@pytest.mark.parametrize(("text", "mode", "why"), [
    (TOKEN, 0o644, "mode 0644"), (TOKEN, 0o640, "mode 0640"), ("short", 0o600, "128 bits"), ("", 0o600, "128 bits"),
    ("ab" * 15, 0o600, "128 bits"), ("a" * 40, 0o600, "128 bits"), ("pass word " * 5, 0o600, "128 bits")])
def test_a_token_file_that_will_not_do(tmp_path, text, mode, why):
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(BadInput, match=why):
        read_token(path)


def test_a_token_is_read_without_its_line_end(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    assert read_token(path) == TOKEN
    with pytest.raises(BadInput, match="can't be read"):
        read_token(tmp_path / "none")


@pytest.mark.parametrize(("text", "found"), [
    ("127.0.0.1:8470", ("127.0.0.1", 8470)), ("[::1]:80", ("::1", 80)), ("8470", ("127.0.0.1", 8470)),
    ("robot:1", ("robot", 1))])
def test_addresses(text, found):
    assert parse_address(text) == found


@pytest.mark.parametrize("text", ["", "robot", "robot:", "robot:99999", "http://robot:80", "a b:80", "robot:-1",
                                  "robot:٣"])
def test_addresses_that_are_none(text):
    with pytest.raises(BadInput):
        parse_address(text)


def test_hosts_by_where_it_listens():
    local, wide = Access("127.0.0.1", None), Access("0.0.0.0", TOKEN)
    assert local.knows_host("localhost:1") and local.knows_host("[::1]:1") and not local.knows_host("10.0.0.1")
    assert wide.knows_host("10.0.0.1:8470") and wide.knows_host(socket.gethostname())
    assert not wide.knows_host("evil.example")


def test_a_busy_port_is_told(served, tmp_path):
    client, service, _, _ = served
    with pytest.raises(LinkError, match="can't listen"):
        door.start({tmp_path: service}, DaemonSettings(tmp_path, http_listen=f"127.0.0.1:{client.address[1]}"))
