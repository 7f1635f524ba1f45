"""The foundation of a state: its backbone, in which precision, and the statistics that fit its quota."""
from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl.backbones import DEFAULTS, KIND_OF, build_identity, build_image, check_name
from edgecl.backbones.session import KINDS, Backbone
from edgecl.errors import BadInput, StateError
from edgecl.exemplars.buffer import Buffer
from edgecl.exemplars.codecs import Int8, codec_of
from edgecl.exemplars.pseudo_samples import ClassGaussians
from edgecl.heads.solvers import forms
from edgecl.learning.plan import FEW_CLASSES, PLANNED_CLASSES, fitting, plan_statistics, state_bytes
from edgecl.samples import kind_of, prepare
from edgecl.sources.spec import Spec
from edgecl.state.database import RESTORE
from edgecl.state.quota import segment_bytes
from edgecl.statistics.class_statistics import MAX_FEATURE
from edgecl.statistics.form import Form
from edgecl.statistics.transform import FeatureTransform, choose_power

if TYPE_CHECKING:
    from edgecl.exemplars.codebook import Codebook
    from edgecl.settings import Settings

ROCKET_SIZES = (2688, 1344, 672, 336, 168, 84)
CALIBRATION_SAMPLES = 256
MAX_CODING_ERROR = 0.01  # relative to the variance


