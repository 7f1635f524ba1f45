"""What a board does with a state: latency, memory, bytes and flash, measured on a copy that is thrown away."""
from __future__ import annotations

import gc
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecl import forecast
from edgecl.backbone import BATCH_BYTES, Backbone
from edgecl.backbones.graph import GraphBuilder, finish_backbone
from edgecl.budget import RESERVE, segment_bytes
from edgecl.codec import FITS, Codec, codec_of
from edgecl.config import Settings
from edgecl.database import NAME as DATABASE
from edgecl.errors import BackboneError, BadInput, BudgetError, StateError
from edgecl.head_graph import HeadSession, build_head
from edgecl.heads import KINDS
from edgecl.knowledge import Buffer, Knowledge
from edgecl.learner import Learner
from edgecl.lift import Lift
from edgecl.quantiser import ProductQuantiser, plan
from edgecl.readings import read as read_machine
from edgecl.records import file_bytes, row_bytes
from edgecl.samples import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgecl.budget import Form
    from edgecl.forecast import Memory

EACH = 20                   # samples of one class, as people teach it
TAUGHT = 5                  # classes that a fresh state is taught, to measure it
COMMITS, SMALL = 16, 2      # commits of so many samples, for the bytes written to flash
LEAST, MOST = 20, 1000      # runs for one latency
CAMERA = 640, 480
CHANNELS, NUMBERS = 6, 512  # of windows and of vectors, where nothing says
LARGEST_MOMENT = 2 ** 27    # bytes of G: beyond, bytes a class are only forecast
CHILD = ("import re, sys\nfrom edgecl.cli import main\ncode = main(sys.argv[1:])\n"
         "text = open('/proc/self/status').read()\n"
         "print('MEMORY', *(1024 * int(re.search(rf'{k}:\\s+(\\d+)', text)[1]) for k in ('VmHWM', 'VmRSS')))\n"
         "sys.exit(code)")


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one sample: percentiles of `runs` runs. part: preprocess, backbone or head; precision: of it."""

    part: str
    precision: str
    threads: int
    p50: float
    p95: float
    p99: float
    runs: int


@dataclass(frozen=True)
class Resident:
    """Resident bytes of a whole process at its peak; forecast: before it ran; after: when it ended."""

    what: str
    forecast: int
    measured: int
    after: int


@dataclass(frozen=True)
class HeadBytes:
    """What one more class costs. statistics, head: bytes by which their files grow; measured: both, None where it would
    take too much memory; more, at_least: classes that still fit the quota, with nothing and with all that may wait in
    the log; form: of the statistics; chosen: whether the state has this head."""

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
    """Bytes of one stored sample, and how many of each class the exemplar buffer holds; chosen: whether the state's
    samples are stored so, as long as there is room."""

    codec: str
    each: float
    per_class: int
    chosen: bool


@dataclass(frozen=True)
class LearnCost:
    """One class of EACH decoded samples: milliseconds with commit and sync, of them the backbone's; bytes by which the
    directory grew. flash: bytes written a sample, over COMMITS commits of SMALL samples; `counted` by the file system,
    or asked of it; features: bytes of a sample's float32 features."""

    milliseconds: float
    backbone: float
    grown: int
    flash: float
    counted: bool
    features: int


@dataclass(frozen=True)
class Profile:
    """All of it. known: classes the state has; notes: what could not be measured, and why."""

    state: str | None
    settings: Settings
    backbone: str
    kind: str
    input_shape: tuple[int, ...]
    dimension: int
    precision: str
    known: int
    cores: int
    latency: list[Latency] = field(default_factory=list)
    memory: list[Resident] = field(default_factory=list)
    heads: list[HeadBytes] = field(default_factory=list)
    codecs: list[CodecBytes] = field(default_factory=list)
    learn: LearnCost | None = None
    notes: list[str] = field(default_factory=list)

    def of(self, part: str, precision: str | None = None) -> list[Latency]:
        """The latencies of a part (and precision), by threads."""
        return [x for x in self.latency if x.part == part and precision in (None, x.precision)]

    def to_json(self) -> dict[str, Any]:
        """One object, ready for JSON."""
        return asdict(self)


def profile(state: Path | None, settings: Settings, seconds: float = 20.0) -> Profile:
    """Measure a state, which is not touched, or one that `settings` would make; seconds: for the latencies, in all.

    Raises StateError, BackboneError, BudgetError, BadInput.
    """
    with _workshop(state) as name:
        folder = Path(name)
        learner = twin(state, settings, folder / "state")
        try:
            return _measure(learner, folder, None if state is None else str(state), seconds)
        finally:
            learner.close()


