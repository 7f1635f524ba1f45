"""Samples are removed, moved and renamed: what is known then is what would be known if all had been taught so."""
from __future__ import annotations

import shutil

import numpy as np
import pytest
from helpers_state import answers, create, directory_bytes, flip, traces, vectors
from test_exact import difference, served

from edgecl.errors import BadInput, StateError
from edgecl.exemplars.sample_ids import sample_id
from edgecl.exemplars.selection import OWN_BITS
from edgecl.learner import Learner
from edgecl.learning.repair import repair
from edgecl.samples import Sample

PROBE = np.concatenate([vectors(label, 20, 99) for label in ("ant", "bee", "cat", "dog")])


def stored(learner):
    """(class, feature) of each stored sample."""
    return sorted((row.label, row.feature.tobytes()) for row in learner.repository.known().stored)


def ids(learner, label, places):
    """Ids of some stored samples of a class, by their places in it."""
    mine = [row for row in learner.repository.known().stored if row.label == label]
    return [sample_id(mine[place]) for place in places]


def counts(learner):
    return {each.name: each.samples for each in learner.classes()}


def taught(path, parts, **settings):
    """A state that was taught (class, samples), with the names of their sessions."""
    learner = create(path, **settings)
    for label, samples in parts:
        learner.learn(samples, label)
    return learner


def assert_same(found, expected, tolerance=1e-4):
    """That two states know, keep, hold back and answer the same."""
    (kind, ours), (other, theirs) = served(found), served(expected)
    assert kind == other
    for name in ("weight", "bias", "reference", "temperature"):
        assert difference(ours[name], theirs[name]) <= tolerance
    here, there = found.repository.known(), expected.repository.known()
    assert here.plain.counts == there.plain.counts
    assert difference(here.plain.scatter(), there.plain.scatter()) <= tolerance
    for label in here.labels:
        assert difference(here.plain.mean(label), there.plain.mean(label)) <= tolerance
    assert marked(here.exemplars()) == marked(there.exemplars())
    assert marked(here.held_back()) == marked(there.held_back())
    a, b = found.predict(PROBE), expected.predict(PROBE)
    assert [(p.label, p.unknown) for p in a] == [(p.label, p.unknown) for p in b]
    assert max(abs(p.confidence - q.confidence) for p, q in zip(a, b)) < 1e-3


def marked(rows):
    return sorted((row.label, row.key & OWN_BITS, row.spare) for row in rows)


ANT, BEE, CAT = (vectors(label, count) for label, count in (("ant", 20), ("bee", 30), ("cat", 12)))
THREE = [("ant", ANT), ("bee", BEE), ("cat", CAT)]


@pytest.fixture
def three(fast_path):
    learner = taught(fast_path / "state", THREE)
    yield learner
    learner.close()


def reopened(learner):
    learner.close()
    return Learner.open(learner.store.path)


# what is known afterwards ------------------------------------------------------------------------


def test_a_removed_sample_was_never_taught(three, fast_path):
    done = three.remove(ids(three, "bee", [3, 7, 29]))
    assert (done.action, done.samples, done.label, done.exact, done.gone) == ("remove", 3, None, True, [])
    assert set(done.ids.values()) == {None}
    expected = taught(fast_path / "other", [("ant", ANT), ("bee", np.delete(BEE, [3, 7, 29], 0)), ("cat", CAT)])
    assert_same(three, expected)
    assert_same(reopened(three), expected)


def test_a_moved_sample_was_taught_as_what_it_is(three, fast_path):
    moved = ids(three, "bee", [1, 4])
    done = three.move(moved, "ant")
    assert (done.samples, done.label, done.new, [*done.ids]) == (2, "ant", False, moved)
    now = {sample_id(row): row for row in three.repository.known().stored}
    assert [now[done.ids[each]].feature.tolist() for each in moved] == BEE[[1, 4]].tolist()
    expected = taught(fast_path / "other", [("cat", CAT), ("bee", np.delete(BEE, [1, 4], 0)),
                                            ("ant", np.concatenate([ANT, BEE[[1, 4]]]))])
    assert_same(three, expected)
    assert_same(reopened(three), expected)


