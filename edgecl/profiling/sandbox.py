"""A state to measure, copied from a real one or made up, and made-up samples for it."""
from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from edgecl.learner import Learner
from edgecl.settings import Settings
from edgecl.state.backup import backup

EACH = 20                   # samples per class, as people teach it
TAUGHT = 5                  # classes that a fresh state is taught, to measure it
CAMERA = 640, 480
CHANNELS, NUMBERS = 6, 512  # of windows and of vectors, if the settings do not say


def temporary_folder(state: Path | None) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder beside the state, thus on its file system, if that may be written."""
    beside = Path.cwd() if state is None else state.absolute().parent
    return tempfile.TemporaryDirectory(prefix=".edgecl-profile-", dir=beside if os.access(beside, os.W_OK) else None)


def twin(state: Path | None, settings: Settings, path: Path) -> tuple[Learner, int]:
    """A learner on a copy of the state, or on a new state, and how many classes it knows; with fewer than two, it is
    taught made-up ones until there are TAUGHT."""
    if state is None:
        if settings.backbone == "auto":
            windows = bool(settings.rate and settings.window)
            settings = Settings(**{**settings.__dict__, "backbone": "rocket" if windows else "efficientnet-lite0"})
        learner = Learner.create(path, settings)
    else:
        backup(state, path, lambda _: None)
        learner = Learner.open(path)
    known: int = learner.store.newest.detail.get("classes", 0)
    for number in range(known, TAUGHT if known < 2 else known):
        learner.learn(samples(*shape_of(learner), EACH, number), free_name(learner))
    return learner, known


def free_name(learner: Learner) -> str:
    """A class name that the learner does not know."""
    known = {c.name for c in learner.classes()}
    return next(name for name in (f"profile {number:02}" for number in range(10 ** 6)) if name not in known)


def shape_of(learner: Learner) -> tuple[str, tuple[int, ...]]:
    """Kind and shape of a sample, also before anything was learned."""
    foundation, settings = learner.foundation, learner.settings
    if foundation is not None:
        return foundation.kind, foundation.input_shape
    if settings.backbone == "rocket" or (settings.rate and settings.window):
        return "window", (max(round((settings.rate or 50) * (settings.window or 3)), 9), CHANNELS)
    return ("feature", (NUMBERS,)) if settings.backbone == "identity" else ("image", (224, 224, 3))


def samples(kind: str, shape: tuple[int, ...], count: int, seed: int) -> np.ndarray:
    """Made-up samples of one class: coloured blots, noisy oscillations, or a cloud of vectors."""
    rng = np.random.default_rng(seed)
    if kind == "image":
        height, width, _ = shape
        coarse = rng.normal(rng.uniform(60, 190, 3), 45, (count, -(-height // 16), -(-width // 16), 3))
        fine = coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width]
        return np.asarray((fine + rng.normal(0, 8, fine.shape)).clip(0, 255), np.uint8)
    if kind == "window":
        time_, channels = shape
        phase, pace = rng.uniform(0, 6.28, (count, 1, channels)), rng.uniform(0.03, 0.6, channels)
        waves = np.sin(np.arange(time_)[None, :, None] * pace + phase)
        return np.asarray(waves + 0.2 * rng.standard_normal(waves.shape), np.float32)
    return np.asarray(2 * rng.standard_normal(shape) + rng.standard_normal((count, *shape)), np.float32)


def write_photo(path: Path, seed: int) -> Path:
    """Write a JPEG of CAMERA pixels, as a camera would."""
    from PIL import Image

    Image.fromarray(samples("image", (CAMERA[1], CAMERA[0], 3), 1, seed)[0]).save(path, quality=90)
    return path


def backbone_bytes(learner: Learner) -> bytes:
    """The bytes of the backbone in use."""
    name = learner.store.newest.backbone
    assert name is not None
    return learner.store.blob_path(name).read_bytes()
