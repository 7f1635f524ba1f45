"""Nothing counts twice: what a class was taught before is left out, however it comes, and however little is stored."""
from __future__ import annotations

import json

import numpy as np
import pytest
from candidates import candidate, matrix, world
from helpers_daemon import serving
from helpers_http import image_state, packed, shades, web
from helpers_state import answers, create, flip, vectors
from PIL import Image

from edgecl.backbones.session import Backbone
from edgecl.cli import main
from edgecl.errors import BadInput, StateError
from edgecl.exemplars.known_samples import KnownSamples
from edgecl.learner import Learner
from edgecl.learning.plan import KEYS_SHARE
from edgecl.rounds import gate
from edgecl.rounds.candidate import take_in
from edgecl.samples import Sample

ANTS, BEES = vectors("ant", 60), vectors("bee", 60)


def counts(learner):
    return {each.name: each.samples for each in learner.classes()}


def same_heads(one, other, probe=None):
    """Whether two states answer the same, up to the rounding of sums that were added in another order."""
    probe = np.concatenate([vectors(name, 40, seed=9) for name in ("ant", "bee", "cat")]) if probe is None else probe
    first, second = one.predict(probe), other.predict(probe)
    assert [each.label for each in first] == [each.label for each in second]
    assert [each.unknown for each in first] == [each.unknown for each in second]
    assert [each.confidence for each in first] == pytest.approx([each.confidence for each in second], rel=1e-4)


@pytest.fixture
def once(tmp_path):
    learner = create(tmp_path / "once")
    learner.learn(ANTS, "ant")
    learner.learn(BEES, "bee")
    yield learner
    learner.close()


@pytest.fixture
def state(tmp_path):
    learner = create(tmp_path / "state")
    yield learner
    learner.close()


# arrays ---------------------------------------------------------------------------------------------------------------


def test_arrays_taught_again_change_nothing(state, once):
    for _ in range(3):
        first, second = state.learn(ANTS, "ant"), state.learn(BEES, "bee")
    assert [(each.samples, each.known, each.generation) for each in (first, second)] == [(0, 60, 3), (0, 60, 3)]
    assert [g.action for g in state.history()] == ["init", "learn", "learn"]
    assert counts(state) == {"ant": 60, "bee": 60}
    assert answers(state) == answers(once)


def test_again_counts_what_is_known(state):
    state.learn(ANTS, "ant")
    learned = state.learn(ANTS, "ant", again=True)
    assert (learned.samples, learned.known) == (60, 0)
    assert counts(state) == {"ant": 120}


def test_halves_that_overlap_count_as_the_whole(state, once):
    for part in (slice(0, 40), slice(20, 60), slice(10, 50)):
        for label, samples in (("ant", ANTS), ("bee", BEES)):
            learned = state.learn(samples[part], label)
    assert (learned.samples, learned.known) == (0, 40)
    assert counts(state) == {"ant": 60, "bee": 60}
    same_heads(state, once)


def test_copies_within_one_command_count_once(state):
    learned = state.learn(np.concatenate([ANTS[:5], ANTS[:3], ANTS[:1]]), "ant")
    assert (learned.samples, learned.known) == (5, 4)
    assert counts(state) == {"ant": 5}


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("admission", ["reservoir", "ring", "herding"])
def test_samples_that_are_not_stored_any_more_are_recognised(tmp_path, admission, reopened):
    learner = create(tmp_path / "state", exemplars=3_000, admission=admission)
    parts = {label: np.split(vectors(label, 600), 6) for label in ("ant", "bee")}
    for number in range(6):
        for label, mine in parts.items():
            learner.learn(mine[number], label)
    assert sum(each.exemplars for each in learner.classes()) < 60
    for number in range(4):     # until the statistics are written, with which samples are dropped
        learner.learn(vectors("cat", 1000, seed=number), "cat")
    assert len(learner.repository.known().stored) < 4000
    if reopened:
        learner.close()
        learner = Learner.open(tmp_path / "state")
    before = counts(learner)
    for label, mine in parts.items():
        learned = learner.learn(np.concatenate([*mine, vectors(label, 3, seed=8)]), label)
        assert (learned.samples, learned.known, learned.unrecognised) == (3, 600, 0)
    assert learner.learn(vectors("cat", 1000, seed=2), "cat").known == 1000
    assert counts(learner) == {**before, "ant": 603, "bee": 603}
    learner.close()


