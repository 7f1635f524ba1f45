"""The frozen part of a round: every stored sample once through what lies below the cut, in ONNX Runtime."""
from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from edgecl.backbones.cut import Anatomy, kept_dtype
from edgecl.backbones.session import open_session
from edgecl.errors import BudgetError
from edgecl.exemplars.codecs import codec_of
from edgecl.rounds.job import PROBES, Job, Stored
from edgecl.training.worker import limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edgecl.backbones.cut import Cut

SAMPLES_PER_PASS = 4
FORECAST_AFTER = 1.0      # seconds after which the time for all is forecast
TRUNK_SHARE = 0.6     # of the time that this may take: the round must still learn
MARGIN = 1.5    # times the forecast
OUTSIDE = 5      # seconds of a round for torch's start and the gate


def run(folder: Path, job: Job, cut: Cut, left: float) -> None:
    """Write activations.npy, one row per sample in the order of `Stored.arranged`, and the first samples' exact ones as
    probes_in.npy. left: seconds. Raises BudgetError if that takes most of the time."""
    entered = time.monotonic()
    limits.limit(job.memory)
    samples = Stored.read(folder)
    order, _, _ = samples.arranged()
    if not job.codec:
        np.save(folder / "activations.npy", samples.features[order])
        np.save(folder / "probes_in.npy", samples.features[:PROBES])
        return
    passed = _passed(folder, job, cut, samples)
    np.save(folder / "probes_in.npy", passed(np.arange(len(order))[:PROBES]))
    begun = time.monotonic()
    with (folder / "activations.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {
            "descr": np.lib.format.dtype_to_descr(kept_dtype(cut)), "fortran_order": False,
            "shape": (len(order), *cut.shape)})
        for done in range(0, len(order), SAMPLES_PER_PASS):
            taken = time.monotonic() - begun
            if taken > FORECAST_AFTER and (needed := taken / done * len(order)) > TRUNK_SHARE * left:
                least = MARGIN * needed / TRUNK_SHARE + OUTSIDE + job.seconds - left + begun - entered
                raise BudgetError(f"reading {len(order)} samples through the backbone takes {needed:.0f} s",
                                  f"give --time {math.ceil(least)}s or more")
            file.write(passed(order[done:done + SAMPLES_PER_PASS]).astype(kept_dtype(cut)).tobytes())


def _passed(folder: Path, job: Job, cut: Cut, samples: Stored
            ) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    """What turns places of samples int64 [n] into their activations, float32 [n, ...]."""
    anatomy = Anatomy((folder / "backbone.onnx").read_bytes())
    codec = codec_of(job.codec, anatomy.info.kind, anatomy.info.input_shape).input
    assert codec is not None
    session = open_session(anatomy.trunk(cut), job.threads)
    name = session.get_inputs()[0].name

    def passed(places: NDArray[np.int64]) -> NDArray[np.float32]:
        blocks = [places[start:start + SAMPLES_PER_PASS] for start in range(0, len(places), SAMPLES_PER_PASS)]
        return np.concatenate([session.run(None, {name: np.stack([codec.decode(samples.inputs[place])
                                                                  for place in block])})[0] for block in blocks])

    return passed
