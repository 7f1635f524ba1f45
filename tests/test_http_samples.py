"""The routes for what was taught: stored samples and their pictures, and corrections of them."""
from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
from helpers_http import image_state, web, web_of
from PIL import Image

from edgecl.learner import Learner
from edgecl.runtime.http.sample_routes import MOST_PICTURES
from edgecl.settings import Settings

TOKEN = "x7Hk2mQ9zR4tW8bV1nC5yL3pD6sF0gJa"


@pytest.fixture
def photos(tmp_path):
    with web_of(image_state(tmp_path / "state")) as found:
        yield found


@pytest.fixture(scope="module")
def unchanging(tmp_path_factory):
    """One server for the tests that change nothing."""
    with web(tmp_path_factory.mktemp("unchanging") / "state") as found:
        yield found


def ids(client, label):
    return [each["id"] for each in client.get(f"/api/samples?class={label}")["samples"]]


def counts(client):
    return {each["name"]: each["samples"] for each in client.get("/api/classes")}


def test_samples_come_in_pages_that_add_up(photos):
    client, service = photos
    every = client.get("/api/samples")
    assert every["total"] == len(every["samples"]) == 50 and every == service.samples()
    some = [client.get(f"/api/samples?class=light&start={start}&limit=10") for start in (0, 10, 20, 30)]
    assert [len(page["samples"]) for page in some] == [10, 10, 5, 0]
    assert [page["total"] for page in some] == [25] * 4
    assert [each for page in some for each in page["samples"]] == [
        each for each in every["samples"] if each["class"] == "light"]
    assert client.get("/api/samples?suspicious=1") == service.samples(suspicious=True)


