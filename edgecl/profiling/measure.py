"""Costs of a state, forecast and measured: memory of whole processes, bytes per class and per stored sample."""
from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecl.backbones.graph import GraphBuilder, finish_backbone
from edgecl.backbones.session import BATCH_BYTES
from edgecl.errors import BadInput, StateError
from edgecl.exemplars.buffer import Buffer
from edgecl.exemplars.codecs import KINDS_OF_CODEC, Codec, codec_of
from edgecl.exemplars.product_quantiser import ProductQuantiser, plan
from edgecl.exemplars.stored import file_bytes, row_bytes
from edgecl.heads.onnx_head import build_head
from edgecl.heads.solvers import KINDS
from edgecl.heads.unknown import rows_held
from edgecl.learner import Learner
from edgecl.learning.knowledge import Knowledge
from edgecl.learning.plan import NAME_LENGTH
from edgecl.profiling import forecast
from edgecl.profiling.sandbox import CAMERA, EACH, backbone_bytes, free_name, samples, write_photo
from edgecl.settings import Settings
from edgecl.state.quota import segment_bytes
from edgecl.statistics.transform import FeatureTransform

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgecl.profiling.forecast import PeakMemory
    from edgecl.statistics.form import Form

LARGEST_MOMENT = 2 ** 27    # bytes of G; beyond, bytes per class are only forecast
CHILD = ("import re, sys\nfrom edgecl.cli import main\ncode = main(sys.argv[1:])\n"
         "text = open('/proc/self/status').read()\n"
         "print('MEMORY', *(1024 * int(re.search(rf'{k}:\\s+(\\d+)', text)[1]) for k in ('VmHWM', 'VmRSS')))\n"
         "sys.exit(code)")


@dataclass(frozen=True)
class Resident:
    """Peak resident bytes of a whole process; forecast: before it ran; after: resident bytes when it ended."""

    what: str
    forecast: int
    measured: int
    after: int


@dataclass(frozen=True)
class HeadBytes:
    """Cost of one more class.

    statistics, head: bytes by which their files grow; measured: both, None if measuring would take too much memory;
    more, at_least: classes that still fit the quota with an empty and with a full log; form: of the statistics; chosen:
    whether the state has this head.
    """

    kind: str
    form: str
    statistics: int
    head: int
    measured: float | None
    more: int
    at_least: int
    chosen: bool


@dataclass(frozen=True)
class CodecBytes:
    """Bytes per stored sample, and how many per class the exemplar buffer holds; chosen: whether the state stores its
    samples this way while there is room."""

    codec: str
    each: float
    per_class: int
    chosen: bool


# memory ------------------------------------------------------------------------------------------


class CommandLines(NamedTuple):
    """Command lines that predict one sample, and that learn EACH samples of a class."""

    answer: list[str]
    learn: list[str]


def measure_memory(learner: Learner, folder: Path) -> Iterator[Resident]:
    """Peaks of processes that run `edgecl predict` and `edgecl learn`: forecast, then measured."""
    learner.repository.heads.settle()  # writes a deferred head, as closing it does
    foundation = learner.foundation
    assert foundation is not None
    forecasts = forecast_memory(learner, folder)
    commands = _command_lines(learner, folder, foundation.kind, foundation.input_shape)
    for what, expected, command in zip(("answering", "learning"), forecasts, commands):
        peak, after = _child(command)
        yield Resident(what, expected, peak, after)


