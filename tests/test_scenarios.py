"""Scenarios: every train sample once, no test sample before its class; the data sets that they are made of."""
from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecl.errors import BadInput
from edgecl.evaluation import datasets, demo
from edgecl.evaluation.datasets import Split
from edgecl.evaluation.scenarios import KINDS, build, seen_classes


def split_of(classes, sessions, seed=0, each=3, shared=True):
    """Each class in each session `each` times, shuffled; x tells which sample it is."""
    rng = np.random.default_rng(seed)
    y, s = (part.ravel() for part in np.meshgrid(np.arange(classes), np.arange(sessions)))
    order = rng.permutation(np.repeat(np.arange(len(y)), each))
    x = np.arange(len(order), dtype=np.float32)[:, None]
    return Split(x, y[order], x + 1000, y[order], tuple(f"c{i}" for i in range(classes)), s[order],
                 s[order] if shared else s[order] + sessions)


@given(st.sampled_from(sorted(KINDS)), st.integers(1, 8), st.integers(1, 5), st.integers(1, 12), st.integers(0, 99),
       st.booleans())
def test_every_train_sample_comes_once_and_no_test_sample_before_its_class(kind, classes, sessions, count, seed,
                                                                                shared):
    split = split_of(classes, sessions, seed, shared=shared)
    try:
        steps = build(kind, split, count, seed)
    except BadInput as error:
        most = int(error.cure.removeprefix("give --steps ").split()[0])      # the cure is true
        assert len(build(kind, split, most, seed)) == most < count
        return
    assert len(steps) == count
    assert sorted(np.concatenate([step.train for step in steps])) == list(range(len(split.y_train)))
    for number, step in enumerate(steps, 1):
        assert set(step.classes) == set(split.y_train[step.train].tolist())
        assert len(step.test) == len(set(step.test.tolist())) > 0
        assert set(split.y_test[step.test].tolist()) <= set(seen_classes(steps[:number]))
    again = build(kind, split, count, seed)
    assert all(np.array_equal(a.train, b.train) and np.array_equal(a.test, b.test) for a, b in zip(steps, again))


def test_new_classes_come_in_the_order_given():
    split = split_of(5, 1)
    assert [step.classes for step in build("nc", split, 2)] == [(0, 1, 2), (3, 4)]
    steps = build("nc", split, 5, order=[3, 1, 4, 0, 2])
    assert seen_classes(steps) == [3, 1, 4, 0, 2]
    assert all((split.y_test[step.test] == step.classes[0]).all() for step in steps)
    assert np.all(np.diff(steps[0].train) > 0)


def test_online_is_the_same_in_random_order():
    split = split_of(4, 1, each=30)
    plain, online = build("nc", split, 2), build("online", split, 2, seed=1)
    for a, b in zip(plain, online):
        assert a.classes == b.classes
        assert sorted(b.train) == a.train.tolist() != b.train.tolist()


def test_new_instances_bring_whole_sessions():
    split = split_of(3, 6)
    steps = build("ni", split, 3)
    sessions = [set(split.session_train[step.train].tolist()) for step in steps]
    assert [len(s) for s in sessions] == [2, 2, 2]
    assert not sessions[0] & sessions[1] and not sessions[1] & sessions[2]
    assert all(set(split.session_test[step.test].tolist()) == s for step, s in zip(steps, sessions))
    unseen = split_of(3, 6, shared=False)       # test sessions that train has not: all of them, at every step
    assert all(len(step.test) == len(unseen.y_test) for step in build("ni", unseen, 3))


def test_both_brings_classes_late_and_sessions_of_known_ones():
    split = split_of(10, 8)
    steps = build("nic", split, 40)
    assert len(steps[0].classes) == 2
    first = [next(i for i, step in enumerate(steps) if c in step.classes) for c in range(10)]
    assert max(first) > 20
    assert any(set(step.classes) <= set(seen_classes(steps[:i])) for i, step in enumerate(steps) if i)


@pytest.mark.parametrize(("arguments", "word"), [
    (("nope", 2), "nc, ni, nic, online"), (("nc", 4), "3 classes"), (("nc", 0), "--steps is 0"),
    (("nc", 2, 0, [0, 1]), "class order is 0,1"), (("ni", 3), "2 sessions"), (("nic", 7), "6 pairs")])
def test_what_can_not_be_had_is_refused(arguments, word):
    with pytest.raises(BadInput, match=word):
        build(arguments[0], split_of(3, 2), *arguments[1:])


def test_sessions_must_be_there():
    plain = Split(*(np.zeros(2), np.arange(2)) * 2, ("a", "b"))
    for kind in ("ni", "nic"):
        with pytest.raises(BadInput, match="no sessions"):
            build(kind, plain, 1)