@dataclass(frozen=True)
class Foundation:
    """The decisions that are fixed once a state has its backbone.

    name, kind, input_shape, dimension, precision: of the backbone; form: of the class statistics; power: of the feature
    transform; calibrated: whether scales and biases come from unlabelled samples rather than from the first samples
    learned; codec: of exemplars, as `codec_of` takes it; source: the file that the backbone or its weights came from,
    "" for the usual package.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    dimension: int
    precision: str
    form: Form
    power: float
    calibrated: bool
    codec: str
    source: str = field(default="", compare=False)

    def to_meta(self) -> dict[str, Any]:
        """The values for the state's metadata, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_meta(cls, values: dict[str, Any]) -> Foundation:
        """The inverse of `to_meta`. Raises StateError if a value is missing."""
        try:
            return cls(**{**values, "input_shape": tuple(values["input_shape"]), "form": Form(*values["form"])})
        except (KeyError, TypeError) as error:
            raise StateError(f"what the state says of its backbone can't be read ({error})", RESTORE) from error

    def buffer(self, settings: Settings, codebook: Codebook | None = None) -> Buffer:
        """The exemplar buffer."""
        codec = codec_of(self.codec, self.kind, self.input_shape, self.power)
        if settings.memory == "statistics":
            codec = codec._replace(input=None)
        return Buffer(settings.exemplars, segment_bytes(settings.exemplars), settings.admission, codec, codebook,
                      self.kind)

    def gaussians(self, settings: Settings) -> ClassGaussians | None:
        """The Gaussians that replace samples if none may be kept, else None. They get half of the exemplar bytes, since
        two versions exist during a commit."""
        return ClassGaussians(settings.exemplars // 2) if settings.memory == "statistics" else None

    def transforms(self, seed: int) -> list[FeatureTransform]:
        """The transforms whose statistics are kept: of the features themselves, and their random projection if planned.
        """
        plain = FeatureTransform(self.dimension, self.dimension, self.power)
        if not self.form.projected:
            return [plain]
        return [plain, FeatureTransform(self.dimension, self.form.projected, self.power, projected=True, seed=seed)]


def check_codec(settings: Settings) -> None:
    """Raise BadInput if the codec is unknown or does not store the kind of samples that the backbone takes."""
    known = KIND_OF.get(settings.backbone)
    problems: list[BadInput] = []
    for kind in [known] if known else KINDS:
        try:
            codec_of(settings.codec, kind, ())
            return
        except BadInput as error:
            problems.append(error)
    raise problems[0]


def waits_for_samples(settings: Settings, calibration: np.ndarray | None) -> bool:
    """Whether the backbone can't be built before there are samples."""
    kind = KIND_OF.get(settings.backbone)
    return calibration is None and (settings.backbone == "auto" or kind in ("window", "feature"))


def create_foundation(settings: Settings, samples: np.ndarray | None, calibration: np.ndarray | None = None,
                      weights: Path | None = None) -> tuple[Foundation, bytes]:
    """The foundation and the backbone file of a state.

    samples: the first ones to learn, [n, ...], or None at `init`; calibration: unlabelled samples [n, ...], or None.
    Raises BackboneError if the backbone can't be built, BudgetError if the quota is too small, BadInput if samples are
    missing or unsuitable.
    """
    probe = calibration if calibration is not None else samples
    name = settings.backbone
    if name == "auto":
        if probe is None:
            raise BadInput("no backbone has been chosen yet", "learn something first, or give --backbone")
        name = DEFAULTS[kind_of(probe)]
    check_name(name)
    if settings.precision == "int8" and calibration is None:
        raise BadInput("int8 needs photos to calibrate with, and none were given", "also give --calibrate FOLDER")
    if name == "rocket":
        variants, form = _rocket(settings, probe)
    else:
        variants = _variants(name, settings, probe, calibration, weights)
        dimension = Backbone(next(iter(variants.values()))).info.dimension
        plan = plan_statistics(settings.quota, settings.exemplars, {k: len(v) for k, v in variants.items()},
                               dimension, forms(settings.head, dimension))
        variants, form = {plan.precision: variants[plan.precision]}, plan.form
    precision, model = next(iter(variants.items()))
    info = Backbone(model).info
    foundation = Foundation(name, info.kind, info.input_shape, info.dimension, precision, form,
                            0.5 if info.kind == "image" else 1.0, calibration is not None, settings.codec,
                            os.path.abspath(weights or name) if weights or name.endswith(".onnx") else "")
    if calibration is not None and name != "rocket":    # whose features are shares of time: a root gains nothing
        fitted = prepare(calibration[:CALIBRATION_SAMPLES], info.kind, info.input_shape)
        foundation = replace(foundation, power=choose_power(Backbone(model).features(fitted)))
    if settings.codec == "auto" and info.kind == "feature" and probe is not None:
        foundation = replace(foundation, codec=_codec_of_vectors(np.asarray(probe, np.float32), foundation.power))
    return foundation, model


def _codec_of_vectors(features: np.ndarray, power: float) -> str:
    """The codec for feature vectors: "auto" (int8) if its error is at most MAX_CODING_ERROR, else "raw"."""
    codec = Int8(power)
    if not np.isfinite(features).all() or np.abs(features).max(initial=0) > MAX_FEATURE:
        return "raw"
    error = np.square(codec.decode(codec.encode(features)) - features, dtype=np.float64).mean()
    return "auto" if error <= MAX_CODING_ERROR * features.var(0, dtype=np.float64).mean() else "raw"


def _variants(name: str, settings: Settings, probe: np.ndarray | None, calibration: np.ndarray | None,
              weights: Path | None) -> dict[str, bytes]:
    """The backbone in each precision that may be stored, best first."""
    if name == "identity":
        if probe is None or probe.ndim != 2:
            shape = None if probe is None else list(probe.shape)
            raise BadInput(f"the identity backbone takes vectors [n, d], not {shape}", "choose another --backbone")
        return {"fp32": build_identity(probe.shape[1])}
    if name.endswith(".onnx"):
        from edgecl.backbones.user_onnx import adopt

        model = adopt(Path(name))
    else:
        model = build_image(name, weights)
    if settings.precision == "int8" and calibration is not None:
        from edgecl.backbones.quantise import quantise_int8

        info = Backbone(model).info
        return {"int8": quantise_int8(model, prepare(calibration, info.kind, info.input_shape))}
    precision = Backbone(model).info.precision
    if precision != "fp32" or name.endswith(".onnx"):
        return {precision: model}
    from edgecl.backbones.quantise import store_fp16

    return {"fp32": model, "fp16": store_fp16(model)}


def _rocket(settings: Settings, probe: np.ndarray | None) -> tuple[dict[str, bytes], Form]:
    """The largest `rocket` whose exact statistics fit the quota, else the smallest: for fewer classes, which may get
    lower rank when there are more, then without statistics of the window. Raises BudgetError if even that does not
    fit."""
    from edgecl.backbones.rocket import build_rocket, output_length

    if probe is None or probe.ndim != 3:
        shape = None if probe is None else list(probe.shape)
        raise BadInput(f"the rocket backbone takes windows [n, time, channels], not {shape}",
                       "give recordings with --rate and --window, or choose another --backbone")
    windows = prepare(probe, "window", probe.shape[1:])
    _, time, channels = windows.shape
    quota, exemplars, smallest = settings.quota, settings.exemplars, ROCKET_SIZES[-1]
    exact = forms(settings.head, smallest)[0].second_moment
    for size, classes, beside in [*((each, PLANNED_CLASSES, True) for each in ROCKET_SIZES),
                                  (smallest, FEW_CLASSES, True), (smallest, PLANNED_CLASSES, False),
                                  (smallest, FEW_CLASSES, False)]:
        length = output_length(size, time, channels, beside)
        if state_bytes(8 * size + 16_000, exemplars, length, FEW_CLASSES, Form(exact)) > quota:
            continue    # before it is built
        model = build_rocket(windows, size, settings.seed, beside)
        alike = [each for each in forms(settings.head, length) if each.second_moment == exact]
        whole = [each for each in alike if each.rank is None]
        plan = fitting(quota, exemplars, {"fp32": len(model)}, length, whole, classes)
        if plan is not None and (not beside or fitting(quota, exemplars, {"fp32": len(model)}, length, alike,
                                                       PLANNED_CLASSES)):
            return {"fp32": model}, plan.form
    model = build_rocket(windows, smallest, settings.seed, False)
    plan = plan_statistics(quota, exemplars, {"fp32": len(model)}, smallest, forms(settings.head, smallest))
    return {"fp32": model}, plan.form


def spec_for(settings: Settings, foundation: Foundation | None, seconds: float | None = None) -> Spec:
    """How files become samples of a learner. foundation: None before it has one; seconds: see `Spec`."""
    size = foundation.input_shape if foundation and foundation.kind == "image" else (224, 224)
    vectors = foundation.kind == "feature" if foundation else settings.backbone == "identity"
    return Spec(size[0], size[1], settings.rate, settings.window, settings.hop, vectors, seconds)
