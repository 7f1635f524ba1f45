"""Replay: asked before taught, at the recording's pace, new classes and new instances alike; recordings with labels."""
from __future__ import annotations

import json
from contextlib import closing

import numpy as np
import pytest

from edgecl.cli import main
from edgecl.commands.direct_or_daemon import Direct
from edgecl.errors import BadInput
from edgecl.evaluation.datasets import digits
from edgecl.evaluation.prequential import BatchResult, Pace, play, recording, summary
from edgecl.learner import Learner
from edgecl.results import Prediction
from edgecl.samples import Sample
from edgecl.settings import Settings
from edgecl.sources.spec import Spec

SPEC = Spec(rate=10, window=1.0, hop=0.5)


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Daemon:
    """Answers the label taught last; notes what it was asked and taught, and when."""

    def __init__(self, time: Time) -> None:
        self.time, self.log, self.label = time, [], None

    def predict(self, batch):
        self.log.append((self.time.now, "asked", len(batch)))
        return [Prediction("", self.label, 1.0, False, 1.0)] * len(batch)

    def learn(self, samples, label, progress):
        self.log.append((self.time.now, label, len(samples)))
        self.label = label


def vectors(labels: str) -> list[Sample]:
    return [Sample(np.float32([i]), f"{i}", label=label) for i, label in enumerate(labels)]


def test_each_batch_is_asked_before_it_is_taught_and_comes_at_its_time():
    time = Time()
    daemon = Daemon(time)
    heard = list(play(vectors("aaaabb"), daemon, Pace(0.5, 10, 2), clock=time.clock, sleep=time.sleep))
    assert [event[1:] for event in daemon.log] == [("a", 2), ("asked", 2), ("a", 2), ("asked", 2), ("b", 2)]
    assert [event[0] for event in daemon.log] == pytest.approx([0.1, 0.2, 0.2, 0.3, 0.3])
    assert heard == [BatchResult(1.0, 2, 0, 0, 0, ("a",), 0.0), BatchResult(2.0, 2, 2, 0, 2, (), 0.0),
                     BatchResult(3.0, 2, 0, 0, 0, ("b",), 0.0)]


def test_what_was_known_before_is_asked_from_the_start_and_nothing_need_be_taught():
    time = Time()
    daemon = Daemon(time)
    daemon.label = "a"
    heard = list(play(vectors("aab"), daemon, Pace(1, 1, 3, teach=0), ["a"], clock=time.clock, sleep=time.sleep))
    assert daemon.log == [(3.0, "asked", 3)]
    assert (heard[0].right, heard[0].known) == (2, 2)


def test_a_share_of_the_batches_is_taught_evenly():
    time = Time()
    daemon = Daemon(time)
    list(play(vectors("a" * 12), daemon, Pace(1, 1e6, 1, teach=0.25), ["a"], clock=time.clock, sleep=time.sleep))
    taught = [number for number, event in enumerate(e for e in daemon.log if e[1] in ("asked", "a")) if event[1] == "a"]
    assert len(taught) == 3
    assert len(set(np.diff(taught))) == 1


def test_a_slow_daemon_is_behind_and_that_is_told():
    time = Time()
    daemon = Daemon(time)
    daemon.learn = lambda *_: time.sleep(5.0)
    heard = list(play(vectors("ab"), daemon, Pace(1, 1, 1), clock=time.clock, sleep=time.sleep))
    assert [one.late for one in heard] == pytest.approx([5.0, 9.0])
    assert summary(heard)[-1]["late_seconds"] == pytest.approx(9.0)


def test_a_summary_weighs_samples_and_keeps_the_last_stretch():
    heard = [BatchResult(float(i), 10, i % 11, 2, 10 if i else 0, ("x",) if i in (0, 7) else (), 0.0)
             for i in range(23)]
    rows = summary(heard, 5)
    assert len(rows) == 5
    assert sum(row["samples"] for row in rows) == 230
    assert rows[0]["accuracy"] == pytest.approx(sum(i % 11 for i in range(5)) / 50)
    assert rows[0]["accuracy_known"] == pytest.approx(sum(i % 11 for i in range(5)) / 40)
    assert rows[0]["unknown_rate"] == 0.2
    assert rows[0]["new"] == ["x"]
    assert summary(heard[:1])[0]["accuracy_known"] is None


