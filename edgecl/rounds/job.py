"""A learning round as files in a folder: what the worker is asked for, and its answer. Without torch.

    job.json        the `Job`                               result.json     what was done, or why not
    backbone.onnx   that serves                             candidate.onnx  the same graph with other weights
    samples.npz     stored samples, see `Stored`            features.npy    float32 [n, d] of all samples by it
    before.npz      what the method kept, if it did         probes.npy      of the first few, from exact activations
                                                            parts.npz       what the method keeps now
                                                            head.npz        weight, bias, normalised: the trained head
"""
from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecl.files.atomic import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

PROBES = 8   # samples by which the two runtimes are compared


@dataclass(frozen=True)
class Job:
    """What a worker is to do. method: a name or a .toml file; classes: of all samples, in the order in which they came;
    known: how many of them were in the last round; codec: of the samples' inputs, "" if features are tuned on;
    blocks: of the backbone to tune, None for the usual number; memory: bytes that the worker may hold; seconds: until
    it must have ended; epochs, batch, rate, head_rate, smoothing: see `edgecl.training.plan.Plan`; own_code: see
    `RoundRequest`."""

    method: str
    classes: tuple[str, ...]
    known: int
    codec: str
    blocks: int | None
    memory: int
    seconds: float
    threads: int = 1
    seed: int = 0
    epochs: int = 8
    batch: int = 32
    rate: float = 0.003
    head_rate: float = 0.1
    smoothing: float = 0.1
    own_code: bool = True

    def write(self, folder: Path) -> None:
        """As job.json."""
        (folder / "job.json").write_text(json.dumps(asdict(self)), "utf-8")

    @classmethod
    def read(cls, folder: Path) -> Job:
        """The inverse of `write`."""
        values = json.loads((folder / "job.json").read_text("utf-8"))
        return cls(**{**values, "classes": tuple(values["classes"])})


class Stored(NamedTuple):
    """Stored samples. column int64 [n]: places in `Job.classes`; fresh bool [n]: came since the last round; held bool
    [n]: held back, so that nothing may be tuned on them; features float32 [n, d] by the backbone that serves; inputs:
    the encoded input of each, b"" without."""

    column: NDArray[np.int64]
    fresh: NDArray[np.bool_]
    held: NDArray[np.bool_]
    features: NDArray[np.float32]
    inputs: Sequence[bytes]

    def write(self, folder: Path) -> None:
        """As samples.npz."""
        np.savez(folder / "samples.npz", column=self.column, fresh=self.fresh, held=self.held, features=self.features,
                 lengths=np.array([len(each) for each in self.inputs], np.int64),
                 inputs=np.frombuffer(b"".join(self.inputs), np.uint8))

    @classmethod
    def read(cls, folder: Path, inputs: bool = True) -> Stored:
        """The inverse of `write`. inputs: whether to read those."""
        with np.load(folder / "samples.npz", allow_pickle=False) as file:
            whole, lengths = memoryview(file["inputs"] if inputs else b""), file["lengths"].tolist() if inputs else []
            ends = np.cumsum(lengths, dtype=np.int64).tolist()
            return cls(file["column"], file["fresh"], file["held"], file["features"],
                       [bytes(whole[end - length:end]) for end, length in zip(ends, lengths)])

    def arranged(self) -> tuple[NDArray[np.int64], int, int]:
        """The order in which a round goes through them: what it may tune on first, the fresh ones behind the others,
        then what is held back; where the fresh ones begin and end. If none is fresh, all count as fresh."""
        group = np.where(self.held, 2, self.fresh if (self.fresh & ~self.held).any() else 1)
        order = np.argsort(group, kind="stable")
        begin, end = np.searchsorted(group[order], [1, 2]).tolist()
        return order, begin, end


def answer(folder: Path, **values: Any) -> None:
    """Write result.json, last of all and at once."""
    write_atomically(folder / "result.json", json.dumps(values).encode(), sync=False)