def forecast_memory(learner: Learner, folder: Path) -> PeakMemory:
    """Memory that `edgecl predict` and `edgecl learn` will take on this state, from two processes that are run on a
    tiny state of the same kind."""
    foundation = learner.foundation
    assert foundation is not None
    kind = foundation.kind
    with closing(_tiny(kind, folder)) as tiny:
        tiny_graph, tiny_knowing = forecast.read_graph(backbone_bytes(tiny)), knowing(tiny)
        assert tiny.foundation is not None
        commands = _command_lines(tiny, folder, kind, tiny.foundation.input_shape)
    bare = forecast.PeakMemory(*(_child(command)[0] for command in commands))
    size = int(np.prod(foundation.input_shape)) * (1 if kind == "image" else 4)
    batch = min(max(BATCH_BYTES // size, 1), 16)
    return forecast.memory(forecast.read_graph(backbone_bytes(learner)), knowing(learner), batch, bare, tiny_graph,
                           tiny_knowing)


def knowing(learner: Learner) -> forecast.Knowing:
    """What a learner holds in memory, as input of the forecast."""
    foundation, head = learner.foundation, learner.store.newest.head
    assert foundation is not None
    known = learner.repository.known()
    rows = min(len(known.stored), rows_held(learner.settings.exemplars, known.photos, foundation.dimension,
                                            len(known.labels)))
    size = learner.store.blobs.bytes(head) if head else forecast.head_bytes(
        "slda" if foundation.form.second_moment else "nearest-mean", foundation.dimension, len(known.labels),
        foundation.form, rows=rows)
    return forecast.Knowing(tuple(transform.dimension for transform in known.transforms), len(known.labels) + 1,
                            len(known.stored) + EACH, foundation.form, size,
                            sum(len(entry.rows or ()) for entry in learner.store.logged()), head is not None)


def _tiny(kind: str, folder: Path) -> Learner:
    """The smallest state of a kind."""
    path: Path = folder / "tiny"
    settings: dict[str, Any] = {"quota": 1_000_000, "exemplars": 20_000, "head": "slda"}
    if kind == "image":
        g = GraphBuilder()
        x = g.node("Cast", [g.node("Transpose", ["image"], perm=[0, 3, 1, 2])], to=1)
        weight = g.weight("weight", np.ones((16, 3, 3, 3), np.float32))
        x = g.node("Relu", [g.node("Conv", [x, weight], kernel_shape=[3, 3], pads=[1] * 4)])
        g.node("Flatten", [g.node("GlobalAveragePool", [x])], "features")
        model = g.model("tiny", {"image": ("uint8", ["n", 16, 16, 3])}, {"features": ("float32", ["n", 16])})
        (folder / "tiny.onnx").write_bytes(finish_backbone(model, "tiny", "image", (16, 16, 3), 16))
        learner = Learner.create(path, Settings(backbone=str(folder / "tiny.onnx"), **settings))
        shape: tuple[int, ...] = (16, 16, 3)
    else:
        name, shape = ("rocket", (20, 1)) if kind == "window" else ("identity", (8,))
        if kind == "window":
            settings["quota"] = 400_000
        learner = Learner.create(path, Settings(backbone=name, **settings))
    for number in range(2):
        learner.learn(samples(kind, shape, EACH, number), free_name(learner))
    return learner


def _command_lines(learner: Learner, folder: Path, kind: str, shape: tuple[int, ...]) -> CommandLines:
    """Write samples as files; the commands that read them."""
    label, state = free_name(learner), str(learner.store.path)
    sources = Path(tempfile.mkdtemp(dir=folder))
    if kind == "image":
        (sources / "many").mkdir()
        for number in range(EACH):
            write_photo(sources / "many" / f"{number}.jpg", number)
        one, many = sources / "many" / "0.jpg", sources / "many"
    else:
        one, many = sources / "one.npz", sources / "many.npz"
        for path, count in ((one, 1), (many, EACH)):
            data, names = samples(kind, shape, count, 7), np.array([label] * count)
            np.savez(path, x_train=data, y_train=names, x_test=data[:0], y_test=names[:0])
    return CommandLines(["predict", "--state", state, str(one)],
                ["learn", "--state", state, "--json", "--class", label, str(many)])


def _child(arguments: list[str]) -> tuple[int, int]:
    """Resident bytes of a fresh process that runs a command, at its peak and at its end. Raises StateError."""
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False)
    found = done.stdout.rpartition("MEMORY ")[2].split()
    if done.returncode or len(found) != 2:
        raise StateError(f"`edgecl {arguments[0]}` failed in a separate process: {done.stderr.strip()[-200:]}",
                         "see `edgecl doctor`")
    return int(found[0]), int(found[1])


# bytes -------------------------------------------------------------------------------------------


def heads(learner: Learner, known: int) -> Iterator[HeadBytes]:
    """Costs of every kind of head on a state that knows `known` classes."""
    foundation, settings = learner.foundation, learner.settings
    assert foundation is not None
    room = forecast.Room(settings.quota, len(backbone_bytes(learner)), settings.exemplars,
                         segment_bytes(settings.exemplars), foundation.kind == "image")
    d, now = foundation.dimension, max(known, 2)
    longest = max((len(c.name) for c in learner.classes() if known), default=NAME_LENGTH)
    for kind in KINDS:
        form = forecast.form_of(kind, d, foundation.form)
        statistics, head = forecast.class_bytes(kind, d, now, form, longest)
        end = forecast.coarsest(form, d) if not form.projected else form
        more, least = (max(room.classes(kind, d, end, longest, log) - known, 0) for log in (False, True))
        yield HeadBytes(kind, form.describe(d), statistics, head, measured_class_bytes(kind, d, now, form, longest),
                        more, least, kind == learner.store.newest.detail.get("head"))


def measured_class_bytes(kind: str, dimension: int, classes: int, form: Form, name: int, more: int = 4) -> float | None:
    """Bytes per class by which the written files of statistics and head grow from `classes` to `more` more; None if
    that takes too much memory."""
    if 8 * max(form.projected, dimension) ** 2 > LARGEST_MOMENT:
        return None
    transforms = [FeatureTransform(dimension, dimension)]
    if form.projected:
        transforms.append(FeatureTransform(dimension, form.projected, projected=True))
    buffer = Buffer(0, segment_bytes(0), "reservoir", codec_of("int8-feature", "feature", ()))
    knowledge = Knowledge(transforms, form, buffer)
    sizes: list[int] = []
    for number in range(classes + more):
        knowledge.add(f"{number:0{name}}", [2 * number, 2 * number + 1, 10 ** 6 + number],
                      samples("feature", (dimension,), 3, number))
        knowledge.stored.clear()
        if number + 1 in (classes, classes + more):
            head = knowledge.judge(kind).head
            assert head is not None
            sizes.append(len(knowledge.snapshot()) + len(build_head(head)))
    return (sizes[1] - sizes[0]) / more


def codecs(learner: Learner, classes: int) -> Iterator[CodecBytes]:
    """Costs of every codec that fits the state's samples, with `classes` classes in the buffer."""
    foundation, settings = learner.foundation, learner.settings
    assert foundation is not None
    kind, shape, d, limit = foundation.kind, foundation.input_shape, foundation.dimension, settings.exemplars
    room = limit - file_bytes(limit, segment_bytes(limit), ["n" * NAME_LENGTH] * classes)
    real = samples(kind, shape, EACH, 3)
    if kind == "image":
        from edgecl.images import fit_array

        real = np.stack([fit_array(samples(kind, (CAMERA[1], CAMERA[0], 3), 1, n)[0], *shape[:2]) for n in range(EACH)])
    for name in (name for name, kinds in KINDS_OF_CODEC.items() if name != "auto" and kind in kinds):
        codec, shared = codec_of(name, kind, shape, foundation.power), 0
        if name == "pq":
            code, book = plan(limit, d, classes) or (-(-d // 8), max(limit // 5, 20 * d))
            try:
                quantiser = ProductQuantiser.train(samples("feature", (d,), 64, 5), code, book, power=foundation.power)
            except BadInput:
                continue  # a codebook can't be that small
            codec, shared = Codec(quantiser), quantiser.shared_bytes
        whole = [len(codec.input.encode(sample)) for sample in real] if codec.input else [0]
        each = row_bytes(codec.feature, d) + float(np.mean(whole))
        yield CodecBytes(name, each, max(int((room - shared) / each / classes), 0),
                         name == {"auto": "int8-feature"}.get(foundation.codec, foundation.codec.partition(":")[0]))