def _measure(learner: Learner, folder: Path, state: str | None, seconds: float) -> Profile:
    foundation, known = learner.foundation, learner.store.newest.detail["classes"] if state else 0
    assert foundation is not None
    cores = max(int(read_machine().cores or os.cpu_count() or 1), 1)
    result = Profile(state, learner.settings, foundation.name, foundation.kind, foundation.input_shape,
                     foundation.dimension, foundation.precision, known, cores)
    result.memory.extend(measure_memory(learner, folder))
    _latencies(learner, folder, result, seconds)
    result.heads.extend(_heads(learner, known))
    result.codecs.extend(_codecs(learner, max(known, TAUGHT)))
    try:
        cost = _learning(learner)
    except BudgetError as error:
        result.notes.append(f"learning a class was not measured: {error.what}")
        return result
    return Profile(**{**result.__dict__, "learn": cost})


# the state that is measured ------------------------------------------------------------------------


def _workshop(state: Path | None) -> tempfile.TemporaryDirectory[str]:
    """A folder on the same file system, where that may be written."""
    beside = Path.cwd() if state is None else state.absolute().parent
    return tempfile.TemporaryDirectory(prefix=".edgecl-profile-", dir=beside if os.access(beside, os.W_OK) else None)


def twin(state: Path | None, settings: Settings, path: Path) -> Learner:
    """A learner on a copy of the state; without one, on a new state that was taught TAUGHT made-up classes."""
    if state is None:
        if settings.backbone == "auto":
            windows = bool(settings.rate and settings.window)
            settings = Settings(**{**settings.__dict__, "backbone": "rocket" if windows else "efficientnet-lite0"})
        learner = Learner.create(path, settings)
    else:
        _copy(state, path)
        learner = Learner.open(path)
    have = learner.store.newest.detail.get("classes", 0)
    for number in range(have, TAUGHT if have < 2 else have):
        learner.learn(samples(*shape_of(learner), EACH, number), free_name(learner))
    return learner


