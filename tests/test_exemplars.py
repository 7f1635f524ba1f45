"""The exemplar buffer: what stays, whatever the order in which samples came, and what is held back."""
from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgecl.exemplars.columns import GrowingColumns
from edgecl.exemplars.origin import Origin
from edgecl.exemplars.selection import (
    BY_RECORDING_ONE_IN,
    GROUP_SHIFT,
    OWN_BITS,
    Shared,
    admitted,
    by_recording,
    held_back,
    herding,
    margins,
    near_duplicates,
    recording_hashes,
    reservoir,
)
from edgecl.exemplars.stored import StoredSample
from edgecl.samples import sample_keys

SAMPLES = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2 ** 62)), unique=True, max_size=60)
CAPACITY = st.integers(0, 40)


def kept(samples, capacity):
    keep = admitted([label for label, _ in samples], np.array([key for _, key in samples], np.int64),
                    np.full(len(samples), 10), 10 * capacity)
    return {sample for sample, stays in zip(samples, keep) if stays}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99), st.integers(1, 50)), max_size=40),
       st.integers(0, 600))
def test_bytes_are_never_passed_and_the_largest_class_gives_way(samples, room):
    labels, sizes = [s[0] for s in samples], np.array([s[2] for s in samples], np.int64)
    ranks = np.array([s[1] for s in samples], np.int64)
    keep = admitted(labels, ranks, sizes, room)
    assert sizes[keep].sum() <= room
    taken = {c: sizes[[k and x == c for k, x in zip(keep, labels)]].sum() for c in "abc"}
    for c in set(labels):
        left = sorted((ranks[i], i) for i, x in enumerate(labels) if x == c and not keep[i])
        if left:  # a class that lost samples has no less than any other, but for the sample that did not fit
            assert all(taken[c] + sizes[left[0][1]] >= taken[other] for other in set(labels))
            assert all((ranks[i], i) < left[0] for i, x in enumerate(labels) if x == c and keep[i])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2 ** 40), st.integers(1, 50), st.integers(0, 5)),
                max_size=40), st.lists(st.integers(0, 90), min_size=6, max_size=6), st.integers(0, 900))
def test_what_samples_share_is_counted_once_and_only_if_one_of_them_stays(samples, shared, room):
    labels, ranks, sizes, of = ([s[part] for s in samples] for part in range(4))
    charges = Shared(np.array(of, np.int64), np.array(shared, np.int64))
    keep = admitted(labels, np.array(ranks, np.int64), np.array(sizes, np.int64), room, charges)

    def taken(kept):
        return sum(size for size, stays in zip(sizes, kept) if stays) + sum(
            shared[place] for place in {place for place, stays in zip(of, kept) if stays})

    assert taken(keep) <= room
    assert charges.sizes.tolist() == shared
    if taken([True] * len(samples)) <= room:
        assert keep.all()
    plain = admitted(labels, np.array(ranks, np.int64), np.array(sizes, np.int64), room)
    assert not (keep & ~plain).any()
    assert (admitted(labels, np.array(ranks, np.int64), np.array(sizes, np.int64), room,
                     charges._replace(sizes=np.zeros(6, np.int64))) == plain).all()


def test_herding_is_greedy_towards_the_class_mean_and_its_order_survives_a_cut():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((30, 6)) + 1).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    mean = rng.standard_normal(6) * 0.1 + 1  # of all samples ever, not of those stored
    target, chosen = mean / np.linalg.norm(mean), []
    for k in range(30):
        rest = [i for i in range(30) if i not in chosen]
        gaps = [np.linalg.norm(target - (unit[chosen].sum(0) + unit[i]) / (k + 1)) for i in rest]
        chosen.append(rest[int(np.argmin(gaps))])
    ranks = herding(x, mean)
    assert np.argsort(ranks).tolist() == chosen
    assert np.array_equal(herding(x, mean, 7), np.where(ranks < 7, ranks, 30)) and (herding(x, mean, 99) == ranks).all()
    cut = np.sort(chosen[:12])
    assert cut[np.argsort(herding(x[cut], mean))].tolist() == chosen[:12]


def test_margins_are_the_distance_to_the_nearest_border():
    means = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 10.0]])
    points = np.array([[0.0, 0.0], [2.0, 0.0], [1.5, 3.0], [-3.0, 0.0]])
    assert margins(points, 0, means).tolist() == [2.0, 0.0, 0.5, 5.0]
    assert margins(points, 0, means[:1]).tolist() == [0.0] * 4


ONE = np.zeros(30, np.int64)