def test_a_sample_may_be_moved_to_a_new_class_and_a_class_may_lose_its_last_one(three, fast_path):
    done = three.move(ids(three, "cat", range(12)), "dog")
    assert (done.new, done.gone, counts(three)) == (True, ["cat"], {"ant": 20, "bee": 30, "dog": 12})
    assert_same(three, taught(fast_path / "other", [("dog", CAT), ("ant", ANT), ("bee", BEE)]))
    done = three.remove(ids(three, "dog", range(12)))
    assert (done.gone, counts(three)) == (["dog"], {"ant": 20, "bee": 30})
    three.remove(ids(three, "bee", range(30)))
    three.remove(ids(three, "ant", range(20)))
    assert counts(three) == {}
    three.learn(BEE, "bee")
    three.learn(ANT, "ant")
    assert_same(three, taught(fast_path / "two", [("ant", ANT), ("bee", BEE)]))


def test_a_renamed_class_was_always_called_so(three, fast_path):
    before = ids(three, "bee", range(30))
    done = three.rename("bee", "wasp")
    assert (done.samples, done.label, done.new, done.gone, [*done.ids]) == (30, "wasp", True, ["bee"], before)
    expected = taught(fast_path / "other", [("wasp", BEE), ("cat", CAT), ("ant", ANT)])
    assert_same(three, expected)
    assert_same(reopened(three), expected)


def test_two_classes_become_one_and_may_be_taken_apart_again(three, fast_path):
    with pytest.raises(BadInput, match="there is a class 'ant' already; give --into"):
        three.rename("bee", "ant")
    done = three.rename("bee", "ant", into=True)
    assert (done.samples, done.gone, counts(three)) == (30, ["bee"], {"ant": 50, "cat": 12})
    assert_same(three, taught(fast_path / "other", [("ant", np.concatenate([BEE, ANT])), ("cat", CAT)]))
    three.move(list(done.ids.values()), "bee")
    assert_same(three, taught(fast_path / "apart", THREE))


def test_a_class_is_renamed_whole_though_few_of_its_samples_are_stored(fast_path):
    learner = taught(fast_path / "state", [("ant", vectors("ant", 500)), ("bee", vectors("bee", 300))], exemplars=4_000)
    kept = len([row for row in learner.repository.known().exemplars() if row.label == "ant"])
    assert 0 < kept < 100
    before = marked(learner.repository.known().exemplars())
    done = learner.rename("ant", "wasp")
    assert (done.samples, len(done.ids)) == (500, kept)
    assert None not in done.ids.values()
    assert counts(learner) == {"bee": 300, "wasp": 500}
    for each in (learner, reopened(learner)):
        now = [(label.replace("wasp", "ant"), *rest) for label, *rest in marked(each.repository.known().exemplars())]
        assert sorted(now) == before


@pytest.mark.parametrize("into", [False, True])
def test_where_no_samples_are_kept_a_class_can_be_renamed_and_nothing_else(fast_path, into):
    learner = create(fast_path / "state", memory="statistics")
    for label, samples in THREE:
        learner.learn(samples, label)
    before = learner.predict(PROBE)
    done = learner.rename("bee", "ant" if into else "wasp", into)
    assert (done.samples, done.ids, done.exact) == (30, {}, True)
    learner = reopened(learner)
    assert counts(learner) == ({"ant": 50, "cat": 12} if into else {"ant": 20, "cat": 12, "wasp": 30})
    if not into:
        assert [p.label and p.label.replace("wasp", "bee") for p in learner.predict(PROBE)] == [p.label for p in before]
    for change in (lambda: learner.remove(["2-0"]), lambda: learner.move(["2-0"], "cat")):
        with pytest.raises(StateError, match="keeps no samples"):
            change()


# near-duplicates ---------------------------------------------------------------------------------


def scene(seed, count=12):
    """A recording in which some samples hardly differ from the one before."""
    made = vectors("ant", count, seed)
    for place in (1, 2, 5, 8, 9, 10):
        made[place] = made[place - 1] * np.float32(1.001)
    return made


