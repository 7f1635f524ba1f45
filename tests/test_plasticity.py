"""Sub-networks: one contract for every method that has them, on real rounds; their rules, masks and files."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_plasticity import SHAPES, answers, everything, made_up, rng, session, steps, taught

from edgecl.backbones.onnx_runtime import onnxruntime
from edgecl.errors import BadInput, BudgetError
from edgecl.evaluation.report import tasks_and_units
from edgecl.rounds.method import FOLDER, method_names, read_method
from edgecl.rounds.parts import PARTS
from edgecl.training.networks.heads import Softmax
from edgecl.training.networks.network import build
from edgecl.training.plasticity.masks import bits_for, pack, unpack, weight_names
from edgecl.training.plasticity.prune_unused import compacted
from edgecl.training.plasticity.task_rules import pick

METHODS = [name for name in method_names() if read_method(name).plastic]
FROZEN = [name for name in METHODS if name != "den"]     # which goes on changing old units a little
UNITS = ("clnp", "pathnet", "cpg", "den")      # which act on single units


# the contract ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", FROZEN)
def test_a_frozen_sub_network_does_not_change_by_a_bit(method):
    learner, before = session(method, epochs=2), []
    for x, y in steps():
        learner.learn(x, y)
        before.append(answers(learner, len(before), everything()))
        for task, old in enumerate(before):
            found = answers(learner, task, everything())
            assert all(a.tobytes() == b.tobytes() for a, b in zip(old, found)), task
    parts = learner.parts.plasticity
    used = [torch.cat([mask.flatten() for mask in parts.masks(learner.network, k).values()]) for k in range(3)]
    assert all(0 < mask.float().mean() < 1 for mask in used[:2]), "each is a part of the network"
    assert not torch.equal(used[0], used[1])


@pytest.mark.parametrize("head", [name for name in PARTS["head"] if name != "softmax"])
@pytest.mark.parametrize("method", FROZEN)
def test_nor_does_one_under_any_other_head(tmp_path, method, head):
    text = (FOLDER / f"{method}.toml").read_text("utf-8")
    (tmp_path / "own.toml").write_text(f'{text}\nhead = "{head}"\n' + "proxies = 3\n" * (head == "proxies"))
    learner = session(tmp_path / "own.toml")
    learner.learn(*steps()[0])
    before = answers(learner, 0, everything())
    for x, y in steps()[1:]:
        learner.learn(x, y)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(before, answers(learner, 0, everything())))


@pytest.mark.parametrize(("method", "network"), [(m, n) for m in METHODS for n in ("cnn", "tcn", "resnet32")])
def test_other_networks_too_and_their_export_answers_the_same(method, network):
    learner, old = session(method, network=network), None
    if network == "resnet32" and method in UNITS:
        with pytest.raises(BadInput, match="--backbone cnn, mlp or tcn"):
            learner.learn(*made_up(network, 0))
        return
    for task in range(2):
        learner.learn(*made_up(network, task))
        old = old or answers(learner, 0, made_up(network, 0)[0])
    x = made_up(network, 0)[0]
    same = [a.tobytes() == b.tobytes() for a, b in zip(old, answers(learner, 0, x))]
    assert all(same) or method not in FROZEN
    found = onnxruntime.InferenceSession(learner.export(), providers=["CPUExecutionProvider"]).run(None, {"input": x})
    with torch.no_grad():
        wanted = learner.parts.plasticity.serve(learner.network)(torch.from_numpy(x))
    for a, b in zip(found, wanted):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_answers_among_a_task_are_its_sub_networks_own(method):
    learner = taught(method)
    for task in range(3):
        z = answers(learner, task, everything())[1]
        assert np.array_equal(learner.predict(everything(), among=[2 * task, 2 * task + 1]), 2 * task + z.argmax(1))


@pytest.mark.parametrize("method", METHODS)
def test_what_does_not_fit_is_refused_with_the_size_before_anything_changed(method):
    learner = taught(method, 1)
    before = learner.state()
    learner.parts.plasticity.room = learner.nbytes + 10
    with pytest.raises(BudgetError, match="give --memory") as refusal:
        learner.learn(*steps()[1])
    assert all(np.array_equal(array, learner.state()[name]) for name, array in before.items())
    needed = int(refusal.value.cure.split()[2])
    learner.parts.plasticity.room = needed
    learner.learn(*steps()[1])
    assert learner.nbytes <= needed


@pytest.mark.parametrize("method", METHODS)
def test_what_units_are_used_is_told(method):
    learner = taught(method)
    usage = learner.usage()
    assert list(usage) == ["body.1", "neck.0"]
    for layer, width in (("body.1", 256), ("neck.0", 128)):
        shares = np.array(usage[layer])
        there = learner.parts.plasticity.subnetwork(learner.network, 0).get_parameter(f"{layer}.weight").shape[0]
        if method == "cpg":
            there = int(width * learner.parts.plasticity.factor) if layer != "neck.0" else width
        assert shares.shape == (3, there) and there >= width and 0 < shares.max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_classes_that_come_again_are_the_last_sub_networks(method):
    learner = taught(method, 2)
    learner.learn(*steps()[0])
    assert [task.columns for task in learner.parts.plasticity.tasks] == [[], [2, 3], [0, 1]]
    z = answers(learner, 2, everything())[1]
    assert np.array_equal(learner.predict(everything(), among=[0, 1]), z.argmax(1))
    exported = onnxruntime.InferenceSession(learner.export(), providers=["CPUExecutionProvider"])
    found = exported.run(["logits"], {"input": everything()})[0]
    assert np.array_equal(found.argmax(1), learner.predict(everything()))


# what can't work ---------------------------------------------------------------------------------


PLASTIC = 'paper = "x"\nrate = 0.1\nplasticity = "packnet"\npruned = 0.5\n'


@pytest.mark.parametrize(("text", "says"), [
    (PLASTIC, "no rule picks the one that answers; give task_rule = entropy or nearest-mean or ncm"),
    ('paper = "x"\nrate = 0.1\ntask_rule = "entropy"\n', "task_rule needs sub-networks.*give plasticity = packnet or"),
    (PLASTIC + 'task_rule = "entropy"\nmemory = "reservoir"\n', "leave out memory"),
    (PLASTIC + 'task_rule = "entropy"\ndecay = 0.1\n', "no decay"),
    (PLASTIC + 'task_rule = "guess"\n', "give one of none, entropy, nearest-mean, ncm"),
])
def test_a_composition_that_cannot_work_is_refused(tmp_path, text, says):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(BadInput, match=says):
        read_method(tmp_path / "own.toml")


@pytest.mark.parametrize("rule", ["entropy", "nearest-mean", "ncm"])
@pytest.mark.parametrize("head", list(PARTS["head"]))
def test_every_rule_with_every_head_is_exported_as_it_answers(tmp_path, rule, head):
    (tmp_path / "own.toml").write_text(PLASTIC + f'task_rule = "{rule}"\nhead = "{head}"\n'
                                       + "proxies = 3\n" * (head == "proxies"))
    learner = taught(tmp_path / "own.toml", epochs=2)
    exported = onnxruntime.InferenceSession(learner.export(), providers=["CPUExecutionProvider"])
    found = exported.run(["logits"], {"input": everything()})[0].argmax(1)
    assert np.array_equal(found, learner.predict(everything()))
    assert (found == np.concatenate([y for _, y in steps()])).mean() > 0.4      # at random: 1/6


# rules and masks ---------------------------------------------------------------------------------


def test_the_chosen_tasks_best_class_is_the_best_of_all():
    generator = rng()
    log_p = [torch.from_numpy(generator.standard_normal((200, k)).astype(np.float32) * 4).log_softmax(1)
             for k in (2, 5, 1)]
    scores = [torch.from_numpy(generator.standard_normal(200).astype(np.float32)) for _ in range(3)]
    logits = pick(log_p, scores)
    best = torch.stack([part.max(1).values for part in logits], 1).argmax(1)
    assert torch.equal(best, torch.stack(scores, 1).argmax(1))
    assert all(torch.equal(a.argmax(1), b.argmax(1)) for a, b in zip(logits, log_p))


def test_numbers_of_any_bits_are_packed_and_found_again():
    for bits in (1, 2, 3, 5, 8):
        numbers = {"a": torch.from_numpy(rng(bits).integers(0, 2**bits, (3, 5), dtype=np.uint8)),
                   "b": torch.from_numpy(rng(9).integers(0, 2**bits, 7, dtype=np.uint8))}
        packed = pack(numbers, bits)
        assert packed.nbytes == -(-22 * bits // 8)
        assert all(torch.equal(numbers[name], t) for name, t in unpack(packed, bits, numbers).items())
    assert [bits_for(n) for n in (1, 2, 3, 4, 7, 8)] == [1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize("name", ["mlp", "cnn", "tcn"])
def test_units_of_no_use_are_gone_and_the_answers_the_same(name):
    net = build(name, *SHAPES[name], Softmax, 0)
    net.head.extend(3, rng())
    with torch.no_grad():
        for weight in (net.state_dict()[each] for each in weight_names(net)):
            weight[::2] = 0
            weight[:, 1::3] = 0
    x = torch.from_numpy(made_up(name, 0)[0])
    wanted, size = net(x), sum(p.numel() for p in net.parameters())
    small, features = compacted(net)
    found = small(x)
    torch.testing.assert_close(found[0], wanted[0][:, features])
    torch.testing.assert_close(found[1], wanted[1])
    assert sum(p.numel() for p in small.parameters()) < 0.6 * size
    assert set(wanted[0].detach().abs().amax(0).nonzero().flatten().tolist()) <= set(features.tolist())


# the file ----------------------------------------------------------------------------------------


def test_what_sub_networks_share_is_in_the_file_once(tmp_path):
    """Nine tasks: their masks take more than a byte."""
    (tmp_path / "own.toml").write_text(PLASTIC + 'task_rule = "entropy"\n')
    learner = session(tmp_path / "own.toml")
    for task in range(9):
        x, y = steps()[task % 3]
        learner.learn(x, y + 10 * task)
    weights = 64 * 256 + 256 * 128
    own = 9 * 4 * (256 + 128 + len(learner.classes) * 129)      # biases, and the head, of which each has a copy
    exported = learner.export()
    assert weights * 6 < len(exported) < weights * 6 + own + 60_000
    runtime = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    found = runtime.run(None, {"input": everything()})
    with torch.no_grad():
        wanted = learner.parts.plasticity.serve(learner.network)(torch.from_numpy(everything()))
    for a, b in zip(found, wanted):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_report_has_a_picture_of_what_each_task_uses():
    learner = taught("clnp")
    drawing = tasks_and_units(learner.usage())
    assert drawing.count("<image") >= 2 and "body.1: 256 units" in drawing