def _copy(state: Path, path: Path) -> None:
    """Copy a state while no other process commits. Raises StateError."""
    if not (state / DATABASE).is_file():
        raise StateError(f"there is no edgecl state in {state}", "name one with --state, or create it with "
                         "`edgecl init`")
    try:
        with closing(sqlite3.connect(f"{(state / DATABASE).absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            shutil.copytree(state, path, ignore=shutil.ignore_patterns(RESERVE, "*.tmp"))
    except (sqlite3.Error, OSError, shutil.Error) as error:
        raise StateError(f"{state} can't be copied to measure it ({str(error)[:120]})",
                         "see `edgecl status`, and free some space") from error


def free_name(learner: Learner) -> str:
    """A class name that the learner does not know."""
    known = {c.name for c in learner.classes()}
    return next(name for name in (f"profile {number:02}" for number in range(10 ** 6)) if name not in known)


def shape_of(learner: Learner) -> tuple[str, tuple[int, ...]]:
    """Kind and shape of a sample, also where nothing was taught yet."""
    foundation, settings = learner.foundation, learner.settings
    if foundation is not None:
        return foundation.kind, foundation.input_shape
    if settings.backbone == "rocket" or (settings.rate and settings.window):
        return "window", (max(round((settings.rate or 50) * (settings.window or 3)), 9), CHANNELS)
    return ("feature", (NUMBERS,)) if settings.backbone == "identity" else ("image", (224, 224, 3))


def samples(kind: str, shape: tuple[int, ...], count: int, seed: int) -> np.ndarray:
    """Made-up samples of one class: coloured blots, noisy oscillations, or a cloud of vectors."""
    rng = np.random.default_rng(seed)
    if kind == "image":
        height, width, _ = shape
        coarse = rng.normal(rng.uniform(60, 190, 3), 45, (count, -(-height // 16), -(-width // 16), 3))
        fine = coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width]
        return np.asarray((fine + rng.normal(0, 8, fine.shape)).clip(0, 255), np.uint8)
    if kind == "window":
        time_, channels = shape
        phase, pace = rng.uniform(0, 6.28, (count, 1, channels)), rng.uniform(0.03, 0.6, channels)
        waves = np.sin(np.arange(time_)[None, :, None] * pace + phase)
        return np.asarray(waves + 0.2 * rng.standard_normal(waves.shape), np.float32)
    return np.asarray(2 * rng.standard_normal(shape) + rng.standard_normal((count, *shape)), np.float32)


# latency -----------------------------------------------------------------------------------------


def _latencies(learner: Learner, folder: Path, result: Profile, seconds: float) -> None:
    """Preprocessing, backbone in each precision, and head, for 1, 2, 4 ... threads."""
    kind, shape = result.kind, result.input_shape
    threads = sorted({1, result.cores, *(2 ** k for k in range(10) if 2 ** k <= result.cores)})
    stored = backbone_bytes(learner)
    models = {result.precision: stored}
    if kind != "image":
        result.notes.append("int8 was not measured: only image backbones can be quantised")
    elif result.precision == "int8":
        result.notes.append("fp32 was not measured: the state stores int8 alone")
    else:
        from edgecl.backbones.precision import quantise_int8

        try:
            models["int8"] = quantise_int8(stored, samples(kind, shape, 8, 1))
        except BackboneError as error:
            result.notes.append(f"int8 was not measured: {error.what}")
    share = seconds / (len(models) * len(threads) + 0.25 * len(threads) + 0.5)
    result.latency.append(Latency("preprocess", "-", 1, *_percentiles(_preprocessing(kind, shape, folder), share / 2)))
    one = samples(kind, shape, 1, 0)
    for precision, model in models.items():
        for count in threads:
            backbone = Backbone(model, count)
            result.latency.append(Latency("backbone", precision, count,
                                          *_percentiles(lambda b=backbone: b.features(one), share)))
    serving = learner._serve()
    features = serving.backbone.features(one)
    for count in threads:
        head = HeadSession(serving.head_model, count)
        result.latency.append(Latency("head", "fp32", count, *_percentiles(lambda h=head: h(features), share / 4)))


def backbone_bytes(learner: Learner) -> bytes:
    """The backbone file that serves."""
    name = learner.store.newest.backbone
    assert name is not None
    return learner.store.blob_path(name).read_bytes()


def _preprocessing(kind: str, shape: tuple[int, ...], folder: Path) -> Callable[[], object]:
    """What happens to one sample before the backbone: a camera's JPEG decoded and fitted, a recording cut."""
    if kind == "image":
        from edgecl.images import read_image

        photo = write_photo(folder / "camera.jpg", 0)
        return lambda: read_image(photo, shape[0], shape[1])
    if kind == "window":
        from edgecl.sources.windows import cut

        recording = np.concatenate(samples(kind, shape, 1, 0))
        return lambda: prepare(cut(recording, 1, shape[0], shape[0]), kind, shape)
    vectors = samples(kind, shape, 1, 0)
    return lambda: prepare(vectors, kind, shape)


def write_photo(path: Path, seed: int) -> Path:
    """A JPEG as a camera of CAMERA pixels writes it."""
    from PIL import Image

    Image.fromarray(samples("image", (CAMERA[1], CAMERA[0], 3), 1, seed)[0]).save(path, quality=90)
    return path


def _percentiles(action: Callable[[], object], seconds: float) -> tuple[float, float, float, int]:
    """p50, p95, p99 in milliseconds and the number of runs, after some that warm up; without the garbage collector."""
    times: list[float] = []
    for _ in range(3):
        action()
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        while len(times) < MOST and (len(times) < LEAST or time.perf_counter() < end):
            started = time.perf_counter()
            action()
            times.append(1000 * (time.perf_counter() - started))
    finally:
        if collecting:
            gc.enable()
    p50, p95, p99 = np.percentile(times, (50, 95, 99))
    return float(p50), float(p95), float(p99), len(times)


# memory ------------------------------------------------------------------------------------------


class Ways(NamedTuple):
    """Command lines that answer about one sample, and that learn EACH of a class."""

    answer: list[str]
    learn: list[str]


def measure_memory(learner: Learner, folder: Path) -> Iterator[Resident]:
    """Peaks of processes that run `edgecl predict` and `edgecl learn`: forecast, then measured."""
    learner._journal.settle()  # as when it is closed: a head that was left for later is written
    foundation = learner.foundation
    assert foundation is not None
    told = forecast_memory(learner, folder)
    ways = _ways(learner, folder, foundation.kind, foundation.input_shape)
    for what, told_bytes, command in zip(("answering", "learning"), told, ways):
        peak, after = _child(command)
        yield Resident(what, told_bytes, peak, after)


def forecast_memory(learner: Learner, folder: Path) -> Memory:
    """What `edgecl predict` and `edgecl learn` will take on this state. Two processes on a tiny state of the same kind
    are run; nothing of this state is."""
    foundation = learner.foundation
    assert foundation is not None
    kind = foundation.kind
    with closing(_tiny(kind, folder)) as tiny:
        tiny_graph, tiny_knowing = forecast.read_graph(backbone_bytes(tiny)), knowing(tiny)
        assert tiny.foundation is not None
        ways = _ways(tiny, folder, kind, tiny.foundation.input_shape)
    bare = forecast.Memory(*(_child(command)[0] for command in ways))
    size = int(np.prod(foundation.input_shape)) * (1 if kind == "image" else 4)
    batch = min(max(BATCH_BYTES // size, 1), 16)
    return forecast.memory(forecast.read_graph(backbone_bytes(learner)), knowing(learner), batch, bare, tiny_graph,
                           tiny_knowing)


def knowing(learner: Learner) -> forecast.Knowing:
    """What a learner holds, as the forecast takes it."""
    foundation, head = learner.foundation, learner.store.newest.head
    assert foundation is not None
    known = learner._journal.known()
    size = learner.store.blobs.bytes(head) if head else forecast.head_bytes(
        "slda" if foundation.form.second_moment else "nearest-mean", foundation.dimension, len(known.labels),
        foundation.form)
    return forecast.Knowing(tuple(lift.dimension for lift in known.lifts), len(known.labels) + 1,
                            len(known.stored) + EACH, foundation.form, size,
                            sum(len(entry.rows or ()) for entry in learner.store.logged()), head is not None)


def _tiny(kind: str, folder: Path) -> Learner:
    """The smallest state of a kind."""
    path, settings = folder / "tiny", {"quota": 1_000_000, "exemplars": 20_000, "head": "slda"}
    if kind == "image":
        g = GraphBuilder()
        x = g.node("Cast", [g.node("Transpose", ["image"], perm=[0, 3, 1, 2])], to=1)
        weight = g.weight("weight", np.ones((16, 3, 3, 3), np.float32))
        x = g.node("Relu", [g.node("Conv", [x, weight], kernel_shape=[3, 3], pads=[1] * 4)])
        g.node("Flatten", [g.node("GlobalAveragePool", [x])], "features")
        model = g.model("tiny", {"image": ("uint8", ["n", 16, 16, 3])}, {"features": ("float32", ["n", 16])})
        (folder / "tiny.onnx").write_bytes(finish_backbone(model, "tiny", "image", (16, 16, 3), 16))
        learner = Learner.create(path, Settings(backbone=str(folder / "tiny.onnx"), **settings))  # type: ignore[arg-type]
        shape: tuple[int, ...] = (16, 16, 3)
    else:
        name, shape = ("rocket", (20, 1)) if kind == "window" else ("identity", (8,))
        if kind == "window":
            settings["quota"] = 400_000
        learner = Learner.create(path, Settings(backbone=name, **settings))  # type: ignore[arg-type]
    for number in range(2):
        learner.learn(samples(kind, shape, EACH, number), free_name(learner))
    return learner


def _ways(learner: Learner, folder: Path, kind: str, shape: tuple[int, ...]) -> Ways:
    """Sources as files, and the commands that read them."""
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
    return Ways(["predict", "--state", state, str(one)],
                ["learn", "--state", state, "--json", "--class", label, str(many)])


def _child(arguments: list[str]) -> tuple[int, int]:
    """Bytes resident at the peak and at the end of a fresh process that runs a command. Raises StateError."""
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False)
    found = done.stdout.rpartition("MEMORY ")[2].split()
    if done.returncode or len(found) != 2:
        raise StateError(f"`edgecl {arguments[0]}` failed in a process of its own: {done.stderr.strip()[-200:]}",
                         "see `edgecl doctor`")
    return int(found[0]), int(found[1])


# bytes -------------------------------------------------------------------------------------------


def _heads(learner: Learner, known: int) -> Iterator[HeadBytes]:
    foundation, settings = learner.foundation, learner.settings
    assert foundation is not None
    room = forecast.Room(settings.quota, len(backbone_bytes(learner)), settings.exemplars,
                         segment_bytes(settings.exemplars))
    d, now = foundation.dimension, max(known, 2)
    longest = max((len(c.name) for c in learner.classes()), default=forecast.NAME) if known else forecast.NAME
    for kind in KINDS:
        form = forecast.form_of(kind, d, foundation.form)
        statistics, head = forecast.class_bytes(kind, d, now, form, longest)
        end = forecast.coarsest(form, d) if not form.projected else form
        more, least = (max(room.classes(kind, d, end, longest, log) - known, 0) for log in (False, True))
        yield HeadBytes(kind, form.describe(d), statistics, head, measured_class_bytes(kind, d, now, form, longest),
                        more, least, kind == learner.store.newest.detail.get("head"))


def measured_class_bytes(kind: str, dimension: int, classes: int, form: Form, name: int, more: int = 4) -> float | None:
    """Bytes by which the files of statistics and head grow a class, from `classes` to `more` more, as they are written;
    None where that takes too much memory."""
    if 8 * max(form.projected, dimension) ** 2 > LARGEST_MOMENT:
        return None
    lifts = [Lift(dimension, dimension)] + ([Lift(dimension, form.projected, projected=True)] if form.projected else [])
    knowledge = Knowledge(lifts, form, Buffer(0, segment_bytes(0), "reservoir", codec_of("int8-feature", "feature", ())))
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


def _codecs(learner: Learner, classes: int) -> Iterator[CodecBytes]:
    foundation, settings = learner.foundation, learner.settings
    assert foundation is not None
    kind, shape, d, limit = foundation.kind, foundation.input_shape, foundation.dimension, settings.exemplars
    room = limit - file_bytes(limit, segment_bytes(limit), ["n" * forecast.NAME] * classes)
    real = samples(kind, shape, EACH, 3)
    if kind == "image":
        from edgecl.images import fit_array

        real = np.stack([fit_array(samples(kind, (CAMERA[1], CAMERA[0], 3), 1, n)[0], *shape[:2]) for n in range(EACH)])
    for name in (name for name, kinds in FITS.items() if name != "auto" and kind in kinds):
        codec, shared = codec_of(name, kind, shape, foundation.power), 0
        if name == "pq":
            code, book = plan(limit, d, classes) or (-(-d // 8), max(limit // 5, 20 * d))
            try:
                quantiser = ProductQuantiser.train(samples("feature", (d,), 64, 5), code, book, power=foundation.power)
            except BadInput:
                continue  # no codebook is that small
            codec, shared = Codec(quantiser), quantiser.shared_bytes
        whole = [len(codec.input.encode(sample)) for sample in real] if codec.input else [0]
        each = row_bytes(codec.feature, d) + float(np.mean(whole))
        yield CodecBytes(name, each, max(int((room - shared) / each / classes), 0),
                         name == {"auto": "int8-feature"}.get(foundation.codec, foundation.codec.partition(":")[0]))


# learning ----------------------------------------------------------------------------------------


def _learning(learner: Learner) -> LearnCost:
    """Learn classes into the copy. Raises BudgetError where none fits."""
    kind, shape = shape_of(learner)
    data = samples(kind, shape, EACH, 1000)
    learner.features(data[:2])
    before, took = learner.store.ledger.usage().total, []
    for number in range(3):
        name, fresh = free_name(learner), samples(kind, shape, EACH, 1000 + number)
        started = time.perf_counter()
        learner.learn(fresh, name)
        took.append(1000 * (time.perf_counter() - started))
        if number == 0:
            grown = learner.store.ledger.usage().total - before
    started = time.perf_counter()
    learner.features(data)
    alone = 1000 * (time.perf_counter() - started)
    few = samples(kind, shape, COMMITS * SMALL, 2000)
    written, asked = _io()
    for start in range(0, len(few), SMALL):
        learner.learn(few[start:start + SMALL], name)
    written, asked = (after - then for after, then in zip(_io(), (written, asked)))
    foundation = learner.foundation
    assert foundation is not None
    return LearnCost(median(took), alone, grown, (written or asked) / len(few), written > 0, 4 * foundation.dimension)


def _io() -> tuple[int, int]:
    """Bytes that this process had the storage write, and that it handed over with `write`; 0 where no one counts."""
    values: dict[str, int] = {}
    with suppress(OSError, ValueError):
        values = {name: int(value) for name, value in
                  (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())}
    return values.get("write_bytes", 0), values.get("wchar", 0)
