"""`edgecl evaluate` on real digits: what is taken for what, the wrong files, calibration, and what was never taught."""
from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers_http import image_state, shades
from helpers_state import create, refused, vectors
from PIL import Image

from edgecl.cli import main
from edgecl.evaluation import answers_report
from edgecl.evaluation.answers_report import MOST_PICTURES, WrongPictures, write_evaluation
from edgecl.evaluation.datasets import digits
from edgecl.learner import Learner
from edgecl.learning.evaluating import BINS, calibrated
from edgecl.samples import NOTHING, Sample
from edgecl.settings import Settings


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A folder with a state that knows five digits, and an .npz file with test digits of all ten."""
    folder, data = tmp_path_factory.mktemp("evaluate"), digits()
    x, xt = (each.reshape(len(each), -1).astype(np.float32) for each in (data.x_train, data.x_test))
    learner = Learner.create(folder / "state", Settings("identity", 16_000_000, 1_000_000))
    for digit in range(5):
        learner.learn(x[data.y_train == digit][:12], f"digit {digit}")
    learner.close()
    names = [f"digit {digit}" for digit in range(10)]
    for name, mine in (("all", data.y_test >= 0), ("known", data.y_test < 5)):
        np.savez(folder / f"{name}.npz", x_train=xt[mine], y_train=data.y_test[mine], x_test=xt[mine],
                 y_test=data.y_test[mine], class_names=names)
    return folder


def printed(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def checked(found):
    """What must hold of every evaluation."""
    known = found["per_class"]
    assert set(found["confusion"]) == set(known) and set(found["taken_for"]) == set(found["untaught"])
    assert found["n"] == sum(found["samples"][label] for label in known)
    assert found["right"] == sum(of.get(label, 0) for label, of in found["confusion"].items())
    assert found["accuracy"] == pytest.approx(found["right"] / found["n"])
    for label, of in found["confusion"].items():
        assert sum(of.values()) == found["samples"][label]
        assert known[label] == pytest.approx(of.get(label, 0) / found["samples"][label])
    for label, share in found["untaught"].items():
        assert share == pytest.approx(found["called_unknown"][label] / found["samples"][label])
        assert sum(found["taken_for"][label].values()) == found["samples"][label] - found["called_unknown"][label]
    wrong = [each for each in found["wrong"] if each["taught"]]
    assert len(wrong) == found["n"] - found["right"]
    assert len(found["wrong"]) - len(wrong) == sum(sum(of.values()) for of in found["taken_for"].values())
    bins, n = found["calibration"]["bins"], found["calibration"]["n"]
    assert sum(each["n"] for each in bins) == n
    assert all(each["low"] <= each["confidence"] <= each["high"] for each in bins)
    if n:
        assert found["calibration"]["ece"] == pytest.approx(
            sum(each["n"] * abs(each["confidence"] - each["accuracy"]) for each in bins) / n)


def test_known_and_never_taught_are_counted_separately(taught, capsys):
    found = json.loads(printed(capsys, "evaluate", "--state", taught / "state", taught / "all.npz", "--json"))
    checked(found)
    only = json.loads(printed(capsys, "evaluate", "--state", taught / "state", taught / "known.npz", "--json"))
    checked(only)
    for key in ("accuracy", "right", "n", "per_class", "confusion", "unknown_rate", "calibration"):
        assert found[key] == only[key]      # whatever never-taught samples are among them
    assert set(found["untaught"]) == {f"digit {digit}" for digit in range(5, 10)} and not only["untaught"]
    assert 0.7 < found["accuracy"] <= 1 and np.mean([*found["untaught"].values()]) > 0.3
    text = printed(capsys, "evaluate", "--state", taught / "state", taught / "all.npz")
    strange = list(found["untaught"])
    assert f"{found['right']} of {found['n']} samples of 5 known classes" in text
    unknown, of = (sum(found[key][label] for label in strange) for key in ("called_unknown", "samples"))
    assert f"never taught: {unknown} of {of} samples of 5 classes called unknown" in text
    assert f"calibration error {100 * found['calibration']['ece']:.1f} % over {found['n']} answers" in text
    assert "digit 7 (never taught)" in text


def test_wrong_samples_are_named_as_they_are_answered(taught, capsys):
    found = json.loads(printed(capsys, "evaluate", "--state", taught / "state", taught / "all.npz", "--json"))
    answers = {json.loads(line)["source"]: json.loads(line) for line in printed(
        capsys, "predict", "--state", taught / "state", taught / "all.npz").splitlines()}
    assert found["wrong"]
    for each in found["wrong"]:
        answer = answers[each["source"]]
        assert (each["label"], each["unknown"]) == (answer["label"], answer["unknown"])
        assert each["label"] != each["class"] if each["taught"] else not each["unknown"]
    text = printed(capsys, "evaluate", "--state", taught / "state", taught / "all.npz")
    assert found["wrong"][0]["source"] in text
    assert ("and " in text.splitlines()[-1]) == (len(found["wrong"]) > 20)


def test_few_classes_are_shown_whole_and_of_many_the_most_confused(tmp_path, capsys):
    learner = create(tmp_path / "state", quota=4_000_000, exemplars=400_000)
    rng = np.random.default_rng(0)
    names = [f"class {number:02}" for number in range(14)]
    x = np.concatenate([vectors(name, 20) for name in names])
    x += 9 * rng.standard_normal(x.shape).astype(np.float32)
    y = np.repeat(np.arange(14), 20)
    for place, name in enumerate(names):
        learner.learn(x[y == place][:10], name)
    learner.close()
    for name, classes in (("many", 14), ("few", 3)):
        mine = (y < classes) & (np.arange(len(y)) % 20 >= 10)
        np.savez(tmp_path / f"{name}.npz", x_train=x[mine], y_train=y[mine], x_test=x[mine], y_test=y[mine],
                 class_names=names)
    many = printed(capsys, "evaluate", "--state", tmp_path / "state", tmp_path / "many.npz")
    found = json.loads(printed(capsys, "evaluate", "--state", tmp_path / "state", tmp_path / "many.npz", "--json"))
    checked(found)
    pairs = sorted((-count, truth, label) for truth, of in found["confusion"].items() for label, count in of.items()
                   if label != truth)
    few = printed(capsys, "evaluate", "--state", tmp_path / "state", tmp_path / "few.npz")
    assert ("what it is taken for" in few) != ("most often confused" in few) and "what it is taken for" not in many
    first = many[many.index("most often confused:"):].splitlines()[1]
    assert first.strip() == f"{pairs[0][1]} taken for {pairs[0][2]}: {-pairs[0][0]} of 10"
    report = tmp_path / "many.html"
    printed(capsys, "evaluate", "--state", tmp_path / "state", tmp_path / "many.npz", "--report", report)
    page = Page(report)
    assert page.count["polyline"] and page.cells == sum(map(len, found["confusion"].values()))
    assert page.count["div.card"] == min(len(found["wrong"]), MOST_PICTURES)


def test_nothing_is_right_if_it_is_called_unknown(tmp_path):
    learner = create(tmp_path / "state", quota=4_000_000, exemplars=100_000)
    for name in ("ant", "wasp", NOTHING):
        learner.learn(vectors(name, 25), name)
    asked = [Sample(data, name, label=label) for name, label in (("ant", "ant"), (NOTHING, NOTHING), ("far", NOTHING))
             for data in vectors(name, 10)]
    found = learner.evaluate(asked)
    checked(json.loads(json.dumps(found.to_json())))
    assert found.per_class[NOTHING] == 1.0 and found.confusion[NOTHING] == {NOTHING: 20} and not found.wrong
    assert found.calibration.n == 30
    learner.close()


def test_before_strangers_can_be_told_it_says_so(tmp_path, capsys):
    learner = create(tmp_path / "state")
    learner.learn(vectors("ant", 2), "ant")
    learner.close()
    x = np.concatenate([vectors("ant", 3), vectors("wasp", 3)])
    y = np.repeat([0, 1], 3)
    np.savez(tmp_path / "ask.npz", x_train=x, y_train=y, x_test=x, y_test=y, class_names=["ant", "wasp"])
    found = json.loads(printed(capsys, "evaluate", "--state", tmp_path / "state", tmp_path / "ask.npz", "--json"))
    checked(found)
    assert "can't tell unknown yet" in found["untold"] and found["untaught"] == {"wasp": 0.0}
    assert "can't tell unknown yet" in printed(capsys, "evaluate", "--state", tmp_path / "state", tmp_path / "ask.npz")


def test_the_calibration_error_is_what_the_formula_says():
    rng = np.random.default_rng(0)
    answers = [(float(c), bool(r)) for c, r in zip(rng.uniform(0, 1, 500), rng.uniform(0, 1, 500) < 0.7)]
    answers += [(0.0, False), (1.0, True), (0.1, True)]
    confidence, right = map(np.array, zip(*answers))
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    expected = sum(abs(confidence[place == b].mean() - right[place == b].mean()) * (place == b).mean()
                   for b in range(BINS) if (place == b).any())
    found = calibrated(answers)
    assert found.ece == pytest.approx(expected) and found.n == 503
    assert calibrated([]).ece is None and calibrated([]).bins == ()
    sure = calibrated([(0.8, True)] * 8 + [(0.8, False)] * 2)
    assert sure.ece == pytest.approx(0) and len(sure.bins) == 1


# the report --------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page consists of. Fails if an element is not closed."""

    def __init__(self, path):
        super().__init__()
        self.text, self.count, self.images, self._open = "", {}, [], []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        assert not self._open, self._open
        self.cells = len(re.findall(r'<rect class="(?:right|wrong)" [^>]*><title>(?!confidence )', self.source))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        for name in (tag, f"{tag}.{values.get('class')}"):
            self.count[name] = self.count.get(name, 0) + 1
        if tag == "img":
            self.images.append(values["src"])
        if tag not in ("meta", "img", "line", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A state of small photos, and a folder of photos: some under the wrong name, and some of an odd one."""
    folder = tmp_path_factory.mktemp("shown")
    image_state(folder / "state").close()
    odd = "a <b>bold</b> & [red] name, " + 20 * "long"
    for name, level, count in (("dark", 20, 3), ("light", 150, 2), ("dark", 150, 4), (odd, 150, 3)):
        (folder / "check" / name).mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(shades(level, count, 9)):
            Image.fromarray(pixels).resize((48, 48)).save(folder / "check" / name / f"{level}-{number}.png")
    return folder, odd


def test_the_report_shows_pictures_of_the_wrong_answers(shown, capsys):
    folder, odd = shown
    arguments = ["evaluate", "--state", folder / "state", folder / "check"]
    found = json.loads(printed(capsys, *arguments, "--json", "--report", folder / "page.html"))
    checked(found)
    page = Page(folder / "page.html")
    assert found["confusion"]["dark"] == {"light": 4, "dark": 3}
    assert len(page.images) == len(found["wrong"]) and all(src.startswith("data:image/jpeg") for src in page.images)
    assert odd in page.text and "<b>bold" not in page.source
    assert f"{found['right']} of {found['n']} samples of 2 known classes" in page.text
    assert page.cells == 3 and "dark: 4 of 7 taken for light" in page.text
    for each in found["wrong"]:
        assert each["source"] in page.text
    assert "http" not in page.source.replace("http://www.w3.org", "")     # one file: nothing is loaded
    text = printed(capsys, *arguments)
    assert "[red]" in text      # not taken for a colour


def test_pictures_in_a_report_are_bounded(shown, capsys, monkeypatch):
    folder, _ = shown
    monkeypatch.setattr(answers_report, "MOST_PICTURES", 2)
    found = json.loads(printed(capsys, "evaluate", "--state", folder / "state", folder / "check", "--json", "--report",
                               folder / "few.html"))
    page = Page(folder / "few.html")
    surest = sorted(found["wrong"], key=lambda each: -each["confidence"])[:2]
    assert len(page.images) == 2 and f"The 2 surest of {len(found['wrong'])}." in page.text
    cards = page.source[page.source.index('<div class="cards">'):page.source.index("<details>")]
    assert cards.count('class="card"') == 2
    assert f"({surest[0]['confidence']:.2f})" in cards


def test_a_report_that_can_not_be_written_is_refused_first(shown, tmp_path, capsys):
    folder, _ = shown
    for report in (tmp_path / "no/such/page.html", tmp_path, folder / "state" / "page.html"):
        refused(capsys, "evaluate", "--state", folder / "state", folder / "check", "--report", report)
    assert not (folder / "state" / "page.html").exists()


def test_a_report_needs_no_matplotlib(shown, capsys, monkeypatch):
    folder, _ = shown
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    printed(capsys, "evaluate", "--state", folder / "state", folder / "check", "--report", folder / "plain.html")
    assert "calibration error" in Page(folder / "plain.html").text.lower()


def test_file_names_that_are_not_utf8_are_shown(shown, capsys):
    folder, _ = shown
    learner = Learner.open(folder / "state")
    pictures = WrongPictures()
    found = learner.evaluate([Sample(shades(150, 1)[0], "caf\udce9.png", label="dark")], pictures)
    learner.close()
    write_evaluation(folder / "bytes.html", found, ["Headline."], pictures, 0)
    assert "caf" in Page(folder / "bytes.html").text
