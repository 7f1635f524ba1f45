"""The tables in docs/: each script's functions on a few digits."""
from __future__ import annotations

from dataclasses import replace

import accuracy_per_byte as bytes_table
import numpy as np
import pytest


@pytest.fixture(scope="module")
def digits():
    task = bytes_table.digits()
    few = {label: bytes_table.Part(part.features[:60], part.keys[:60]) for label, part in task.train.items()}
    return replace(task, train=few)


@pytest.mark.parametrize("codec", ["raw", "int8-feature", "pq", "auto"])
def test_a_buffer_never_passes_its_bytes_and_its_heads_know_what_it_keeps(digits, codec):
    cell = bytes_table.measure(digits, codec, 16_000, seed=0)
    assert cell.written <= 16_000
    assert 40 < cell.exemplars <= 600
    assert all(0.7 < accuracy <= 1 for accuracy in cell.accuracy.values())
    assert list(cell.accuracy) == (["automatic"] if codec == "auto" else digits.heads)


def test_the_seed_changes_which_samples_stay_and_nothing_else_does(digits):
    kept = [{row.key for row in bytes_table.fill(digits, "raw", 16_000, seed).stored} for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2]
    key, other = (bytes_table.salted(k, 3) for k in (5 << 32 | 7, 5 << 32 | 8))
    assert key != other
    assert key >> 32 == other >> 32 < 2 ** 31


def test_samples_of_a_photo_buffer_go_through_the_backbone_again():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 64, (2, 6, 16, 16, 3), np.uint8)
    photos = {"a": noise[0], "b": noise[1] + np.uint8(150)}

    def again(x):
        return x.reshape(len(x), -1)[:, ::64].astype(np.float32)

    train = {label: bytes_table.Part(again(x), [*range(i, i + 6)], x)
             for i, (label, x) in zip((0, 10), photos.items())}
    task = bytes_table.Task("photos", "image", (16, 16, 3), 0.5, train, again(np.concatenate([*photos.values()])),
                            np.repeat(["a", "b"], 6), again)
    cell = bytes_table.measure(task, "jpeg", 4_000, seed=0)
    assert 2 <= cell.exemplars < 12
    assert cell.accuracy["nearest-mean"] == 1


def test_the_page_names_what_falls_short(tmp_path):
    table = {("raw", "slda"): [(50.0, 3), (90.0, 9)], ("auto", "automatic"): [(49.5, 3), (80.0, 9)]}
    page = bytes_table.page({"digits": table}, ("16KB", "64KB"), 3)
    assert "except digits at 64KB (80.0 against 90.0)" in page
    assert "| raw, slda | **50.0** (3) | **90.0** (9) |" in page
    bytes_table.plot({"digits": table}, ("16KB", "64KB"), tmp_path / "plot.svg")
    assert "automatic</text>" in (tmp_path / "plot.svg").read_text()