def test_the_other_class_that_knows_a_sample_is_named(state):
    state.learn(ANTS, "ant")
    samples = [Sample(each, f"photos/{number}.npy") for number, each in enumerate(ANTS[:4])]
    samples += [Sample(each, "new.npy") for each in BEES[:2]]
    learned = state.learn(samples, "bee")
    assert (learned.samples, learned.known) == (6, 0)
    assert learned.also_in == {"ant": [f"photos/{number}.npy" for number in range(4)]}
    assert state.learn(samples, "bee").also_in == {}    # nothing was learned


def test_a_sample_of_another_session_is_recognised_by_its_feature_while_it_is_stored(state):
    state.learn(ANTS[:20], "ant", ["monday"] * 20)
    learned = state.learn(ANTS[:30], "ant", ["tuesday"] * 30)
    assert (learned.samples, learned.known) == (10, 20)
    assert state.learn(ANTS[:5], "bee").also_in.keys() == {"ant"}
    assert counts(state) == {"ant": 30, "bee": 5}


def test_samples_that_share_their_own_bits_alone_are_different(tmp_path):
    state = create(tmp_path / "state")
    state.learn(ANTS, "ant")
    known = state.repository.known()
    keys = [row.key for row in known.stored]
    other = [(key >> 32 ^ 1) << 32 | key & 0xFFFFFFFF for key in keys]     # the same 32 bits by chance
    assert not known.recognise("ant", other, BEES).known.any()
    assert known.recognise("ant", other, ANTS).known.all()
    assert known.recognise("ant", keys, BEES).known.all()
    state.close()


# what takes samples out -----------------------------------------------------------------------------------------------


def test_what_was_forgotten_can_be_taught_again(state, once):
    state.learn(ANTS, "ant")
    state.learn(BEES, "bee")
    state.forget("ant")
    learned = state.learn(ANTS, "ant")
    assert (learned.samples, learned.known, learned.unrecognised) == (60, 0, 0)
    assert state.learn(BEES, "bee").known == 60
    same_heads(state, once)


def test_what_was_rolled_back_can_be_taught_again(state, once):
    state.learn(ANTS[:30], "ant")
    state.learn(BEES, "bee")
    state.learn(ANTS[30:], "ant")
    state.rollback()
    learned = state.learn(ANTS, "ant")
    assert (learned.samples, learned.known) == (30, 30)
    assert counts(state) == {"ant": 60, "bee": 60}
    same_heads(state, once)


def test_a_way_back_across_statistics_that_were_written_keeps_what_was_known_there(tmp_path):
    learner = create(tmp_path / "state", exemplars=3_000)
    learner.learn(vectors("ant", 300), "ant")
    generation = learner.learn(vectors("ant", 900)[300:], "ant").generation
    for number in range(3):
        learner.learn(vectors("bee", 1000, seed=number), "bee")
    if generation not in learner.store.restorable():
        generation = min(learner.store.restorable())
    learner.rollback(generation)
    held = counts(learner).get("ant", 0)
    learned = learner.learn(vectors("ant", 900), "ant")
    assert (learned.samples, learned.known) == (900 - held, held)
    learner.close()


