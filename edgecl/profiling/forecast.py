"""Forecasts of what a learner will take: memory from the backbone's graph, bytes from shapes alone."""
from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from edgecl.heads.solvers import SERVED, coarser, forms
from edgecl.heads.unknown import MANY_CLASSES, ROW_BYTES, rows_held
from edgecl.learning.plan import LOG_SHARE, NAME_LENGTH, SHORTEST_LOG, statistics_bytes
from edgecl.state.history import HISTORY
from edgecl.state.quota import PAGE, pages
from edgecl.state.space import growth
from edgecl.state.transaction import journal_of

if TYPE_CHECKING:
    from edgecl.statistics.form import Form

# Fitted to ONNX Runtime 1.32 on x86 with glibc: the first four over twelve graphs of 0 to 24 MB of weights;
# KEPT_FACTOR, REUSED_FACTOR and CLASS_MATRICES over lite0, rocket and vectors, as tools/check_forecast.py checks them.
# KEPT_FACTOR is up to 15 % low for networks made up of single convolutions of many MB.
PARSE_FACTOR, LAYOUT_FACTOR = 2.1, 2.8  # while loading: of all weights; of the largest, which is laid out for SIMD
NODE_BYTES = 11_000                     # per operator
ACTIVATION_FACTOR = 2.2                 # of the most live activations: first run, and the block planned from it
KEPT_FACTOR, REUSED_FACTOR = 2.0, 1.0   # held while a head is solved: of all weights; of the most live activations
SQUARE_MATRICES = 2.5                   # float64 D x D at a time while a head is solved or written: W, S, and parts
CLASS_MATRICES = 4                      # float64 C x D then
STORED_BYTES = 400                      # per stored sample in memory, apart from its feature
HEAD_COPIES = 3                         # of the head's bytes: read, parsed, held
FOLDED_OPERATORS = {"DequantizeLinear"}     # merged into the next operator: the output never exists
IN_PLACE = {"Relu", "Clip", "Add", "Sub", "Mul", "Div", "Abs", "Sign", "Sqrt", "Identity", "Flatten", "Reshape"}
HEAD_FRAME_BYTES = 750                  # of a head's graph, apart from its numbers ...
ROWS_FRAME_BYTES = 1_050                # ... and of what finds the nearest of its stored rows
FRAME_BYTES = 4 * PAGE                  # two folders, an empty log, and how far it was acknowledged
DATABASE_EMPTY, GENERATION_BYTES = 6 * PAGE, 250    # bytes of the database, fitted: of none and of each generation,
KNOWN_BYTES, FIGURES_BYTES = 12, 9    # and of each class in a generation's counts and figures, beside its name


class GraphCosts(NamedTuple):
    """Memory costs of a backbone's graph. weights, largest: bytes of all weights and of the largest one as ONNX
    Runtime holds them; nodes: operators; live: bytes of the most activations alive at a time, for one sample."""

    weights: int
    largest: int
    nodes: int
    live: int

    def answering(self, batch: int = 1) -> float:
        """Peak bytes if freed memory goes back at once, as in `edgecl predict`."""
        loading = PARSE_FACTOR * self.weights + LAYOUT_FACTOR * self.largest
        return max(loading, self.weights + ACTIVATION_FACTOR * self.live * batch) + NODE_BYTES * self.nodes

    def learning(self, batch: int = 1) -> float:
        """Bytes held before a head is solved."""
        return KEPT_FACTOR * self.weights + NODE_BYTES * self.nodes + REUSED_FACTOR * self.live * batch


