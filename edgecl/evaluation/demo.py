"""`edgecl demo`: learns real smartwatch recordings, one exercise after another, and tests on unseen people."""
from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from edgecl.errors import BadInput, BudgetError
from edgecl.evaluation.baselines import SoftmaxRegression
from edgecl.evaluation.datasets import watch
from edgecl.evaluation.report import curves, heading, paragraph, table, write_report
from edgecl.learner import Learner
from edgecl.learning.export import read_labels
from edgecl.learning.foundation import CALIBRATION_SAMPLES
from edgecl.results import RoundResult
from edgecl.rounds.run import RoundRequest
from edgecl.samples import Sample
from edgecl.settings import Settings, format_size
from edgecl.sources import read, stack
from edgecl.sources.spec import Spec

WINDOW, HOP = 3.0, 1.5   # seconds
HELD_OUT_PEOPLE = 4      # of 10
QUOTA = 64 * 10**6
ROUND_SECONDS = 40.0     # limit of the learning round ...
RETRY_FACTOR = 4         # ... and how many times longer it may take if that is not enough beside other programs
MARKER_FILE = ".edgecl-demo"    # only a folder with this file is ever cleared


@dataclass(frozen=True)
class DemoStep:
    """One class learned. Accuracies are on windows of unseen people, over all classes so far."""

    label: str
    samples: int
    milliseconds: float
    used_bytes: int
    edgecl: float
    fine_tuning: float
    joint: float


@dataclass(frozen=True)
class Demo:
    """Result of the demo. exported: accuracy of the exported file on the same windows, by ONNX Runtime alone; round:
    result of the learning round at the end; tuned: accuracy after it. Both are None without torch or enough time."""

    steps: list[DemoStep]
    test_windows: int
    people: tuple[list[str], list[str]]
    head: str
    exported: float
    export_bytes: int
    out: Path
    round: RoundResult | None = None
    tuned: float | None = None


def run(out: Path, say: Callable[[str], None]) -> Demo:
    """Write recordings, learn class by class, compare, export and report, all in the folder `out`.

    say: called with one line of text at a time. Raises BadInput if `out` already contains something else or a package
    of the extra `demo` is missing.
    """
    recordings, train_people, test_people = write_recordings(out)
    spec = Spec(rate=watch_rate(recordings), window=WINDOW, hop=HOP)
    folders = sorted((recordings / "train").iterdir())
    say(f"{len(folders)} exercises; learning from {len(train_people)} people, testing on {len(test_people)} unseen")
    settings = Settings(backbone="rocket", quota=QUOTA, rate=spec.rate, window=WINDOW, hop=HOP)
    learner = Learner.create(out / "state", settings, stack(read(recordings / "train", spec), CALIBRATION_SAMPLES))
    train = {folder.name: windows(folder, spec) for folder in folders}
    test = {folder.name: windows(recordings / "test" / folder.name, spec) for folder in folders}
    steps = learn_in_turn(learner, train, test, say)
    written = learner.export(out / "model.onnx")
    demo = Demo(steps, sum(map(len, test.values())), (train_people, test_people), learner.status().head or "",
                exported_accuracy(out / "model.onnx", test), int(written["bytes"]), out)
    if find_spec("torch") is None:
        say("no learning round at the end: it needs torch, pip install 'edgecl[train]'")
    else:
        demo = tuned(learner, test, demo, say)
    report(demo)
    learner.close()
    return demo


def tuned(learner: Learner, test: dict[str, list[Sample]], demo: Demo, say: Callable[[str], None]) -> Demo:
    """The demo after one short learning round and its gate, with the accuracy on unseen people. If other programs left
    the round too little time, a longer one is tried; if that is not enough either, there is none."""
    say("one learning round: a worker tunes an adapter on the stored windows, then the gate checks it ...")
    for seconds in (ROUND_SECONDS, RETRY_FACTOR * ROUND_SECONDS):
        try:
            done = learner.round(RoundRequest(seconds=seconds))
            break
        except BudgetError as error:
            say(f"  {error.what}")
    else:
        return demo
    right = [answer.label == name for name, samples in test.items() for answer in learner.predict(iter(samples))]
    return replace(demo, round=done, tuned=float(np.mean(right)))


