"""One ONNX file that needs no edgecl: preprocessing, backbone, head and labels."""
from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl.backbones.session import KINDS, Backbone, open_session
from edgecl.errors import BackboneError, BadInput
from edgecl.samples import prepare

if TYPE_CHECKING:
    from pathlib import Path

    from edgecl.learning.serving import Serving

PARITY = 1e-4  # largest difference to the two sessions, relative to the largest logit
PROBES = 8


def export(serving: Serving, backbone_file: Path, out: Path,
           calibration: np.ndarray | None = None) -> dict[str, Any]:
    """Write the fused model to `out`, all or nothing; {"path", "bytes", "sha256", "max_difference", ...}.

    calibration: unlabelled samples [n, ...]; with them the backbone is quantised to int8 first, and the answer also
    says on how many of them both models agree ("agreement"). Raises BackboneError where the fused model answers
    differently, BadInput where `out` can't be written.
    """
    from edgecl.backbones import quantised
    from edgecl.heads.onnx_head import fuse

    info = serving.backbone.info
    body = backbone_file.read_bytes()
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
    if difference > PARITY:
        raise BackboneError(f"the fused model differs from its parts by {difference:.2g} (relative), over {PARITY}",
                            "report this with the backbone's name; nothing was written")
    _write(out, model)
    answer = {"path": str(out), "bytes": len(model), "max_difference": difference, "classes": serving.head.labels,
              "input": {"kind": info.kind, "shape": ["n", *info.input_shape]}}
    if calibration is not None:
        before, after = (serving.head(b.features(calibration))[0].argmax(1) for b in (serving.backbone, reference))
        answer["agreement"] = float((before == after).mean())
    return answer


def probes(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Samples without meaning, to compare two runtimes on."""
    rng = np.random.default_rng(0)
    if KINDS[kind] == "uint8":
        return rng.integers(0, 256, (PROBES, *shape), dtype=np.uint8)
    return rng.standard_normal((PROBES, *shape)).astype(np.float32)


def _write(out: Path, model: bytes) -> None:
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(model)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
    except OSError as error:
        raise BadInput(f"can't write {out} ({error.strerror})", "name a file in a folder that is writable") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_labels(metadata: dict[str, str]) -> list[str]:
    """The class names of an exported model, in the order of its logits."""
    return list(json.loads(metadata["edgecl.head"])["labels"])
