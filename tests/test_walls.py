"""Walls: what may import what, and what a command must not load."""
from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
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
    "files",
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
ROOT = {"__init__", "__main__", "cli", "errors", "settings", "samples", "images", "learner"}
SOURCES_MAY = {"errors", "samples", "images"}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
MOST_PARAMETERS = 7     # self apart


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


TREES = {module_of(path): ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
BRIDGE = {f"firmware_bridge.{path.stem}": ast.parse(path.read_text("utf-8"))
          for path in sorted((PACKAGE.parent / "firmware_bridge").rglob("*.py"))}


def part_of(module):
    """The room of a module inside edgecl: its name in LAYERS."""
    return module.split(".")[0]


def imports_of(tree, run_time=True):
    """Modules that a file imports, at its top or within a function; run_time: not those under `if TYPE_CHECKING`."""
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if not (run_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"imports are absolute: {ast.unparse(node)}"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                ours = node.module == "edgecl" and not alias.name.startswith("_")
                yield whole if ours or whole.removeprefix("edgecl.") in TREES else node.module


def inside(tree):
    """The modules of edgecl that a file imports, for types or later too."""
    return [name.removeprefix("edgecl.") for name in imports_of(tree, run_time=False) if name.startswith("edgecl.")]


def test_a_room_imports_from_the_rows_above_its_own_and_only_the_package_itself_looks_up():
    assert {part_of(module) for module in TREES} - {""} == set(LEVEL), "give every room its place in LAYERS"
    wrong = [f"{module} imports {name}" for module, tree in TREES.items() if module for name in inside(tree)
             if part_of(name) != part_of(module) and LEVEL.get(part_of(name), 99) >= LEVEL[part_of(module)]]
    assert wrong == []
    assert [name for name in imports_of(TREES[""]) if name.startswith("edgecl.")] == []


def test_modules_do_not_import_each_other_in_a_circle_not_even_for_types():
    arrows = {module: {name for name in inside(tree) if name in TREES} - {module} for module, tree in TREES.items()}
    TopologicalSorter(arrows).prepare()     # CycleError names the modules of a circle


def test_sources_import_little():
    assert [f"{module} imports {name}" for module, tree in TREES.items() if part_of(module) == "sources"
            for name in inside(tree) if part_of(name) not in SOURCES_MAY | {"sources"}] == []


def test_the_root_holds_nine_modules():
    assert {path.stem for path in PACKAGE.glob("*.py")} == ROOT


def test_only_training_imports_torch():
    assert [module for module, tree in TREES.items() if part_of(module) != "training"
            for name in imports_of(tree) if name.split(".")[0] in ("torch", "torchvision")] == []


def test_tools_import_neither_tests_nor_onnx_runtime_past_its_one_module():
    tests = {path.stem for path in Path(__file__).parent.glob("*.py")}
    for path in (PACKAGE.parent / "tools").glob("*.py"):
        names = {name.split(".")[0] for name in imports_of(ast.parse(path.read_text("utf-8")))}
        assert not names & {*tests, "onnxruntime"}, path.name
        assert '"tests"' not in path.read_text("utf-8"), path.name


def test_onnx_runtime_is_imported_in_one_place_so_that_its_telemetry_is_off_before():
    assert {module for module, tree in TREES.items() for name in imports_of(tree)
            if name.split(".")[0] == "onnxruntime"} == {"backbones.onnx_runtime"}
    scripts = [(module, node.value) for module, tree in TREES.items() for node in ast.walk(tree)
               if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [module for module, text in scripts if re.search(r"(^|[\n;])\s*(import|from) onnxruntime", text)] == []


def test_nothing_is_unpickled_or_evaluated():
    assert [module for module, tree in TREES.items()
            if PICKLES & {name.split(".")[0] for name in imports_of(tree)}] == []
    calls = [(module, node) for module, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    wrong = []
    for module, call in calls:
        called = ast.unparse(call.func)
        pickles = [ast.unparse(each.value) for each in call.keywords if each.arg == "allow_pickle"]
        careless = pickles not in ([], ["False"]) or (called == "np.load" and not pickles)
        if careless or called in ("eval", "exec", "torch.load"):
            wrong.append(f"{module}: {ast.unparse(call)}")
    assert wrong == []


def test_a_class_name_means_one_thing():
    homes = {}
    for module, tree in {**TREES, **BRIDGE}.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def test_no_function_has_more_than_seven_parameters():
    wide = {}
    for module, tree in {**TREES, **BRIDGE}.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                taken = node.args
                names = [each.arg for each in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)]
                count = len(names) - (names[:1] in (["self"], ["cls"])) + bool(taken.vararg) + bool(taken.kwarg)
                if count > MOST_PARAMETERS:
                    wide[f"{module}.{node.name}"] = count
    assert wide == {}


# a fresh interpreter ----------------------------------------------------------------------------


def loaded(code, *arguments):
    """The modules that a fresh interpreter has loaded after the code, and what it printed."""
    script = f"import sys, json\n{code}\nprint('MODULES', json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True,
                          timeout=600, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
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