@pytest.mark.parametrize("gone", [[0], [0, 1], [4], [7, 8], [1, 5]])
def test_what_is_left_of_a_recording_is_marked_as_if_it_alone_had_been_taught(fast_path, gone):
    recordings = [[Sample(x, "walk.csv", f"{seed}") for x in scene(seed)] for seed in (1, 2)]
    learner = create(fast_path / "state")
    for recording in recordings:
        learner.learn(recording, "ant")
    learner.learn(BEE, "bee")
    mine = [row for row in learner.repository.known().stored if row.generation == 2]
    assert sum(row.spare for row in mine) == 6
    learner.remove([sample_id(mine[place]) for place in gone])
    other = create(fast_path / "other")
    other.learn(BEE, "bee")
    other.learn(recordings[1], "ant")
    other.learn([x for place, x in enumerate(recordings[0]) if place not in gone], "ant")
    assert_same(learner, other)
    assert_same(reopened(learner), other)


# ways back ---------------------------------------------------------------------------------------


def test_a_rollback_brings_back_what_a_correction_has_taken_out(three):
    for change in (lambda it: it.remove(ids(it, "bee", [3, 7])), lambda it: it.move(ids(it, "ant", [0]), "cat"),
                   lambda it: it.rename("cat", "dog"), lambda it: it.rename("ant", "bee", into=True)):
        before, shown, generation = stored(three), answers(three, PROBE), three.store.current
        change(three)
        three = reopened(three)
        assert stored(three) != before
        three.rollback(generation)
        assert (stored(three), answers(three, PROBE)) == (before, shown)
        three = reopened(three)
        assert (stored(three), answers(three, PROBE)) == (before, shown)


def test_a_correction_that_is_made_again_after_a_rollback_has_its_own_way_back(three):
    """The same samples are taken out twice: the file of the first time goes, that of the second stays."""
    for _ in range(3):
        before, generation = stored(three), three.store.current
        three.rename("cat", "dog")
        three.rollback(generation)
        assert stored(three) == before
        three.remove(ids(three, "bee", [0]))


def test_what_no_way_back_needs_any_more_leaves_the_disk(fast_path):
    """Two corrections later the file of the removed samples is gone, and so is what the history noted of them."""
    learner = taught(fast_path / "state", THREE)
    learner.remove(ids(learner, "bee", [3]))
    learner.rename("ant", "gnu")
    learner.move(ids(learner, "bee", [0]), "cat")
    learner.remove(ids(learner, "cat", [0]))
    learner.remove(ids(learner, "cat", [0]))
    data = b"".join(path.read_bytes() for path in (fast_path / "state").rglob("*") if path.is_file())
    assert BEE[3].tobytes() not in data
    noted = [g.id for g in learner.history() if {"removed", "renamed"} & set(g.detail)]
    assert noted == [g.id for g in learner.history()][-1:]
    assert BEE[5].tobytes() in data


def test_old_notes_stay_while_what_they_took_out_may_be_on_the_disk(fast_path, monkeypatch):
    """Samples are deleted when there is time for it. Until then they must not come back, however long the history."""
    learner = taught(fast_path / "state", THREE)
    monkeypatch.setattr("edgecl.state.store.Store.evict", lambda *_: None)
    learner.remove(ids(learner, "bee", [3, 4]))
    learner.rename("ant", "gnu")
    for number in range(120):
        learner.learn(vectors("dog", 1, number), "dog")
        if number % 40 == 0:
            learner.rename("dog", "cow")
            learner.rename("cow", "dog")
    learner = reopened(learner)
    assert counts(learner) == {"bee": 28, "cat": 12, "dog": 120, "gnu": 20}
    assert {label: sum(row.label == label for row in learner.repository.known().stored) for label in counts(learner)} \
        == counts(learner)


def test_a_forgotten_class_takes_its_former_names_with_it(fast_path):
    learner = taught(fast_path / "state", [("aardvark", ANT), *THREE[1:]])
    learner.remove(ids(learner, "aardvark", [3]))
    learner.rename("aardvark", "bumblebee")
    learner.rename("bumblebee", "cockatoo")
    learner.forget("cockatoo")
    learner.close()
    assert traces(fast_path / "state", ANT, ["aardvark", "bumblebee", "cockatoo"]) == []
    assert counts(Learner.open(fast_path / "state")) == {"bee": 30, "cat": 12}


