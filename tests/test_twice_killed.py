"""`learn --from`, interrupted or killed: what it said is true, and the same command again leads to the same as once."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers_http import image_state
from helpers_state import create, vectors
from PIL import Image

from edgecl.cli import main
from edgecl.learner import Learner

CLASSES = [f"class {number:02}" for number in range(60)]


def vectors_file(folder):
    x = np.concatenate([vectors(name, 12) for name in CLASSES])
    np.savez(folder / "samples.npz", x_train=x, y_train=np.repeat(CLASSES, 12), x_test=x[:2], y_test=CLASSES[:2])
    return folder / "samples.npz", lambda path: create(path, exemplars=8_000)


def photos(folder):
    for number, name in enumerate(CLASSES):
        (folder / "photos" / name).mkdir(parents=True)
        for each in range(5):
            pixels = np.random.default_rng([number, each]).integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{each}.png")
    return folder / "photos", lambda path: image_state(path, (), exemplars=30_000)


def known(path):
    """Counts, and what a freshly opened state answers."""
    learner = Learner.open(path)
    probe = vectors("probe", 30) if learner.foundation is None or learner.foundation.kind == "feature" else \
        np.random.default_rng(1).integers(0, 256, (30, 16, 16, 3), np.uint8)
    try:
        return {each.name: each.samples for each in learner.classes()}, learner.predict(probe)
    finally:
        learner.close()


def command(path, source):
    return [sys.executable, "-m", "edgecl", "learn", "--json", "--state", str(path), "--from", str(source)]


def begun(path, source, lines, number):
    """The command, to which a signal was sent after so many lines of its answer: what it printed, and its end. Its pipe
    holds a part of the answer only, so that it can't end before."""
    running = subprocess.Popen(command(path, source), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONUNBUFFERED": "1"}, pipesize=4096)
    said = [running.stdout.readline() for _ in range(lines)]
    running.send_signal(number)
    out, err = running.communicate(timeout=600)
    whole = [line for line in "".join([*said, out]).splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line) for line in whole], err, running.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
@pytest.mark.parametrize("made", [vectors_file, photos])
def test_a_folder_that_was_interrupted_is_learned_on_as_if_it_had_been_learned_at_once(tmp_path, made, number):
    source, state = made(tmp_path)
    for name in ("once", "parts"):
        state(tmp_path / name).close()
    assert main(command(tmp_path / "once", source)[3:]) == 0
    for lines in (1, 9):     # of the second run, most are of classes that are known
        told, err, code = begun(tmp_path / "parts", source, lines, number)
        assert code == (130 if number == signal.SIGINT else -number)
        counts = known(tmp_path / "parts")[0]
        assert {each["class"]: counts[each["class"]] for each in told} == {
            each["class"]: each["samples"] + each.get("known", 0) for each in told}
        if number == signal.SIGINT:
            kept = err.partition("`edgecl history`: ")[2].partition("; the same command goes on with ")[0]
            assert {*filter(None, kept.split(", "))} - {"nothing yet"} <= {*counts}
            assert err.count("\n") == 1 and "counts nothing twice" in err
    assert len(counts) < len(CLASSES)
    assert main(command(tmp_path / "parts", source)[3:]) == 0
    (one, answered), (other, as_well) = known(tmp_path / "once"), known(tmp_path / "parts")
    assert one == other and len(one) == len(CLASSES)
    assert [each.label for each in answered] == [each.label for each in as_well]
    assert [each.confidence for each in answered] == pytest.approx([each.confidence for each in as_well], rel=1e-4)


def test_ctrl_c_says_what_a_state_without_samples_needs(tmp_path, monkeypatch, capsys):
    source, _ = vectors_file(tmp_path)
    create(tmp_path / "state", memory="statistics").close()
    learn = Learner.learn

    def interrupted(self, samples, label, *rest, **named):
        if label == CLASSES[2]:
            raise KeyboardInterrupt
        return learn(self, samples, label, *rest, **named)

    monkeypatch.setattr(Learner, "learn", interrupted)
    assert main(command(tmp_path / "state", source)[3:]) == 130
    assert "`edgecl history`: class 00, class 01; go on with 'class 02' class by class, since this state would count " \
        "the others twice" in capsys.readouterr().err


@pytest.mark.parametrize("last", [2, len(CLASSES) - 1])
@pytest.mark.parametrize("memory", ["exemplars", "statistics"])
def test_ctrl_c_counts_a_class_that_was_stored_but_not_yet_printed(tmp_path, monkeypatch, capsys, memory, last):
    source, _ = vectors_file(tmp_path)
    create(tmp_path / "state", memory=memory).close()
    learn = Learner.learn

    def interrupted(self, samples, label, *rest, **named):
        told = learn(self, samples, label, *rest, **named)
        if label == CLASSES[last]:
            raise KeyboardInterrupt
        return told

    monkeypatch.setattr(Learner, "learn", interrupted)
    assert main(command(tmp_path / "state", source)[3:]) == 130
    err = capsys.readouterr().err
    assert f"{', '.join(CLASSES[:last + 1])}; " in err
    assert [*known(tmp_path / "state")[0]] == CLASSES[:last + 1]
    assert ("'class 03'" in err) if last == 2 else err.endswith("that is all of it\n")
