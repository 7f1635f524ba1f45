"""Methods: what is refused when one is read, and one contract that every method found in the folder keeps."""
from __future__ import annotations

import re
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from edgecl.backbones.onnx_runtime import onnxruntime
from edgecl.errors import BadInput, BudgetError, EdgeclError, StateError
from edgecl.evaluation.bench import method_file
from edgecl.evaluation.datasets import digits
from edgecl.rounds.method import FOLDER, KEYS, method_names, read_method
from edgecl.rounds.parts import PARTS
from edgecl.training.bench.options import RunOptions
from edgecl.training.bench.session import MethodRun

METHODS = method_names()
ROOM = 12 * (64 * 4 + 16)       # twelve digits or fewer
SPACE = 500_000                 # for masks, own tensors and growth


SMALL = tempfile.TemporaryDirectory()


@cache
def small(method):
    """The file of a method for these tests: counts of 500 and more, such as the steps of a generator, are 20."""
    path = Path(SMALL.name, Path(method).name).with_suffix(".toml")
    text = method_file(str(method)).read_text("utf-8")
    path.write_text(re.sub(r"^(\w+) = ([5-9]\d\d|\d{4,})\b", r"\1 = 20", text, flags=re.MULTILINE), "utf-8")
    return path


@cache
def steps():
    """Three steps of two digits, 30 samples each, as vectors."""
    data = digits()
    rows = np.concatenate([np.flatnonzero(data.y_train == c)[:30] for c in range(6)])
    x, y = data.x_train[rows], data.y_train[rows]
    return [(x[y // 2 == k], y[y // 2 == k]) for k in range(3)]


def everything():
    return np.concatenate([x for x, _ in steps()])


def room(method):
    """Of the gradients of two tasks as well, where a method holds them: those of 64 x 256, 256 x 128 and 129 x 6."""
    if read_method(method).plastic:
        return SPACE
    return ROOM + (2 * 4 * 50_310 if "task-gradients" in read_method(method).parts["constraint"] else 0)


def session(method, seed=0, **more):
    return MethodRun(small(method), "mlp", (64,), "float32", room(method), seed, RunOptions(**{"rate": 0.05, **more}))


@cache
def taught(method):
    """A session after all steps, which no test may change."""
    learner = session(method)
    for x, y in steps():
        learner.learn(x, y)
    return learner


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# the contract -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_bytes_are_counted_and_bounded(method):
    learner = session(method)
    for x, y in steps():
        learner.learn(x, y)
        kept = sum(array.nbytes for name, array in learner.state().items()
                   if name.split("/")[0] not in ("network", "method", "classes", "rounds"))
        assert learner.nbytes == kept
        memory = learner.parts.memory
        assert memory.nbytes <= room(method) - memory.reserved or not memory.bounded


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_gives_the_same_run_and_another_another(method):
    runs = []
    for seed in (0, 1):
        learner = session(method, seed)
        for x, y in steps():
            learner.learn(x, y)
        runs.append(learner.state())
    assert same(runs[0], taught(method).state())
    assert not same(runs[0], runs[1])


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_goes_on_as_if_never_stopped(method, tmp_path):
    first = session(method)
    first.learn(*steps()[0])
    np.savez(tmp_path / "state.npz", **first.state())
    resumed = session(method, seed=5)      # the seed is part of the state
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        resumed.load(dict(state))
    assert same(resumed.state(), first.state())
    assert np.array_equal(resumed.predict(everything()), first.predict(everything()))
    for x, y in steps()[1:]:
        resumed.learn(x, y)
    assert same(resumed.state(), taught(method).state())
    assert np.array_equal(resumed.predict(everything()), taught(method).predict(everything()))


@pytest.mark.parametrize("writeable", [True, False])       # what is not can't share its memory with a tensor
@pytest.mark.parametrize("method", METHODS)
def test_input_is_neither_changed_nor_kept(method, writeable):
    learner, copies = session(method), [(x.copy(), y.copy()) for x, y in steps()]
    for (x, y), (again, numbers) in zip(copies, steps()):
        x.flags.writeable = y.flags.writeable = writeable
        learner.learn(x, y)
        assert np.array_equal(x, again) and np.array_equal(y, numbers)
        x.flags.writeable = y.flags.writeable = True
        x[:], y[:] = 7, 99
    assert same(learner.state(), taught(method).state())
    assert np.array_equal(learner.predict(everything()), taught(method).predict(everything()))


@pytest.mark.parametrize("method", METHODS)
def test_samples_may_lie_in_memory_in_any_order(method):
    learner = session(method)
    for x, y in steps():
        learner.learn(np.flip(np.flip(x, -1).copy(), -1), y)
    assert same(learner.state(), taught(method).state())


@pytest.mark.parametrize("method", METHODS)
def test_what_state_gave_does_not_change_later(method):
    learner = session(method)
    learner.learn(*steps()[0])
    given = learner.state()
    before = {name: array.copy() for name, array in given.items()}
    learner.learn(*steps()[1])
    assert same(given, before)
    learner.load(given)
    assert same(learner.state(), before)


@pytest.mark.parametrize("method", METHODS)
def test_predict_changes_nothing_and_answers_among(method):
    learner = taught(method)
    before, x = learner.state(), everything()
    answers = learner.predict(x)
    assert answers.dtype == np.int64 and answers.shape == (len(x),) and set(answers) <= set(range(6))
    assert np.array_equal(answers, learner.predict(x))
    assert np.array_equal(answers[3:4], learner.predict(x[3:4]))
    assert set(learner.predict(x, among=[2, 3])) <= {2, 3}
    assert set(learner.predict(x, among=[4, 77])) == {4}
    assert same(learner.state(), before)
    assert learner.predict(x[:0]).shape == (0,)


@pytest.mark.parametrize("method", METHODS)
def test_the_export_answers_the_same(method):
    learner, x = taught(method), everything()
    exported = onnxruntime.InferenceSession(learner.export(), providers=["CPUExecutionProvider"])
    assert [output.name for output in exported.get_outputs()] == ["features", "logits"]
    assert exported.get_modelmeta().custom_metadata_map["edgecl.classes"] == "[0, 1, 2, 3, 4, 5]"
    features, logits = exported.run(None, {"input": x})
    assert features.shape[0] == len(x) and logits.shape == (len(x), 6)
    assert np.array_equal(logits.argmax(1), learner.predict(x))


@pytest.mark.parametrize("method", METHODS)
def test_classes_may_come_again_and_in_any_order(method):
    learner = session(method)
    x, y = steps()[0]
    learner.learn(x, y + 70)
    learner.learn(steps()[1][0], steps()[1][1])
    learner.learn(x, y + 70)
    assert learner.classes == [70, 71, 2, 3]
    assert set(learner.predict(everything())) <= {70, 71, 2, 3}


@pytest.mark.parametrize("method", [name for name in METHODS
                                    if read_method(name).parts["memory"][0] in ("reservoir", "herding")])
def test_too_few_bytes_are_refused_before_anything_changed(method):
    with pytest.raises(BudgetError, match="give --memory 272 or more"):
        MethodRun(method, "mlp", (64,), "float32", 200, 0)
    learner = MethodRun(method, "mlp", (64,), "float32", 2 * 272 + 10, 0)
    learner.learn(*steps()[0])
    before = learner.state()
    with pytest.raises(BudgetError, match="each of 4 classes; give --memory 1088 or more"):
        learner.learn(*steps()[1])
    assert same(learner.state(), before)


@pytest.mark.parametrize("method", METHODS)
def test_its_file_is_short_and_every_number_has_its_source(method):
    lines = (FOLDER / f"{method}.toml").read_text("utf-8").splitlines()
    assert len(lines) <= 20
    for line in lines:
        if re.match(r"\w+ = [\[0-9tf]", line):
            assert "#" in line, line
    assert read_method(method).paper


# what is refused when it is read ----------------------------------------------------------------


GOOD = 'paper = "x"\nrate = 0.1\n'
CLOSED = 'paper = "x"\nmemory = "statistics"\nlayer = "map"\npower = 1\nprojection = 0\nbalance = "closed-form"\n'


@pytest.mark.parametrize(("text", "says"), [
    (GOOD + "speed = 3\n", "unknown keys: speed; known keys are active, afresh, alpha"),
    (GOOD + 'memory = "big"\n', "memory is 'big'; give one of none, reservoir, herding, everything, greedy"),
    (GOOD + 'memory = ["none", "herding"]\n', "give one of none"),
    (GOOD + "head = 3\n", "head is 3; give one of softmax, sigmoid, asymmetric, cosine"),
    (GOOD + 'constraint = ["fisher", "fisher"]\n', "give a list of distillation, class-share, by-round"),
    (GOOD + 'constraint = ["l2", "sensitivity"]\nimportance = 1\nsamples = 0\n',
     "importance is a number of both l2 and sensitivity"),
    (GOOD + 'constraint = "distillation"\ntemperature = 2\nstrength = 1\n',
     "squared is missing; its parts take temperature"),
    (GOOD + 'constraint = "distillation"\ntemperature = 2\nstrength = -1\nsquared = true\n', "strength is -1"),
    (GOOD + 'constraint = "distillation"\ntemperature = 2\nstrength = 1\nsquared = 1\n', "give true or false"),
    (GOOD + "temperature = 2\n", "none of its parts takes temperature; its parts take no numbers"),
    (GOOD + 'balance = "exemplar-means"\n', "needs exemplars.*give memory = reservoir or herding or everything"),
    (GOOD + 'balance = "closed-form"\nsolver = "slda"\n', "needs statistics.*give memory = statistics"),
    (GOOD + 'tuned = "sometimes"\n', "give one of all, first, none"),
    (GOOD + 'tuned = "first"\n', "nothing learns if the network is not tuned"),
    (GOOD + CLOSED[12:] + 'solver = "slda"\n', "would be stale"),
    (CLOSED + 'solver = "svm"\ntuned = "none"\n', "solver is 'svm'; give one of nearest-mean, slda, ridge"),
    ('paper = "x"\n', "has no rate"),
    ('rate = 0.1\n', "has no paper"),
    (GOOD + "milestones = [0.5]\nfactor = 0\n", "factor"),
    (GOOD + "momentum = true\n", "momentum is True; give a number"),
    (GOOD + "decay = nan\n", "decay is nan"),
])
def test_a_composition_that_cannot_work_is_refused(tmp_path, text, says):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(BadInput, match=says):
        read_method(tmp_path / "own.toml")


def test_a_composition_of_ones_own_is_one_file(tmp_path):
    (tmp_path / "own.toml").write_text(
        GOOD + 'memory = "reservoir"\nhead = "cosine"\nbalance = "exemplar-means"\n'
        'constraint = ["distillation", "fisher"]\n'
        "temperature = 2\nstrength = 1\nsquared = true\n"
        'importance = 1\ngamma = 1\nsamples = 5\nlabels = "exact"\nform = "online"\n')
    learner = session(tmp_path / "own.toml")
    for x, y in steps():
        learner.learn(x, y)
    assert learner.nbytes > ROOM / 2
    exported = onnxruntime.InferenceSession(learner.export(), providers=["CPUExecutionProvider"])
    assert np.array_equal(exported.run(["logits"], {"input": everything()})[0].argmax(1), learner.predict(everything()))


def test_an_unknown_method_lists_the_known():
    with pytest.raises(BadInput, match=r"'icral'.*icarl"):
        read_method("icral")


def test_no_number_is_named_like_a_key():
    rows = [row.numbers for kind in PARTS.values() for row in kind.values()]
    assert not KEYS & {name for numbers in rows for name in numbers}
    assert all(a[name] == b[name] for a in rows for b in rows for name in a.keys() & b.keys())     # one name, one kind


# what a session refuses --------------------------------------------------------------------------


def test_unfit_samples_are_refused():
    learner = session("finetune")
    x, y = steps()[0]
    for bad_x, bad_y, says in ((x[:, :63], y, "samples of float32"), (x.astype(np.float64), y, "give float32"),
                               (np.where(x == 0, np.nan, x).astype(np.float32), y, "NaN"), (x, y[:-1], "labels of"),
                               (x, y.astype(float), "class numbers"), (x[:0], y[:0], "n > 0")):
        with pytest.raises(BadInput, match=says):
            learner.learn(bad_x, bad_y)
    with pytest.raises(StateError, match="nothing was learned"):
        learner.predict(x)
    learner.learn(x, y)
    with pytest.raises(BadInput, match=r"none of the classes \[8\]"):
        learner.predict(x, among=[8])


@pytest.mark.parametrize("given", [{"epochs": 0}, {"batch": 0}, {"rate": -1.0}, {"rate": float("nan")}, {"threads": 0}])
def test_unfit_settings_are_refused(given):
    with pytest.raises(BadInput):
        session("finetune", **given)


@pytest.mark.parametrize(("network", "shape", "dtype"), [
    ("alexnet", (64,), "float32"), ("cnn", (64,), "float32"), ("cnn", (28, 28, 1), "float32"),
    ("tcn", (28, 28, 1), "uint8"), ("cnn", (8, 8, 1), "uint8"), ("mlp", (64,), "int8")])
def test_unfit_networks_are_refused(network, shape, dtype):
    with pytest.raises(EdgeclError):
        MethodRun("finetune", network, shape, dtype, 1000, 0)


def test_a_state_of_another_method_or_network_is_refused():
    state = taught("finetune").state()
    with pytest.raises(StateError, match="finetune, not er"):
        session("er").load(state)
    with pytest.raises(StateError, match="does not fit"):
        MethodRun("finetune", "mlp", (63,), "float32", ROOM, 0).load(state)
