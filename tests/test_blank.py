"""Black, white and grey pictures, lens caps, and windows in which nothing changes: told by a direct check."""
from __future__ import annotations

import json
from contextlib import closing

import numpy as np
import pytest
from helpers_http import image_state, shades
from helpers_state import create, vectors

from edgecl.cli import main
from edgecl.learner import Learner
from edgecl.samples import NOTHING, blank
from edgecl.settings import Settings

SIDE = 16


def flat(*colour, side=SIDE, noise=0.0, seed=0):
    """A picture of one colour, with a sensor's noise."""
    pixels = np.random.default_rng(seed).normal(np.broadcast_to(colour, (side, side, 3)), noise)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


FRAMES = {"black": flat(0), "a lens cap": flat(6, noise=3), "dark": flat(30, noise=2), "white": flat(255),
          "overexposed": flat(250, noise=3), "grey": flat(128), "grey and noisy": flat(90, noise=3),
          "red": flat(200, 20, 20), "blue": flat(10, 10, 180, noise=2)}
WORDS = {"black": "black", "a lens cap": "black", "dark": "black", "white": "white", "overexposed": "white",
         "grey": "grey", "grey and noisy": "grey", "red": "of one colour", "blue": "of one colour"}


@pytest.mark.parametrize("what", FRAMES)
@pytest.mark.parametrize("side", [SIDE, 224])
def test_a_picture_of_one_colour_is_told_by_its_name(what, side):
    frame = np.tile(FRAMES[what], (side // SIDE, side // SIDE, 1))
    assert blank(frame[None], "image") == [f"the picture is {WORDS[what]}"]


@pytest.mark.parametrize("pixels", [
    shades(20, 1)[0], np.tile(np.uint8([[[0], [40]], [[40], [0]]]), (8, 8, 3)),
    np.repeat(np.linspace(0, 60, SIDE, dtype=np.uint8)[:, None, None], SIDE, 1).repeat(3, 2),
    np.where(np.arange(224)[None, :, None] % 7 == 0, 255, 0).astype(np.uint8).repeat(224, 0).repeat(3, 2)],
    ids=["noise", "checkerboard", "gradient", "stripes at the sampled pixels"])
def test_a_picture_that_shows_something_is_not(pixels):
    assert blank(pixels[None], "image") == [""]


@pytest.mark.parametrize("value", [0.0, -1.0, 9.81, 1e4, 1e-9])
def test_a_window_in_which_no_channel_changes_is_told(value):
    window = np.full((1, 40, 3), value, np.float32) * np.float32([1, -2, 3])
    assert blank(window, "window") == ["the window is constant"]
    window[0, 7, 1] += max(abs(value), 1e-6) / 100
    assert blank(window, "window") == [""]


def test_vectors_always_show_something_and_so_does_one_sample_in_time():
    assert blank(np.zeros((3, 8), np.float32), "feature") == ["", "", ""]
    assert blank(np.ones((2, 1, 3), np.float32), "window") == ["", ""]


# answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", FRAMES)
def test_a_blank_picture_is_unknown_and_says_why(tmp_path, what):
    with closing(image_state(tmp_path / "s")) as learner:
        answer = learner.predict(FRAMES[what][None])[0]
        assert (answer.label, answer.confidence, answer.unknown) == (None, 1.0, True)
        assert answer.reason == f"the picture is {WORDS[what]}"
        assert learner.predict(shades(20, 1, 9))[0].label == "dark"


def swinging(frequency, count, seed=0):
    """Windows [count, 40, 3] of an oscillation."""
    phase = np.random.default_rng(seed).uniform(0, 6, (count, 1, 3))
    return np.sin(np.arange(40)[None, :, None] * frequency / 3 + phase).astype(np.float32)


def watch(path):
    return Learner.create(path, Settings(backbone="rocket", quota=8_000_000, rate=20, window=2, codec="int8-feature"),
                          np.concatenate([swinging(1, 10), swinging(3, 10)]))


@pytest.mark.parametrize("value", [0.0, -1.0, 250.0])
def test_a_constant_window_is_unknown_and_says_why(tmp_path, value):
    with closing(watch(tmp_path / "s")) as learner:
        learner.learn(swinging(1, 20), "slow")
        learner.learn(swinging(3, 20), "fast")
        answer = learner.predict(np.full((1, 40, 3), value, np.float32))[0]
        assert (answer.label, answer.unknown, answer.reason) == (None, True, "the window is constant")


def test_constant_vectors_are_left_to_the_head(tmp_path):
    with closing(create(tmp_path / "s")) as learner:
        learner.learn(vectors("ant", 25), "ant")
        learner.learn(vectors("wasp", 25), "wasp")
        assert {answer.reason for answer in learner.predict(np.zeros((2, 16), np.float32))} == {None}


@pytest.mark.parametrize("reopened", [False, True])
def test_a_class_may_look_blank(tmp_path, reopened):
    still = np.full((12, 40, 3), 1.0, np.float32) + np.float32(np.arange(12) / 10)[:, None, None]
    learner = watch(tmp_path / "s")
    learner.learn(swinging(1, 20), "slow")
    learned = learner.learn(still, "rest")
    assert (learned.samples, learned.blank, learned.left_out) == (12, 12, 0)
    if reopened:
        learner.close()
        learner = Learner.open(tmp_path / "s")
    with closing(learner):
        answer = learner.predict(np.full((1, 40, 3), 1.55, np.float32))[0]
        assert (answer.label, answer.reason) == ("rest", None)


def test_nothing_may_be_taught_with_blank_samples_of_which_others_stay_unknown(tmp_path):
    with closing(image_state(tmp_path / "s")) as learner:
        mixed = np.concatenate([shades(90, 10, 3), np.stack([FRAMES["black"], FRAMES["white"]])])
        learned = learner.learn(mixed, NOTHING)
        assert (learned.samples, learned.blank, learned.left_out) == (12, 2, 0)
        assert learner.predict(FRAMES["grey"][None])[0].unknown


# teaching ------------------------------------------------------------------------------------------


def test_a_few_blank_samples_among_others_are_not_learned(tmp_path):
    blanks = np.stack([FRAMES["black"], FRAMES["white"], FRAMES["a lens cap"]])
    with closing(image_state(tmp_path / "s")) as learner, closing(image_state(tmp_path / "clean")) as clean:
        mixed = np.concatenate([shades(90, 9, 3), blanks, shades(90, 8, 4)])
        learned = learner.learn(mixed, "mid", groups=["a"] * 10 + ["b"] * 10)
        assert (learned.samples, learned.left_out, learned.blank) == (17, 3, 0)
        clean.learn(np.concatenate([shades(90, 9, 3), shades(90, 8, 4)]), "mid", groups=["a"] * 9 + ["b"] * 8)
        probe = np.concatenate([shades(level, 5, 8) for level in (20, 90, 150)])
        assert [(a.label, a.confidence, a.unknown) for a in learner.predict(probe)] == [
            (a.label, a.confidence, a.unknown) for a in clean.predict(probe)]
        assert learner.predict(blanks)[0].reason == "the picture is black"


def test_people_and_programs_are_told_what_was_left_out(tmp_path, capsys):
    image_state(tmp_path / "s").close()
    mixed = np.concatenate([shades(90, 9), FRAMES["black"][None]])
    reds = np.stack([flat(200, 20, 20, noise=2, seed=i) for i in range(6)])
    for name, x in (("mid", mixed), ("red", reds)):
        np.savez(tmp_path / f"{name}.npz", x_train=x, y_train=np.zeros(len(x), int), class_names=[name])
    learn = ["learn", "--state", str(tmp_path / "s"), "--class"]
    assert main([*learn, "mid", str(tmp_path / "mid.npz")]) == 0
    assert "left out: 1 that show nothing" in capsys.readouterr().out
    assert main([*learn, "mid", "--json", "--again", str(tmp_path / "mid.npz")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["left_out"], told.get("blank")) == (9, 1, None)
    assert main([*learn, "red", str(tmp_path / "red.npz")]) == 0
    assert "6 of them show nothing" in capsys.readouterr().out


def test_a_merge_knows_that_blank_samples_were_taught_there(tmp_path):
    there = watch(tmp_path / "there")
    there.learn(np.full((12, 40, 3), 1.0, np.float32) + np.float32(np.arange(12))[:, None, None], "rest")
    there.learn(swinging(3, 20), "fast")
    there.close()
    with closing(watch(tmp_path / "here")) as learner:
        learner.learn(swinging(1, 20), "slow")
        window = np.full((1, 40, 3), 1.0, np.float32)
        assert learner.predict(window)[0].reason == "the window is constant"
        learner.merge([tmp_path / "there"])
        assert learner.predict(window)[0].label == "rest"
