"""The review list: unknown things in clusters, over a restart, inside bounds; named, looked through, dropped."""
from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from helpers_daemon import running, serving, until
from helpers_http import image_state, shades, web, web_of
from helpers_state import create, flip, refused, vectors

from edgecl.cli import main
from edgecl.errors import BadInput, BudgetError
from edgecl.evaluation.datasets import digits, watch_windows
from edgecl.learner import Learner
from edgecl.learning.clusters import centroid_linkage
from edgecl.learning.gathered import MOST_FRAMES, Gathered, GatheredFrame
from edgecl.results import Prediction
from edgecl.runtime import review as review_module
from edgecl.runtime.review import Review, review_of
from edgecl.settings import Settings
from edgecl.state.gathered_file import GATHERED_FILE, read_gathered
from edgecl.state.gathered_writer import write_gathered
from edgecl.state.set_aside import SET_ASIDE

BELOW = 0.6


def gathering(learner, **changed):
    """A list on a learner, as its daemon has it."""
    found = review_of(learner, changed.get("below", BELOW))
    return found


def show(found, learner, samples, source="tap", certain=False):
    """Have a list see samples as the loop does, without pauses; the answers."""
    serving = learner.serving()
    answers, features = serving.predict(samples, [source] * len(samples))
    for answer, sample, feature in zip(answers, samples, features):
        found._last.clear()
        given = answer if certain else Prediction(source, answer.label, 0.1, True, 1.0)
        found.see(given, sample, feature, serving.backbone_name)
    return answers


def thing(name, count, seed=0):
    """Vectors of something that no class is like, nearer to each other than two samples of a class."""
    rows = vectors(name, count, seed)
    middle = vectors(name, 200).mean(0)
    return (3 * middle + 0.6 * (rows - middle)).astype(np.float32)


def strange(channel, count, seed=0):
    """Photos uint8 [count, 16, 16, 3] of one colour, which a state of `image_state` calls unknown."""
    found = np.random.default_rng(seed).integers(90, 150, (count, 16, 16, 3), dtype=np.uint8)
    found[..., [each for each in range(3) if each != channel]] = 0
    return found


def groups_of(found):
    """The clusters as sets of numbers of frames."""
    return {frozenset(frame["id"] for frame in found.frames(each["id"])) for each in found.to_json()["clusters"]}


@pytest.fixture
def learner(tmp_path):
    made = create(tmp_path / "state")
    for name in ("ant", "wasp"):
        made.learn(vectors(name, 25), name)
    yield made
    made.close()


# clusters ------------------------------------------------------------------------------------------


def test_clusters_do_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(place, 0.6, (12, 5)) for place in (0, 9, 18)])
    def found(order):
        gaps = ((points[order][:, None] - points[order]) ** 2).sum(2).astype(np.float32)
        return {frozenset(int(order[i]) for i in each) for each in centroid_linkage(gaps, 10.0)}
    first = found(np.arange(36))
    assert sorted(map(len, first)) == [12, 12, 12]
    for _ in range(20):
        assert found(rng.permutation(36)) == first
    assert centroid_linkage(np.empty((0, 0), np.float32), 1.0) == []
    assert centroid_linkage(np.zeros((1, 1), np.float32), 1.0) == [[0]]


def data_of(kind):
    """Real samples and classes of a kind, and settings of a state for it."""
    if kind == "photo":
        data = digits()
        pixels = np.repeat(np.repeat((255 * data.x_train.reshape(-1, 8, 8, 1)).astype(np.uint8), 2, 1), 2, 2)
        return np.repeat(pixels, 3, 3), data.y_train, None
    data = watch_windows()
    return data.x_train, data.y_train, Settings(backbone="rocket", rate=50, window=3.0, quota=8_000_000)