def test_consecutive_frames_are_one():
    rng = np.random.default_rng(0)
    scenes = rng.standard_normal((6, 20)).astype(np.float32)
    frames = np.repeat(scenes, 5, axis=0) * (1 + 0.05 * rng.standard_normal((30, 20)).astype(np.float32))
    assert near_duplicates(frames, ONE, "feature").tolist() == [i % 5 > 0 for i in range(30)]
    assert not near_duplicates(scenes, ONE[:6], "feature").any()
    assert near_duplicates(scenes[:0], ONE[:0], "image").tolist() == []
    assert near_duplicates(np.zeros((3, 4), np.float32), ONE[:3], "window").tolist() == [False, True, True]
    turn = np.linspace(0, 3, 40)    # slow change is not one frame
    spare = near_duplicates(np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32), np.zeros(40, int), "feature")
    assert 3 <= (~spare).sum() < 40


@given(st.lists(st.integers(0, 4), max_size=40), st.randoms(), st.floats(1e-3, 1e3))
def test_near_duplicates_are_told_by_their_own_recording_alone(recordings, random, scale):
    rng = np.random.default_rng(len(recordings))
    of = np.array(recordings, np.int64)
    frames = (rng.integers(1, 3, (len(of), 6)) * scale).astype(np.float32)
    spare = near_duplicates(frames, of, "image")
    for name in set(recordings):
        mine = of == name
        assert near_duplicates(frames[mine], of[mine] + 7, "image").tolist() == spare[mine].tolist()
        assert not spare[mine][0]
    assert near_duplicates(frames, np.arange(len(of)), "image").tolist() == [False] * len(of)


@given(SAMPLES, CAPACITY, st.randoms())
def test_the_order_changes_nothing(samples, capacity, random):
    shuffled = random.sample(samples, len(samples))
    assert kept(samples, capacity) == kept(shuffled, capacity)
    assert len(kept(samples, capacity)) == min(capacity, len(samples))


@given(SAMPLES, CAPACITY, st.integers(0, 60))
def test_once_out_stays_out_while_samples_are_only_added(samples, capacity, first):
    early, late = kept(samples[:first], capacity), kept(samples, capacity)
    assert late & set(samples[:first]) <= early


@given(SAMPLES, CAPACITY, st.integers(0, 60))
def test_two_boards_buffers_merge_into_the_one_of_a_single_board(samples, capacity, cut):
    both = sorted(kept(samples[:cut], capacity) | kept(samples[cut:], capacity))
    assert kept(both, capacity) == kept(samples, capacity)


@given(SAMPLES, CAPACITY)
def test_every_class_gets_the_same_room_as_far_as_it_fills_it(samples, capacity):
    have = {label: sum(found == label for found, _ in samples) for label in "abcd"}
    left = {label: sum(found == label for found, _ in kept(samples, capacity)) for label in "abcd"}
    most = max(left.values())
    assert all(left[label] >= min(have[label], most - 1) for label in "abcd")


def test_a_flood_of_one_class_leaves_the_others():
    rng = np.random.default_rng(0)
    samples = [("rare", int(k)) for k in rng.integers(0, 2 ** 62, 20)]
    flood = [("flood", int(k)) for k in rng.integers(0, 2 ** 62, 20_000)]
    left = kept(samples + flood, 50)
    assert set(samples) <= left
    assert len(left) == 50


def test_a_class_keeps_a_uniform_part():
    keys = sample_keys(np.arange(4000, dtype=np.float32)[:, None])
    keep = admitted(["a"] * 4000, np.array(keys), np.full(4000, 7), 7000)
    assert keep.sum() == 1000
    parts = keep.reshape(4, -1).sum(1)  # of each quarter of the stream
    assert (abs(parts - 250) < 60).all()


def test_names_of_all_lengths_and_empty_buffers():
    def keep(labels, ranks, room):
        return admitted(labels, np.array(ranks, np.int64), np.ones(len(labels), np.int64), room).tolist()

    assert keep([], [], 5) == []
    assert keep(["a"], [1], 0) == [False]
    assert keep(["a" * 64, "a", "ä"], [3, 2, 1], 2) == [True, True, False]


FEATURES = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(n, 100), st.integers(1, 6)))


@given(FEATURES, st.integers(0, 2 ** 31), st.integers(1, 100))
def test_what_is_held_back_is_some_but_never_all(shape, seed, classes):
    stored, count, recordings = shape
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((stored, 3)).astype(np.float32)
    keys = sorted((int(g) << GROUP_SHIFT) + int(k) for g, k in
                  zip(rng.integers(0, recordings, stored), rng.integers(0, 2 ** 32, stored)))
    held = held_back(features, keys, count, classes)
    assert len(held) < count
    assert len(set(held.tolist())) == len(held) <= count / 4
    assert count < 5 or len(held) >= 1
    assert held.tolist() == sorted(held.tolist())
    assert all(0 <= i < stored for i in held)


