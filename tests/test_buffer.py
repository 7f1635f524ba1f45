"""The exemplar buffer inside a state: its bytes are those on the disk, never too many; floods, codecs, policies."""
from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers_state import create, directory_bytes, fast_folder, vectors
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edgecl.backbones.graph import GraphBuilder, finish_backbone
from edgecl.errors import BadInput, BudgetError
from edgecl.exemplars.codecs import codec_of
from edgecl.learner import Learner
from edgecl.samples import Sample
from edgecl.settings import Settings
from edgecl.state.quota import PAGE, pages

OPERATIONS = int(os.environ.get("EDGECL_OPERATIONS", "3000"))
STEPS = 200
LABELS = [f"class-{number}" for number in range(12)]
CASES = {"raw": (8, 6_000, "reservoir"), "int8-feature": (16, 4_000, "herding"), "auto": (64, 9_000, "ring"),
         "pq": (40, 8_000, "boundary")}


def files(state):
    """Bytes of the files that hold exemplars, as the disk has them."""
    return sum(path.stat().st_size for path in (state / "models").iterdir()
               if path.suffix in (".exemplars", ".codebook"))


class Filled(RuleBasedStateMachine):
    """A learner with a small buffer; after every operation its account is compared with the disk."""

    codec = "raw"
    total = fullest = evicted = 0

    @initialize()
    def begin(self):
        self.dimension, self.limit, admission = CASES[self.codec]
        self.folder = Path(tempfile.mkdtemp(prefix="edgecl-buffer-", dir=fast_folder()))
        self.state = self.folder / "state"
        self.learner = create(self.state, 600_000, self.limit, "nearest-mean", codec=self.codec, admission=admission)
        self.seeds = itertools.count()

    @rule(label=st.sampled_from(LABELS), count=st.sampled_from([1, 1, 2, 5, 20, 90]),
          each=st.sampled_from([0, 1, 7, 90]), length=st.sampled_from([1, 30, 30, 300]))
    def learn(self, label, count, each, length):
        seed = next(self.seeds)
        samples = vectors(label, count, seed, self.dimension)
        self.learner.learn(samples if not each else [
            Sample(x, f"{seed}-{i // each}".rjust(length, '"'), at=i * 70, unit="s")
            for i, x in enumerate(samples)], label)

    @rule(label=st.sampled_from(LABELS), count=st.sampled_from([1, 3]))
    def learn_a_little(self, label, count):
        self.learn(label, count, 0, 0)

    @precondition(lambda self: self.learner.store.newest.detail.get("classes", 0) > 6)
    @rule(data=st.data())
    def forget(self, data):
        self.learner.forget(data.draw(st.sampled_from(sorted(c.name for c in self.learner.classes()))))

    @precondition(lambda self: self.learner.store.newest.detail.get("classes", 0) > 2)
    @rule(data=st.data(), count=st.sampled_from([1, 6, 30]))
    def correct(self, data, count):
        rows = [row for row in self.learner.repository.known().stored if not row.coded]
        first = data.draw(st.integers(0, max(len(rows) - 1, 0)))
        if ids := [row.id for row in rows[first:first + count] if row.label != LABELS[0]]:
            if count == 1:
                self.learner.remove(ids)
            else:
                self.learner.move(ids, LABELS[0])
        names = sorted(each.name for each in self.learner.classes())
        if count == 30 and len(names) > 1:
            self.learner.rename(names[0], names[-1], into=True)

    @precondition(lambda self: len(self.learner.store.restorable()) > 3)
    @rule()
    def rollback(self):
        self.learner.rollback()

    @rule()
    def reopen(self):
        self.learner.close()
        self.learner = Learner.open(self.state)

    @invariant()
    def counted_is_real(self):
        if not hasattr(self, "learner"):
            return
        Filled.total += 1
        ledger = self.learner.store.ledger
        usage = ledger.usage()
        assert usage.total == directory_bytes(self.state, reserve=False) <= 600_000
        real = files(self.state)
        assert real <= self.limit
        assert usage.exemplars == sum(pages(p.stat().st_size) for p in (self.state / "models").iterdir()
                                      if p.suffix in (".exemplars", ".codebook"))
        assert usage.total + ledger.reserved() > 600_000 - PAGE - ledger.slack
        status = self.learner.status()  # which may write the head
        assert status.exemplar_bytes <= self.limit
        assert status.purposes == ledger.usage()._asdict()
        Filled.fullest = max(Filled.fullest, real / self.limit)

    def teardown(self):
        if hasattr(self, "learner"):
            Filled.evicted = max(Filled.evicted, sum(c.samples - c.exemplars for c in self.learner.classes()))
            self.learner.close()
            shutil.rmtree(self.folder)