@pytest.fixture(scope="module", params=["photo", "window"])
def real(request, tmp_path_factory):
    """A state that knows the first classes of real data, and samples of the others, with their classes."""
    x, y, settings = data_of(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    made = (Learner.create(folder / "state", settings) if settings
            else image_state(folder / "state", (), quota=8_000_000))
    classes, rng = np.unique(y), np.random.default_rng(0)
    for known in classes[:4]:
        made.learn(x[np.flatnonzero(y == known)[:30]], f"class {known}")
    chosen = np.concatenate([np.flatnonzero(y == new)[:20] for new in classes[4:7]])
    chosen = rng.permutation(chosen)
    yield made, x[chosen], y[chosen]
    made.close()


def test_real_strangers_are_in_clusters_of_one_class_in_any_order(real):
    made, x, y = real
    seen = set()
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(x))
        found = gathering(made)
        show(found, made, x[order])
        listed = found.to_json()
        assert sum(frame.seen for frame in found._gathered.frames) == len(x)
        assert sum(each["frames"] for each in listed["clusters"]) == listed["frames"] - listed["known_by_now"] > 0
        assert len(listed["clusters"]) <= len(x) // 2
        of = {frame.number: int(np.flatnonzero([np.array_equal(frame.sample(), one) for one in x])[0])
              for frame in found._gathered.frames}
        parts = [[y[of[number]] for number in part] for part in groups_of(found)]
        pure = sum(max(part.count(each) for each in set(part)) for part in parts)
        assert pure >= 0.8 * sum(map(len, parts))
        if listed["frames"] == len(x):
            seen.add(frozenset(frozenset(of[number] for number in part) for part in groups_of(found)))
    assert len(seen) <= 1


def test_a_cluster_is_taught_as_its_frames_would_be(real):
    made, x, _ = real
    taught = made.store.current
    found = gathering(made)
    show(found, made, x)
    largest = found.to_json()["clusters"][0]
    shown = [frame["id"] for frame in found.frames(largest["id"])]
    samples = [found.frame(number).sample() for number in shown]
    assert all(any(np.array_equal(sample, one) for one in x) for sample in samples)     # none was altered
    learned = found.name(largest["id"], "new one", None, lambda given, label: made.learn(given, label).__dict__)
    assert learned["samples"] == len(shown) and {row.source for row in made.repository.known().stored
                                                 if row.label == "new one"} == {"tap"}
    assert not {frame.number for frame in found._gathered.frames} & {*shown}
    show(found, made, np.stack(samples))        # once more: it is known content by now
    again = {number: np.array_equal(found.frame(number).sample(), samples[0])
             for each in found.to_json()["clusters"] for number in [f["id"] for f in found.frames(each["id"])]}
    same = next((number for number, equal in again.items() if equal), None)
    if same is not None:
        repeated = found.name(same, "new one", [same], lambda given, label: made.learn(given, label).__dict__)
        assert (repeated["samples"], repeated["known"]) == (0, 1)
    made.rollback(taught)


# gathering -----------------------------------------------------------------------------------------


def test_near_copies_are_counted_and_not_kept(learner):
    found = gathering(learner)
    elk = 10 * vectors("elk", 1)
    for number in range(50):
        show(found, learner, elk + np.float32(1e-3 * number))
    listed = found.to_json()
    assert (listed["frames"], [each["seen"] for each in listed["clusters"]]) == (1, [50])
    show(found, learner, vectors("cow", 5))
    assert found.to_json()["frames"] == 6


