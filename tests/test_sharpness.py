"""Photos that look blurred are learned, counted and named; sharp ones, small inputs and blank pictures are not."""
from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageFilter

from edgecl.cli import main
from edgecl.images import fit
from edgecl.learning.sharpness import blurred, detail

SIZE = 320


def scene(seed, size=SIZE):
    """A picture with detail of every size, as photos have it: noise whose power falls with the square of frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(rng.normal(size=(size, size, 3)), axes=(0, 1)) / frequency[..., None] ** 1.1
    shown = np.fft.ifft2(spectrum, axes=(0, 1)).real
    shown = (shown - shown.mean()) / shown.std()
    return Image.fromarray(np.clip(128 + 45 * shown, 0, 255).astype(np.uint8))


def shaken(picture, pixels, both):
    """A picture that moved along a row, or along a diagonal."""
    values = np.asarray(picture, np.float32)
    moved = [np.roll(values, (step if both else 0, step), (0, 1)) for step in range(pixels)]
    return Image.fromarray(np.mean(moved, 0).astype(np.uint8))


WAYS = {
    "out of focus": lambda picture: picture.filter(ImageFilter.GaussianBlur(4)),
    "box": lambda picture: picture.filter(ImageFilter.BoxBlur(5)),
    "shaken": lambda picture: shaken(picture, 20, False),
    "shaken diagonally": lambda picture: shaken(picture, 20, True),
    "tiny": lambda picture: picture.resize((40, 40), Image.Resampling.BOX),
    "grey": lambda picture: picture.convert("L").filter(ImageFilter.GaussianBlur(4)),
}


def test_sharp_pictures_are_left_in_peace():
    pictures = np.stack([fit(scene(seed), 224, 224) for seed in range(12)])
    assert blurred(pictures) == [False] * 12
    noisy = np.clip(pictures + np.random.default_rng(0).normal(0, 15, pictures.shape), 0, 255).astype(np.uint8)
    assert blurred(noisy) == [False] * 12
    assert blurred(np.ascontiguousarray(pictures[..., :1])) == [False] * 12


@pytest.mark.parametrize("way", WAYS)
def test_blurred_pictures_are_seen(way):
    found = blurred(np.stack([fit(WAYS[way](scene(seed)).convert("RGB"), 224, 224) for seed in range(12)]))
    assert sum(found) >= 11


def test_small_inputs_and_flat_pictures_have_no_detail_to_miss():
    assert blurred(np.stack([fit(WAYS["tiny"](scene(0)), 64, 64)])) == [False]
    assert detail(np.full((224, 224, 3), 7, np.uint8)) == 0.0


def folder(path, blurry, sharp):
    path.mkdir(parents=True)
    for seed in range(sharp):
        scene(seed).save(path / f"sharp{seed}.png")
    for seed in range(blurry):
        WAYS["out of focus"](scene(100 + seed)).save(path / f"soft{seed}.png")
    return path


def test_learn_names_them_and_learns_them(tmp_path, capsys):
    photos, state = folder(tmp_path / "mug", 3, 6), tmp_path / "s"
    assert main(["learn", "--state", str(state), "--class", "mug", str(photos)]) == 0
    out = capsys.readouterr().out
    assert "mug: 9 samples learned" in out
    line, = (line for line in out.splitlines() if "blurred" in line)
    assert line.startswith("  3 look blurred: ")
    assert all(f"soft{number}.png" in line for number in range(3))
    assert "sharp" not in line


def test_json_names_them_and_known_ones_are_not_named_again(tmp_path, capsys):
    photos, state = folder(tmp_path / "mug", 1, 3), tmp_path / "s"
    for expected in (1, 0):
        assert main(["learn", "--state", str(state), "--class", "mug", str(photos), "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out).get("blurred", [])) == expected


def test_where_most_are_blurred_their_number_is_enough(tmp_path, capsys):
    photos, state = folder(tmp_path / "mug", 4, 2), tmp_path / "s"
    assert main(["learn", "--state", str(state), "--class", "mug", str(photos)]) == 0
    assert "  4 look blurred or are very small\n" in capsys.readouterr().out
