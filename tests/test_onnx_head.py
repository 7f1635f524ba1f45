"""Heads as ONNX: the same answers as the numpy reference, alone and fused with a backbone."""
from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecl.backbones import build_identity
from edgecl.backbones.graph import finish_backbone
from edgecl.backbones.model_writer import ModelWriter
from edgecl.backbones.session import METADATA_KEY as BACKBONE_KEY
from edgecl.backbones.session import Backbone, open_session
from edgecl.errors import BackboneError
from edgecl.heads.head import NearestRow, Novelty, Scale
from edgecl.heads.onnx_head import METADATA_KEY, OUTPUTS, HeadSession, build_head, fuse
from edgecl.heads.relative_distance import relative_distance
from edgecl.heads.solvers import KINDS, solve
from edgecl.statistics.class_statistics import ClassStatistics
from edgecl.statistics.transform import FeatureTransform

TRANSFORMS = {"plain": FeatureTransform(20, 20), "power": FeatureTransform(20, 20, power=0.5),
              "projected": FeatureTransform(20, 64, projected=True),
              "both": FeatureTransform(20, 48, power=0.5, projected=True, seed=7)}


def taught(kind, transform, classes=6, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    d = transform.source
    x = {f"class {c}": (offset + rng.standard_normal(d) + 0.5 * rng.standard_normal((30, d))).astype(np.float32)
         for c in range(classes)}
    store = ClassStatistics(transform(next(iter(x.values()))).mean(0))
    for label, features in x.items():
        store.add(label, transform(features))
    pooled = store.pooled()
    head = solve(kind, pooled, transform)
    z = np.abs(head.logits(transform(np.concatenate(list(x.values()))))).max()
    head = replace(head, temperature=float(z) / 10 or 1.0)
    near = relative_distance(head, pooled)
    rows = np.concatenate(list(x.values()))[::3]
    units = (rows.mean(0), 1 / rows.std(0)) if seed else (None, None)
    like = NearestRow.of(transform.plain(rows), *units)
    apart = np.linspace(0, 1, classes, dtype=np.float32)
    scales = Scale(apart - 30, apart + 40), Scale(apart - 2, apart / 8 + np.float32(0.5))
    head = replace(head, novelty=Novelty(near, scales[0], like, scales[1], threshold=2.5))
    return head, np.concatenate([*x.values(), rng.standard_normal((20, transform.source)).astype(np.float32)])


def softmax(z):
    odds = np.exp(z - z.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1], ids=["direction", "units"])
def test_the_graph_answers_like_numpy(kind, transform, seed):
    head, features = taught(kind, transform, seed=seed)
    logits, probabilities, distance = HeadSession(build_head(head)).session.run(list(OUTPUTS[1:]), {"input": features})
    expected = head.logits(transform(features))
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(probabilities - softmax(expected / head.temperature)).max() <= 1e-5
    truth = head.novelty.score(transform.plain(features), expected)
    assert np.abs(distance - truth).max() <= 1e-4 * np.abs(truth).max()


@pytest.mark.parametrize(("classes", "offset"), [(1, 0.0), (2, 0.0), (60, 0.0), (5, 1e4)])
@pytest.mark.parametrize("kind", ["slda", "ridge", "nearest-mean"])
def test_the_graph_answers_like_numpy_for_few_many_and_far_classes(kind, classes, offset):
    head, features = taught(kind, TRANSFORMS["plain"], classes, offset)
    probabilities, distance = HeadSession(build_head(head)).session.run(["probabilities", "novelty"],
                                                                        {"input": features + np.float32(offset)})
    expected = head.logits(features + np.float32(offset))
    assert np.abs(probabilities - softmax(expected / head.temperature)).max() <= 1e-4
    truth = head.novelty.score(features + np.float32(offset), expected)
    assert np.abs(distance - truth).max() <= 1e-4 * np.abs(truth).max()


def test_a_session_knows_labels_kind_and_threshold():
    head, features = taught("slda", TRANSFORMS["plain"])
    session = HeadSession(build_head(head))
    assert (tuple(session.labels), session.kind) == (head.labels, "slda")
    assert session.unknown_above == pytest.approx(head.novelty.threshold)
    probabilities, unknown = session(features)
    assert probabilities.shape == (len(features), 6)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert unknown.dtype == bool
    assert unknown.tolist() == (head.novelty.score(features, head.logits(features)) > head.novelty.threshold).tolist()
    assert unknown.any() and not unknown.all()
    assert session.unknown_needs == 0
    for novelty, needs in ((None, None), (Novelty(needs=2), 2)):
        never = HeadSession(build_head(replace(head, novelty=novelty)))
        assert (never.unknown_above, never.unknown_needs) == (None, needs)
        assert never(features)[1] is None


