"""Exports one ONNX file that works without edgecl: preprocessing, backbone, head and labels."""
from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl.backbones.session import KINDS, Backbone, open_session
from edgecl.errors import BackboneError, BadInput, BudgetError
from edgecl.files.atomic import write_atomically
from edgecl.samples import prepare

if TYPE_CHECKING:
    from pathlib import Path

    from edgecl.learning.serving import Serving

MAX_DIFFERENCE = 1e-4  # between the logits of the fused model and of its parts, relative to the largest logit
PROBES = 8             # samples that the two are compared on


def export(serving: Serving, backbone: bytes, out: Path,
           calibration: np.ndarray | None = None) -> dict[str, Any]:
    """Write the fused model of backbone and head to `out` atomically; returns {"path", "bytes", "max_difference",
    "classes", "input"}.

    calibration: unlabelled samples [n, ...]; if given, the backbone is quantised to int8 first, and the result also has
    "agreement", the share of them for which both models give the same class. Raises BackboneError if the outputs of the
    fused model differ from those of its parts, BadInput if `out` can't be written, BudgetError if the disk is full.
    """
    from edgecl.backbones import quantised
    from edgecl.heads.onnx_head import fuse

    info = serving.backbone.info
    body = backbone
    if calibration is not None:
        calibration = prepare(calibration, info.kind, info.input_shape)
        body = quantised(info.name, body, calibration)
    model = fuse(body, serving.head_model)
    reference = Backbone(body, 1)
    asked = probes(info.kind, info.input_shape) if calibration is None else calibration[:PROBES]
    expected = serving.head.session.run(["logits"], {"input": reference.features(asked)})[0]
    session = open_session(model)
    found = session.run(["logits"], {session.get_inputs()[0].name: asked})[0]
    difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
    if difference > MAX_DIFFERENCE:
        raise BackboneError(f"the logits of the fused model and of its parts differ by {difference:.2g} (relative), "
                            f"more than {MAX_DIFFERENCE}", "report this with the backbone's name; nothing was written")
    _write(out, model)
    answer = {"path": str(out), "bytes": len(model), "max_difference": difference, "classes": serving.head.labels,
              "input": {"kind": info.kind, "shape": ["n", *info.input_shape]}}
    if calibration is not None:
        before, after = (serving.head(b.features(calibration))[0].argmax(1) for b in (serving.backbone, reference))
        answer["agreement"] = float((before == after).mean())
    return answer


def probes(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random samples to compare two runtimes on, [PROBES, *shape]."""
    rng = np.random.default_rng(0)
    if KINDS[kind] == "uint8":
        return rng.integers(0, 256, (PROBES, *shape), dtype=np.uint8)
    return rng.standard_normal((PROBES, *shape)).astype(np.float32)


def check_target(out: Path, state: Path) -> None:
    """Raise BadInput if writing there would destroy something: a file of the state, or what is not a regular file."""
    if state.resolve() in out.resolve().parents:
        raise BadInput(f"{out} is inside the state {state}", "name a file outside it")
    if out.exists() and not out.is_file():
        raise BadInput(f"{out} exists and is not a file", "name a file, such as model.onnx")


def _write(out: Path, model: bytes) -> None:
    try:
        write_atomically(out, model)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BudgetError(f"the disk that holds {out} is full", "free some space, then try again") from error
        raise BadInput(f"{out} can't be written ({error.strerror})", "name a file in a writable folder") from error


def read_labels(metadata: dict[str, str]) -> list[str]:
    """The class names of an exported model, in the order of its logits."""
    return list(json.loads(metadata["edgecl.head"])["labels"])