def test_what_is_sure_is_not_gathered_and_one_a_second_is_kept(learner, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(review_module.time, "monotonic", lambda: clock[0])
    found, serving = gathering(learner), learner.serving()
    def see(sample, confidence, unknown=False, label="ant", source="tap"):
        feature = serving.backbone.features(sample[None])[0]
        found.see(Prediction(source, label, confidence, unknown, 1.0), sample, feature, serving.backbone_name)
    see(vectors("ant", 1)[0], 0.9)
    see(vectors("ant", 1)[0], 0.1, label=None)       # `nothing`, or a black picture
    assert found.to_json()["frames"] == 0
    for sample in vectors("cow", 4):
        see(sample, 0.3)
    see(vectors("cow", 9)[8], 0.3, source="other")   # each source has its own pause
    listed = found.to_json()
    assert (listed["frames"], listed["passed"]) == (2, 3)
    clock[0] += 1.0
    see(vectors("cow", 20)[19], 0.9, unknown=True)
    assert found.to_json()["frames"] == 3
    feature = serving.backbone.features(vectors("elk", 1))[0]
    found.see(Prediction("third", "ant", 0.1, True, 1.0), vectors("elk", 1)[0], feature, "of another backbone")
    assert found.to_json()["frames"] == 3


@pytest.mark.parametrize(("shape", "dtype", "most"), [((64,), "f4", 4 * 10**6), ((64, 64, 3), "u1", 400_000),
                                                    ((200, 6), "f4", 100_000)])
def test_it_is_bounded_and_what_is_rare_stays(shape, dtype, most):
    rng, gathered = np.random.default_rng(0), Gathered(most)
    gathered.measure("b", 1.0, np.empty((0, 8), np.float32))
    gathered.spread = 1.0
    def sample():
        return (rng.integers(0, 255, shape) if dtype == "u1" else rng.normal(size=shape)).astype(dtype)
    rare = np.full(8, 50, np.float32)
    assert gathered.see("s", 1, sample(), rare)
    for number in range(600):
        gathered.see("s", 2 + number, sample(), (rng.normal(size=8) * 5).astype(np.float32))
        assert len(gathered.frames) <= MOST_FRAMES and gathered.size <= most
    assert gathered.frames[0].number == 1 and gathered.absorbed > 300
    assert sum(frame.seen for frame in gathered.frames) == 601
    for number in range(1, 602):                # the number of a frame that became one with another stands for that
        standing = gathered.standing(number)
        assert standing == number or standing in {frame.number for frame in gathered.frames} or number < 400
    direct = ((gathered.features[:, None] - gathered.features) ** 2).sum(2)
    assert np.allclose(gathered.squared, direct, rtol=1e-4)
    huge = np.zeros((2000, 2000, 3), np.uint8) + rng.integers(0, 255, (2000, 2000, 3)).astype(np.uint8)
    assert not gathered.see("s", 1, huge, -rare)


@pytest.mark.parametrize("sample", [
    np.arange(12, dtype=np.float32), np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32),
    np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8), np.ones((9, 9), np.uint8)])
def test_small_samples_are_kept_as_they_are(sample):
    again = GatheredFrame.of(1, "s", 0, sample).sample()
    assert again.dtype == sample.dtype and np.array_equal(again, sample)


def test_a_photo_is_kept_as_a_jpeg():
    photo = np.repeat(np.repeat(shades(20, 1)[0], 14, 0), 14, 1)
    kept = GatheredFrame.of(1, "s", 0, photo)
    assert kept.jpeg and len(kept.data) < photo.nbytes / 4
    assert np.abs(kept.sample().astype(int) - photo).mean() < 12


def test_what_is_known_by_now_leaves_the_clusters_and_comes_back(learner):
    found = gathering(learner)
    cows = vectors("cow", 12)
    show(found, learner, cows)
    assert found.to_json()["known_by_now"] == 0
    before = learner.store.current
    learner.learn(vectors("cow", 40, 5), "cow")
    found.follow(learner.serving(), learner, 0)
    listed = found.to_json()
    assert listed["known_by_now"] >= 8 and listed["known_by_now"] + sum(
        each["frames"] for each in listed["clusters"]) == listed["frames"]
    learner.rollback(before)
    found.follow(learner.serving(), learner, 0)
    assert found.to_json()["known_by_now"] == 0


def test_another_backbone_computes_the_features_again(tmp_path):
    made = image_state(tmp_path / "state")
    found = gathering(made)
    show(found, made, strange(1, 6))
    serving = made.serving()

    class Other:
        backbone_name, head = "other", serving.head

        class backbone:     # noqa: N801
            info = serving.backbone.info

            @staticmethod
            def features(batch):
                return serving.backbone.features(batch) + 1

    before = found._gathered.features
    found.follow(Other, made, 0)
    assert found._gathered.backbone == "other" and np.allclose(found._gathered.features, before + 1)
    made.close()


# ids -----------------------------------------------------------------------------------------------