def test_a_name_that_was_given_to_another_class_meanwhile_stays(fast_path):
    learner = taught(fast_path / "state", THREE)
    learner.rename("ant", "gnu")
    learner.learn(vectors("ant", 9, 5), "ant")
    learner.rename("ant", "asp")
    learner.learn(vectors("ant", 7, 6), "ant")
    learner.forget("gnu")
    learner = reopened(learner)
    assert counts(learner) == {"ant": 7, "asp": 9, "bee": 30, "cat": 12}
    assert len([row for row in learner.repository.known().stored if row.label == "ant"]) == 7
    assert any(g.detail.get("class") == "ant" for g in learner.history())


# erasing -----------------------------------------------------------------------------------------


def test_erasing_leaves_no_byte_of_a_sample(fast_path):
    learner = taught(fast_path / "state", THREE)
    learner.learn([Sample(x, f"secret-{i}") for i, x in enumerate(vectors("dog", 3, 5))], "dog")
    gone = ids(learner, "dog", [0, 1])
    done = learner.remove(gone, erase=True)
    assert done.exact
    assert learner.store.restorable() == {1, learner.store.current}     # before anything was taught
    learner.close()
    assert traces(fast_path / "state", vectors("dog", 3, 5)[:2], ["secret-0", "secret-1"]) == []
    assert_same(Learner.open(fast_path / "state"), taught(fast_path / "other", [*THREE, (
        "dog", vectors("dog", 3, 5)[2:])]))


def test_erasing_the_last_sample_erases_the_class_and_what_was_removed_before(fast_path):
    learner = taught(fast_path / "state", [*THREE, ("aardvark", vectors("dog", 3, 5))])
    learner.remove(ids(learner, "aardvark", [0]))
    learner.remove(ids(learner, "bee", [0]))
    done = learner.remove(ids(learner, "aardvark", [0, 1]), erase=True)
    assert done.gone == ["aardvark"]
    learner.close()
    assert traces(fast_path / "state", [*vectors("dog", 3, 5), BEE[0]], ["aardvark"]) == []


def test_the_first_sample_of_all_can_be_erased(fast_path):
    """The statistics are about a reference: that of the first thing taught, here the sample itself."""
    learner = taught(fast_path / "state", [("dog", vectors("dog", 1, 5)), *THREE])
    learner.remove(["2-0"], erase=True)
    learner.close()
    assert traces(fast_path / "state", vectors("dog", 1, 5), []) == []
    assert_same(Learner.open(fast_path / "state"), taught(fast_path / "other", THREE))


# refused -----------------------------------------------------------------------------------------


def refused(learner, change, words):
    """That a change is refused with these words, and nothing has changed."""
    before = stored(learner), counts(learner), learner.store.current, directory_bytes(learner.store.path)
    with pytest.raises((BadInput, StateError)) as error:
        change()
    assert words in str(error.value)
    assert (stored(learner), counts(learner), learner.store.current, directory_bytes(learner.store.path)) == before


def test_what_can_not_be_corrected_is_refused_and_nothing_changes(three):
    one, two = ids(three, "bee", [0, 1])
    three.learn(vectors("dog", 2), "dog")
    undone = ids(three, "dog", [0])
    three.rollback()
    three.status()
    removed = ids(three, "cat", [0])
    three.remove(removed)
    for words, names in (("no sample was named", []), (f"{one}: named twice", [one, two, one]),
                         ("77-3: no such sample is stored", [one, "77-3"]), ("is not the id", [one, "mug"]),
                         (f"{undone[0]}: generation 5 was rolled back", [one, *undone]),
                         (f"{removed[0]}: removed by generation {three.store.current}", [*removed, one])):
        refused(three, lambda names=names: three.remove(names), words)
        refused(three, lambda names=names: three.move(names, "dog"), words)
    refused(three, lambda: three.move([two, *ids(three, "ant", [2])], "ant"), "in class 'ant' already")
    refused(three, lambda: three.move([one], "a/b"), "class name")
    refused(three, lambda: three.rename("gnu", "dog"), "no class is called 'gnu'; known are ant, bee, cat")
    refused(three, lambda: three.rename("bee", "bee"), "has that name already")
    refused(three, lambda: three.rename("bee", "cat"), "there is a class 'cat' already; give --into")
    refused(three, lambda: three.rename("bee", "gnu", into=True), "no class is called 'gnu'")
    refused(three, lambda: three.rename("bee", ""), "class name")


