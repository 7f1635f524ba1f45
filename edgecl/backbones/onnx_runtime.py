"""The only module that imports ONNX Runtime, since its telemetry must be off before that.

From 1.29 on it sends telemetry by default on Linux too: importing it is enough to write a device id and a queue of
events under ~/.cache. The variable also reaches every process that this one starts.
"""
from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

__all__ = ["onnxruntime", "quantization"]


def quantization() -> Any:
    """The module `onnxruntime.quantization`, which loads onnx."""
    from onnxruntime import quantization

    return quantization
