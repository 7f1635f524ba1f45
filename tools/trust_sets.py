"""Real data as features of edgecl's own backbones, for tools/trust.py: computed once, then read from a cache."""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np

from edgecl.backbones import build_image
from edgecl.backbones.rocket import build_rocket
from edgecl.backbones.session import Backbone
from edgecl.evaluation import datasets
from edgecl.images import read_image
from edgecl.samples import blank

ROCKETS = (84, 168, 336, 672, 1344, 2688)
CIFAR_PHOTOS = 60   # per class, to learn from
STRANGERS = 400     # photos of another set, or a few more
BATCH = 16
SHORT = {"constants": "c", "lying still": "s", "noise": "n"}     # in the names of cached arrays
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Set:
    """Features of one data set. kind, shape: of its samples, as a backbone takes them; x, y: features float32 [n, d]
    and class numbers of the training part; sessions: the person of each sample, -1 for none; test_x, test_y: of the
    test part; names: of the classes; strangers: name -> features [n, d] of samples that belong to none of them; blank:
    of those of a name, which show nothing, bool [n]: they are recognised before any head sees them."""

    name: str
    kind: str
    shape: tuple[int, ...]
    power: float
    x: np.ndarray
    y: np.ndarray
    sessions: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    names: list[str]
    strangers: Arrays = field(default_factory=dict)
    blank: Arrays = field(default_factory=dict)

    @property
    def with_sessions(self) -> bool:
        """Whether samples come from people who are known by number."""
        return bool((self.sessions >= 0).all())


