"""Backbones cut in two: what lies below in ONNX Runtime, what lies above in torch, together what they were."""
from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from helpers_networks import SIDE, convolutions, rng

from edgecl.backbones.adapters import ADAPTER_INPUT, adapted, adapters, with_adapter
from edgecl.backbones.cut import Anatomy
from edgecl.backbones.quantise import quantise_int8, store_fp16
from edgecl.backbones.session import Backbone
from edgecl.errors import BackboneError, BadInput
from edgecl.rounds.method import read_method
from edgecl.training.bench.options import RunOptions
from edgecl.training.bench.session import MethodRun
from edgecl.training.networks.export_vision import SIZE, FeatureExtractor, export
from edgecl.training.networks.from_onnx import WEIGHT, OnnxModule
from edgecl.training.networks.pretrained import Trunk, network_above


def images(n=6, side=SIDE):
    return rng(5).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def halves_agree(model, cut, given):
    anatomy = Anatomy(model)
    below = Trunk(anatomy, cut)
    below.cut = cut
    exact = below.session.run(None, {below.session.get_inputs()[0].name: given})[0]
    above = OnnxModule(anatomy.top(cut)).eval()
    with torch.no_grad():
        found = above(torch.from_numpy(exact)).numpy()
    wanted = Backbone(model).features(given)
    return np.abs(found - wanted).max() / np.abs(wanted).max()


