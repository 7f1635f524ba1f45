"""The keys of what was taught, against a plain counter, after any changes of classes, and after saving and loading."""
from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecl.exemplars import known_samples
from edgecl.exemplars.known_samples import KEY_BYTES, KnownSamples
from edgecl.exemplars.selection import own_hashes
from edgecl.exemplars.stored import StoredSample

LABELS = ("ant", "bee", "cat")
EDGES = [0, 2 ** 32 - 1, 2 ** 63 - 1, (2 ** 31 - 1) << 32, 1 << 32, (1 << 32) + 1, 1, 2 ** 32]
KEYS = st.one_of(st.sampled_from(EDGES), st.integers(0, 2 ** 63 - 1))
LABEL, SOME = st.sampled_from(LABELS), st.lists(KEYS, max_size=6)
CHANGES = st.lists(st.one_of(
    *(st.tuples(st.just(name), LABEL, SOME) for name in ("add", "rows", "missing", "remove")),
    st.tuples(st.just("forget"), LABEL), st.tuples(st.just("rename"), LABEL, LABEL),
    st.tuples(st.just("take"), LABEL, SOME, SOME), st.tuples(st.just("reload"))), max_size=14)


def rows(label, keys):
    return [StoredSample(1, 1, label, key, np.zeros(1, np.float32)) for key in keys]


def apply(known, plain, change):
    """Make a change; the known samples afterwards. plain: the same as a counter of (class, key)."""
    kind, *values = change
    if kind == "take":
        label, theirs, apart = values
        other = KnownSamples()
        other.add(label, theirs)
        known.take(other, {label: apart})
        plain.update((label, key) for key in (Counter(theirs) - Counter(apart)).elements())
    elif kind == "add":
        known.add(*values)
        plain.update((values[0], key) for key in values[1])
    elif kind == "rows":
        known.add_rows(rows(*values))
        plain.update((values[0], key) for key in values[1])
    elif kind == "missing":
        known.add_missing(rows(*values))
        missing = [key for key in values[1] if not plain[values[0], key]]
        plain.update((values[0], key) for key in missing)
    elif kind == "remove":
        known.remove(*values)
        plain.subtract((values[0], key) for key in values[1])
    elif kind == "forget":
        known.forget(*values)
        for pair in [pair for pair in plain if pair[0] == values[0]]:
            del plain[pair]
    elif kind == "rename" and values[0] != values[1]:
        known.rename(*values)
        for pair in [pair for pair in plain if pair[0] == values[0]]:
            plain[values[1], pair[1]] += plain.pop(pair)
    elif kind == "reload":
        known.limit = 2 ** 20
        arrays = known.to_arrays(LABELS)
        known.load(arrays, LABELS)
        assert {name: array.tobytes() for name, array in known.to_arrays(LABELS).items()} == {
            name: array.tobytes() for name, array in arrays.items()}
    for pair in [pair for pair, count in plain.items() if count <= 0]:
        del plain[pair]


@settings(deadline=None, max_examples=300)
@given(CHANGES)
def test_any_changes_leave_what_a_counter_knows(changes):
    known, plain = KnownSamples(), Counter()
    for change in changes:
        apply(known, plain, change)
        assert known.total == plain.total()
        assert [known.count(label) for label in LABELS] == [
            sum(count for (name, _), count in plain.items() if name == label) for label in LABELS]
    own = np.unique(own_hashes(np.array([key for _, key in plain] + EDGES, np.int64)))
    found = Counter((label, key) for _, label, key in known.with_own_bits(own))
    assert found == plain
    names, keys = known.all()
    assert Counter(zip(names, keys.tolist())) == plain


def test_adding_sorts_seldom_and_never_all_for_one(monkeypatch):
    known, sorted_in = KnownSamples(), []
    insert = KnownSamples._insert
    monkeypatch.setattr(KnownSamples, "_insert", lambda self, *new: (sorted_in.append(len(new[0])), insert(self, *new)))
    rng = np.random.default_rng(0)
    for key in rng.integers(0, 2 ** 63, 30_000).tolist():
        known.add("ant", [key])
        assert not [*known.with_own_bits(np.array([key ^ 1 << 40 ^ 1], np.int64) & 2 ** 32 - 1)]
    assert len(sorted_in) < 25 and min(sorted_in) > known_samples.FEWEST_ADDED
    assert known.total == 30_000


def test_a_file_keeps_as_many_as_it_may_and_the_same_whatever_the_order():
    keys = np.random.default_rng(1).integers(0, 2 ** 63, 500)
    made = []
    for order in (slice(None), slice(None, None, -1)):
        known = KnownSamples(100 * KEY_BYTES)
        for key in keys[order].tolist():
            known.add(LABELS[key % 3], [key])
        made.append(known.to_arrays(LABELS))
        assert made[-1]["keys"].nbytes == 100 * KEY_BYTES and made[-1]["counts"].sum() == 100
    assert made[0]["keys"].tolist() == made[1]["keys"].tolist()
    again = KnownSamples(100 * KEY_BYTES)
    again.load(made[0], LABELS)
    kept = {*sorted(keys.tolist(), key=lambda key: key & 2 ** 32 - 1)[-100:]}
    assert {*again.all()[1].tolist()} == kept    # those whose samples leave a full buffer first


@pytest.mark.parametrize("limit", [0, 100])
def test_nothing_known_is_nothing_written(limit):
    known = KnownSamples(limit)
    assert all(not array.any() for array in known.to_arrays(LABELS).values())
    known.load({}, [])
    assert known.total == 0 and not [*known.with_own_bits(np.arange(5))]