def all_sets(folders: dict[str, Path | None], cache: Path, only: str = "") -> dict[str, Set]:
    """The sets that are there, by name; those of windows once for each number of features.

    folders: of grocery_store and cifar10, {train,test}/CLASS/*.jpg, and of wisdm51, with data.npz, windows with
    session_train; None: left out, as are sets whose name does not begin with `only`.
    """
    found: dict[str, Set] = {}
    photos = {name: cached(cache / f"{name}.npz", photo_features, folder, CIFAR_PHOTOS if name == "cifar10" else None)
              for name, folder in folders.items() if folder and name != "wisdm51" and only[:2] in ("", "gr", "ci")}
    for name, arrays in photos.items():
        if name.startswith(only):
            shown = cached(cache / "frames.npz", frames)
            odd = {"frames": shown["x"]}
            others = [each["xe"] for other, each in photos.items() if other != name]
            if others:
                odd["far"] = np.concatenate([x[::max(len(x) // STRANGERS, 1)] for x in others])
            made = _set(name, "image", (224, 224, 3), 0.5, arrays, odd)
            found[name] = replace(made, blank={"frames": shown["blank"]})
    if "digits".startswith(only):
        found["digits"] = _digits()
    for name in ("watch", "wisdm51"):
        sizes = [size for size in ROCKETS if f"{name} {size}".startswith(only)]
        folder = folders.get(name)
        if not sizes or (name == "wisdm51" and not folder):
            continue
        arrays = cached(cache / f"windows-{name}.npz", window_features, folder)
        for size in sizes:
            mine = {key: arrays[key] for key in ("yt", "ye", "gt", "names")} | {
                "xt": arrays[f"t{size}"], "xe": arrays[f"e{size}"]}
            odd = {what: arrays[f"{short}{size}"] for what, short in SHORT.items()}
            made = _set(f"{name} {size}", "window", arrays["wt"].shape[1:], 1.0, mine, odd)
            found[made.name] = replace(made, blank={what: blank_ones(arrays[f"w{short}"], "window")
                                                    for what, short in SHORT.items()})
    return found


def cached(path: Path, make: Callable[..., Arrays], *given: object) -> Mapping[str, np.ndarray]:
    """What the cache holds, made first if it holds nothing; each array is read when it is asked for."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"part-{path.name}")
        np.savez(part, **make(*given))  # type: ignore[arg-type]
        part.replace(path)
    return np.load(path)  # type: ignore[no-any-return]


def photo_features(folder: Path, per_class: int | None) -> Arrays:
    """Features of EfficientNet-Lite0 of the photos of a folder. per_class: training photos of each class, or all."""
    backbone = Backbone(build_image("efficientnet-lite0", None))
    names = sorted(each.name for each in (folder / "train").iterdir())
    made: Arrays = {"names": np.array(names)}
    for part, short, most in (("train", "t", per_class), ("test", "e", None)):
        files = [(number, file) for number, name in enumerate(names) if (folder / part / name).is_dir()
                 for file in sorted((folder / part / name).iterdir())[:most]]
        made[f"x{short}"] = np.concatenate([_features(backbone, [read_image(file, 224, 224) for _, file in some])
                                            for some in (files[i:i + BATCH] for i in range(0, len(files), BATCH))])
        made[f"y{short}"] = np.array([number for number, _ in files])
    return made | {"gt": np.full(len(made["yt"]), -1)}


def frames() -> Arrays:
    """Features of frames that show nothing: black, white, grey, one colour, noise, a lens cap, a bright wall."""
    rng, shape, shown = np.random.default_rng(0), (224, 224, 3), []
    y, x = np.mgrid[-1:1:224j, -1:1:224j]
    shown += [np.full(shape, level) for level in (0, 1, 2, 4, 8, 255, 254, 252, 248, *range(16, 245, 12))]
    shown += [rng.integers(0, 256, shape) for _ in range(12)]
    shown += [np.repeat(rng.integers(0, 256, (224, 224, 1)), 3, 2) for _ in range(8)]
    shown += [np.broadcast_to(rng.integers(0, 256, 3), shape) for _ in range(12)]
    shown += [rng.normal(rng.uniform(0, 8), rng.uniform(1, 4), shape) for _ in range(12)]
    for _ in range(8):
        glow = rng.uniform(4, 20) * np.exp(-(y ** 2 + x ** 2) * rng.uniform(0.5, 3))
        shown.append(glow[..., None] + rng.normal(0, 2, shape))
    shown += [rng.normal(rng.uniform(180, 240), 3, shape) for _ in range(8)]
    pictures = np.stack([np.clip(each, 0, 255).astype(np.uint8) for each in shown])
    backbone = Backbone(build_image("efficientnet-lite0", None))
    return {"x": _features(backbone, pictures), "blank": blank_ones(pictures, "image")}


def blank_ones(data: np.ndarray, kind: str) -> np.ndarray:
    """Which samples [n, ...] show nothing, as the product tells it, bool [n]."""
    return np.array([bool(why) for why in blank(data, kind)])


def window_features(folder: Path | None) -> Arrays:
    """Of data.npz in a folder, or of the smartwatch recordings of a package: features of rockets of all sizes. Also of
    windows that show nothing: constants (c), a sensor that lies still (s), noise (n). Biases come from a mix of
    training windows."""
    data = datasets.npz(folder / "data.npz") if folder else datasets.watch_windows()
    assert data.session_train is not None
    rng, x = np.random.default_rng(1), data.x_train
    mean, spread = x.mean((0, 1)), x.reshape(-1, x.shape[2]).std(0)
    frozen = [np.broadcast_to(x[i].mean(0), x.shape[1:]) for i in rng.choice(len(x), 90, replace=False)]
    levels = [np.zeros(x.shape[1:]), *(np.broadcast_to(mean + rng.normal(0, 2, x.shape[2]) * spread, x.shape[1:])
                                       for _ in range(31))]
    nothing = {"c": np.stack([*levels, *frozen[:30]]), "n": mean + spread * rng.normal(size=(60, *x.shape[1:])),
               "s": np.stack(frozen[30:]) + 1e-3 * spread * rng.normal(size=(60, *x.shape[1:]))}
    made: Arrays = {"yt": data.y_train, "ye": data.y_test, "gt": data.session_train, "wt": x, "we": data.x_test,
                    "names": np.array(data.class_names)}
    for size in ROCKETS:
        backbone = Backbone(build_rocket(x, size))
        made[f"t{size}"], made[f"e{size}"] = _features(backbone, x), _features(backbone, data.x_test)
        made |= {f"{kind}{size}": _features(backbone, windows) for kind, windows in nothing.items()}
    return made | {f"w{kind}": windows.astype(np.float32) for kind, windows in nothing.items()}


def _features(backbone: Backbone, samples: list[np.ndarray] | np.ndarray) -> np.ndarray:
    return np.concatenate([backbone.features(np.ascontiguousarray(samples[i:i + BATCH], _kind(samples[0])))
                           for i in range(0, len(samples), BATCH)])


def _kind(sample: np.ndarray) -> type:
    return np.uint8 if sample.dtype == np.uint8 else np.float32


def _set(name: str, kind: str, shape: tuple[int, ...], power: float, arrays: Mapping[str, np.ndarray],
         strangers: Arrays) -> Set:
    return Set(name, kind, tuple(shape), power, arrays["xt"], arrays["yt"], arrays["gt"], arrays["xe"], arrays["ye"],
               arrays["names"].tolist(), strangers)


def _digits() -> Set:
    data = datasets.digits()
    rng = np.random.default_rng(0)
    blank = np.stack([np.full(64, level, np.float32) for level in np.linspace(0, 1, 9)])
    odd = {"far": data.x_train[rng.permutation(len(data.x_train))[:200]][:, rng.permutation(64)],    # pixels exchanged
           "constants": blank, "noise": rng.random((60, 64), np.float32)}
    return Set("digits", "feature", (64,), 1.0, data.x_train, data.y_train, np.full(len(data.y_train), -1),
               data.x_test, data.y_test, [*data.class_names], odd)
