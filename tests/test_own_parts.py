"""Parts and networks of the user's own: named in a .toml, imported by workers only, refused with a clear error."""
from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers_networks import convolutions, photos
from helpers_state import refused

from edgecl.cli import main
from edgecl.errors import BadInput, BudgetError
from edgecl.evaluation.bench import BenchJob
from edgecl.learner import Learner
from edgecl.rounds.method import read_method
from edgecl.rounds.parts import own_part
from edgecl.rounds.run import RoundRequest
from edgecl.settings import Settings
from edgecl.training.composition import parts_of
from edgecl.training.networks.heads import Softmax
from edgecl.training.networks.network import build

MODULE = '''
from pathlib import Path
import torch
from torch import nn
from edgecl.training.constraints.base import Constraint
from edgecl.training.memory.exemplars import Reservoir

with Path(__file__).with_name("imported").open("a") as file:
    file.write("yes\\n")


class Last(Reservoir):
    """The last samples of each class."""

    def __init__(self, room, nothing, shown):
        super().__init__(room, nothing)
        self.shown = shown

    def replay(self, n, generator):
        return super().replay(int(self.shown * n) or 1, generator)


class Slow(Constraint):
    """Gradients are shortened."""

    def __init__(self, share, loud=False):
        self.share = share

    def project(self, gradients, references=()):
        return [None if gradient is None else self.share * gradient for gradient in gradients]


def net(shape):
    body = nn.Sequential(nn.Flatten(), nn.Linear(shape[0], 64), nn.ReLU())
    return body, nn.Sequential(nn.Linear(64, 32), nn.ReLU())


def flat(shape):
    return nn.Flatten()


def square(shape):
    return nn.Unflatten(1, (1, -1)), nn.Identity()
'''
METHOD = '''
paper = "mine"
rate = 0.05
constraint = ["l2", { where = "mine.parts:Slow", share = 0.5, weights = 0, old = "" }]
importance = 0.1

[memory]
where = "mine.parts:Last"
shown = 1.0
gives = ["exemplars"]
copies = 1
'''


