"""Changes while another process commits between their steps: they are done again, and only refused in the end."""
from __future__ import annotations

import pytest
from helpers_state import create, vectors

from edgecl.errors import ChangedMeanwhile
from edgecl.learner import Learner
from edgecl.learning import changes
from edgecl.state.store import Store

QUOTA = 1_000_000
CHANGES = {"learn": lambda learner: learner.learn(vectors("new", 120), "new"),
           "rollback": lambda learner: learner.rollback(2),
           "merge": lambda learner: learner.merge([other_state(learner)]),
           "forget": lambda learner: learner.forget("class 1")}


def other_state(learner):
    path = learner.store.path.with_name("other")
    if not path.exists():
        other = create(path, quota=QUOTA, exemplars=8_000)
        other.learn(vectors("new", 120), "new")
        other.close()
    return path


@pytest.fixture
def contended(tmp_path, monkeypatch):
    """A learner whose changes take two steps, between which another one commits as often as `left` says."""
    learner = create(tmp_path / "state", quota=QUOTA, exemplars=8_000)
    for number in range(4):
        learner.learn(vectors(f"class {number}", 40, number), f"class {number}")
        learner.classes()
    other, left, came = Learner.open(tmp_path / "state"), [0], []
    start_log = Store.start_log

    def with_a_step(store):
        start_log(store)
        if left[0] and store is learner.store and store.writing:
            left[0] -= 1
            begin = store.begin

            def begin_after_another(how=""):
                store.begin = begin
                came.append(other.learn(vectors("other", 1, len(came)), "other").generation)
                begin(how)

            store.begin = begin_after_another
            store.step()

    monkeypatch.setattr(Store, "start_log", with_a_step)
    yield learner, left, came
    learner.close()
    other.close()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("times", [1, 3])
def test_a_change_that_another_process_came_in_between_is_done_again(contended, change, times):
    learner, left, came = contended
    if change == "merge":
        other_state(learner)
    before = {each.name: each.samples for each in learner.classes()}
    left[0] = times
    CHANGES[change](learner)
    assert len(came) == times and left[0] == 0
    known = {each.name: each.samples for each in learner.classes()}
    if change == "learn":
        assert known == {**before, "new": 120, "other": times}
    elif change == "forget":
        assert known == {name: count for name, count in before.items() if name != "class 1"} | {"other": times}
    elif change == "merge":
        assert known == {**before, "new": 120, "other": times}
    else:
        assert set(known) == {"class 0"}
    fresh = Learner.open(learner.store.path)
    assert {each.name: each.samples for each in fresh.classes()} == known
    assert [g.id for g in fresh.history()] == sorted({g.id for g in fresh.history()})
    fresh.close()


def test_it_is_refused_only_after_many_attempts(contended):
    learner, left, came = contended
    left[0] = 1000
    with pytest.raises(ChangedMeanwhile, match="was changed by another edgecl process"):
        learner.learn(vectors("new", 5), "new")
    assert len(came) == changes.ATTEMPTS
    left[0] = 0
    assert "new" not in {each.name for each in learner.classes()}
    learner.learn(vectors("new", 5), "new")
    assert {"new": 5, "other": len(came)}.items() <= {each.name: each.samples for each in learner.classes()}.items()
