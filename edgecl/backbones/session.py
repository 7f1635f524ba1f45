"""The frozen backbone: one ONNX Runtime session from raw samples to features.

The ONNX metadata of a backbone file describe it (`BackboneInfo`). The graph takes uint8 images [n, height, width, 3],
float32 windows [n, time, channels] or float32 feature vectors [n, d], does its own preprocessing, and returns float32
features [n, dimension].
"""
from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.errors import BackboneError

if TYPE_CHECKING:
    import numpy as np

    from edgecl.backbones.onnx_runtime import onnxruntime as ort

BATCH_BYTES = 200_000  # one photo, or 16 windows: where ONNX Runtime is fastest on one core, measured
METADATA_KEY = "edgecl.backbone"
KINDS = {"image": "uint8", "window": "float32", "feature": "float32"}


@dataclass(frozen=True)
class BackboneInfo:
    """The description in a backbone file.

    name: registry name or file stem; kind: a key of KINDS; input_shape: of one sample, without the batch axis;
    dimension: length of the feature vector; precision: fp32 | fp16 (stored) | int8; graph_sha256: SHA-256 of the ONNX
    graph, including weights but not metadata.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    dimension: int
    precision: str
    graph_sha256: str

    def to_json(self) -> str:
        """The text stored in the metadata."""
        return json.dumps(self.__dict__, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> BackboneInfo:
        """The inverse of `to_json`."""
        fields = json.loads(text)
        return cls(**{**fields, "input_shape": tuple(fields["input_shape"])})


def open_session(model: bytes | Path, threads: int = 1) -> ort.InferenceSession:
    """An ONNX Runtime session with `threads` threads that do not spin, and without log output.

    Raises BackboneError if ONNX Runtime can't load the model.
    """
    from edgecl.backbones.onnx_runtime import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        source = model if isinstance(model, bytes) else os.fspath(model)
        return ort.InferenceSession(source, options, providers=providers())
    except Exception as error:  # ONNX Runtime raises C++-bound classes without a common public base
        reason = str(error).splitlines()[0][:200]
        name = "the model" if isinstance(model, bytes) else model
        raise BackboneError(f"ONNX Runtime can't load {name}: {reason}",
                            "give a complete ONNX file, or create the state again") from error


def providers() -> list[str]:
    """The execution providers to use, best first: CUDA if this onnxruntime has it, then the CPU."""
    from edgecl.backbones.onnx_runtime import onnxruntime as ort

    have = ort.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in have]


class Backbone:
    """A frozen feature extractor, opened from an ONNX file written by `edgecl.backbones`."""

    def __init__(self, model: bytes | Path, threads: int = 1) -> None:
        self.session = open_session(model, threads)
        metadata = self.session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in metadata:
            raise BackboneError("the model has no edgecl metadata",
                                "adopt it first with `edgecl init --backbone FILE.onnx`")
        self.info = BackboneInfo.from_json(metadata[METADATA_KEY])
        self.metadata: dict[str, Any] = metadata
        self._input = self.session.get_inputs()[0].name

    def features(self, samples: np.ndarray) -> np.ndarray:
        """Features float32 [n, dimension] of samples [n, *input_shape] in the backbone's own dtype.

        Runs in batches of BATCH_BYTES, which bounds memory. The caller is responsible for shapes and dtypes.
        """
        import numpy as np

        batch = min(max(BATCH_BYTES // max(samples[:1].nbytes, 1), 1), 16)
        out = np.empty((len(samples), self.info.dimension), np.float32)
        for start in range(0, len(samples), batch):
            piece = samples[start:start + batch]
            out[start:start + len(piece)] = self.session.run(None, {self._input: piece})[0]
        return out


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