@pytest.fixture
def mine(tmp_path):
    """A folder with a method and the package that it names."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").touch()
    (tmp_path / "mine/parts.py").write_text(MODULE)
    (tmp_path / "own.toml").write_text(METHOD)
    return tmp_path


def test_reading_a_method_imports_nothing_of_it(mine):
    method = read_method(mine / "own.toml")
    assert method.parts["constraint"] == ("l2", "mine.parts:Slow")
    assert method.own["mine.parts:Slow"].given == {"share": 0.5}
    assert method.memory.gives == {"exemplars"}
    assert json.loads(json.dumps(method.as_json()))["numbers"] == {
        "importance": 0.1, "mine.parts:Last": {"shown": 1.0}, "mine.parts:Slow": {"share": 0.5}}
    before = BenchJob(str(mine / "own.toml"), "digits").key()
    (mine / "mine/parts.py").write_text(MODULE + "\n")
    assert BenchJob(str(mine / "own.toml"), "digits").key() != before     # a result is not kept for other code
    assert not (mine / "imported").exists() and not any(name.split(".")[0] == "mine" for name in sys.modules)


@pytest.mark.slow
def test_bench_and_a_round_on_a_state_run_it_in_their_workers(mine, capsys, monkeypatch, warm):
    monkeypatch.chdir(mine)
    assert main(["bench", "--method", "own.toml", "--data", "digits", "--seeds", "0", "--backbone", "mine.parts:net",
                 "--memory", "40KB", "--epochs", "3", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["method"] == "own.toml" and one["accuracy_matrix"][0][0] > 0.6 and 0 < one["memory_bytes"] <= 41_000
    assert (mine / "mine/imported").read_text() == "yes\n"
    (mine / "net.onnx").write_bytes(convolutions())
    learner = Learner.create(mine / "state", Settings(backbone=str(mine / "net.onnx"), quota=4_000_000,
                                                      exemplars=1_200_000, codec="raw"))
    for kind in range(2):
        learner.learn(photos(kind, 30), f"kind {kind}")
    learner.close()
    monkeypatch.chdir("/")      # the module lies beside the .toml
    assert main(["round", "--state", str(mine / "state"), "--method", str(mine / "own.toml"), "--time", "600s",
                 "--memory", "1GB", "--epochs", "2", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["method"] == "own" and done["steps"] == done["planned_steps"] > 0
    assert (mine / "mine/imported").read_text() == "yes\nyes\n"
    assert not any(name.split(".")[0] == "mine" for name in sys.modules)

    def swapped(name, own_code):       # between the check and the worker's own look
        found = read_method("finetune", own_code)
        (mine / "swapped.toml").write_text((mine / "own.toml").read_text())
        return found

    (mine / "swapped.toml").write_text('paper = "x"\nrate = 0.1\n')
    monkeypatch.setattr("edgecl.rounds.run.read_method", swapped)
    with pytest.raises(BudgetError, match=r"swapped\.toml names code of its author's own"):
        Learner.open(mine / "state").round(RoundRequest(str(mine / "swapped.toml"), 600, 10**9, own_code=False))
    assert (mine / "mine/imported").read_text() == "yes\nyes\n"
    (mine / "mine/parts.py").write_text("import nowhere_to_be_found")
    assert "needs a module 'nowhere_to_be_found'" in refused(capsys, "bench", "--method", mine / "own.toml", "--data",
                                                             "digits", "--seeds", "0")


@pytest.mark.parametrize(("kind", "table", "says"), [
    ("constraint", {"where": "mine.part:Slow", "share": 1}, "there is no module 'mine.part' for mine.part:Slow"),
    ("constraint", {"where": "mine_.parts:Slow", "share": 1}, "there is no module 'mine_'.*put it into"),
    ("constraint", {"where": "mine.parts:Quick", "share": 1}, "mine.parts has no 'Quick'"),
    ("constraint", {"where": "mine.parts:Last", "share": 1},
     "mine.parts:Last is not a constraint; derive the class from edgecl.training.constraints.base.Constraint"),
    ("memory", {"where": "mine.parts:Slow", "share": 1}, "mine.parts:Slow is not a memory"),
    ("head", {"where": "mine.parts:net"}, "mine.parts:net is not a head"),
    ("constraint", {"where": "mine.parts:Slow", "shar": 1}, "'share'; give it share, loud in its table"),
    ("constraint", {"where": "mine.parts:Slow"}, "can't be made of nothing: .*'share'"),
    ("memory", {"where": "mine.parts:Last", "shown": 1, "more": 2}, "'more'; give it shown"),
    ("constraint", {"where": "mine.broken:Slow"}, "importing mine.broken failed: ZeroDivisionError"),
])
def test_a_part_that_cannot_be_made_is_refused_with_the_cure(mine, monkeypatch, kind, table, says):
    (mine / "mine/broken.py").write_text("1 / 0")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, name)
    part = own_part(kind, table, mine / "own.toml")
    method = read_method("finetune")
    method.own[part.where], method.parts[kind] = part, (part.where,)
    with pytest.raises(BadInput, match=says):
        parts_of(method, kind)
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.mark.parametrize(("text", "says"), [
    ('constraint = "mine.parts:Slow"', 'or a table with where = "package.module:Class"'),
    ('[constraint]\nwhere = "mine/parts.py"', "where = 'mine/parts.py' in its constraint; give where"),
    ("[constraint]\nstrength = 1", "where = None in its constraint"),
    ('[constraint]\nwhere = "a:B"\nstrength = [1]', r"strength of its constraint is \[1\]; give a number"),
    ('[constraint]\nwhere = "a:B"\nweights = -1', "weights of its constraint is -1; give a count"),
    ('[constraint]\nwhere = "a:B"\nold = "both"', 'old of its constraint is .both.; give "" or logits or features'),
    ('[constraint]\nwhere = "a:B"\nneeds = ["luck"]', "give a list of a recent and a long-term memory, affine outputs"),
    ('constraint = [{ where = "a:B" }, { where = "a:B" }]', "names a:B twice"),
    ('[constraint]\nwhere = "a:B"\nneeds = ["exemplars"]',
     "its constraint needs exemplars, which memory = none does not"),
    ('[memory]\nwhere = "a:B"\n[[constraint]]\nwhere = "a:C"\n[plasticity]\nwhere = "a:D"', "no rule picks the one"),
])
def test_a_table_that_cannot_be_is_refused_when_the_method_is_read(tmp_path, text, says):
    (tmp_path / "own.toml").write_text(f'paper = "x"\nrate = 0.1\n{text}\n')
    with pytest.raises(BadInput, match=says):
        read_method(tmp_path / "own.toml")


def test_a_network_of_ones_own_is_refused_if_it_is_none(mine, monkeypatch):
    monkeypatch.syspath_prepend(mine)
    assert build("mine.parts:net", (10,), "float32", Softmax, 0).head.weight.shape[-1] == 32
    for where, says in (("mine.parts:flat", "gives Flatten, not two modules"), ("mine.parts:MODULE", "has no 'MODULE'"),
                        ("mine.parts:square", r"makes \[2, 1, 10\].*make a body that gives vectors"),
                        ("mine.parts:nn", "gives NoneType, not two modules")):
        with pytest.raises(BadInput, match=says):
            build(where, (10,), "float32", Softmax, 0)
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def test_commands_that_only_read_a_method_do_not_import_it(mine):
    code = ("import sys; from edgecl.cli import main; code = main(sys.argv[1:])\n"
            "assert not [name for name in sys.modules if name.split('.')[0] in ('mine', 'torch')]; sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code, "methods", "show", str(mine / "own.toml"), "--json"],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "mine.parts:Slow" in done.stdout, done.stderr
    assert not (mine / "mine/imported").exists()
