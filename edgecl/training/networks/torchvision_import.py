"""Imports torchvision, even if its compiled operators do not fit the installed torch.

The `torchvision` wheel beside a CPU-only torch can't load its detection operators; its import then
fails, because it describes two of them. Models, transforms and datasets need none: schemas suffice.
"""
from __future__ import annotations

import importlib
import sys
from functools import cache
from typing import Any

import torch


def import_torchvision() -> Any:
    """The torchvision module."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _define_operators()
    return importlib.import_module("torchvision")


@cache          # the schemas live as long as this object, and may be defined once
def _define_operators() -> Any:
    schemas: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        schemas.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return schemas