def test_pictures_by_id_are_the_samples_that_were_taught(photos):
    client, _ = photos
    asked = [ids(client, "dark")[0], ids(client, "light")[3]]
    found = client.get(f"/api/pictures?ids={','.join(asked)},9-9")
    assert [*found] == [*asked, "9-9"] and found["9-9"] is None
    levels = []
    for name in asked:
        head, _, data = found[name]["image"].partition(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(BytesIO(base64.b64decode(data))) as image:
            assert image.size == (16, 16)
            levels.append(np.asarray(image).mean())
    assert levels[0] < 100 < levels[1]


def test_windows_are_curves_and_what_has_only_features_is_null(tmp_path):
    settings = Settings(backbone="rocket", quota=3_000_000, exemplars=300_000, rate=10, window=2.0, codec="raw")
    learner = Learner.create(tmp_path / "windows", settings)
    for number, name in enumerate(("still", "fast")):
        learner.learn(np.random.default_rng(number).normal(0, 1 + 4 * number, (8, 20, 3)).astype(np.float32), name)
    with web_of(learner) as (client, _):
        [picture] = client.get(f"/api/pictures?ids={ids(client, 'still')[0]}").values()
        assert len(picture["curves"]) == 3 and len(picture["curves"][0]) == 20
    learner = Learner.create(tmp_path / "vectors", Settings(quota=8_000_000))
    for number, name in enumerate(("ant", "wasp")):
        learner.learn(np.random.default_rng(number).normal(number, 1, (8, 6)).astype(np.float32), name)
    with web_of(learner) as (client, _):
        listed = client.get("/api/samples?class=ant")["samples"]
        assert not any(each["picture"] for each in listed)
        assert client.get(f"/api/pictures?ids={listed[0]['id']}") == {listed[0]["id"]: None}


def test_removing_moving_and_renaming_over_http_is_what_the_commands_do_and_rolls_back(photos):
    client, _ = photos
    dark, light = ids(client, "dark"), ids(client, "light")
    gone = client.post("/api/remove", {"ids": dark[:2]})
    assert gone["samples"] == 2 and gone["exact"] and gone["ids"] == dict.fromkeys(dark[:2])
    assert counts(client) == {"dark": 23, "light": 25}
    client.post("/api/rollback", {"generation": 3})
    assert counts(client) == {"dark": 25, "light": 25} and ids(client, "dark") == dark
    client.post("/api/remove", {"ids": dark[:2]})
    moved = client.post("/api/move", {"ids": light[:3], "class": "shiny"})
    assert moved["new"] and [*moved["ids"]] == light[:3]
    assert ids(client, "shiny") == [*moved["ids"].values()]
    renamed = client.post("/api/rename", {"old": "shiny", "new": "glossy"})
    assert renamed["gone"] == ["shiny"] and counts(client) == {"dark": 23, "glossy": 3, "light": 22}
    assert "already" in client.refused(400, "POST", "/api/rename", {"old": "glossy", "new": "light"})
    assert client.post("/api/rename", {"old": "glossy", "new": "light", "into": True})["samples"] == 3
    assert counts(client) == {"dark": 23, "light": 25}
    client.post("/api/rollback", {"generation": renamed["generation"]})
    assert counts(client) == {"dark": 23, "glossy": 3, "light": 22}


def test_many_ids_fit_a_body_and_all_or_none_are_removed(photos):
    client, service = photos
    before = service.status()
    many = [f"{number + 1000}-{number}" for number in range(15_000)]
    assert "no such sample" in client.refused(400, "POST", "/api/remove", {"ids": ids(client, "dark") + many})
    assert service.status() == before
    client.refused(413, "POST", "/api/remove", {"ids": many * 10})
    client.post("/api/remove", {"ids": ids(client, "dark"), "erase": True})
    assert counts(client) == {"light": 25}


@pytest.mark.parametrize(("method", "path", "body"), [
    ("GET", "/api/samples?class=none", None),
    ("GET", "/api/samples?suspicious=yes", None),
    ("GET", "/api/samples?start=-1", None),
    ("GET", "/api/samples?limit=5001", None),
    ("GET", "/api/samples?limit=²", None),
    ("GET", "/api/samples?start=1e3", None),
    ("GET", "/api/pictures", None),
    ("GET", "/api/pictures?ids=", None),
    ("GET", "/api/pictures?ids=1-0,,", None),
    ("GET", "/api/pictures?ids=../../etc/passwd", None),
    ("GET", "/api/pictures?ids=" + ",".join(["1-0"] * (MOST_PICTURES + 1)), None),
    ("POST", "/api/remove", {}),
    ("POST", "/api/remove", {"ids": []}),
    ("POST", "/api/remove", {"ids": "2-0"}),
    ("POST", "/api/remove", {"ids": [7]}),
    ("POST", "/api/remove", {"ids": [["2-0"]]}),
    ("POST", "/api/remove", {"ids": ["2-0", "2-0"]}),
    ("POST", "/api/remove", {"ids": ["2-0"], "erase": "yes"}),
    ("POST", "/api/remove", {"ids": ["99-99"]}),
    ("POST", "/api/move", {"ids": ["2-0"]}),
    ("POST", "/api/move", {"ids": ["2-0"], "class": "a/b"}),
    ("POST", "/api/rename", {"old": "ant"}),
    ("POST", "/api/rename", {"old": "none", "new": "some"}),
    ("POST", "/api/rename", {"old": "ant", "new": "ant"}),
    ("POST", "/api/rename", {"old": "ant", "new": "bee", "all": True}),
])
def test_what_is_wrong_is_refused_and_changes_nothing(unchanging, method, path, body):
    client, service, _, _ = unchanging
    before = service.status()
    client.refused(400, method, path.replace("²", "%C2%B2"), body)
    assert service.status() == before


@pytest.mark.parametrize("path", ["remove", "move", "rename"])
def test_corrections_need_the_token_and_a_page_of_this_daemon(tmp_path, path):
    with web(tmp_path / "state", token=TOKEN) as (client, service, _, _):
        body = {"ids": ["2-0"], "class": "bee"} if path == "move" else {"old": "ant", "new": "bee"} \
            if path == "rename" else {"ids": ["2-0"]}
        before = service.status()
        client.refused(401, "POST", f"/api/{path}", body)
        client.refused(403, "POST", f"/api/{path}", body, Origin="http://elsewhere.example",
                       Authorization=f"Bearer {TOKEN}")
        client.refused(403, "POST", f"/api/{path}", body, Sec_Fetch_Site="cross-site",
                       Authorization=f"Bearer {TOKEN}")
        client.refused(401, "GET", "/api/samples")
        client.refused(401, "GET", "/api/pictures?ids=2-0")
        assert service.status() == before
        client.refused(415, "POST", f"/api/{path}", b"ids=2-0", Authorization=f"Bearer {TOKEN}",
                       Content_Type="application/x-www-form-urlencoded")