def write_recordings(out: Path) -> tuple[Path, list[str], list[str]]:
    """Write the data set as files anybody could have recorded: recordings/{train,test}/<exercise>/<person>-<n>.csv.

    Returns the folder and the names of the people in train and test. Raises BadInput if `out` contains something else.
    """
    if out.exists() and any(out.iterdir()) and not (out / MARKER_FILE).exists():
        raise BadInput(f"{out} already contains something else", "name another folder with --out")
    shutil.rmtree(out, ignore_errors=True)
    data = watch()
    people = sorted({f"{person:02d}" for person in data.subjects})
    unseen = set(people[::-1][::len(people) // HELD_OUT_PEOPLE][:HELD_OUT_PEOPLE])
    (out / "recordings").mkdir(parents=True)
    (out / MARKER_FILE).touch()
    for number, (values, label, subject) in enumerate(zip(data.recordings, data.labels, data.subjects)):
        person = f"{subject:02d}"
        folder = out / "recordings" / ("test" if person in unseen else "train") / label
        folder.mkdir(parents=True, exist_ok=True)
        np.savetxt(folder / f"person{person}-{number:03d}.csv", values, fmt="%.6g", delimiter=",",
                   header=",".join(data.channels), comments="")
    (out / "recordings" / "rate").write_text(f"{data.rate}\n")
    return out / "recordings", [p for p in people if p not in unseen], sorted(unseen)


def watch_rate(recordings: Path) -> float:
    """Sampling rate of the written recordings, Hz."""
    return float((recordings / "rate").read_text())


def windows(folder: Path, spec: Spec) -> list[Sample]:
    """All windows of a folder of recordings."""
    return [item for item in read(folder, spec) if isinstance(item, Sample)]


def learn_in_turn(learner: Learner, train: dict[str, list[Sample]], test: dict[str, list[Sample]],
                  say: Callable[[str], None]) -> list[DemoStep]:
    """Learn one class after another, test on all classes so far after each, and train the two baselines alongside."""
    steps: list[DemoStep] = []
    names: list[str] = []
    features = {name: learner.features(samples) for name, samples in train.items()}
    unseen = {name: learner.features(samples) for name, samples in test.items()}
    everything = np.concatenate(list(features.values()))
    standard = everything.mean(0), everything.std(0)
    tuned = SoftmaxRegression(*standard)
    for name, samples in train.items():
        names.append(name)
        learned = learner.learn(iter(samples), name)
        right = [answer.label == known for known in names for answer in learner.predict(iter(test[known]))]
        truth = np.concatenate([np.full(len(unseen[known]), i) for i, known in enumerate(names)])
        probe = np.concatenate([unseen[known] for known in names])
        tuned.fit(features[name], np.full(len(samples), len(names) - 1), len(names))
        joint = SoftmaxRegression(*standard)
        joint.fit(np.concatenate([features[known] for known in names]),
                  np.concatenate([np.full(len(features[known]), i) for i, known in enumerate(names)]), len(names))
        steps.append(DemoStep(name, learned.samples, learned.milliseconds, learned.used_bytes, float(np.mean(right)),
                          float((tuned.predict(probe) == truth).mean()),
                          float((joint.predict(probe) == truth).mean())))
        say(f"  {name}: {learned.samples} windows, {learned.milliseconds:.1f} ms each, "
            f"{format_size(learned.used_bytes)} used; accuracy on {len(names)} classes {steps[-1].edgecl:.3f}")
    return steps


def exported_accuracy(model: Path, test: dict[str, list[Sample]]) -> float:
    """Accuracy of the exported file, using only ONNX Runtime and the labels in its metadata."""
    from edgecl.backbones.onnx_runtime import onnxruntime as ort

    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    labels = read_labels(session.get_modelmeta().custom_metadata_map)
    name = session.get_inputs()[0].name
    right = [labels[int(session.run(["probabilities"], {name: sample.data[None]})[0].argmax())] == truth
             for truth, samples in test.items() for sample in samples]
    return float(np.mean(right))


def report(demo: Demo) -> None:
    """Write report.html."""
    last, x = demo.steps[-1], list(range(1, len(demo.steps) + 1))
    write_report(demo.out / "report.html", "edgecl demo", (
        f"Seven shoulder exercises from a smartwatch (seglearn's watch_dataset, 50 Hz accelerometer and gyroscope), "
        f"{WINDOW:g} s windows. Learned one after another from {len(demo.people[0])} people, tested on "
        f"{demo.test_windows} windows of {len(demo.people[1])} unseen people."), [
        curves(x, {"edgecl": [s.edgecl for s in demo.steps],
                   "joint": [s.joint for s in demo.steps],
                   "fine-tuning": [s.fine_tuning for s in demo.steps]},
               "classes learned", "accuracy on all classes so far"),
        heading("Step by step"), table(STEP_COLUMNS, [row(i, s) for i, s in enumerate(demo.steps, 1)]),
        paragraph("edgecl keeps exact class statistics: what it knows does not depend on the order of the classes. "
                  "Fine-tuning is a linear head on the same features, trained by gradient descent on each new class "
                  "alone: it forgets. Joint is the same head trained on everything so far, the usual upper bound."),
        heading("Export"),
        paragraph(f"model.onnx ({format_size(demo.export_bytes)}, {demo.head} head) contains preprocessing, backbone, "
                  f"head and labels: with ONNX Runtime alone, {100 * demo.exported:.1f} % of these windows are "
                  f"classified correctly. "
                  f"The state uses {format_size(last.used_bytes)} of {format_size(QUOTA)}."), *round_parts(demo)])


def round_parts(demo: Demo) -> list[str]:
    """The section of the report about the learning round, if there was one."""
    done = demo.round
    if done is None:
        return []
    verdict = "accepted" if done.accepted else "refused"
    return [heading("A learning round"), paragraph(
        f"{done.method} tuned an adapter on {done.samples} stored windows in a separate process "
        f"({done.seconds:.0f} s, {format_size(done.peak_rss_bytes)} at its peak). The gate {verdict} the result; on "
        f"the unseen people, accuracy is {100 * (demo.tuned or 0):.1f} % now and was "
        f"{100 * demo.steps[-1].edgecl:.1f} % before. The gate decides by accuracy on windows that neither "
        "the backbone nor any head has learned from."),
        table(["check", "found", "passed"], [[name, found, "yes" if passed else "no"]
                                             for name, found, passed in done.checks])]


STEP_COLUMNS = ["class", "known", "windows", "ms each", "used", "edgecl", "fine-tuning", "joint"]


def row(number: int, step: DemoStep) -> list[str]:
    """One row of the table of steps."""
    return [step.label, str(number), str(step.samples), f"{step.milliseconds:.1f}", format_size(step.used_bytes),
            f"{step.edgecl:.3f}", f"{step.fine_tuning:.3f}", f"{step.joint:.3f}"]


def timed(out: Path, say: Callable[[str], None]) -> tuple[Demo, float]:
    """The result of `run`, and the seconds it took."""
    started = time.monotonic()
    return run(out, say), time.monotonic() - started