class Knowing(NamedTuple):
    """What a learner holds while it learns. dimensions: of each transform; stored: samples; logged: of them, in the
    log; form: of the statistics; head: bytes of its file; solved: whether `predict` finds it on the disk."""

    dimensions: tuple[int, ...]
    classes: int
    stored: int
    form: Form
    head: int
    logged: int = 0
    solved: bool = True

    def learning(self) -> float:
        """Peak bytes apart from the backbone."""
        squares = [8 * d * d for d in self.dimensions] if self.form.second_moment else [0]
        wide = max(self.dimensions)
        return (SQUARE_MATRICES * max(squares) + sum(squares) - max(squares) + CLASS_MATRICES * 8 * self.classes * wide
                + self.stored * (4 * self.dimensions[0] + STORED_BYTES) + HEAD_COPIES * self.head)

    def answering(self) -> float:
        """Bytes of the head and the log; if the head is not written yet, of solving it."""
        logged = self.logged * (4 * self.dimensions[0] + STORED_BYTES)
        return HEAD_COPIES * self.head + logged if self.solved else self.learning()


class PeakMemory(NamedTuple):
    """Peak resident bytes of a whole process, while it answers and while it learns."""

    answering: int
    learning: int


def memory(graph: GraphCosts, knowing: Knowing, batch: int, bare: PeakMemory, bare_graph: GraphCosts,
           bare_knowing: Knowing) -> PeakMemory:
    """Memory of a process, from `bare`: what a process with a tiny backbone of the same kind took."""
    def terms(graph: GraphCosts, knowing: Knowing) -> tuple[float, float]:
        return graph.answering() + knowing.answering(), graph.learning(batch) + knowing.learning()

    more = [own - tiny for own, tiny in zip(terms(graph, knowing), terms(bare_graph, bare_knowing))]
    return PeakMemory(round(bare.answering + more[0]), round(bare.learning + more[1]))


# the graph --------------------------------------------------------------------------------------


def read_graph(model: bytes) -> GraphCosts:
    """The costs of an ONNX file, without running it. Constants are folded, as ONNX Runtime does."""
    import onnx

    proto = onnx.load_model_from_string(model)
    graph, sizes = proto.graph, _sizes(proto)
    held = {w.name: prod(w.dims) * _item(w.data_type) for w in graph.initializer}
    users: dict[str, list[int]] = {}
    for place, node in enumerate(graph.node):
        for name in node.input:
            users.setdefault(name, []).append(place)
    alive = {value.name: sizes.get(value.name, 0) for value in graph.input if value.name not in held}
    outputs = {value.name for value in graph.output}
    most, nodes = sum(alive.values()), 0
    for place, node in enumerate(graph.node):
        ending = [n for n in dict.fromkeys(node.input) if users[n][-1] == place and n not in outputs]
        if not any(name in alive for name in node.input):
            first = held.get(node.input[0], 0) if node.input else 0
            held |= {n: first if node.op_type in FOLDED_OPERATORS else sizes.get(n, 0) for n in node.output}
            for name in ending:
                held.pop(name, None)
            continue
        nodes += 1
        for name in node.output:
            into = {graph.node[i].op_type for i in users.get(name, ())}
            size = 0 if node.op_type in FOLDED_OPERATORS or into == {"QuantizeLinear"} else sizes.get(name, 0)
            taken = next((n for n in ending if node.op_type in IN_PLACE and alive.get(n) == size), None)
            alive |= {name: size} if taken is None else {name: size, taken: 0}
        most = max(most, sum(alive.values()))
        for name in ending:
            alive.pop(name, None)
    return GraphCosts(sum(held.values()), max(held.values(), default=0), nodes, most)


