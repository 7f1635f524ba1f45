"""Walls: what may import what, and what a command must not load."""
from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecl.backbones.graph import GraphBuilder, finish_backbone
from edgecl.learner import Learner
from edgecl.settings import Settings

PACKAGE = Path(__file__).resolve().parents[1] / "edgecl"

LAYERS = (  # a room imports from rows above its own, and within itself; in type-only and late imports too
    "errors",
    "settings images",
    "backbones statistics samples",
    "sources exemplars heads",
    "state",
    "results",
    "learning",
    "rounds",
    "learner",
    "profiling evaluation",
    "training runtime",
    "commands",
    "cli",
    "__main__",
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
SOURCES_MAY = {"errors", "samples", "images"}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def part_of(module):
    """The name in LAYERS that a module inside edgecl falls under."""
    return module.split(".")[0]


def nodes_of(path):
    """All nodes but those under `if TYPE_CHECKING`."""
    def walk(node):
        for child in ast.iter_child_nodes(node):
            if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
                yield child
                yield from walk(child)

    return list(walk(ast.parse(path.read_text("utf-8"))))


def imports_of(path):
    """Modules that a file imports at run time, at its top or within a function."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            if node.module == "edgecl":
                yield from (f"edgecl.{alias.name}" for alias in node.names if not alias.name.startswith("_"))
            else:
                yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path) or "edgecl")
def test_lower_layers_do_not_import_higher_ones(path):
    module, inside = module_of(path), [name for name in imports_of(path) if name.startswith("edgecl.")]
    if not module:
        assert inside == []
        return
    here = part_of(module)
    assert here in LEVEL, f"give {here} a row in LAYERS"
    for name in inside:
        there = part_of(name.removeprefix("edgecl."))
        assert there == here or LEVEL[there] < LEVEL[here], f"{module} imports {name}"
        assert here != "sources" or there in SOURCES_MAY | {"sources"}, f"{module} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path) or "edgecl")
def test_only_training_imports_torch(path):
    torch = [name for name in imports_of(path) if name.split(".")[0] in ("torch", "torchvision")]
    assert not torch or part_of(module_of(path)) == "training"


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path) or "edgecl")
def test_onnx_runtime_is_imported_in_one_place_so_that_its_telemetry_is_off_before(path):
    direct = [name for name in imports_of(path) if name.split(".")[0] == "onnxruntime"]
    assert not direct or module_of(path) == "backbones.onnx_runtime"
    scripts = [node.value for node in nodes_of(path) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert not any(re.search(r"(^|[\n;])\s*(import|from) onnxruntime", text) for text in scripts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path) or "edgecl")
def test_nothing_is_unpickled_or_evaluated(path):
    assert not PICKLES & {name.split(".")[0] for name in imports_of(path)}
    for node in nodes_of(path):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load")
            for keyword in node.keywords:
                assert keyword.arg != "allow_pickle" or ast.unparse(keyword.value) == "False", ast.unparse(node)
            if called == "np.load":
                assert any(keyword.arg == "allow_pickle" for keyword in node.keywords), ast.unparse(node)


# a fresh interpreter ----------------------------------------------------------------------------


def loaded(code, *arguments):
    """The modules that a fresh interpreter has loaded after the code, and what it printed."""
    script = f"import sys, json\n{code}\nprint('MODULES', json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True,
                          timeout=120, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    text, _, modules = done.stdout.rpartition("MODULES ")
    return {name.split(".")[0] for name in json.loads(modules)} | set(json.loads(modules)), text


def command(*arguments):
    """The same after a whole command."""
    return loaded("from edgecl.cli import main\ntry:\n    code = main(sys.argv[1:])\n"
                  "except SystemExit as end:\n    code = end.code\nassert not code, code", *arguments)


HEAVY = {"numpy", "onnxruntime", "onnx", "PIL", "rich", "torch", "torchvision", "sqlite3", "sklearn", "matplotlib"}


def test_importing_edgecl_costs_nothing():
    modules, _ = loaded("import edgecl\nassert edgecl.__version__")
    assert not modules & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["learn", "--help"], ["predict", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    modules, text = command(*arguments)
    assert not modules & HEAVY
    assert "edgecl" in text


def photo(path, shade):
    pixels = np.random.default_rng(shade).integers(0, 60, (40, 50, 3), dtype=np.uint8) + np.uint8(shade)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def image_state(tmp_path_factory):
    """A state on an exported image backbone that knows two classes, and two photos."""
    folder = tmp_path_factory.mktemp("walls")
    g = GraphBuilder()
    pooled = g.node("ReduceMean", [g.node("Cast", ["input"], to=1)], axes=[1], keepdims=0)
    g.node("Flatten", [pooled], "features", axis=1)
    model = g.model("small", {"input": ("uint8", ["n", 16, 16, 3])}, {"features": ("float32", ["n", 48])})
    backbone = folder / "small.onnx"
    backbone.write_bytes(finish_backbone(model, "small", "image", [16, 16, 3], 48))
    learner = Learner.create(folder / "state", Settings(backbone=str(backbone), quota=3_000_000, exemplars=200_000))
    rng = np.random.default_rng(0)
    for label, shade in (("dark", 10), ("light", 150)):
        learner.learn(rng.integers(shade, shade + 60, (25, 16, 16, 3), dtype=np.uint8), label)
    learner.close()
    return folder / "state", photo(folder / "dark.png", 20), photo(folder / "light.png", 160)


def test_learn_on_an_exported_backbone_loads_no_torch(image_state):
    state, _, light = image_state
    modules, text = command("learn", "--state", state, "--class", "light", "--json", light)
    assert not modules & {"torch", "torchvision", "sklearn", "scipy", "matplotlib", "rich"}
    assert json.loads(text)["samples"] == 1


def test_predict_on_an_exported_backbone_loads_no_torch_onnx_or_rich(image_state):
    state, dark, light = image_state
    modules, text = command("predict", "--state", state, dark, light)
    assert not modules & {"torch", "torchvision", "onnx", "google", "sklearn", "scipy", "matplotlib", "rich"}
    assert [json.loads(line)["label"] for line in text.splitlines()] == ["dark", "light"]


def test_predict_on_vectors_needs_no_photo_decoder(tmp_path):
    learner = Learner.create(tmp_path / "state", Settings(backbone="identity", quota=1_000_000, exemplars=50_000))
    rng = np.random.default_rng(0)
    for label, centre in (("a", 0), ("b", 9)):
        learner.learn((centre + rng.standard_normal((10, 4))).astype(np.float32), label)
    learner.close()
    (tmp_path / "x.csv").write_text("0.1,0.2,0.0,0.1\n9,9,9,9\n")
    modules, text = command("predict", "--state", tmp_path / "state", tmp_path / "x.csv")
    assert not modules & {"PIL", "onnx", "torch", "rich"}
    assert [json.loads(line)["label"] for line in text.splitlines()] == ["a", "b"]


ROUNDS = """
import numpy as np
from edgecl.training.bench.session import MethodRun
x, y = np.random.default_rng(0).integers(0, 256, (40, 9, 9, 1), dtype=np.uint8), np.arange(40) // 10
for method in ("finetune", "er", "ewc", "lwf", "icarl"):
    session = MethodRun(method, "cnn", (9, 9, 1), "uint8", 2000, 0)
    for part in (y < 2, y > 1):
        session.learn(x[part], y[part])
    session.predict(x)
"""


def test_learning_rounds_load_no_onnx_and_no_compiler():
    modules, _ = loaded(ROUNDS)
    assert "torch" in modules and not modules & {"onnx", "google", "onnxruntime", "torch._dynamo", "torch.onnx", "PIL"}


DAEMON = """
import time
from pathlib import Path
from edgecl.learner import Learner
from edgecl.runtime.daemon import Daemon
from edgecl.runtime.settings import DaemonSettings
state = Path(sys.argv[1])
daemon = Daemon(DaemonSettings(state, rounds="off", http_listen=sys.argv[2] or None), Learner.open)
daemon.start()
assert daemon.stop()
"""


@pytest.mark.parametrize("listen", ["", "127.0.0.1:0"])
def test_the_daemon_loads_the_http_stack_only_where_it_is_asked_for_and_torch_never(image_state, listen):
    modules, _ = loaded(DAEMON, image_state[0], listen)
    assert not modules & {"torch", "torchvision", "prometheus_client", "multipart", "rich", "paho"}
    assert bool(modules & {"starlette", "uvicorn", "anyio", "h11"}) == bool(listen)