def test_a_real_learner_gets_better_while_it_is_played_to(tmp_path):
    data = digits()
    x, y = data.x_train, data.y_train
    order = np.random.default_rng(0).permutation(300)
    learner = Learner.create(tmp_path / "s", Settings(backbone="identity"))
    items = [Sample(np.float32(x[i]), str(i), label=str(y[i])) for i in order]

    time = Time()
    heard = list(play(items, Direct(learner), Pace(0.1, 10, 60), clock=time.clock, sleep=time.sleep))
    assert sum(len(one.new) for one in heard) == 10
    assert heard[-1].right / heard[-1].samples > 0.8 > heard[0].right / heard[0].samples == 0
    learner.close()


@pytest.mark.parametrize("numbers", [{"speed": 0}, {"batch": 0}, {"teach": 1.5}, {"speed": float("nan")}])
def test_a_pace_that_is_none_is_refused(numbers):
    with pytest.raises(BadInput, match="--speed above 0"):
        Pace(1.0, **numbers)


def test_a_recording_without_labels_is_refused():
    time = Time()
    items = [Sample(np.float32([1]), "x")]
    with pytest.raises(BadInput, match="no labelled sample"):
        list(play(items, Daemon(time), Pace(1.0), clock=time.clock, sleep=time.sleep))


def test_a_table_is_cut_within_stretches_of_one_label(tmp_path):
    rows = ["time,ax,ay,label"] + [f"{i / 10},{i},{-i},{'walk' if i < 25 else '' if i < 30 else 'sit'}"
                                   for i in range(50)]
    (tmp_path / "day.csv").write_text("\n".join(rows))
    found = list(recording(tmp_path / "day.csv", SPEC))
    assert [sample.label for sample in found] == ["walk"] * 4 + ["sit"] * 3
    assert found[0].data.shape == (10, 2)
    assert found[4].data[0].tolist() == [30, -30]
    assert found[4].source.endswith("@3.00s")
    assert len({sample.group for sample in found}) == 2


@pytest.mark.parametrize(("text", "says"), [
    ("a,b\n1,2\n", "no column named"), ("a,label\nx,walk\n", "row 2"), ("", "can't be read")])
def test_a_table_that_is_none_is_refused(tmp_path, text, says):
    (tmp_path / "day.csv").write_text(text)
    with pytest.raises(BadInput, match=says):
        list(recording(tmp_path / "day.csv", SPEC))


def test_the_command_tells_accuracy_over_time_and_counts_what_it_could_not_use(tmp_path, capsys):
    data = digits()
    x, y = data.x_train, data.y_train
    np.savez(tmp_path / "day.npz", x_train=np.float32(x[:150]), y_train=y[:150], x_test=np.float32(x[:9]),
             y_test=y[:9])
    state = str(tmp_path / "s")
    assert main(["init", "--state", state, "--backbone", "identity"]) == 0
    capsys.readouterr()
    words = ["replay", str(tmp_path / "day.npz"), "--state", state, "--speed", "10000", "--batch", "30"]
    assert main([*words, "--json"]) == 0
    *batches, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [batch["samples"] for batch in batches] == [30] * 5
    assert batches[0]["right"] == 0
    assert last["samples"] == 150
    assert last["accuracy"] == pytest.approx(sum(batch["right"] for batch in batches) / 150)
    assert last["classes"] == 10
    assert main([*words, "--teach", "0"]) == 0
    shown = capsys.readouterr().out
    assert "150 samples" in shown
    assert "known classes" in shown


@pytest.mark.parametrize(("more", "says"), [(["nowhere.npz"], "nowhere.npz"), (["day.npz", "--speed", "0"], "--speed"),
                                            (["day.txt"], "day.txt")])
def test_a_replay_that_can_not_be_is_refused_and_the_state_stays(tmp_path, capsys, monkeypatch, more, says):
    monkeypatch.chdir(tmp_path)
    np.savez("day.npz", x_train=np.zeros((2, 4), np.float32), y_train=[0, 1])
    (tmp_path / "day.txt").write_text("no recording")
    assert main(["init", "--backbone", "identity"]) == 0
    assert main(["replay", *more]) == 1
    assert says in capsys.readouterr().err
    with closing(Learner.open(tmp_path / "edgecl-state")) as learner:
        assert learner.store.current == 1