def test_what_a_codebook_has_coded_can_not_be_removed_and_the_rest_can(fast_path):
    learner = create(fast_path / "state", exemplars=30_000, codec="pq", quota=3_000_000)
    for number in range(4):
        for label in ("ant", "bee", "cat", "dog", "eel", "fox", "hen"):
            learner.learn(vectors(label, 200, number, 64), label)
    learner = reopened(learner)
    rows = learner.repository.known().stored
    coded, exact = (next(row for row in rows if bool(row.coded) == lossy) for lossy in (True, False))
    refused(learner, lambda: learner.remove([coded.id, exact.id]), f"{sample_id(coded)}: kept as product codes only")
    assert learner.remove([exact.id]).exact
    refused(learner, lambda: learner.move([coded.id], "bee"), "forget their class with `edgecl forget`")
    renamed = learner.rename("ant", "gnu")
    assert renamed.samples == counts(learner)["gnu"]
    learner = reopened(learner)
    assert {row.label for row in learner.repository.known().stored} == set(counts(learner))
    assert any(row.coded for row in learner.repository.known().stored if row.label == "gnu")


def test_statistics_of_low_rank_refuse_single_samples(fast_path):
    learner = create(fast_path / "state", quota=400_000, exemplars=60_000)
    for label in ("ant", "bee"):
        learner.learn(vectors(label, 40, 0, 200), label)
    assert learner.repository.known().form.rank is not None
    refused(learner, lambda: learner.remove(["2-0"]), "low-rank form")
    assert learner.rename("bee", "wasp").exact
    assert counts(reopened(learner)) == {"ant": 40, "wasp": 40}


def test_a_sample_that_drowns_the_others_is_removed_without_a_trace_of_rounding(fast_path):
    far = vectors("bee", 1, 7) * np.float32(1e7)
    learner = taught(fast_path / "state", [("ant", ANT), ("bee", np.concatenate([BEE, far])), ("cat", CAT)])
    learner = reopened(learner)
    assert learner.remove(ids(learner, "bee", [30])).exact
    assert_same(learner, taught(fast_path / "other", THREE))


def test_a_copy_of_a_state_keeps_its_corrections_apart(three, fast_path):
    three.remove(ids(three, "bee", [0]))
    three.close()
    shutil.copytree(three.store.path, fast_path / "copy")
    copy = Learner.open(fast_path / "copy")
    copy.remove(ids(copy, "bee", [0]))
    assert counts(copy)["bee"] == 28
    assert counts(Learner.open(three.store.path))["bee"] == 29


def test_a_source_that_two_classes_share_is_counted_for_each(fast_path):
    """Moved samples take the name of their source with them, which the files then hold once more."""
    learner = create(fast_path / "state", exemplars=16_000)
    name = "n" * 250
    learner.learn([Sample(x, f"{number}{name}") for number, x in enumerate(vectors("ant", 40))], "ant")
    learner.learn([Sample(x, name) for x in vectors("bee", 8)], "bee")
    for number in range(8):
        learner.move(ids(learner, "bee", [0]), f"class {number}")
        assert learner.status().exemplar_bytes <= 16_000
        assert sum(path.stat().st_size for path in (fast_path / "state").rglob("*.exemplars")) <= 16_000
    assert sum(each.samples - each.exemplars for each in learner.classes()) > 0


def test_a_repair_does_not_bring_back_what_was_removed_since_older_statistics(fast_path):
    """The statistics of the correction are lost, those before it are intact, and not all samples are stored."""
    learner = taught(fast_path / "state", [("ant", vectors("ant", 500)), ("bee", vectors("bee", 300))], exemplars=4_000)
    learner.rename("bee", "wasp")
    rows = [row for row in learner.repository.known().exemplars() if row.label == "wasp"]
    learner.remove([row.id for row in rows[:5]])
    stored_now = [row for row in learner.repository.known().stored if row.label == "wasp"]
    snapshot = learner.store.newest.snapshot
    learner.close()
    flip(fast_path / "state/models" / snapshot)
    learner = Learner.open(fast_path / "state")
    with pytest.raises(StateError, match="can't be computed again exactly"):
        learner.learn(CAT, "cat")
    repair(learner.repository)
    assert counts(learner)["wasp"] == len(stored_now)
    assert not {row.key for row in learner.repository.known().stored} & {row.key for row in rows[:5]}
    learner.learn(CAT, "cat")
