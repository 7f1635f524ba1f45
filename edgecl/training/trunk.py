"""The frozen part of a round: every stored sample once through what lies below the cut, in ONNX Runtime."""
from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from edgecl.backbone import open_session
from edgecl.backbones.surgery import Anatomy, kept_dtype
from edgecl.codec import codec_of
from edgecl.errors import BudgetError
from edgecl.job import PROBES, Job, Stored
from edgecl.training import confines

if TYPE_CHECKING:
    from pathlib import Path

    from edgecl.backbones.surgery import Cut
    from edgecl.training.round import Stop

BLOCK = 4
SHARE = 0.6     # of the time that this may take: a round must still learn


def run(folder: Path, job: Job, cut: Cut, stop: Stop) -> None:
    """Write activations.npy, a row a sample, and the first ones exactly as probes_in.npy. Raises BudgetError where that
    takes most of the time."""
    samples = Stored.read(folder)
    rows = len(samples.column)
    if not job.codec:
        np.save(folder / "activations.npy", samples.features)
        np.save(folder / "probes_in.npy", samples.features[:PROBES])
        return
    anatomy = Anatomy((folder / "backbone.onnx").read_bytes())
    info = anatomy.info
    codec = codec_of(job.codec, info.kind, info.input_shape).input
    assert codec is not None
    session = open_session(anatomy.trunk(cut), job.threads)
    del anatomy
    confines.limit(job.memory)
    name = session.get_inputs()[0].name
    out = np.lib.format.open_memmap(folder / "activations.npy", "w+", kept_dtype(cut), (rows, *cut.shape))
    begun, probes = time.monotonic(), []
    for start in range(0, rows, BLOCK):
        given = np.stack([codec.decode(each) for each in samples.inputs[start:start + BLOCK]])
        exact = session.run(None, {name: given})[0]
        out[start:start + len(given)] = exact
        if start < PROBES:
            probes.append(exact)
        needed = (time.monotonic() - begun) / (start + len(given)) * rows
        if start >= 4 * BLOCK and needed > SHARE * job.seconds:
            raise BudgetError(f"reading {rows} samples through the backbone takes {needed:.0f} s of {job.seconds:.0f} s",
                              f"give --time {needed / SHARE + 1:.0f}s or more")
    out.flush()
    np.save(folder / "probes_in.npy", np.concatenate(probes)[:PROBES])