def _sizes(proto: Any) -> dict[str, int]:
    """Bytes of every tensor of a model for one sample, if its shape can be inferred."""
    from onnx import shape_inference

    for value in (*proto.graph.input, *proto.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if not axis.HasField("dim_value"):
                axis.dim_value = 1
    inferred = shape_inference.infer_shapes(proto).graph
    return {value.name: _item(value.type.tensor_type.elem_type)
            * prod(axis.dim_value or 1 for axis in value.type.tensor_type.shape.dim)
            for value in (*inferred.value_info, *inferred.input, *inferred.output)}


def _item(kind: int) -> int:
    from onnx import helper

    return int(helper.tensor_dtype_to_np_dtype(kind).itemsize)


# bytes ------------------------------------------------------------------------------------------


def head_bytes(kind: str, dimension: int, classes: int, form: Form, name: int = NAME_LENGTH,
               rows: int | None = None) -> int:
    """Bytes of a head's file. name: characters of a class name, in the mean; rows: stored rows that it has room for,
    None if no samples judge it: then nothing in it tells unknown samples."""
    transformed = SERVED[kind].projected
    d = form.projected if transformed else dimension
    numbers = (classes + 1) * d + classes
    near = rows is not None and (not rows or classes >= MANY_CLASSES)
    if near and form.second_moment and not SERVED[kind].normalised and classes > 1:
        directions = min(classes - 1, d)  # in which the class means differ; they decide what is unknown
        numbers += 2 * classes * (directions + 1) + directions
    size = HEAD_FRAME_BYTES + 4 * numbers + classes * (name + 4) + (dimension * d if transformed else 0)
    return size + (rows * (dimension + ROW_BYTES) + 8 * dimension + ROWS_FRAME_BYTES if rows else 0)


def class_bytes(kind: str, dimension: int, classes: int, form: Form, name: int = NAME_LENGTH) -> tuple[int, int]:
    """Bytes by which statistics and head grow from `classes` to one class more."""
    before, after = ((statistics_bytes(dimension, n, form, name), head_bytes(kind, dimension, n, form, name))
                     for n in (classes, classes + 1))
    return after[0] - before[0], after[1] - before[1]


def form_of(kind: str, dimension: int, present: Form) -> Form:
    """The form of statistics that a kind of head is counted with: the present one if it serves that head."""
    if SERVED[kind].projected and not present.projected:
        return forms(kind, dimension)[0]
    if SERVED[kind].second_moment and not present.second_moment:
        return forms(kind, dimension)[0]
    return present if SERVED[kind].second_moment else present._replace(projected=0)


class Room(NamedTuple):
    """A quota and what it holds apart from classes. samples: bytes of the exemplar buffer; segment: of one of its
    files; photos: whether samples are photos."""

    quota: int
    backbone: int
    samples: int
    segment: int
    photos: bool = False

    def rows(self, dimension: int, classes: int) -> int | None:
        """Stored rows that a head has room for; None if no samples judge it."""
        return rows_held(self.samples, self.photos, dimension, classes) if self.samples else None

    def classes(self, kind: str, dimension: int, form: Form, name: int = NAME_LENGTH, log: bool = False) -> int:
        """How many classes fit with that head. log: with a full log and a head that is not solved yet; else with an
        empty log. At a commit, statistics and head exist twice. Beside them, it leaves room to pack the exemplars, or
        for another change: the database may grow by each, and SQLite's journal is a copy of it."""
        def fits(classes: int) -> bool:
            head = pages(head_bytes(kind, dimension, classes, form, name, self.rows(dimension, classes)))
            statistics = pages(statistics_bytes(dimension, classes, form, name))
            listed = classes * (name + KNOWN_BYTES + (name + FIGURES_BYTES if self.samples else 0))
            database = pages(DATABASE_EMPTY + min(classes, HISTORY) * GENERATION_BYTES + 2 * listed)    # of two heads
            grown = growth(GENERATION_BYTES + listed)
            files = -(-self.samples // self.segment)    # of which the last page is half empty
            samples = pages(self.samples + files * PAGE // 2)
            taken = pages(self.backbone) + FRAME_BYTES + database + grown + journal_of(database + grown)
            taken += samples + max(self.segment + 2 * PAGE, grown)
            waiting = max(LOG_SHARE * max(statistics, self.samples), SHORTEST_LOG) + head if log else 0
            return taken + waiting + 2 * (statistics + head) <= self.quota

        low, high = 0, 1
        while high < 2 ** 24 and fits(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low


def coarsest(form: Form, dimension: int) -> Form:
    """The coarsest form that a form becomes before a class is refused."""
    return [form, *coarser(form, dimension)][-1]