@pytest.mark.parametrize("seed", [0, 1])
def test_an_answer_does_not_depend_on_the_other_samples_of_its_batch(seed):
    head, features = taught("slda", TRANSFORMS["power"], seed=seed)
    session = HeadSession(build_head(head)).session
    features = np.concatenate([features, 1e4 * features[:5], np.zeros((2, 20), np.float32)])
    together = session.run(["novelty"], {"input": features})[0]
    alone = np.concatenate([session.run(["novelty"], {"input": one[None]})[0] for one in features])
    assert np.isfinite(together).all()
    assert np.abs(together - alone).max() <= 1e-5 * np.abs(together).max()


def test_the_same_head_gives_the_same_bytes():
    assert build_head(taught("ridge", TRANSFORMS["both"])[0]) == build_head(taught("ridge", TRANSFORMS["both"])[0])


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_are_those_that_onnx_writes(kind, transform):
    head, _ = taught(kind, transform)
    model = build_head(head)
    read = onnx.load_model_from_string(model)
    onnx.checker.check_model(read, full_check=True)
    assert read.SerializeToString(deterministic=True) == model
    graph = read.graph
    again = helper.make_model(helper.make_graph(
        [helper.make_node(node.op_type, node.input, node.output,
                          **{a.name: helper.get_attribute_value(a) for a in node.attribute}) for node in graph.node],
        graph.name, *([helper.make_tensor_value_info(v.name, v.type.tensor_type.elem_type, shape(v)) for v in values]
                      for values in (graph.input, graph.output)),
        [numpy_helper.from_array(numpy_helper.to_array(w), w.name) for w in graph.initializer]),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="edgecl")
    helper.set_model_props(again, {p.key: p.value for p in read.metadata_props})
    assert again.SerializeToString(deterministic=True) == model
    weights = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    assert np.array_equal(weights["weight"], head.weight) and np.array_equal(weights["bias"], head.bias)


def shape(value):
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def test_a_model_of_many_megabytes_and_any_names_is_written():
    writer = ModelWriter()
    large = np.arange(3_000_000, dtype=np.float32).reshape(1000, 3000)
    x = writer.node("MatMul", ["in", writer.weight("Gewicht äöü 苹果", large)])
    writer.node("LeakyRelu", [x], "out", alpha=0.25)
    model = writer.model("g", {"in": ("float32", ["n", 1000])}, {"out": ("float32", ["n", 3000])},
                         {"k" * 300: "ä" * 200})
    read = onnx.load_model_from_string(model)
    onnx.checker.check_model(read)
    assert np.array_equal(numpy_helper.to_array(read.graph.initializer[0]), large)
    assert read.graph.node[1].attribute[0].f == 0.25
    assert {p.key: p.value for p in read.metadata_props} == {"k" * 300: "ä" * 200}


def test_another_model_is_no_head():
    with pytest.raises(BackboneError, match="not an edgecl head"):
        HeadSession(build_identity(4))


def small_backbone(opset):
    """uint8 [n, 4, 5, 3] -> float32 [n, 20] with names that the head uses as well."""
    weight = np.random.default_rng(1).standard_normal((60, 20)).astype(np.float32) / 60
    nodes = [helper.make_node("Cast", ["input"], ["x"], to=TensorProto.FLOAT),
             helper.make_node("Flatten", ["x"], ["Pow_0"], axis=1),
             helper.make_node("MatMul", ["Pow_0", "weight"], ["logits"])]
    ends = [helper.make_tensor_value_info("input", TensorProto.UINT8, ["n", 4, 5, 3]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 20])]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], [numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8 if opset < 19 else 10
    return finish_backbone(model, "small", "image", [4, 5, 3], 20)


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize(("kind", "transform"), [("slda", "plain"), ("cosine", "power"), ("ridge-projected", "both")])
def test_a_fused_model_equals_its_parts(opset, kind, transform):
    head, _ = taught(kind, TRANSFORMS[transform])
    body, top = small_backbone(opset), build_head(head)
    fused = fuse(body, top)
    onnx.checker.check_model(onnx.load_model_from_string(fused), full_check=True)
    session = open_session(fused)
    assert [x.name for x in session.get_inputs()] == ["input"]
    assert tuple(x.name for x in session.get_outputs()) == OUTPUTS
    images = np.random.default_rng(2).integers(0, 256, (7, 4, 5, 3), dtype=np.uint8)
    found = dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"input": images})))
    features = Backbone(body).features(images)
    expected = HeadSession(top).session.run(list(OUTPUTS[1:]), {"input": features})
    for name, value in zip(OUTPUTS, [features, *expected]):
        assert np.abs(found[name] - value).max() <= 1e-5 * max(np.abs(value).max(), 1e-30)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata[METADATA_KEY])["labels"] == list(head.labels)
    assert json.loads(metadata[BACKBONE_KEY])["name"] == "small"