def recorded(sizes):
    return [(g << GROUP_SHIFT) + i for g, size in enumerate(sizes) for i in range(size)]


def test_whole_recordings_are_held_back_together():
    features = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    assert held_back(features, recorded([10] * 5), 50, 4).tolist() == list(range(10))
    assert held_back(features, recorded([4, 4, 20, 22]), 50, 4).tolist() == list(range(8))
    assert held_back(features, recorded([40, 10]), 50, 4).tolist() == list(range(40, 50))
    assert held_back(features, recorded([30, 20]), 50, 4).tolist() != list(range(30, 50))  # no more than a quarter
    assert len(held_back(features, recorded([50]), 50, 4)) == 10


def test_a_recording_that_may_be_stored_in_part_is_not_held_back():
    features = np.random.default_rng(0).standard_normal((90, 4)).astype(np.float32)
    assert held_back(features, recorded([10] * 9), 900, 4).tolist() == list(range(20))  # the third may have gaps
    assert held_back(features, recorded([30] * 3), 900, 4).tolist() != list(range(30))


RECORDINGS = st.lists(st.lists(st.tuples(st.integers(0, 2 ** 32 - 1), st.booleans()), min_size=1, max_size=8,
                               unique_by=lambda sample: sample[0]), min_size=1, max_size=8)


def keyed(recordings, numbers):
    """keys, near-duplicates and recordings of samples; the first of a recording is never a near-duplicate"""
    keys = [(number << GROUP_SHIFT) + own for number, mine in zip(numbers, recordings) for own, _ in mine]
    spare = [near and place > 0 for mine in recordings for place, (_, near) in enumerate(mine)]
    return np.array(keys, np.int64), np.array(spare), np.repeat(np.arange(len(recordings)), [*map(len, recordings)])


@given(RECORDINGS, st.integers(1, 60), st.randoms())
def test_a_reservoir_keeps_whole_recordings_first_and_a_draw_of_all(recordings, kept, random):
    keys, spare, of = keyed(recordings, range(len(recordings)))
    none = np.zeros(len(keys), np.int64)
    ranks = reservoir(keys, spare)
    assert len(set(ranks.tolist())) == len(ranks)
    stay = np.argsort(ranks)[:kept]
    order = by_recording(keys, spare, none)
    whole = (len(stay) - 1) // BY_RECORDING_ONE_IN if len(stay) < len(keys) else len(stay)
    assert set(order[:whole].tolist()) <= set(stay.tolist())
    hashes = recording_hashes(keys, spare, none)
    assert all(len(set(hashes[of == each].tolist())) == 1 for each in set(of.tolist()))
    shuffled = np.array(random.sample(range(len(keys)), len(keys)))
    again = reservoir(keys[shuffled], spare[shuffled])
    assert set(shuffled[np.argsort(again)[:kept]].tolist()) == set(stay.tolist())
    left = np.argsort(reservoir(keys[stay], spare[stay]))  # what is left decides among itself as all did
    assert left.tolist() == list(range(len(stay)))


@given(RECORDINGS, st.data())
def test_a_full_reservoir_is_the_same_for_any_order_and_numbering_of_recordings(recordings, data):
    """Recordings come whole, in any order; the room shrinks now and then, as other classes come."""
    count = len(recordings)

    def reservoir_of(numbers, order, room):
        keys, spare, of = keyed(recordings, numbers)
        have, now = np.zeros(0, np.int64), len(keys)
        for each in order:
            have = np.r_[have, np.flatnonzero(of == each)]
            if data.draw(st.booleans()):
                now = data.draw(st.integers(room, now))
                have = have[np.argsort(reservoir(keys[have], spare[have]))[:now]]
        return sorted((keys & OWN_BITS)[have[np.argsort(reservoir(keys[have], spare[have]))[:room]]].tolist())

    room = data.draw(st.integers(1, sum(map(len, recordings))))
    first = reservoir_of(range(count), range(count), room)
    numbers = data.draw(st.lists(st.integers(0, 2 ** 31 - 1), min_size=count, max_size=count, unique=True))
    assert reservoir_of(numbers, data.draw(st.permutations(range(count))), room) == first


def test_the_length_of_a_recording_does_not_decide_when_it_goes():
    rng = np.random.default_rng(0)
    longer = 0
    for _ in range(400):
        keys = np.r_[rng.integers(0, 2 ** 32, 1), (1 << GROUP_SHIFT) + rng.integers(0, 2 ** 32, 50)]
        longer += int(by_recording(keys, np.zeros(51, bool), np.zeros(51, np.int64))[0] > 0)
    assert 150 < longer < 250