def test_every_cut_of_a_small_network_leaves_the_features_what_they_were():
    model = convolutions()
    cuts = Anatomy(model).cuts()
    assert len(cuts) >= 3
    assert all(a.weights > b.weights for a, b in pairwise(cuts))
    for cut in cuts:
        assert halves_agree(model, cut, images()) < 1e-5


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "efficientnet_b0"])
def test_networks_of_torchvision_agree_above_the_usual_cut(name, tmp_path):
    torch.manual_seed(0)
    export(FeatureExtractor(name).eval(), name, tmp_path / "net.onnx")
    model = (tmp_path / "net.onnx").read_bytes()
    cut = Anatomy(model).cut()
    assert cut.shape[1:] == (SIZE // 16, SIZE // 16)      # before the last halving
    assert halves_agree(model, cut, images(2, SIZE)) < 1e-4


def test_lite0_is_cut_below_its_top_five_blocks():
    from edgecl.backbones import build_image

    model = build_image("efficientnet-lite0")
    anatomy = Anatomy(model)
    assert anatomy.cut().shape == (112, 14, 14)     # the input of block 11 of 16
    assert anatomy.cut(1).weights < anatomy.cut(3).weights < anatomy.cut().weights
    assert halves_agree(model, anatomy.cut(), images(2, 224)) < 1e-5
    assert halves_agree(store_fp16(model), anatomy.cut(2), images(2, 224)) < 1e-5


def test_learned_weights_go_back_into_the_same_file():
    model = convolutions()
    anatomy = Anatomy(model)
    top = OnnxModule(anatomy.top(anatomy.cut()))
    assert anatomy.rebuilt(top.weights()) == model
    with torch.no_grad():
        for p in top.parameters():
            p.add_(0.01)
    tuned = anatomy.rebuilt(top.weights())
    assert len(tuned) == len(model)
    assert halves_agree(tuned, anatomy.cut(), images()) < 1e-5
    assert np.abs(Backbone(tuned).features(images()) - Backbone(model).features(images())).max() > 1e-3
    frozen = {"w0", "b0"}     # below the cut
    before, after = ({w.name: w.raw_data for w in onnx.load_model_from_string(m).graph.initializer}
                     for m in (model, tuned))
    assert {name for name in before if before[name] == after[name]} >= frozen
    assert Backbone(tuned).info.graph_sha256 != Backbone(model).info.graph_sha256


def test_weights_stored_as_float16_come_back_as_they_will_serve():
    anatomy = Anatomy(store_fp16(convolutions((16, 32, 32), (2, 1, 2))))
    top = OnnxModule(anatomy.top(anatomy.cut()))
    with torch.no_grad():
        for p in top.parameters():
            p.mul_(1.0001)
    weights = top.weights()
    top.load({name: anatomy.as_stored(name, values) for name, values in weights.items()})
    tuned = anatomy.rebuilt(weights)
    assert Backbone(tuned).info.precision == "fp16"
    below = Trunk(anatomy, anatomy.cut())
    exact = below.session.run(None, {"image": images()})[0]
    with torch.no_grad():
        found = top.eval()(torch.from_numpy(exact)).numpy()
    wanted = Backbone(tuned).features(images())
    assert np.abs(found - wanted).max() / np.abs(wanted).max() < 1e-5


def test_an_adapter_changes_nothing_until_it_is_tuned():
    model = convolutions()
    wide = with_adapter(model, 0)
    assert (adapters(model), adapters(wide)) == (0, 1)
    np.testing.assert_array_equal(Backbone(wide).features(images()), Backbone(model).features(images()))
    anatomy = Anatomy(wide)
    cut = anatomy.cut_at(ADAPTER_INPUT)
    top = OnnxModule(anatomy.top(cut))
    with torch.no_grad():
        top.get_parameter(next(name for name, (w, _) in top.origin.items() if w == "adapter.up")).normal_(0, 0.1)
    tuned = anatomy.rebuilt(top.weights())
    assert halves_agree(tuned, cut, images()) < 1e-5
    f = Backbone(model).features(images())
    np.testing.assert_allclose(adapted(tuned, f), Backbone(tuned).features(images()), rtol=1e-4, atol=1e-5)


def test_an_adapter_comes_on_top_of_earlier_ones_and_is_tuned_alone():
    def tuned(model, seed):
        anatomy = Anatomy(with_adapter(model, 0))
        cut = anatomy.cut_at(ADAPTER_INPUT)
        top = OnnxModule(anatomy.top(cut))
        torch.manual_seed(seed)
        assert {was for was, _ in top.origin.values()} == {"adapter.down", "adapter.bias", "adapter.up"}
        with torch.no_grad():
            top.get_parameter(next(n for n, (w, _) in top.origin.items() if w == "adapter.up")).normal_(0, 0.1)
        return anatomy.rebuilt(top.weights())

    models = [convolutions()]
    for seed in range(3):
        models.append(tuned(models[-1], seed))
        assert adapters(models[-1]) == seed + 1
        below, above = (Backbone(model).features(images()) for model in models[-2:])
        assert np.abs(above - below).max() > 1e-2
        np.testing.assert_allclose(adapted(models[-1], below), above, rtol=1e-4, atol=1e-5)


def test_what_can_not_be_tuned_is_refused_with_the_cure():
    small = quantise_int8(convolutions(), images(16))
    with pytest.raises(BackboneError, match="no layer that can be tuned"):
        Anatomy(small).cut()
    with pytest.raises(BackboneError, match="not 99; give 1 to"):
        Anatomy(convolutions()).cut(99)
    with pytest.raises(BadInput, match="no network 'cnnn'; give one of mlp, cnn"):
        MethodRun("er", "cnnn", (32, 32, 3), "uint8", 10**6, 0)


def test_steps_are_in_proportion_to_the_gain_that_was_folded_into_a_row():
    """A row that is twice as large takes steps four times as large; rows of the usual size, those of plain SGD."""
    anatomy = Anatomy(convolutions())
    top = OnnxModule(anatomy.top(anatomy.cut()))
    name = next(n for n, p in top.named_parameters() if p.dim() == 4)
    with torch.no_grad():
        weight = top.get_parameter(name)
        weight[0] = WEIGHT
        weight[1] = 2 * WEIGHT
        weight[2] = 0
    pace = top.paces()[name]
    assert pace.shape == (len(weight), 1, 1, 1)
    assert pace.flatten()[:3].tolist() == pytest.approx([1.0, 4.0, 1.0])


def test_a_session_keeps_activations_of_a_pretrained_backbone_and_exports_all_of_it(tmp_path):
    from edgecl.backbones.onnx_runtime import onnxruntime

    (tmp_path / "net.onnx").write_bytes(convolutions())
    session = MethodRun("er", str(tmp_path / "net.onnx"), (SIDE, SIDE, 3), "uint8", 100_000, 0,
                        RunOptions(epochs=2, rate=0.003))
    x, y = images(40), np.arange(40) % 2
    x[y == 1] //= 3
    below = session.trunk.session.run(None, {"image": x[:1]})[0]
    session.learn(x, y)
    assert session.nothing.x.dtype == torch.float16
    assert session.nbytes <= 100_000
    assert session.nbytes > 10 * below.size * 2
    served = onnxruntime.InferenceSession(session.export())
    logits = served.run(["logits"], {"image": x})[0]
    assert (logits.argmax(1) == session.predict(x)).all()
    assert (session.predict(x) == y).mean() > 0.7


def test_methods_for_rounds_are_at_home_on_any_cut():
    anatomy = Anatomy(convolutions())
    from edgecl.training.networks.heads import Softmax

    for cut in anatomy.cuts():
        network = network_above(anatomy, cut, Softmax)
        network.head.extend(3, rng())
        features, logits = network(torch.zeros((2, *cut.shape), dtype=torch.float16))
        assert features.shape == (2, anatomy.info.dimension)
        assert logits.shape == (2, 3)
    assert read_method("first-session").tuned == "first"
