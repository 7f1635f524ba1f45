"""Backbones from torchvision, exported by a separate process, because only the export needs torch."""
from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from edgecl.backbones.cache import cached
from edgecl.backbones.session import sha256
from edgecl.errors import BackboneError

NAMES = ("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "resnet18",
         "resnet50", "shufflenet_v2_x1_0", "regnet_y_400mf")


def build_torchvision(name: str, weights: Path | None = None) -> bytes:
    """The network `name` of NAMES: uint8 RGB [n, 224, 224, 3] -> float32 [n, d], pooled features.

    weights: a .pth or .safetensors file; None downloads torchvision's ImageNet weights. The result is cached. Raises
    BackboneError if the name is unknown, torch is missing, or the weights are missing or unsuitable.
    """
    if name not in NAMES:
        raise BackboneError(f"there is no torchvision backbone {name!r}", f"choose {', '.join(NAMES)}")
    if weights is not None and not weights.is_file():
        raise BackboneError(f"there is no file {weights}", "name a .pth or .safetensors file")
    source = sha256(weights)[:16] if weights else "imagenet"
    return cached(f"torchvision-{name}-{source}", lambda: _export(name, weights))


def _export(name: str, weights: Path | None) -> bytes:
    missing = [package for package in ("torch", "torchvision") if find_spec(package) is None]
    if missing:
        raise BackboneError(f"exporting {name} needs {' and '.join(missing)}",
                            "pip install 'edgecl[train]'")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "backbone.onnx"
        command = [sys.executable, "-m", "edgecl.training.networks.export_vision", name, str(out)]
        command += ["--weights", str(weights)] if weights else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return out.read_bytes()
    reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    what, _, cure = reason.rpartition("; ")
    if what:
        raise BackboneError(what, cure)
    raise BackboneError(f"the export of {name} failed: {reason}", "check torch and torchvision")
