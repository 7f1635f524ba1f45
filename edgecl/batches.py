"""Samples in batches small enough to hold: what every kind of input becomes before a backbone sees it."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Union

import numpy as np

from edgecl.errors import BadInput
from edgecl.samples import Sample

CHUNK = 64  # samples decoded and held at a time
Samples = Union[np.ndarray, Iterable[Sample]]


@dataclass(frozen=True)
class Batch:
    """data [n, ...]; the recording ("" or groups None: its own), source and class of each sample."""

    data: np.ndarray
    groups: Sequence[str] | None
    sources: Sequence[str]
    labels: Sequence[str | None]


def batches_of(samples: Samples, groups: Sequence[str] | None = None) -> Iterator[Batch]:
    """Batches of at most CHUNK samples of one shape, in order. Raises BadInput where `groups` has another length."""
    if isinstance(samples, np.ndarray):
        if samples.ndim < 2:
            raise BadInput(f"samples of shape {list(samples.shape)}", "give a batch: [n, ...], also for one sample")
        if groups is not None and len(groups) != len(samples):
            raise BadInput(f"{len(groups)} groups for {len(samples)} samples", "name one group a sample")
        for start in range(0, len(samples), CHUNK):
            data = samples[start:start + CHUNK]
            yield Batch(data, None if groups is None else groups[start:start + CHUNK], [""] * len(data),
                        [None] * len(data))
        return
    if groups is not None:
        raise BadInput("groups beside samples that name theirs", "give groups with an array only")
    waiting: list[Sample] = []
    for sample in samples:
        if waiting and (len(waiting) == CHUNK or waiting[0].data.shape != sample.data.shape
                        or waiting[0].data.dtype != sample.data.dtype):
            yield _batch(waiting)
            waiting = []
        waiting.append(sample)
    if waiting:
        yield _batch(waiting)


def _batch(samples: list[Sample]) -> Batch:
    return Batch(np.stack([sample.data for sample in samples]), [sample.group for sample in samples],
                 [sample.source for sample in samples], [sample.label for sample in samples])
