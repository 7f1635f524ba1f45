"""torchvision's networks as backbones: parity with torch, weights files, errors in one line."""
from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgecl.backbones import torchvision
from edgecl.backbones.session import Backbone
from edgecl.backbones.torchvision import build_torchvision
from edgecl.errors import BackboneError
from edgecl.training.networks import export_vision
from edgecl.training.networks.torchvision_import import import_torchvision


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGECL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def assert_equal(backbone: Backbone, network: Any, head: str) -> None:
    """The backbone's features are those of the network without its head, on random images."""
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    setattr(network, head, torch.nn.Identity())
    with torch.inference_mode():
        planes = (torch.from_numpy(images) / 255 - mean) / std
        reference = network.eval()(planes.permute(0, 3, 1, 2)).numpy()
    found = backbone.features(images)
    assert found.shape == (2, backbone.info.dimension) == reference.shape
    assert np.abs(found - reference).max() < 1e-4 * np.abs(reference).max()


def test_builds_in_another_process_and_caches(tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = import_torchvision().models.mobilenet_v3_small(weights=None)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    content = build_torchvision("mobilenet_v3_small", tmp_path / "weights.pth")
    monkeypatch.delattr(subprocess, "run")
    assert build_torchvision("mobilenet_v3_small", tmp_path / "weights.pth") == content
    backbone = Backbone(content)
    assert (backbone.info.name, backbone.info.input_shape) == ("mobilenet_v3_small", (224, 224, 3))
    assert_equal(backbone, network, "classifier")


def test_takes_safetensors_with_another_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    name = "shufflenet_v2_x1_0"
    network = import_torchvision().models.get_model(name, weights=None, num_classes=7)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    extractor = export_vision.FeatureExtractor(name)
    extractor.load(tmp_path / "weights.safetensors")
    export_vision.export(extractor, name, tmp_path / "out.onnx")
    assert_equal(Backbone(tmp_path / "out.onnx"), network, "fc")


def test_every_name_has_weights_for_our_preprocessing() -> None:
    for name in torchvision.NAMES:
        weights = import_torchvision().models.get_model_weights(name)["IMAGENET1K_V1"]
        expected = weights.transforms()
        assert expected.crop_size == [export_vision.SIZE]
        assert [255 * value for value in expected.mean] == pytest.approx(export_vision.MEAN)
        assert [255 * value for value in expected.std] == pytest.approx(export_vision.STD)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackboneError, match="choose mobilenet"):
        build_torchvision("lenet")
    with pytest.raises(BackboneError, match="no file"):
        build_torchvision("resnet18", tmp_path / "a.pth")
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(BackboneError, match=r"does not fit.*Missing key") as caught:
        export_vision.FeatureExtractor("resnet18").load(tmp_path / "a.safetensors")
    for error, what, cure in ((str(caught.value), caught.value.what, caught.value.cure),
                              ("Killed", "the export of resnet18 failed: Killed", "check")):
        done = subprocess.CompletedProcess([], 1, "", f"a warning\n{error}\n")
        monkeypatch.setattr(subprocess, "run", lambda *_, done=done, **__: done)
        with pytest.raises(BackboneError) as passed:
            build_torchvision("resnet18")
        assert passed.value.what == what and passed.value.cure.startswith(cure)
    monkeypatch.setattr(torchvision, "find_spec", lambda _: None)
    with pytest.raises(BackboneError, match=r"needs torch and torchvision.*edgecl\[train\]"):
        build_torchvision("resnet18")


def test_download_failure_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_arguments: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(BackboneError, match=r"no route to host.*--weights FILE"):
        export_vision.download("resnet18")