@pytest.mark.slow
@pytest.mark.parametrize("codec", CASES)
def test_counted_bytes_are_real_and_never_over_the_limit(codec):
    Filled.codec, Filled.total, Filled.fullest, Filled.evicted = codec, 0, 0.0, 0
    run_state_machine_as_test(Filled, settings=settings(
        max_examples=-(-OPERATIONS // len(CASES) // STEPS) + 1, stateful_step_count=STEPS, phases=[Phase.generate],
        deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)))
    print(f"{codec}: {Filled.total} operations, buffer filled to {Filled.fullest:.3f}, {Filled.evicted} evicted")
    assert Filled.total >= OPERATIONS / len(CASES)
    assert Filled.fullest > 0.9
    assert Filled.evicted > 100


@pytest.mark.parametrize("codec", ["raw", "auto"])
def test_names_of_sources_fit_into_a_buffer_of_several_files(fast_path, codec):
    """Every file names the sources of its samples; here a class has several files, and a source samples in each."""
    limit, fullest = 90_000, 0.0
    learner = create(fast_path / "state", 2_000_000, limit, "nearest-mean", codec=codec)
    rng = np.random.default_rng(3)
    for number in range(40):
        label, count, each = f"class {number % 3}", int(rng.integers(1, 600)), int(rng.choice([1, 4, 60, 1000]))
        length = int(rng.choice([3, 40, 255]))
        learner.learn([Sample(x, f"{number}-{i // each}".rjust(length, "\\"), at=i * 700, unit="s")
                       for i, x in enumerate(vectors(label, count, number))], label)
        real = files(fast_path / "state")
        fullest = max(fullest, real / limit)
        assert real <= limit
        assert learner.status().exemplar_bytes <= limit
        if not learner.store.logged():
            assert real <= learner.status().exemplar_bytes
    assert len(learner.store.files("exemplars")) > 2
    assert fullest > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["raw", "auto"])
def test_a_flood_of_one_label_leaves_the_exemplars_of_the_others(fast_path, codec):
    learner = create(fast_path / "state", 4_000_000, 60_000, "nearest-mean", codec=codec)
    for label in ("ant", "wasp", "cat"):
        learner.learn(vectors(label, 40), label)

    def kept():
        return sorted((r.label, r.key, r.feature.tobytes()) for r in learner.repository.known().exemplars()
                      if r.label != "flood")

    before = kept()
    assert len(before) == 120
    for number in range(20):
        learner.learn(vectors("flood", 5000, number), "flood")
    assert {c.name: c.samples for c in learner.classes()}["flood"] == 100_000
    assert kept() == before
    assert learner.status().exemplar_bytes > 50_000
    learner.close()
    learner = Learner.open(fast_path / "state")
    assert kept() == before


@pytest.mark.parametrize("admission", ["reservoir", "herding", "boundary", "ring"])
def test_every_admission_survives_being_reopened_and_shrinks_with_new_classes(fast_path, admission):
    learner = create(fast_path / "state", 1_000_000, 8_000, admission=admission)
    sizes = []
    for number in range(8):
        label = f"class {number}"
        learner.learn(vectors(label, 60), label)
        sizes.append({c.name: c.exemplars for c in learner.classes()})
    assert max(sizes[-1].values()) - min(sizes[-1].values()) <= 1
    assert sizes[0]["class 0"] > 3 * sizes[-1]["class 0"]
    kept = [(r.label, r.key) for r in learner.repository.known().exemplars()]
    if admission == "ring":
        mine = [r.key for r in learner.repository.known().exemplars() if r.label == "class 7"]
        every = [r.key for r in learner.repository.known().stored if r.label == "class 7"]
        assert len(mine) >= 8
        assert mine == every[-len(mine):]
    learner.close()
    again = Learner.open(fast_path / "state").repository.known()
    assert [(r.label, r.key) for r in again.exemplars()] == kept


