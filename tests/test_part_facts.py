"""What the rows of `PARTS` say a part costs, against what a round with it holds, and with all that asks for an old
network: tensors are counted, at every pass and step of a second round."""
from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest
import torch
from helpers_parts import example_numbers

from edgecl.rounds.method import read_method
from edgecl.rounds.parts import LOGITS, PARTS, STATISTICS, own_part
from edgecl.training.bench.options import RunOptions
from edgecl.training.bench.session import MethodRun
from edgecl.training.worker import forecast

ROUNDS = 1      # completed before the one that is counted
IN_A_STATE = [(kind, name) for kind in ("memory", "constraint", "balance", "head") for name, row in PARTS[kind].items()
              if not row.bench_only and not (row.gives | row.needs) & (STATISTICS | PARTS["memory"]["fearnet"].gives)]
MEMORIES = [name for kind, name in IN_A_STATE if kind == "memory"]
ASKING = [(kind, name) for kind, rows in PARTS.items() for name, row in rows.items() if row.old]


def composed(folder, **parts):
    """A method of these parts, with exemplars that are replayed if they name no memory."""
    needed = frozenset().union(*(PARTS[kind][name].needs for kind, name in parts.items()))
    parts = {"memory": "recorded" if needed & LOGITS else "reservoir", **parts}
    numbers = {key: value for kind, name in parts.items() for key, value in example_numbers(kind, name).items()}
    values = {"paper": "x", "rate": 0.001, "momentum": 0.9, "clip": 1.0, **parts, **numbers}
    path = folder / "own.toml"
    path.write_text("".join(f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}\n"
                            for key, value in values.items()))
    return read_method(path), path


def live():
    """Bytes of all tensors made since `gc.freeze`."""
    found = {}
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor):
            storage = each.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def held(path, each=6, batch=4, width=64):
    """The most bytes that tensors hold in the second of two rounds of two classes, and those of the weights. each:
    samples of a class, vectors of some width."""
    x = np.random.default_rng(0).standard_normal((4 * each, width)).astype(np.float32)
    y = np.arange(4 * each) % 2
    gc.collect()
    gc.freeze()
    run = MethodRun(path, "mlp", (width,), "float32", 10**8, 0, RunOptions(epochs=1, batch=batch))
    run.network.block = batch
    run.learn(x[:2 * each], y[:2 * each])
    most = []
    run.network.body.register_forward_hook(lambda *_: most.append(live()))
    run.learn(x[2 * each:], y[2 * each:] + 2, lambda *_: most.append(live()))
    weights = sum(p.nbytes for p in run.network.parameters())
    return max(most), weights


@pytest.fixture(scope="module", autouse=True)
def thawed():
    """What `held` freezes stays frozen to the end: gc.collect would otherwise go through all of torch each time."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def held_without():
    """What `held` has found for a memory, with phases or not, and no part that asks for an old network."""
    return {}


BETWEEN_PASSES = forecast.STEPPING - 0.6       # the gradient at its own pace lives inside a step


@pytest.mark.parametrize(("kind", "name"), IN_A_STATE)
def test_a_round_holds_no_more_copies_of_the_weights_than_its_forecast(tmp_path, kind, name):
    method, path = composed(tmp_path, **{kind: name})
    most, weights = held(path)
    assert most / weights <= BETWEEN_PASSES + forecast.weight_copies(method, ROUNDS)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, name in IN_A_STATE if kind in ("memory", "balance")
                                            or PARTS[kind][name].copies or PARTS[kind][name].old == "features"])
def test_nor_more_copies_of_the_samples(tmp_path, kind, name):
    method, path = composed(tmp_path, **{kind: name})
    each, batch, width = 250, 10, 512
    most, weights = held(path, each, batch, width)
    size = forecast.RoundSize(4 * each, batch, ROUNDS, 2)
    copies = 1 + sum(row.copies for _, row in method.rows())
    steps = 4 * batch * (width + 2 * (256 + 128)) + forecast.BATCH * 2 * batch * width      # numbers, layers included
    told = 4 * (copies * size.samples * width + each * width + steps) + forecast.old_outputs(method, size, 128)
    assert most <= told + (BETWEEN_PASSES + forecast.weight_copies(method, ROUNDS)) * weights


@pytest.mark.parametrize(("memory", "asking", "phases"), [
    (memory, asking, phases) for memory, asking, phases in itertools.product(MEMORIES, ASKING, (False, True))
    if not phases or PARTS["memory"][memory].gives])
def test_an_old_network_is_forecast_when_the_loop_copies_one(tmp_path, held_without, memory, asking, phases):
    parts = {"memory": memory, **({"balance": "fine-tuning"} if phases else {})}
    if (memory, phases) not in held_without:
        held_without[memory, phases], _ = held(composed(tmp_path, **parts)[1])
    method, path = composed(tmp_path, **parts, **dict([asking]))
    most, weights = held(path)
    extra = (most - held_without[memory, phases]) / weights
    assert extra <= forecast.old_networks(method) + 0.25
    if not phases:
        assert extra >= forecast.old_networks(method) - 0.75       # which it does, not always at the fullest moment


def test_the_case_that_was_forecast_without_it(tmp_path):
    assert forecast.weight_copies(composed(tmp_path, memory="reservoir", constraint="distillation")[0], 0) == 1
    assert forecast.weight_copies(composed(tmp_path, memory="herding", constraint="distillation")[0], 0) == 0
    assert forecast.weight_copies(composed(tmp_path, memory="reservoir", head="sigmoid")[0], 0) == 1


def test_a_part_that_no_row_names_is_an_error(tmp_path):
    method = read_method("er")
    method.parts["constraint"] = ("unheard-of",)
    with pytest.raises(KeyError, match="unheard-of"):
        forecast.weight_copies(method, 0)


def test_a_part_of_ones_own_costs_as_much_as_the_most_expensive_one_unless_its_table_says_so(tmp_path):
    table = {"where": "mine.parts:Mine"}
    mine = own_part("constraint", table, tmp_path / "own.toml")
    assert all(mine.weights >= row.weights and mine.per_round >= row.per_round for row in PARTS["constraint"].values())
    assert mine.old == "features"
    mine = own_part("constraint", {**table, "weights": 2, "per_round": 0, "old": "", "strength": 3.0},
                    tmp_path / "own.toml")
    assert (mine.weights, mine.per_round, mine.old, mine.given) == (2, 0, "", {"strength": 3.0})
    assert own_part("memory", table, tmp_path / "own.toml").replays
    assert not own_part("memory", table, tmp_path / "own.toml").bench_only
    assert own_part("plasticity", table, tmp_path / "own.toml").bench_only