def test_a_state_that_keeps_no_samples_recognises_none_but_copies_within_a_command(tmp_path):
    learner = create(tmp_path / "state", memory="statistics")
    learned = learner.learn(np.concatenate([ANTS, ANTS[:10]]), "ant")
    assert (learned.samples, learned.known) == (60, 10)
    learned = learner.learn(ANTS, "ant")
    assert (learned.samples, learned.known, learned.unrecognised) == (60, 0, 0)
    with pytest.raises(BadInput, match="1 sample of 'bee': the statistics of so few"):
        learner.learn(np.repeat(BEES[:1], 40, 0), "bee")
    learner.close()
    assert not any(b"known.keys" in path.read_bytes() for path in (tmp_path / "state" / "models").iterdir())


def test_samples_of_before_there_were_keys_count_again_and_it_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(KnownSamples, "to_arrays", lambda self, labels: {})
    learner = create(tmp_path / "state", exemplars=3_000)
    for number in range(4):
        learner.learn(vectors("ant", 900, seed=number), "ant")
    learner.close()
    x, y = vectors("ant", 900), ["ant"] * 900
    np.savez(tmp_path / "ants.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert main(["learn", "--state", str(tmp_path / "state"), "--class", "ant", str(tmp_path / "ants.npz")]) == 0
    out = capsys.readouterr().out
    learner = Learner.open(tmp_path / "state")
    total = counts(learner)["ant"]
    assert 3600 < total < 4500 and f"{4500 - total} already known" in out
    assert "earlier samples can't be recognised: taught again, they would count twice" in out
    learner.close()


def test_keys_give_way_before_the_statistics_become_coarser(tmp_path):
    quota = 400_000
    learner = create(tmp_path / "state", quota=quota, exemplars=3_000)
    form = learner.foundation.form if learner.foundation else None
    most = quota // KEYS_SHARE // 8
    for number in range(4):
        learner.learn(vectors("ant", 900, seed=number), "ant")
        form = form or learner.foundation.form
        assert learner.store.used_bytes() <= quota
    assert learner.foundation.form == form
    known = sum(learner.learn(vectors("ant", 900, seed=number), "ant").known for number in range(4))
    assert most <= known < 3600     # which are bounded
    learner.close()


def ids(learner, label, count):
    return [row.id for row in learner.repository.known().stored if row.label == label][:count]


@pytest.mark.parametrize("reopened", [False, True])
def test_what_was_corrected_is_recognised_where_it_is_now(once, reopened):
    def learn(samples, label):
        nonlocal once
        if reopened:
            once.close()
            once = Learner.open(once.store.path)
        learned = once.learn(samples, label)
        return learned.samples, learned.known

    once.remove(ids(once, "ant", 5))
    assert learn(ANTS, "ant") == (5, 55)
    once.move(ids(once, "ant", 3), "bee")
    assert learn(ANTS[:20], "bee") == (17, 3)
    assert learn(ANTS, "ant") == (3, 57)
    once.rollback(once.store.current - 3)       # to before the move
    assert learn(ANTS, "ant") == (0, 60)
    once.rename("bee", "wasp")
    assert learn(BEES, "wasp") == (0, 60)
    assert learn(BEES[:4], "bee") == (4, 0)
    once.rename("bee", "wasp", into=True)
    assert learn(BEES, "wasp") == (0, 60)
    assert counts(once) == {"ant": 60, "wasp": 64}
    once.close()


@pytest.mark.parametrize("how", ["forget", "remove"])
def test_what_was_erased_leaves_no_key(once, how):
    keys = [row.key for row in once.repository.known().stored if row.label == "ant"]
    for number in range(3):
        once.learn(vectors("cat", 1000, seed=number), "cat")    # the keys are written
    once.close()
    once = Learner.open(once.store.path)
    assert any(np.int64(keys[0]).tobytes() in path.read_bytes() for path in (once.store.path / "models").iterdir())
    if how == "forget":
        once.forget("ant")
    else:
        keys = [row.key for row in once.repository.known().stored if row.label == "ant"]
        once.remove(ids(once, "ant", len(keys)), erase=True)
    once.close()
    found = [path.read_bytes() for path in once.store.path.rglob("*") if path.is_file()]
    assert keys and not [key for key in keys if any(np.int64(key).tobytes() in content for content in found)]


def test_what_another_process_has_taught_meanwhile_is_known(state):
    state.learn(ANTS[:10], "ant")
    other = Learner.open(state.store.path)
    other.learn(ANTS[:40], "ant")
    learned = state.learn(ANTS, "ant")
    assert (learned.samples, learned.known) == (20, 40)
    assert other.learn(ANTS, "ant").known == 60
    other.close()


def test_photos_that_are_known_are_not_sent_through_the_backbone_again(tmp_path, monkeypatch):
    learner, seen, features = image_state(tmp_path / "state"), [], Backbone.features
    monkeypatch.setattr(Backbone, "features", lambda self, data: seen.append(len(data)) or features(self, data))
    photos = shades(60, 100, 5)
    assert learner.learn(photos[:90], "mid").samples == 90
    sent = sum(seen)
    learned = learner.learn(photos, "mid")
    assert (learned.samples, learned.known, sum(seen) - sent) == (10, 90, 10)
    assert learner.learn(photos, "mid").known == 100 and sum(seen) - sent == 10
    assert learner.learn(photos, "other").also_in == {"mid": [""] * 100}
    learner.close()


def test_a_class_that_is_forgotten_while_its_known_photos_are_read_is_taught_whole_or_not_at_all(tmp_path):
    learner, photos = image_state(tmp_path / "state"), shades(60, 100, 5)
    learner.learn(photos, "mid")
    other = Learner.open(tmp_path / "state")

    def meanwhile():
        yield from (Sample(photo) for photo in photos)
        other.forget("mid")
        yield Sample(shades(60, 1, 6)[0])

    with pytest.raises(StateError, match="taken out while others were read; try again"):
        learner.learn(meanwhile(), "mid")
    assert "mid" not in counts(learner)
    assert learner.learn(photos, "mid").samples == 100
    learner.close()
    other.close()


def test_after_a_round_what_was_taught_before_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "check_accuracy", lambda *_: [])
    learner = create(tmp_path / "state")
    learner.learn(ANTS, "ant")
    learner.learn(BEES, "bee")
    seen = world(("ant", 60, 0), ("bee", 60, 0))
    assert take_in(learner.repository, candidate(learner, seen, matrix(1)), gate.BOUNDS).generation
    assert (learner.learn(ANTS, "ant").known, learner.learn(BEES, "bee").known) == (60, 60)
    learner.rollback(3)
    assert learner.learn(ANTS, "ant").known == 60
    learner.close()