def test_without_recordings_the_far_end_is_held_back():
    along = np.linspace(0, 1, 40) ** 3
    features = (np.outer(along, [3, 4]) + 1e5).astype(np.float32)
    keys = recorded([1] * 40)
    assert held_back(features, keys, 40, 5).tolist() == list(range(32, 40))
    assert held_back(features, keys, 40, 10).tolist() == list(range(36, 40))
    assert held_back(features, keys, 40, 100).tolist() == list(range(38, 40))


def test_equal_samples_are_no_trouble():
    assert held_back(np.ones((10, 4), np.float32), recorded([1] * 10), 10, 1).tolist() == [0, 1]
    assert held_back(np.ones((1, 4), np.float32), [5], 1, 1).tolist() == []
    assert len(held_back(np.full((5, 4), 1e15, np.float32), [5, 6, 7, 8, 9], 5, 1)) == 1


def test_keys_name_sample_and_recording_alone():
    rng = np.random.default_rng(0)
    data = rng.standard_normal((6, 5)).astype(np.float32)
    single = [sample_keys(data[i:i + 1])[0] for i in range(6)]
    assert sample_keys(data) == single
    assert all(0 <= key < 2 ** 63 for key in single)
    keys = sample_keys(data, ["a", "a", "b", "b", "", ""])
    groups = [key >> GROUP_SHIFT for key in keys]
    assert groups[0] == groups[1] == single[0] >> GROUP_SHIFT
    assert groups[2] == groups[3] == single[2] >> GROUP_SHIFT
    assert keys[4:] == single[4:]
    assert keys == sample_keys(data, ["x", "x", "y", "y", "", ""])  # a recording's name does not matter


def test_a_named_session_is_one_session_everywhere():
    data = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    days = ["monday", "monday", "", "tuesday", "monday", ""]
    keys, plain = sample_keys(data, ["a", "a", "a", "b", "b", ""], sessions=days), sample_keys(data)
    assert [key & OWN_BITS for key in keys] == [key & OWN_BITS for key in plain]
    assert all(0 <= key < 2 ** 63 for key in keys)
    groups = [key >> GROUP_SHIFT for key in keys]
    assert groups[0] == groups[1] == groups[4] != groups[3]
    assert groups[2] == plain[2] >> GROUP_SHIFT and groups[5] == plain[5] >> GROUP_SHIFT     # recordings, as ever
    again = sample_keys(data[::-1].copy(), sessions=days[::-1])     # another class, another command, another order
    assert [key >> GROUP_SHIFT for key in again][1] == groups[0]
    assert again[5] == keys[0]
    composed, apart = (sample_keys(data[:1], sessions=[name])[0] for name in ("caf\xe9", "cafe\u0301"))
    assert composed == apart
    assert len({key >> GROUP_SHIFT for key in sample_keys(data, sessions=[*"abcdef"])}) == 6


def test_a_recording_that_goes_on_in_the_next_batch_is_one_recording():
    data = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    whole, known = sample_keys(data, ["a"] * 6), {}
    assert [*sample_keys(data[:4], ["a"] * 4, known), *sample_keys(data[4:], ["a"] * 2, known)] == whole


def test_columns_of_a_growing_list_are_those_of_the_whole_list():
    rng = np.random.default_rng(1)
    every = [StoredSample(None, None, f"class {rng.integers(5)}", int(rng.integers(2 ** 40)), np.zeros(2, np.float32),
                          b"x" * int(rng.integers(9)), bool(rng.integers(2)), ["", "book"][rng.integers(2)],
                          origin=Origin(f"file {rng.integers(3)}", "index", 5), tick=int(rng.integers(300)))
             for _ in range(200)]
    growing, rows = GrowingColumns(), []
    for start, end in ((0, 1), (1, 90), (90, 90), (90, 200)):
        rows += every[start:end]
        grown, whole = growing(rows), GrowingColumns()(rows)
        assert grown.rows.tolist() == whole.rows.tolist()
        assert grown[1:] == whole[1:]
    for row, (label, place) in zip(rows, zip(grown.classes.tolist(), grown.rows["place"].tolist())):
        assert (sorted(grown.labels)[label], rows[place]) == (row.label, row)
    assert grown.of_class() == {label: sum(row.label == label for row in rows) for label in grown.labels}
    pairs = {(row.label, row.origin) for row in rows}
    assert sorted(grown.shared()[1].tolist()) == sorted(origin.bytes for _, origin in pairs)
    assert growing(every[:7]).rows["key"].tolist() == [row.key for row in every[:7]]
