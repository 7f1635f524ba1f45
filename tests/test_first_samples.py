"""Two processes teach the first samples of one state: the second one learns on the backbone of the first."""
from __future__ import annotations

import numpy as np
import pytest
from helpers_state import error_of, vectors

from edgecl.cli import main
from edgecl.errors import FoundedMeanwhile
from edgecl.learner import Learner
from edgecl.learning.teaching import Teaching
from edgecl.settings import Settings

SIZES = {"quota": 4_000_000, "exemplars": 100_000}


def windows(seed, length=40):
    return np.random.default_rng(seed).normal(seed, 1 + seed, (12, length, 3)).astype(np.float32)


def vectors_file(path, labels):
    x, y = np.concatenate([vectors(label, 20) for label in labels]), np.repeat(labels, 20)
    np.savez(path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])


def correlation(learner):
    scatter = learner.repository.known().plain.scatter()
    size = np.sqrt(np.diag(scatter))
    return scatter / size / size[:, None]


def racing(learner, monkeypatch, first):
    """Have another process teach `first`, as "first", while this one prepares its first samples."""
    founded = Teaching._founded

    def after_another(self, batches, label):
        found = founded(self, batches, label)
        if self.store is learner.store and found[1] is not None:
            other = Learner.open(learner.store.path)
            other.learn(first, "first")
            other.close()
        return found

    monkeypatch.setattr(Teaching, "_founded", after_another)


@pytest.mark.parametrize(("kind", "first", "second"), [
    ("identity", vectors("first", 20), vectors("second", 20)),
    ("identity", vectors("first", 20) * [1e4, *[1.0] * 15], vectors("second", 20)),     # kept raw, not as int8
    ("rocket", windows(0), windows(1)),
    ("auto", windows(2), windows(3))], ids=["same", "another codec", "rocket", "auto"])
def test_the_second_learns_on_the_backbone_of_the_first(tmp_path, monkeypatch, kind, first, second):
    first, second = first.astype(np.float32), second.astype(np.float32)
    rate = {} if kind == "identity" else {"window": 1, "rate": 40}
    settings = Settings(**SIZES, **rate, backbone=kind)
    learner = Learner.create(tmp_path / "state", settings)
    racing(learner, monkeypatch, first)
    learned = learner.learn(second, "second")
    assert (learned.samples, learned.generation) == (len(second), 3)
    assert {each.name: each.samples for each in learner.classes()} == {"first": len(first), "second": len(second)}
    assert [each.label for each in learner.predict(second)].count("second") > len(second) / 2
    monkeypatch.undo()
    alone = Learner.create(tmp_path / "alone", settings)
    alone.learn(first, "first")
    alone.learn(second, "second")
    assert alone.foundation == learner.foundation
    assert np.allclose(*[correlation(each) for each in (alone, learner)], atol=1e-6)
    assert [each.confidence for each in learner.predict(second)] == pytest.approx(
        [each.confidence for each in alone.predict(second)], abs=1e-4)
    learner.close()
    alone.close()


def test_samples_that_do_not_fit_the_backbone_of_the_first_are_refused(tmp_path, monkeypatch):
    learner = Learner.create(tmp_path / "state", Settings(**SIZES, backbone="auto", window=1, rate=40))
    racing(learner, monkeypatch, windows(0))
    error = error_of(lambda: learner.learn(vectors("second", 20), "second"))
    assert error is not None and "another edgecl process" not in str(error)
    assert [each.name for each in learner.classes()] == ["first"]
    learner.close()


def test_a_state_with_another_backbone_is_not_merged_into_what_another_process_has_just_founded(tmp_path, monkeypatch):
    learner = Learner.create(tmp_path / "state", Settings(**SIZES, backbone="auto"))
    for name, samples in (("first", windows(0)), ("second", windows(1))):
        source = Learner.create(tmp_path / name, Settings(**SIZES, backbone="rocket", window=1, rate=40))
        source.learn(samples, name)
        source.close()
    assert learner.foundation is None
    other = Learner.open(tmp_path / "state")
    exclusive = learner.store.exclusive

    def after_another(patience=None):
        learner.store.exclusive = exclusive
        other.merge([tmp_path / "first"])
        return exclusive(patience)

    learner.store.exclusive = after_another
    error = error_of(lambda: learner.merge([tmp_path / "second"]))
    assert error is not None and not isinstance(error, FoundedMeanwhile)
    assert [each.name for each in learner.classes()] == ["first"]
    learner.close()
    other.close()


def test_a_state_that_another_shell_creates_meanwhile_is_learned_into(tmp_path, monkeypatch, capsys):
    vectors_file(tmp_path / "samples.npz", ["ant", "bee"])
    create = Learner.create

    def slower(path, *rest):
        monkeypatch.setattr(Learner, "create", create)
        assert main(["learn", "--state", str(tmp_path / "state"), "--class", "ant", str(tmp_path / "samples.npz")]) == 0
        return create(path, *rest)

    monkeypatch.setattr(Learner, "create", slower)
    assert main(["learn", "--state", str(tmp_path / "state"), "--class", "bee", str(tmp_path / "samples.npz")]) == 0
    assert capsys.readouterr().err.count("edgecl: created") == 1
    learner = Learner.open(tmp_path / "state")
    assert [each.name for each in learner.classes()] == ["ant", "bee"]
    learner.close()


def test_ctrl_c_does_not_say_that_nothing_was_kept_of_the_classes_before(tmp_path, monkeypatch, capsys):
    vectors_file(tmp_path / "samples.npz", ["ant", "bee", "cat"])
    learn = Learner.learn

    def interrupted(self, samples, label, *rest, **named):
        if label == "cat":
            raise KeyboardInterrupt
        return learn(self, samples, label, *rest, **named)

    monkeypatch.setattr(Learner, "learn", interrupted)
    assert main(["learn", "--state", str(tmp_path / "state"), "--from", str(tmp_path / "samples.npz")]) == 130
    err = capsys.readouterr().err
    assert "interrupted; what was finished before is kept, see `edgecl history`" in err and "Traceback" not in err
    learner = Learner.open(tmp_path / "state")
    assert [each.name for each in learner.classes()] == ["ant", "bee"]
    learner.close()


def test_ctrl_c_while_a_command_is_loaded_is_no_traceback(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("edgecl.cli.import_module", interrupted)
    assert main(["status"]) == 130
    assert "interrupted" in capsys.readouterr().err