def image_backbone(folder):
    g = GraphBuilder()
    pooled = g.node("ReduceMean", [g.node("Cast", ["input"], to=1)], axes=[1], keepdims=0)
    g.node("Flatten", [pooled], "features", axis=1)
    model = g.model("small", {"input": ("uint8", ["n", 16, 16, 3])}, {"features": ("float32", ["n", 48])})
    (folder / "small.onnx").write_bytes(finish_backbone(model, "small", "image", [16, 16, 3], 48))
    return str(folder / "small.onnx")


@pytest.mark.parametrize("codec", ["raw", "jpeg", "jpeg:50"])
def test_photos_come_back_from_the_buffer(tmp_path, codec):
    learner = Learner.create(tmp_path / "s", Settings(backbone=image_backbone(tmp_path), quota=1_000_000, codec=codec,
                                                      exemplars=60_000))
    rng, photos = np.random.default_rng(0), {}
    for label, shade in (("dark", 10), ("light", 150)):
        photos[label] = np.stack([np.full((16, 16, 3), shade + int(x), np.uint8) for x in rng.integers(0, 80, 60)])
        photos[label][:, 4:9, 2:7] += 20
        learner.learn(photos[label], label)
    learner.close()
    rows = Learner.open(tmp_path / "s").repository.known().exemplars()
    decode = codec_of(codec, "image", (16, 16, 3)).input.decode
    back = [(row.label, decode(row.input)) for row in rows if row.input]
    assert len(back) > 20
    for label, photo in back:
        error = np.abs(photos[label].astype(int) - photo).max((1, 2, 3)).min()
        assert error <= (0 if codec == "raw" else 40)


def test_windows_come_back_from_the_buffer(tmp_path):
    rng = np.random.default_rng(0)
    windows = rng.standard_normal((40, 50, 3)).astype(np.float32).cumsum(1)
    learner = Learner.create(tmp_path / "s", Settings(backbone="rocket", quota=3_000_000, codec="delta16",
                                                      exemplars=60_000, rate=50, window=1.0))
    learner.learn(windows, "walk")
    learner.close()
    rows = Learner.open(tmp_path / "s").repository.known().exemplars()
    decode = codec_of("delta16", "window", (50, 3)).input.decode
    assert len(rows) > 20
    for row in rows:
        error = np.abs(windows - decode(row.input)).max((1, 2)).min()
        assert error <= np.ptp(windows) / 65535


def test_a_codec_that_does_not_fit_is_refused_before_anything_is_made(tmp_path):
    for codec, backbone in (("jpeg", "identity"), ("delta16", "efficientnet-lite0"), ("best", "auto"),
                            ("jpeg:0", "auto")):
        with pytest.raises(BadInput, match="codec"):
            Learner.create(tmp_path / "s", Settings(backbone=backbone, codec=codec))
    assert not (tmp_path / "s").exists()


def test_vectors_that_int8_would_spoil_are_kept_as_they_are(tmp_path):
    near = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    far = create(tmp_path / "far", codec="auto")
    far.learn(near + np.float32(1e5), "far")
    assert far.foundation.codec == "raw"
    fine = create(tmp_path / "near", codec="auto")
    fine.learn(near, "near")
    assert fine.foundation.codec == "auto"
    assert fine.status().codec == "int8-feature"


def test_a_buffer_larger_than_the_quota_affords_is_refused_with_the_cure(tmp_path):
    with pytest.raises((BadInput, BudgetError), match="quota"):
        create(tmp_path / "s", quota=200_000, exemplars=190_000).learn(vectors("a", 10), "a")