def test_ids_stay_valid(learner):
    found = gathering(learner)
    show(found, learner, thing("cow", 6))
    (cluster,) = found.to_json()["clusters"]
    members = [frame["id"] for frame in found.frames(cluster["id"])]
    assert cluster["id"] == min(members) and cluster["typical"] == members[0]
    assert all({frame["id"] for frame in found.frames(each)} == {*members} for each in members)
    assert found.drop_frames([cluster["id"]]) == 1          # its oldest frame: the cluster keeps its id
    assert {frame["id"] for frame in found.frames(cluster["id"])} == {*members} - {cluster["id"]}
    with pytest.raises(BadInput, match="not on the review list"):
        found.frame(cluster["id"])
    show(found, learner, thing("cow", 9, 3))
    assert {*members} - {cluster["id"]} <= {frame["id"] for frame in found.frames(cluster["id"])}
    taught = []
    some = [frame["id"] for frame in found.frames(cluster["id"])][:2]
    found.name(cluster["id"], "cow", [*some, some[0]], lambda given, label: taught.append((len(given), label)))
    assert taught == [(2, "cow")] and not {*some} & {frame["id"] for frame in found.frames(cluster["id"])}
    found.drop(cluster["id"])
    show(found, learner, thing("elk", 1))
    for call in (found.frames, found.drop, lambda n: found.name(n, "x", None, None)):
        with pytest.raises(BadInput, match=f"cluster {cluster['id']} is not on the review list"):
            call(cluster["id"])
    assert len(found.to_json()["clusters"]) == 1            # that of another thing


@pytest.mark.parametrize("frames", [[], ["1"], [True], [None], [{}], [10**9]])
def test_odd_frames_are_refused_and_nothing_is_gone(learner, frames):
    found = gathering(learner)
    show(found, learner, vectors("cow", 3))
    for call in (found.drop_frames, lambda frames: found.name(1, "cow", frames, None)):
        with pytest.raises(BadInput):
            call(frames)
    assert found.to_json()["frames"] == 3


def test_frames_stay_if_they_can_not_be_taught(learner):
    found = gathering(learner)
    show(found, learner, vectors("cow", 3))

    def teach(given, label):
        raise BudgetError("the quota is full", "forget a class")

    with pytest.raises(BudgetError):
        found.name(1, "cow", None, teach)
    assert found.to_json()["frames"] == 3


def test_frames_that_are_being_taught_are_not_named_or_thrown_away(learner):
    """The daemon's other threads may ask for it meanwhile."""
    found, asked = gathering(learner), list[str]()
    show(found, learner, vectors("cow", 3))
    number = found.to_json()["clusters"][0]["id"]
    first = found.frames(number)[0]["id"]

    def teach(given, label):
        for ask in (lambda: found.name(number, "ox", None, lambda *_: asked.append("ox")),
                    lambda: found.name(number, "ox", [first], lambda *_: asked.append("ox")),
                    lambda: found.drop(number), lambda: found.drop_frames([first])):
            with pytest.raises(BadInput, match="being taught"):
                ask()
        asked.append(label)
        return {}

    count = len(found.frames(number))
    found.name(number, "cow", None, teach)
    assert asked == ["cow"] and found.to_json()["frames"] == 3 - count
    show(found, learner, vectors("cow", 1))
    later = found.to_json()["clusters"][0]["id"]
    with pytest.raises(BudgetError):
        found.name(later, "cow", None, refusing)
    assert found.drop(later) > 0        # a refusal lets go of them


def refusing(given, label):
    raise BudgetError("the quota is full", "forget a class")


# the file ------------------------------------------------------------------------------------------


def test_it_survives_a_restart_whole(real):
    made, x, _ = real
    found = gathering(made)
    show(found, made, x)
    found.drop_frames([found.to_json()["clusters"][0]["id"]])
    before = found.to_json(), [found.frames(each["id"]) for each in found.to_json()["clusters"]]
    found.save(made.store, at_once=True)
    assert (made.store.path / GATHERED_FILE).stat().st_mode & 0o777 == 0o600
    again = gathering(made)
    assert again.to_json() == before[0]
    assert [again.frames(each["id"]) for each in again.to_json()["clusters"]] == before[1]
    for frame in found._gathered.frames:
        assert np.array_equal(again.frame(frame.number).sample(), frame.sample())
    newest = found._gathered.newest
    show(again, made, x[:1] if x.dtype == np.uint8 else 5 * x[:1])
    assert again._gathered.newest >= newest         # numbers are not used again
    again.clear()
    again.save(made.store, at_once=True)
    assert not (made.store.path / GATHERED_FILE).exists()


