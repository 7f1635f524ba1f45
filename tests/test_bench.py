"""`edgecl bench` and `edgecl methods`: the fields, processes that fail, going on where a run stopped, wrong input."""
from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from test_cli import refused, run  # noqa: F401

from edgecl.evaluation import bench
from edgecl.evaluation.bench import RESULT_FIELDS, BenchJob
from edgecl.evaluation.datasets import load
from edgecl.rounds.method import method_names
from edgecl.training.bench.one_seed import judge, session_settings
from edgecl.training.bench.options import RunOptions

# Nearest mean; its memory and its seed decide how it fails.
FAKE = '''
import os, sys
import numpy as np
from edgecl.errors import BudgetError
from edgecl.training.bench.one_seed import serve

class Session:
    def __init__(self, method, network, input_shape, dtype, memory, seed, options):
        if memory < 1000:
            raise BudgetError(f"{memory} bytes are too few", "give --memory 1KB or more")
        self.means, self.nbytes, self.seed, self.memory = {}, 0, seed, memory
        print("a line that a library prints")

    def learn(self, x, y, progress=None):
        for c in set(y.tolist()):
            self.means[c] = x[y == c].reshape(sum(y == c), -1).astype(np.float64).mean(0)
        self.nbytes = 8 * sum(map(len, self.means.values()))
        if len(self.means) > 5 and self.memory == 6666 and self.seed == 1:
            os.abort() if "--abort" in sys.argv else sys.exit("the third step was too much")

    def predict(self, x, among=None):
        known = sorted(self.means) if among is None else list(among)
        flat = x.reshape(len(x), -1).astype(np.float64)
        far = [((flat - self.means[c]) ** 2).sum(1) for c in known]
        return np.array(known)[np.argmin(far, 0)]

sys.exit(serve(lambda: Session))
'''


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The processes of bench run a nearest mean; `runs` counts them."""
    (tmp_path / "fake.py").write_text(FAKE)
    started: list[BenchJob] = []
    original = bench.run_one
    monkeypatch.setattr(bench, "COMMAND", (sys.executable, str(tmp_path / "fake.py")))
    monkeypatch.setattr(bench, "run_one", lambda job, tell: started.append(job) or original(job, tell))
    return started


def arguments(*more):
    return ("bench", "--method", "finetune", "--data", "digits", *more)


def lines(out):
    return [json.loads(line) for line in out.splitlines()]


def test_a_line_for_each_method_and_seed_has_the_fields_of_the_design(run, fake, tmp_path):  # noqa: F811
    code, out, err = run("bench", "--method", "finetune,er", "--data", "digits", "--seeds", "0,3", "--json")
    assert (code, err) == (0, "")
    found = lines(out)
    assert [(r["method"], r["seed"]) for r in found] == [("finetune", 0), ("finetune", 3), ("er", 0), ("er", 3)]
    assert all(tuple(r) == RESULT_FIELDS for r in found)
    one = found[0]
    assert (one["data"], one["scenario"], one["classes"], one["steps"]) == ("digits", "nc", 10, 5)
    assert np.array(one["accuracy_matrix"]).shape == (5, 5)
    assert np.array_equal(np.triu(one["accuracy_matrix"], 1), np.zeros((5, 5)))
    assert one["average_incremental_accuracy"] == pytest.approx(np.mean(one["step_accuracy"]))
    assert one["final_accuracy"] == one["step_accuracy"][-1] > 0.85
    assert one["task_aware_accuracy"] is None
    assert one["memory_bytes"] == 8 * 64 * 10
    assert one["samples_per_second"] == pytest.approx(1352 / one["train_seconds"])
    assert 10e6 < one["peak_rss_bytes"] < 200e6
    assert not [path for path in tmp_path.iterdir() if path.name != "fake.py"]


class _Watches:
    """Learns nothing, and looks whether what it was given before is still in memory."""

    nbytes = 0

    def __init__(self):
        self.given, self.left = [], []

    def learn(self, x, y):
        self.left.append(sum(array() is not None for array in self.given))
        self.given += [weakref.ref(x), weakref.ref(y)]

    def predict(self, x, among=None):
        return np.zeros(len(x), np.int64)


def test_what_was_taught_leaves_the_memory():
    job, watches = BenchJob("finetune", "digits"), _Watches()
    split, steps = bench.prepare(job)
    rounds = [(split.x_train[step.train], split.y_train[step.train]) for step in steps]
    judge(watches, job, rounds, split, steps, lambda _: None)
    assert watches.left == [0] * 5 and not rounds


def test_task_aware_accuracy_is_measured_when_asked(run, fake):  # noqa: F811
    one = lines(run(*arguments("--seeds", "0", "--json", "--multi-head"))[1])[0]
    assert one["final_accuracy"] < one["task_aware_accuracy"] <= 1


def test_a_finished_run_is_not_run_again(run, fake, tmp_path):  # noqa: F811
    first = run(*arguments("--seeds", "0,1", "--out", "o", "--json"))
    assert len(fake) == 2
    assert run(*arguments("--seeds", "0,1", "--out", "o", "--json")) == first
    assert len(fake) == 2
    run(*arguments("--seeds", "0,1,2", "--out", "o"))
    assert [job.seed for job in fake] == [0, 1, 2]
    run(*arguments("--seeds", "0", "--out", "o", "--epochs", "2"))
    assert len(fake) == 4
    for path in (tmp_path / "o/runs").iterdir():
        path.write_text(path.read_text()[:50])      # as a full disk might leave it
    for _ in range(2):
        run(*arguments("--seeds", "0", "--out", "o"))
        assert len(fake) == 5


def test_the_file_of_a_method_or_of_data_decides_too(tmp_path):
    (tmp_path / "m.toml").write_text('paper = "x"\nrate = 1')
    before = BenchJob(str(tmp_path / "m.toml"), "digits").key()
    (tmp_path / "m.toml").write_text('paper = "x"\nrate = 2')
    assert BenchJob(str(tmp_path / "m.toml"), "digits").key() != before


def test_tables_and_report(run, fake, tmp_path):  # noqa: F811
    code, out, _ = run("bench", "--method", "finetune,er,ewc", "--data", "digits", "--out", "o", "--multi-head")
    assert code == 0
    assert "median of 3 seeds" in out and "task known" in out
    assert all(len(line) <= 200 for line in out.splitlines())
    page = (tmp_path / "o/report.html").read_text()
    assert page.count("<svg") == 4
    for word in ("backward transfer", "without first step", "ewc", "bytes kept between steps"):
        assert word in page
    kept = json.loads((tmp_path / "o/results.json").read_text())
    assert len(kept) == 9
    assert {"average_without_first_step", "backward_transfer", "task_aware_forgetting",
            "accuracy_per_byte"} == set(kept[0]) - set(RESULT_FIELDS)


def test_a_failing_seed_is_named_and_the_others_go_on(run, fake):  # noqa: F811
    code, out, err = run(*arguments("--memory", "6666", "--json"))
    assert code == 1
    assert [r["seed"] for r in lines(out)] == [0, 2]
    assert err.startswith("edgecl: finetune, seed 1: ") and "the third step was too much" in err
    assert len(err.splitlines()) == 1


def test_a_killed_process_is_named_by_its_signal(fake, monkeypatch):
    monkeypatch.setattr(bench, "COMMAND", (*bench.COMMAND, "--abort"))
    failures = []
    bench.run([BenchJob("finetune", "digits", memory=6666, seed=1)], None, print, failures.append,
              lambda job, step: None)
    assert "killed by signal 6" in str(failures[0])


def test_a_method_that_is_refused_is_named_once_and_nothing_is_written(run, fake, tmp_path):  # noqa: F811
    refused(run(*arguments("--memory", "10", "--out", "o", "--json")), "finetune: 10 bytes are too few", "1KB")
    assert len(fake) == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(("more", "word"), [
    (("--steps", "11"), "10 classes"), (("--steps", "0"), "--steps is 0"),
    (("--scenario", "nope"), "nc, ni, nic, online"),
    (("--scenario", "ni"), "no sessions"), (("--seeds", "a,b"), "whole numbers"), (("--seeds", "-1"), "seed is -1"),
    (("--data", "nope"), "digits, watch, fashion"), (("--data", "nothere.npz"), "nothere.npz"),
    (("--method", "nope"), "no method 'nope'"), (("--method", "finetune,no.toml"), "no.toml"),
    (("--method", ","), "names no method"), (("--memory", "3XB"), "200KB"), (("--epochs", "0"), "--epochs is 0"),
    (("--rate", "nan"), "--rate is nan"),
    (("--scenario", "online", "--epochs", "2"), "once"), (("--order", "0,1"), "class order"),
    (("--order", "x"), "natural"), (("--per-class", "-2"), "--per-class"), (("--out", "fake.py"), "is not a folder")])
def test_wrong_input(run, fake, tmp_path, more, word):  # noqa: F811
    before = sorted(tmp_path.iterdir())
    refused(run(*arguments(*more)), word)
    assert sorted(tmp_path.iterdir()) == before
    assert not fake


def test_scenarios_by_command(run, fake):  # noqa: F811
    for more, steps in ((("--scenario", "ni", "--steps", "3"), 3), (("--scenario", "nic"), 20), (("--steps", "7"), 7)):
        one = lines(run("bench", "--method", "er", "--data", "watch", "--seeds", "1", "--json", *more)[1])[0]
        assert len(one["step_accuracy"]) == one["steps"] == steps


def test_order_and_per_class(fake):
    seeded = [[step.classes for step in bench.prepare(BenchJob("er", "digits", order="seeded", seed=seed))[1]]
              for seed in (0, 0, 1)]
    assert seeded[0] == seeded[1] != seeded[2]
    split, steps = bench.prepare(BenchJob("er", "digits", order="9,8,7,6,5,4,3,2,1,0", per_class=4))
    assert steps[0].classes == (9, 8) and len(split.y_train) == 40


def test_the_session_gets_what_was_asked_for():
    job = BenchJob("er", "digits", "online", memory=5, rate=0.1, seed=4)
    assert session_settings(job, load("digits")) == {
        "method": "er", "network": "mlp", "input_shape": (64,), "dtype": "float32", "memory": 5, "seed": 4,
        "options": RunOptions(1, 10, 0.1)}


def test_methods(run):  # noqa: F811
    assert {"finetune", "er", "icarl"} <= set(method_names())
    code, out, _ = run("methods")
    assert code == 0 and all(name in out for name in method_names())
    code, out, _ = run("methods", "show", "icarl")
    assert code == 0 and "Rebuffi" in out and "herding" in out
    assert json.loads(run("methods", "show", "icarl", "--json")[1])["parts"]["memory"] == ["herding"]
    assert len(json.loads(run("methods", "--json")[1])) == len(method_names())
    refused(run("methods", "show", "nope"), "icarl")
    refused(run("methods", "show"), "icarl")
    assert run("methods", "icarl")[0] == 2


# with torch ----------------------------------------------------------------------------------------

@pytest.mark.slow
def test_the_real_session_in_a_process_whose_parent_loads_no_torch():
    code = ("import sys; from edgecl.cli import main; code = main(sys.argv[1:]);"
            "assert 'torch' not in sys.modules and 'onnxruntime' not in sys.modules; sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code, *arguments("--seeds", "0", "--json", "--multi-head", "--epochs",
                           "3")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one = lines(done.stdout)[0]
    assert tuple(one) == RESULT_FIELDS
    assert one["accuracy_matrix"][0][0] > 0.9
    assert one["final_accuracy"] < 0.5 < one["task_aware_accuracy"]        # it forgets, as it must
    assert one["forgetting"] > 0.5
    assert one["peak_rss_bytes"] < 400e6


def test_a_budget_that_is_too_small_is_refused_before_anything_is_written(run, warm, tmp_path):  # noqa: F811
    refused(run("bench", "--method", "er", "--data", "digits", "--memory", "10", "--out", "o"), "er: ")
    assert not Path("o").exists()