# data ----------------------------------------------------------------------------------------------


def test_the_first_of_each_class_are_taken_evenly_from_all_sessions():
    few = split_of(4, 5).first(7)
    for label in range(4):
        own = few.session_train[few.y_train == label]
        assert len(own) == 7
        assert set(np.bincount(own, minlength=5)) == {1, 2}
    plain = Split(np.arange(6)[:, None], np.array([0, 1, 0, 0, 1, 1]), np.zeros((2, 1)), np.arange(2), ("a", "b"))
    assert plain.first(2).x_train.ravel().tolist() == [0, 1, 2, 4]


def test_watch_windows_test_on_the_people_of_the_demo(tmp_path):
    split = datasets.watch_windows()
    assert split.x_train.shape == (1893, 150, 6) and split.x_train.dtype == np.float32
    assert split.x_test.shape == (1153, 150, 6)
    assert (datasets.WINDOW, datasets.HOP, datasets.UNSEEN_PEOPLE) == (demo.WINDOW, demo.HOP, demo.HELD_OUT_PEOPLE)
    _, train, test = demo.write_recordings(tmp_path / "d")
    assert sorted({f"{p:02d}" for p in split.session_train}) == train
    assert sorted({f"{p:02d}" for p in split.session_test}) == test


def test_fashion_that_is_missing_names_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "FASHION", tmp_path / "none")
    with pytest.raises(BadInput, match="apt-get install dataset-fashion-mnist"):
        datasets.load("fashion")


IDX = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3])


@pytest.mark.parametrize("content", [
    gzip.compress(IDX + bytes(5)), gzip.compress(IDX + bytes(7)), gzip.compress(IDX[:2] + b"\r" + IDX[3:] + bytes(6)),
    gzip.compress(b""), b"no gzip", gzip.compress(IDX + bytes(6))[:-9],
    gzip.compress(IDX + bytes(6))[:15] + b"\xff" * 20],
    ids=["short", "long", "magic", "empty", "text", "torn", "garbled"])
def test_an_idx_file_is_whole_and_of_its_shape(tmp_path, content):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(IDX + bytes(range(6))))
    assert datasets.read_idx(path, (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(content)
    with pytest.raises(BadInput, match="reinstall"):
        datasets.read_idx(path, (2, 3))


def arrays(**other):
    x = np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1)
    return {"x_train": x, "y_train": np.array([2, 10] * 3), "x_test": x[:2], "y_test": np.array([10, 2]), **other}


def test_npz_files_with_all_they_may_hold(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, **arrays())
    split = datasets.load(str(path))
    assert split.class_names == ("2", "10")
    assert split.y_train.tolist() == [0, 1] * 3 and split.y_test.tolist() == [1, 0]
    assert split.x_train.dtype == np.uint8 and split.session_train is None
    np.savez(path, **arrays(y_train=np.array([1, 0] * 3), y_test=np.array([0, 1]), class_names=np.array(["zoo", "ant"]),
                            session_train=np.array(list("aabbcc")), session_test=np.array(["b", "c"])))
    split = datasets.load(str(path))
    assert split.class_names == ("zoo", "ant")
    assert split.session_train.tolist() == [0, 0, 1, 1, 2, 2] and split.session_test.tolist() == [1, 2]
    np.savez(path, **arrays(x_train=np.zeros((6, 3)), x_test=np.ones((2, 3))))
    assert datasets.load(str(path)).x_train.dtype == np.float32


@pytest.mark.parametrize(("other", "word"), [
    ({"y_test": np.array([2, 2])}, "'10' is in only one"),
    ({"x_test": np.zeros((2, 3, 2, 1), np.uint8)}, r"x_test \[2"),
    ({"session_train": np.zeros(5, np.int64)}, r"session_train is \[5\]"), ({"y_train": np.zeros(5)}, "x_train is"),
    ({"x_train": np.full((6, 3), np.nan), "x_test": np.zeros((2, 3))}, "NaN"),
    ({"x_train": np.zeros((6, 2, 2, 5), np.uint8), "x_test": np.zeros((2, 2, 2, 5), np.uint8)}, "the images have")])
def test_npz_files_that_can_not_be_used(tmp_path, other, word):
    np.savez(tmp_path / "d.npz", **arrays(**other))
    with pytest.raises(BadInput, match=word):
        datasets.load(str(tmp_path / "d.npz"))


@pytest.mark.parametrize("name", ["nope", "nothere.npz"])
def test_data_that_are_not_there(name):
    with pytest.raises(BadInput, match=name):
        datasets.load(name)