def test_it_is_written_once_an_hour_and_at_once_for_a_person(learner, monkeypatch):
    clock, written = [1000.0], []
    monkeypatch.setattr(review_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(review_module, "write_gathered", lambda *given: written.append(clock[0]))
    found = gathering(learner)
    for _ in range(3 * 360):                        # three hours, a look every ten seconds
        clock[0] += 10
        show(found, learner, (clock[0] * vectors("elk", 1)).astype(np.float32))
        found.save(learner.store)
    assert len(written) == 3
    quiet = len(written)
    for _ in range(720):
        clock[0] += 10
        found.save(learner.store)
    assert len(written) == quiet + 1                # what came last, and then no more
    found.drop_frames([found._gathered.frames[0].number])
    found.save(learner.store, at_once=True)
    assert len(written) == quiet + 2


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign", "head", "fifo", "folder"])
def test_a_damaged_file_is_said_and_costs_only_what_is_in_it(learner, capsys, damage):
    import os

    found, path = gathering(learner), learner.store.path / GATHERED_FILE
    show(found, learner, vectors("cow", 5))
    found.save(learner.store, at_once=True)
    content = path.read_bytes()
    if damage == "flip":
        flip(path, len(content) // 2)
    elif damage in ("cut", "empty", "foreign"):
        path.write_bytes({"cut": content[:-7], "empty": b"", "foreign": b"hello" * 99}[damage])
    elif damage == "head":
        write_gathered(learner.store, b"\4\0\0\0{}{}")
    else:
        path.unlink()
        os.mkfifo(path) if damage == "fifo" else path.mkdir()
    state = learner.store.path
    again = gathering(learner)
    assert again.problem and again.to_json()["frames"] == 0 and again.to_json()["problem"]
    learner.close()
    if damage != "head":
        assert main(["check", "--state", str(state), "--json"]) == 1
        report = json.loads(capsys.readouterr().out)
        assert [each["verdict"] for each in report["files"] if each["file"] == GATHERED_FILE] == ["damaged"]
        assert main(["check", "--state", str(state), "--repair"]) == 0
        assert not path.exists() or read_gathered(state)
    learner = Learner.open(state)
    assert [each.name for each in learner.classes()] == ["ant", "wasp"]
    show(again, learner, vectors("cow", 5))
    again.save(learner.store, at_once=True)
    assert not again.problem and gathering(learner).to_json()["frames"] == 5
    learner.close()


def test_a_file_of_another_state_is_left_out(learner, tmp_path):
    other = create(tmp_path / "other")
    other.learn(vectors("ant", 20), "ant")
    found = gathering(other)
    show(found, other, vectors("cow", 3))
    found.save(other.store, at_once=True)
    (learner.store.path / GATHERED_FILE).write_bytes((other.store.path / GATHERED_FILE).read_bytes())
    taken = gathering(learner)
    assert taken.to_json()["frames"] == 0 and "another state" in taken.problem
    other.close()


def test_it_counts_in_the_quota_and_gives_way_to_teaching(tmp_path):
    made = create(tmp_path / "state", quota=400_000)
    made.learn(vectors("ant", 25), "ant")
    free = made.settings.quota - made.store.used_bytes()
    found = gathering(made)
    show(found, made, np.concatenate([vectors(f"thing {i}", 20) for i in range(10)]))
    before = made.store.used_bytes()
    found.save(made.store, at_once=True)
    assert not found.problem and before < made.store.used_bytes() <= made.settings.quota
    assert found._gathered.size <= made.settings.quota // 16
    write_gathered(made.store, b"x" * (free - 60_000))      # as large as it can be
    assert made.store.used_bytes() <= made.settings.quota
    with pytest.raises(BudgetError):
        write_gathered(made.store, b"x" * made.settings.quota)
    assert not (made.store.path / GATHERED_FILE).exists()
    write_gathered(made.store, b"x" * (free - 60_000))
    for number in range(40):
        made.learn(vectors("wasp", 100, number), "wasp")
        assert made.store.used_bytes() <= made.settings.quota
    assert not (made.store.path / GATHERED_FILE).exists()
    assert {each.name: each.samples for each in made.classes()} == {"ant": 25, "wasp": 4000}
    made.close()


# privacy -------------------------------------------------------------------------------------------


def test_a_state_that_keeps_no_sample_keeps_none_here(tmp_path):
    made = create(tmp_path / "state", memory="statistics", codec="auto")
    for name in ("ant", "wasp"):
        made.learn(vectors(name, 25), name)
    found = gathering(made)
    show(found, made, vectors("cow", 5))
    found.save(made.store, at_once=True)
    assert found.to_json()["frames"] == 5 and not found.to_json()["on_disk"]
    assert not (made.store.path / GATHERED_FILE).exists() and gathering(made).to_json()["frames"] == 0
    made.close()


@pytest.mark.parametrize("how", ["forget", "erase"])
def test_forgetting_throws_it_away(learner, capsys, how):
    found, path = gathering(learner), learner.store.path / GATHERED_FILE
    show(found, learner, vectors("cow", 5))
    found.save(learner.store, at_once=True)
    assert path.exists()
    if how == "forget":
        learner.close()
        assert main(["forget", "--state", str(learner.store.path), "--class", "ant"]) == 0
        assert "threw away the frames that were gathered" in capsys.readouterr().out
    else:
        learner.remove([row.id for row in learner.repository.known().stored if row.label == "ant"][:2], erase=True)
    assert not path.exists()


def test_a_removal_alone_keeps_it(learner):
    found = gathering(learner)
    show(found, learner, vectors("cow", 5))
    found.save(learner.store, at_once=True)
    learner.remove([learner.repository.known().stored[0].id])
    learner.learn(vectors("bee", 5), "bee")
    assert gathering(learner).to_json()["frames"] == 5


# service, control socket, HTTP, command --------------------------------------------------------------


def run(loop, service):
    threading.Thread(target=loop.run, daemon=True).start()
    for source in service.sources.threads:
        source.start()


def test_a_daemon_gathers_names_and_starts_again(tmp_path, monkeypatch):
    monkeypatch.setattr(review_module, "PAUSE_SECONDS", 0.0)
    with serving(tmp_path / "state", review_below=0.0, control=(240.0, 240.0), queue=1000) as (service, loop, taps):
        run(loop, service)
        for name in ("cat", "dog"):
            service.learn(name, vectors(name, 40))
        taps["tap"].put(*thing("elk", 8), *thing("cow", 8))
        until(lambda: service.sources.threads[0].frames == 16)
        listed = service.review()
        assert listed["frames"] >= 10 and listed["on_disk"]
        first = listed["clusters"][0]
        assert np.array_equal(service.review_sample(first["typical"]).shape, (16,))
        service.review_drop_frames([first["typical"]])
        assert (tmp_path / "state" / GATHERED_FILE).exists()       # at once
        count = len(service.review_frames(first["id"]))
        assert service.review_name(first["id"], "named")["samples"] == count
        assert "named" in service.info()["classes"]
        kept = service.review()
    with serving(tmp_path / "again") as (service, _, _):
        assert service.review()["frames"] == 0
    learner = Learner.open(tmp_path / "state")
    assert review_of(learner, 0.0).to_json()["frames"] == kept["frames"] == listed["frames"] - count - 1
    learner.close()


def test_a_forget_through_the_daemon_clears_what_was_not_written_yet(tmp_path, monkeypatch):
    monkeypatch.setattr(review_module, "PAUSE_SECONDS", 0.0)
    with serving(tmp_path / "state", review_below=0.0, queue=1000) as (service, loop, taps):
        run(loop, service)
        taps["tap"].put(*thing("elk", 3))
        until(lambda: service.sources.threads[0].frames == 3)
        assert service.review()["frames"] and not (tmp_path / "state" / GATHERED_FILE).exists()
        assert service.forget("ant")["gathered"] is True
        assert service.review()["frames"] == 0
        assert "gathered" not in service.forget("wasp")
    assert not (tmp_path / "state" / GATHERED_FILE).exists()


def test_over_http(tmp_path, monkeypatch):
    monkeypatch.setattr(review_module, "PAUSE_SECONDS", 0.0)
    with web(tmp_path / "state", review_below=0.0, queue=1000) as (client, service, loop, taps):
        run(loop, service)
        taps["tap"].put(*thing("elk", 6), *thing("cow", 6), *thing("owl", 6))
        until(lambda: service.sources.threads[0].frames == 18)
        first, second = client.get("/api/review")["clusters"][:2]
        frames = client.get(f"/api/review/{first['id']}")
        assert len(frames) == first["frames"] and frames[0]["id"] == first["typical"]
        assert client.get(f"/api/review/frames/{frames[-1]['id']}")["curves"]
        assert client.ask("DELETE", f"/api/review/frames/{frames[-1]['id']}")[2] == {"dropped": 1}
        client.refused(404, "GET", f"/api/review/frames/{frames[-1]['id']}")
        rest = [frame["id"] for frame in frames[:-1]]
        client.refused(400, "POST", f"/api/review/{first['id']}", {"class": "a", "frames": ["x"]})
        client.refused(400, "POST", f"/api/review/{first['id']}", {"class": "/"})
        client.refused(400, "POST", f"/api/review/{first['id']}", {})
        assert client.post(f"/api/review/{first['id']}", {"class": "named"})["samples"] == len(rest)
        assert client.ask("DELETE", f"/api/review/{second['id']}")[2] == {"dropped": second["frames"]}
        for method, body in (("GET", None), ("POST", {"class": "named"}), ("DELETE", None)):
            client.refused(404, method, f"/api/review/{second['id']}", body)
        assert client.ask("DELETE", "/api/review")[2]["dropped"] >= 0
        assert client.get("/api/review")["clusters"] == []


def test_photos_over_http_are_pictures(tmp_path):
    made = image_state(tmp_path / "state")
    found = gathering(made)
    show(found, made, strange(1, 4))
    found.save(made.store, at_once=True)
    with web_of(made) as (client, _):
        number = client.get("/api/review")["clusters"][0]["typical"]
        assert client.get(f"/api/review/frames/{number}")["image"].startswith("data:image/jpeg;base64,")


def listed_by(capsys, *arguments):
    """The JSON of `edgecl review`."""
    assert main(["review", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("daemon", [False, True])
def test_the_command_lists_exports_names_and_drops(tmp_path, capsys, daemon):
    made = image_state(tmp_path / "state", quota=8_000_000)
    found = gathering(made)
    show(found, made, np.concatenate([strange(0, 8), strange(2, 8)]))
    found.save(made.store, at_once=True)
    state = ["--state", tmp_path / "state"]
    if daemon:
        with web_of(made) as (_, service):
            from edgecl.runtime.control import Control

            door = Control(tmp_path / "state" / "control.sock", service)
            door.start()
            try:
                _commands(tmp_path, capsys, state)
            finally:
                door.stop()
    else:
        made.close()
        _commands(tmp_path, capsys, state)


def _commands(tmp_path, capsys, state):
    listed = listed_by(capsys, *state)
    first = listed["clusters"][0]
    assert main(["review", *map(str, state)]) == 0
    shown = capsys.readouterr().out
    count = listed["frames"]
    assert f"of {count} frames that are not known or not sure" in shown and "tap" in shown
    out = tmp_path / "out"
    files = listed_by(capsys, "export", out, *state)["files"]
    assert len(files) == count == len(list(out.rglob("*.png"))) > first["frames"]
    assert "exists already" in refused(capsys, "review", "export", out, *state)
    assert len(listed_by(capsys, "export", tmp_path / "one", first["id"], *state)["files"]) == first["frames"]
    last = int(sorted((tmp_path / "one" / str(first["id"])).iterdir())[-1].stem)
    assert listed_by(capsys, "drop", "--frames", last, *state) == {"dropped": 1}
    assert listed_by(capsys, "name", first["id"], "grey", *state)["samples"] == first["frames"] - 1
    for wrong, words in ((["name", first["id"], "grey"], "not on the review list"), (["name", "x", "grey"], "number"),
                         (["name", "1"], "class"), (["drop"], "was not named"), (["drop", "1", "--all"], "twice"),
                         (["drop", "99999"], "not on the review list"), (["export"], "no folder"),
                         (["drop", "--frames", ""], "number"), (["list", "5"], "takes no")):
        assert words in refused(capsys, "review", *wrong, *state)
    left = listed_by(capsys, *state)["frames"]
    assert left == count - first["frames"] and listed_by(capsys, "drop", "--all", *state) == {"dropped": left}
    assert main(["review", *map(str, state)]) == 0
    assert "nothing was gathered" in capsys.readouterr().out
    assert "unknown" not in [entry.name for entry in (tmp_path / "state").iterdir() if entry.name == SET_ASIDE]
    assert not (tmp_path / "state" / GATHERED_FILE).exists()


def test_windows_are_exported_as_tables_that_can_be_learned(tmp_path, capsys):
    rng = np.random.default_rng(0)
    made = Learner.create(tmp_path / "state", Settings(backbone="rocket", quota=3_000_000, exemplars=300_000, rate=10,
                                                       window=2.0))
    made.learn(rng.normal(0, 1, (20, 20, 3)).astype(np.float32), "still")
    made.learn(rng.normal(0, 9, (20, 20, 3)).astype(np.float32), "shaken")
    found = gathering(made)
    strange = rng.normal(30, 3, (4, 20, 3)).astype(np.float32)
    show(found, made, strange)
    count = found.to_json()["frames"]
    found.save(made.store, at_once=True)
    made.close()
    state = ["--state", tmp_path / "state"]
    files = listed_by(capsys, "export", tmp_path / "out", *state)["files"]
    assert len(files) == count
    read = [np.loadtxt(file, np.float32, delimiter=",") for file in files]
    assert all(any(np.array_equal(table, window) for window in strange) for table in read)
    assert main(["learn", *map(str, state), "--class", "lifted", *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == count


def test_a_real_daemon_keeps_it_over_a_kill_and_a_stop(tmp_path):
    made = image_state(tmp_path / "state", quota=8_000_000)
    found = gathering(made)
    show(found, made, strange(1, 6))
    found.save(made.store, at_once=True)
    frames = found.to_json()["frames"]
    made.close()
    with running(tmp_path, 'state = "state"\nrounds = "off"\n') as daemon:
        assert daemon.ask("review")["frames"] == frames
        daemon.process.kill()
        daemon.process.wait(240)
        daemon.begin()
        assert daemon.ask("review")["frames"] == frames
        number = daemon.ask("review")["clusters"][0]["typical"]
        assert daemon.ask("review_drop_frames", frames=[number]) == {"dropped": 1}
        daemon.process.kill()
        daemon.process.wait(240)
        daemon.begin()
        assert daemon.ask("review")["frames"] == frames - 1
        assert daemon.end()[1] == 0
    learner = Learner.open(tmp_path / "state")
    assert review_of(learner, BELOW).to_json()["frames"] == frames - 1
    learner.close()


def test_a_stranger_at_the_socket_sees_no_frames(tmp_path, monkeypatch):
    from edgecl.runtime import control
    from edgecl.runtime.client import Client
    from edgecl.runtime.protocol import Refused

    with serving(tmp_path / "state", control=(240.0, 240.0)) as (_, _, _):
        monkeypatch.setattr(control.control_clients, "user_of", lambda client: 12345)
        with Client(tmp_path / "state" / "control.sock") as client:
            assert client.ask("review")["clusters"] == []
            for command, values in (("review_sample", {"number": 1}), ("review_clear", {}),
                                    ("review_drop", {"number": 1})):
                with pytest.raises(Refused, match="may not"):
                    client.ask(command, **values)


def test_a_list_is_gathered_while_others_look(learner):
    found, stop, failed = Review(BELOW, 10**6, False), threading.Event(), []
    found.follow(learner.serving(), learner, 0)

    def look():
        while not stop.is_set():
            try:
                for each in found.to_json()["clusters"][:2]:
                    found.frames(each["id"])
                    found.drop(each["id"])
            except BadInput:
                pass
            except Exception as error:
                failed.append(error)
                return

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(40):
        show(found, learner, vectors(f"thing {number % 7}", 5, number))
    stop.set()
    for thread in threads:
        thread.join(240)
    assert not failed
