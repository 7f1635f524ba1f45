"""Latency, memory, bytes and wear of a state on this board, measured on a copy that is thrown away."""
from __future__ import annotations

import gc
import os
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from edgecl.backbones.session import Backbone
from edgecl.errors import BackboneError, BudgetError
from edgecl.heads.onnx_head import HeadSession
from edgecl.profiling import measure
from edgecl.profiling.measure import CodecBytes, HeadBytes, Resident
from edgecl.profiling.sandbox import (
    EACH,
    TAUGHT,
    backbone_bytes,
    free_name,
    samples,
    shape_of,
    temporary_folder,
    twin,
    write_photo,
)
from edgecl.rounds.board import read as read_machine
from edgecl.samples import prepare

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgecl.learner import Learner
    from edgecl.settings import Settings

COMMITS, PER_COMMIT = 16, 3     # commits and their samples, for the bytes written to storage
LEAST_RUNS, MOST_RUNS = 20, 1000     # for one latency


@dataclass(frozen=True)
class Latency:
    """Milliseconds per sample: percentiles of `runs` runs. part: preprocess, backbone or head, in that precision."""

    part: str
    precision: str
    threads: int
    p50: float
    p95: float
    p99: float
    runs: int


@dataclass(frozen=True)
class LearnCost:
    """Cost of learning one class of EACH decoded samples.

    milliseconds: with commit and sync; backbone: the backbone's part of them; grown: bytes by which the directory grew,
    with the head that the next answer writes; flash: bytes written per sample, over COMMITS commits of PER_COMMIT
    samples and an answer after each; counted: by the kernel, else they are those passed to `write`; features: bytes of
    a sample's float32 features.
    """

    milliseconds: float
    backbone: float
    grown: int
    flash: float
    counted: bool
    features: int


@dataclass(frozen=True)
class Profile:
    """All measurements. known: classes in the state; notes: what could not be measured, and why."""

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
    """Measure a copy of a state, or the state that `settings` would make. seconds: for all latencies together.

    Raises StateError, BackboneError, BudgetError, BadInput.
    """
    with temporary_folder(state) as name:
        folder = Path(name)
        learner, known = twin(state, settings, folder / "state")
        try:
            return _measure(learner, known, folder, None if state is None else str(state), seconds)
        finally:
            learner.close()


def _measure(learner: Learner, known: int, folder: Path, state: str | None, seconds: float) -> Profile:
    foundation = learner.foundation
    assert foundation is not None
    cores = max(int(read_machine().cores or os.cpu_count() or 1), 1)
    result = Profile(state, learner.settings, foundation.name, foundation.kind, foundation.input_shape,
                     foundation.dimension, foundation.precision, known, cores)
    result.memory.extend(measure.measure_memory(learner, folder))
    _latencies(learner, folder, result, seconds)
    result.heads.extend(measure.heads(learner, known))
    result.codecs.extend(measure.codecs(learner, max(known, TAUGHT)))
    try:
        cost = _learning(learner)
    except BudgetError as error:
        result.notes.append(f"learning a class was not measured: {error.what}")
        return result
    return Profile(**{**result.__dict__, "learn": cost})


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
        from edgecl.backbones.quantise import quantise_int8

        try:
            models["int8"] = quantise_int8(stored, samples(kind, shape, 8, 1))
        except BackboneError as error:
            result.notes.append(f"int8 was not measured: {error.what}")
    share = seconds / (len(models) * len(threads) + 0.25 * len(threads) + 0.5)
    result.latency.append(Latency("preprocess", "-", 1, *_percentiles(_preprocessing(kind, shape, folder), share / 2)))
    one = samples(kind, shape, 1, 0)
    run: Callable[[], object]
    for precision, model in models.items():
        for count in threads:
            run = partial(Backbone(model, count).features, one)
            result.latency.append(Latency("backbone", precision, count, *_percentiles(run, share)))
    serving = learner.serving()
    features = serving.backbone.features(one)
    for count in threads:
        run = partial(HeadSession(serving.head_model, count), features)
        result.latency.append(Latency("head", "fp32", count, *_percentiles(run, share / 4)))


def _preprocessing(kind: str, shape: tuple[int, ...], folder: Path) -> Callable[[], object]:
    """The work on one sample before the backbone: decode and fit a camera's JPEG, or cut a recording."""
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


def _percentiles(action: Callable[[], object], seconds: float) -> tuple[float, float, float, int]:
    """p50, p95, p99 in milliseconds and the number of runs, after warm-up, with the garbage collector off."""
    times: list[float] = []
    for _ in range(3):
        action()
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        while len(times) < MOST_RUNS and (len(times) < LEAST_RUNS or time.perf_counter() < end):
            started = time.perf_counter()
            action()
            times.append(1000 * (time.perf_counter() - started))
    finally:
        if collecting:
            gc.enable()
    p50, p95, p99 = np.percentile(times, (50, 95, 99))
    return float(p50), float(p95), float(p99), len(times)


# learning ----------------------------------------------------------------------------------------


def _learning(learner: Learner) -> LearnCost:
    """Learn classes into the copy. Raises BudgetError if none fits."""
    kind, shape = shape_of(learner)
    data = samples(kind, shape, EACH, 1000)
    learner.features(data[:2])
    before, took = learner.store.ledger.usage().total, []
    for number in range(3):
        name, fresh = free_name(learner), samples(kind, shape, EACH, 1000 + number)
        started = time.perf_counter()
        learner.learn(fresh, name)
        took.append(1000 * (time.perf_counter() - started))
        learner.serving()   # the next answer, which writes the head
    grown = (learner.store.ledger.usage().total - before) // len(took)
    started = time.perf_counter()
    learner.features(data)
    alone = 1000 * (time.perf_counter() - started)
    few = samples(kind, shape, COMMITS * PER_COMMIT, 2000)
    written, asked = _io()
    for start in range(0, len(few), PER_COMMIT):
        learner.learn(few[start:start + PER_COMMIT], name)
        learner.serving()
    written, asked = (after - then for after, then in zip(_io(), (written, asked)))
    foundation = learner.foundation
    assert foundation is not None
    return LearnCost(median(took), alone, grown, (written or asked) / len(few), written > 0, 4 * foundation.dimension)


def _io() -> tuple[int, int]:
    """Bytes that this process sent to storage, and bytes it passed to `write`; 0 if the kernel counts neither."""
    try:
        counters = psutil.Process().io_counters()
    except (psutil.Error, AttributeError):  # without /proc/self/io there is no such method
        return 0, 0
    return counters.write_bytes, counters.write_chars
