"""Splits a backbone file into a frozen trunk and a top with trainable weights, and puts it together again.

A cut is an activation that carries everything the layers after it depend on. The layers below run once per sample, in
ONNX Runtime; those above are trained, and their weights are written back into the same graph, so the tuned backbone has
the size, the speed and the form of the old one.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgecl.backbones.graph import finish_backbone, set_metadata
from edgecl.backbones.session import METADATA_KEY, BackboneInfo
from edgecl.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

LEARNED = {"Conv", "Gemm", "MatMul"}    # operators whose weights are learned


@dataclass(frozen=True)
class Cut:
    """A place to cut. tensor: name of the activation; shape: of one sample; weights: number of learned values above."""

    tensor: str
    shape: tuple[int, ...]
    weights: int

    @property
    def values(self) -> int:
        """Number of values in one sample's activation."""
        return math.prod(self.shape)


class Operation(NamedTuple):
    """One operator: its kind, the names of its inputs and its output, and its attributes."""

    kind: str
    given: list[str]
    made: str
    about: dict[str, Any]


@dataclass(frozen=True)
class LayersAbove:
    """The layers above a cut. nodes: in order; weights: name -> values, as served; input, output: tensor names."""

    nodes: list[Operation]
    weights: dict[str, NDArray[Any]]
    input: str
    output: str


