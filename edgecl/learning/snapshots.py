"""Snapshots: class statistics and keys of samples as one .npz file, read again with the samples that came since."""
from __future__ import annotations

import io
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from edgecl.statistics.class_statistics import ClassStatistics
from edgecl.statistics.row_blocks import UPDATE_BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from edgecl.exemplars.pseudo_samples import ClassGaussians
    from edgecl.exemplars.stored import StoredSample
    from edgecl.statistics.transform import FeatureTransform


def packed(statistics: Sequence[ClassStatistics], gaussians: ClassGaussians | None, rank: int | None,
           keys: Mapping[str, NDArray[Any]]) -> bytes:
    """The statistics of each transform, the Gaussians of classes if there are any, and keys of samples, as one file.
    rank: of the scatter, see `ClassStatistics.to_arrays`; keys: of `KnownSamples.to_arrays`."""
    arrays = {f"{number}.{name}": array for number, each in enumerate(statistics)
              for name, array in each.to_arrays(rank).items()}
    if gaussians is not None:
        arrays |= {f"gaussians.{name}": array for name, array in gaussians.to_arrays().items()}
    arrays |= {f"known.{name}": array for name, array in keys.items()}
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def unpacked(snapshot: bytes, transforms: Sequence[FeatureTransform], gaussians: ClassGaussians | None
             ) -> tuple[dict[FeatureTransform, ClassStatistics], dict[str, NDArray[Any]]]:
    """The statistics and the keys of a file of `packed`; its Gaussians are loaded into `gaussians`, if that is given.
    """
    with np.load(io.BytesIO(snapshot), allow_pickle=False) as file:
        def part(which: object) -> dict[str, NDArray[Any]]:
            return {name.partition(".")[2]: file[name] for name in file.files if name.startswith(f"{which}.")}

        statistics = {transform: ClassStatistics.from_arrays(part(number))
                      for number, transform in enumerate(transforms)}
        if gaussians is not None:
            plain = statistics[transforms[0]]
            gaussians.load(part("gaussians"), {label: plain.mean(label) for label in plain.labels})
        return statistics, part("known")


def add_again(statistics: Mapping[FeatureTransform, ClassStatistics], since: Iterable[StoredSample]) -> None:
    """Add stored samples that came after a snapshot, as they were learned: the same calls give the same bits."""
    taught = [[*rows] for _, rows in groupby(since, key=lambda row: (row.generation, row.label))]
    for alone, groups in groupby(taught, key=lambda rows: len(rows) == 1):
        if alone:   # many corrections of one sample
            rows = [row for group in groups for row in group]
            for start in range(0, len(rows), UPDATE_BLOCK):
                block = rows[start:start + UPDATE_BLOCK]
                _add(statistics, [row.label for row in block], block)
        else:
            for group in groups:
                _add(statistics, group[0].label, group)


def _add(statistics: Mapping[FeatureTransform, ClassStatistics], label: str | list[str],
         rows: list[StoredSample]) -> None:
    """Add stored samples of one class at once, or each of its class by itself."""
    features = np.stack([row.feature for row in rows])
    for transform, each in statistics.items():
        if isinstance(label, str):
            each.add(label, transform(features))
        else:
            each.add_each(label, transform(features))