def test_repaired_statistics_recognise_what_is_stored(tmp_path):
    learner = create(tmp_path / "state")
    learner.learn(ANTS, "ant")
    learner.learn(BEES, "bee")
    learner.close()
    for path in (tmp_path / "state" / "models").glob("*.npz"):
        flip(path)
    assert main(["check", "--repair", "--state", str(tmp_path / "state")]) in (0, 1)
    learner = Learner.open(tmp_path / "state")
    assert (learner.learn(ANTS, "ant").known, learner.learn(BEES, "bee").known) == (60, 60)
    learner.close()


# merge ----------------------------------------------------------------------------------------------------------------


def boards(tmp_path, **settings):
    here, there = (create(tmp_path / name, **settings) for name in ("here", "there"))
    here.learn(ANTS[:40], "ant")
    here.learn(BEES, "bee")
    there.learn(ANTS[20:], "ant")
    there.learn(BEES[:30], "bee")
    return here, there


def test_what_two_boards_both_learned_counts_once(tmp_path, once, capsys):
    here, there = boards(tmp_path)
    here.close()
    there.close()
    assert main(["merge", "--state", str(here.store.path), "--json", str(there.store.path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"generation": 4, "classes": 2, "samples": 120, "already_known": 50}
    merged = Learner.open(here.store.path)
    assert counts(merged) == {"ant": 60, "bee": 60}
    same_heads(merged, once)
    assert merged.learn(ANTS, "ant").known == 60
    merged.close()


def test_merging_a_board_that_knows_nothing_new_adds_nothing(tmp_path, once):
    twin = create(tmp_path / "twin")
    twin.learn(BEES, "bee")
    twin.learn(ANTS, "ant")
    twin.close()
    same_heads(once, twin := Learner.open(twin.store.path))
    once.merge([twin.store.path])
    assert counts(once) == {"ant": 60, "bee": 60}
    same_heads(once, twin)
    twin.close()


def test_three_boards_with_the_same_samples_count_them_once(tmp_path, once):
    others = []
    for number in range(2):
        other = create(tmp_path / f"{number}")
        other.learn(ANTS[10 * number:30], "ant")
        other.learn(vectors("cat", 20), "cat")
        other.close()
        others.append(other.store.path)
    once.merge(others)
    assert counts(once) == {"ant": 60, "bee": 60, "cat": 20}
    assert once.store.newest.detail["already_known"] == 70


def test_what_a_merge_cannot_subtract_is_counted_and_said(tmp_path, capsys):
    here, there = (create(tmp_path / name, exemplars=3_000) for name in ("here", "there"))
    for learner in (here, there):
        for number in range(4):
            learner.learn(vectors("ant", 900, seed=number), "ant")
        learner.close()
    assert main(["merge", "--state", str(here.store.path), str(there.store.path)]) == 0
    out = capsys.readouterr().out
    merged = Learner.open(here.store.path)
    detail = merged.store.newest.detail
    assert detail["already_known"] + detail["counted_twice"] == 3600 and detail["counted_twice"] > 3000
    assert counts(merged) == {"ant": 3600 + detail["counted_twice"]}
    assert f"counted twice: {detail['counted_twice']} samples known here and there" in out
    assert f"left out: {detail['already_known']} samples already known here" in out
    merged.close()


def test_a_merge_says_how_many_are_in_two_classes(tmp_path, once, capsys):
    other = create(tmp_path / "other")
    other.learn(ANTS[:7], "wasp")
    other.close()
    once.close()
    assert main(["merge", "--state", str(once.store.path), str(other.store.path)]) == 0
    assert "7 samples of theirs are known here as another class" in capsys.readouterr().out


# files, recordings, photos --------------------------------------------------------------------------------------------


def learn(capsys, *arguments):
    """The answers of `edgecl learn --json`."""
    assert main(["learn", "--json", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 20, 3), np.uint8)).save(path)


@pytest.mark.parametrize("codec", ["jpeg", "raw"])
def test_a_folder_of_photos_that_has_grown_counts_its_new_photos(tmp_path, capsys, codec):
    photos = tmp_path / "photos"
    for number in range(12):
        picture(photos / ("mug" if number % 2 else "bowl") / f"{number}.png", number)
    image_state(tmp_path / "state", codec=codec).close()
    state = ["--state", tmp_path / "state"]
    first = learn(capsys, *state, "--from", photos)
    assert [(each["class"], each["samples"]) for each in first] == [("bowl", 6), ("mug", 6)]
    picture(photos / "mug" / "new.png", 77)
    picture(photos / "bowl" / "x.png", 1)        # a mug
    (photos / "mug" / "copy.png").write_bytes((photos / "mug" / "3.png").read_bytes())
    second = learn(capsys, *state, "--from", photos)
    assert [(each["class"], each["samples"], each["known"]) for each in second] == [("bowl", 1, 6), ("mug", 1, 7)]
    assert second[0]["also_in"] == {"mug": [str(photos / "bowl" / "x.png")]}
    again = learn(capsys, *state, "--again", "--class", "mug", photos / "mug")
    assert (again[0]["samples"], "known" in again[0]) == (8, False)
    assert main(["learn", "--state", str(tmp_path / "state"), "--class", "mug", str(photos / "mug")]) == 0
    assert "mug: nothing learned: 8 samples already known, left out (--again counts them); generation" in \
        capsys.readouterr().out


def recording(path, rows, seed=1):
    data = np.random.default_rng(seed).normal(size=(rows, 3)).cumsum(0)
    path.write_text("x,y,z\n" + "".join(",".join(f"{value:.6f}" for value in row) + "\n" for row in data))


def test_a_recording_that_was_cut_short_goes_on_where_it_stopped(tmp_path, capsys):
    recording(tmp_path / "walk.csv", 1200)
    recording(tmp_path / "run.csv", 600, seed=2)
    for name in ("once", "parts"):
        assert main(["init", "--state", str(tmp_path / name), "--rate", "50", "--window", "2", "--hop", "1",
                     "--calibrate", str(tmp_path / "run.csv")]) == 0
        capsys.readouterr()
    state = ["--state", tmp_path / "parts"]
    short = learn(capsys, *state, "--class", "walk", "--seconds", 10, tmp_path / "walk.csv")[0]
    rest = learn(capsys, *state, "--class", "walk", tmp_path / "walk.csv")[0]
    whole = learn(capsys, "--state", tmp_path / "once", "--class", "walk", tmp_path / "walk.csv")[0]
    assert short["samples"] > 4 and rest["known"] == short["samples"]
    assert short["samples"] + rest["samples"] == whole["samples"]
    for each in (state, ["--state", tmp_path / "once"]):
        learn(capsys, *each, "--class", "run", tmp_path / "run.csv")
    one, other = (Learner.open(tmp_path / name) for name in ("once", "parts"))
    rows = [{(row.key, row.spare) for row in learner.repository.known().stored} for learner in (one, other)]
    assert rows[0] == rows[1]       # near-duplicates too
    same_heads(one, other, np.random.default_rng(5).normal(size=(40, 100, 3)).cumsum(1).astype(np.float32))
    one.close()
    other.close()


# the daemon -----------------------------------------------------------------------------------------------------------


def test_a_daemon_leaves_out_what_is_known(tmp_path, capsys):
    with serving(tmp_path / "state", control=(60, 60)) as (service, *_):
        learned = service.learn("ant", ANTS)
        assert (learned["samples"], learned["known"]) == (35, 25)    # of which the state knows some
        before = service.status()["generation"]
        assert service.learn("ant", ANTS)["known"] == 60
        np.savez(tmp_path / "a.npz", x_train=ANTS, y_train=["ant"] * 60, x_test=ANTS, y_test=["ant"] * 60)
        told = learn(capsys, "--state", tmp_path / "state", "--class", "ant", tmp_path / "a.npz")
        assert [(each["samples"], each["known"]) for each in told] == [(0, 60)]
        assert service.status()["generation"] == before
        told = learn(capsys, "--state", tmp_path / "state", "--again", "--class", "ant", tmp_path / "a.npz")
        assert told[0]["samples"] == 60
        assert service.counters()["learned_total"] == 35 + 60


def test_http_leaves_out_what_is_known(tmp_path):
    with web(tmp_path / "state") as (client, *_):
        body, kind = packed(x_train=BEES), {"Content_Type": "application/octet-stream"}
        told = [client.post(f"/api/learn?class=bee&file=bees.npz{more}", body, **kind)
                for more in ("", "", "&again=0", "&again=1")]
        assert [(each["samples"], each["known"]) for each in told] == [(60, 0), (0, 60), (0, 60), (60, 0)]
        assert "again=yes" in client.refused(400, "POST", "/api/learn?class=bee&again=yes", body, **kind)
        assert client.post("/api/learn?class=wasp", body, **kind)["also_in"]["bee"]