class Anatomy:
    """The parts of a backbone file, and the places where it can be cut."""

    def __init__(self, model: bytes) -> None:
        self.model = _unshared(onnx.load_model_from_string(model))
        self.info = BackboneInfo.from_json(metadata(self.model)[METADATA_KEY])
        self.stored = {each.name: each for each in self.model.graph.initializer}
        self.casts = {node.output[0]: node.input[0] for node in self.model.graph.node
                      if node.op_type == "Cast" and node.input[0] in self.stored}
        self.nodes = [node for node in self.model.graph.node if node.output[0] not in self.casts]
        self.output = self.model.graph.output[0].name

    def cuts(self) -> list[Cut]:
        """The places between blocks with something to learn above them, lowest first; none in an int8 backbone."""
        places = list({cut.weights: cut for cut in self.places()}.values())     # the last with the same weights above
        return [cut for place, cut in enumerate(places)
                if cut.weights and _narrow(places[:place], cut, places[place + 1:])]

    def places(self) -> list[Cut]:
        """All activations that carry everything the layers after them depend on."""
        shapes, left = self.shapes, self._uses()
        alive, found = {self.model.graph.input[0].name}, list[tuple[int, str]]()
        for place, node in enumerate(self.nodes):
            for name in filter(left.__contains__, node.input):
                left[name] -= 1
            alive = {name for name in (*alive, *node.output) if left.get(name)}
            if len(alive) == 1 and shapes.get(name := next(iter(alive))):
                found.append((place, name))
        return [Cut(name, shapes[name], sum(self.values(w).size for w in self._learned(self.nodes[place + 1:])))
                for place, name in found]

    def cut(self, blocks: int | None = None) -> Cut:
        """The place below the last `blocks` blocks; by default the one before the map is halved for the last time, or
        the lowest if it never is. Raises BackboneError if the backbone has fewer blocks that can be tuned, or none."""
        cuts = self.cuts()
        if not cuts:
            raise BackboneError(f"{self.info.name} in {self.info.precision} has no layer that can be tuned",
                                "use a backbone with float convolutions")
        if blocks is not None and not 1 <= blocks <= len(cuts):
            raise BackboneError(f"{self.info.name} has {len(cuts)} blocks that can be tuned, not {blocks}",
                                f"give 1 to {len(cuts)}")
        if blocks is not None:
            return cuts[-blocks]
        sides = [math.prod(cut.shape[1:]) for cut in cuts]
        last = min((side for side in sides if side > 1), default=1)
        return next((cut for cut, side in zip(reversed(cuts), reversed(sides)) if side > last), cuts[0])

    def cut_at(self, tensor: str) -> Cut:
        """The place of a named activation. Raises BackboneError if there is none."""
        place = next((cut for cut in self.places() if cut.tensor == tensor), None)
        if place is None:
            raise BackboneError(f"{self.info.name} has no activation {tensor}", "report this")
        return place

    def live(self, cut: Cut) -> int:
        """Number of values in all activations above a cut, for one sample."""
        return sum(math.prod(self.shapes.get(name, (0,))) for node in self._above(cut) for name in node.output)

    def _above(self, cut: Cut) -> list[onnx.NodeProto]:
        first = next((i for i, node in enumerate(self.nodes) if cut.tensor in node.output), -1) + 1
        return self.nodes[first:]

    def values(self, name: str) -> NDArray[Any]:
        """A weight as served: float32, even if it is stored as float16."""
        values = numpy_helper.to_array(self.stored[self.casts.get(name, name)])
        return values.astype(np.float32) if name in self.casts else values

    def _learned(self, nodes: list[onnx.NodeProto]) -> list[str]:
        constants = {*self.stored, *self.casts}
        return [name for node in nodes if node.op_type in LEARNED for name in node.input[1:] if name in constants]

    def _uses(self) -> dict[str, int]:
        """How often each activation is used; being the output counts once."""
        uses: dict[str, int] = {}
        constants = {*self.stored, *self.casts}
        for name in (self.output, *(name for node in self.nodes for name in node.input if name not in constants)):
            uses[name] = uses.get(name, 0) + 1
        return uses

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one sample's activation, of all that are float32 and whose shape is known."""
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        found: dict[str, tuple[int, ...]] = {}
        for value in (*inferred.value_info, *inferred.output):
            sides = [side.dim_value for side in value.type.tensor_type.shape.dim]
            if value.type.tensor_type.elem_type == TensorProto.FLOAT and len(sides) > 1 and all(sides[1:]):
                found[value.name] = tuple(sides[1:])
        return found

    def trunk(self, cut: Cut) -> bytes:
        """The graph up to a cut, as an ONNX model with float32 output."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info(cut.tensor, TensorProto.FLOAT, ["n", *cut.shape]))
        _prune(model)
        return bytes(model.SerializeToString())

    def top(self, cut: Cut) -> LayersAbove:
        """The layers above a cut."""
        nodes = self._above(cut)
        made = {name for node in nodes for name in node.output} | {cut.tensor}
        needed = {name for node in nodes for name in node.input if name and name not in made}
        plain = [Operation(node.op_type, list(node.input), node.output[0], {
            each.name: helper.get_attribute_value(each) for each in node.attribute}) for node in nodes]
        return LayersAbove(plain, {name: self.values(name) for name in sorted(needed)}, cut.tensor, self.output)

    def rebuilt(self, weights: Arrays) -> bytes:
        """The same backbone with new weights, each stored in the dtype of the one it replaces."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        stored = {each.name: each for each in model.graph.initializer}
        for name, values in weights.items():
            place = stored[self.casts.get(name, name)]
            old = numpy_helper.to_array(place)
            if old.shape != values.shape:
                raise BackboneError(f"weight {name} has shape {list(values.shape)}, not {list(old.shape)}",
                                    "report this")
            place.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, old.dtype), place.name))
        return stamped(model, self.info)

    def as_stored(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """A weight after storing it in the file's dtype and reading it back."""
        dtype = numpy_helper.to_array(self.stored[self.casts.get(name, name)]).dtype
        return values.astype(dtype).astype(np.float32)


def kept_dtype(cut: Cut) -> np.dtype[Any]:
    """The dtype for storing activations: float16 for maps, float32 for vectors, whose values may be of any size."""
    return np.dtype(np.float16 if len(cut.shape) == 3 else np.float32)


def _narrow(below: list[Cut], cut: Cut, above: list[Cut]) -> bool:
    """Whether a place is between blocks, not inside one that has widened its input and not yet narrowed it again."""
    before = next((other for other in reversed(below) if other.values != cut.values), None)
    after = next((other for other in above if other.values != cut.values), None)
    return (before is None or before.values > cut.values) and (
        after is None or after.values > cut.values or after.shape[1:] != cut.shape[1:])


def _unshared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with separate weights for each layer: torch's exporter stores equal ones once, shared by Identity."""
    stored = {each.name: each for each in model.graph.initializer}
    shared = [node for node in model.graph.node if node.op_type == "Identity" and node.input[0] in stored]
    for node in shared:
        model.graph.node.remove(node)
        own = model.graph.initializer.add()
        own.CopyFrom(stored[node.input[0]])
        own.name = node.output[0]
    return model


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The metadata of a model."""
    return {entry.key: entry.value for entry in model.metadata_props}


def stamped(model: onnx.ModelProto, info: BackboneInfo) -> bytes:
    """A changed backbone as a file, with its metadata written again for the new graph."""
    kept = {key: value for key, value in metadata(model).items() if key != METADATA_KEY}
    del model.metadata_props[:]
    set_metadata(model, kept)
    return finish_backbone(model, info.name, info.kind, info.input_shape, info.dimension, info.precision)


def _prune(model: onnx.ModelProto) -> None:
    """Remove nodes and weights that no output needs."""
    needed, kept = {value.name for value in model.graph.output}, list[onnx.NodeProto]()
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            kept.insert(0, node)
            needed |= set(node.input)
    weights = [each for each in model.graph.initializer if each.name in needed]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(weights)
