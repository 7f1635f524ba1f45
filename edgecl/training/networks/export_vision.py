"""Exports a torchvision network without its classifier as an edgecl backbone.

    python -m edgecl.training.networks.export_vision NAME OUT.onnx [--weights FILE]
"""
from __future__ import annotations

import argparse
import re
import sys
import warnings
from pathlib import Path

import onnx
import torch

from edgecl.backbones.cache import cache_folder
from edgecl.backbones.checkpoint import read_checkpoint
from edgecl.backbones.graph import finish_backbone
from edgecl.backbones.model_writer import OPSET
from edgecl.backbones.torchvision import NAMES
from edgecl.errors import BackboneError, EdgeclError
from edgecl.training.networks.torchvision_import import import_torchvision

SIZE = 224
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)      # ImageNet's, of values 0..255
HEADS = ("fc", "classifier")


class FeatureExtractor(torch.nn.Module):
    """uint8 [n, height, width, 3] -> float32 [n, d]: the pooled features before the classifier."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network: torch.nn.Module = import_torchvision().models.get_model(name, weights=None)
        for head in HEADS:
            if hasattr(self.network, head):
                setattr(self.network, head, torch.nn.Identity())
        self.register_buffer("mean", torch.tensor(MEAN))
        self.register_buffer("std", torch.tensor(STD))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        planes = ((image.float() - self.mean) / self.std).permute(0, 3, 1, 2)
        features: torch.Tensor = self.network(planes)
        return features

    def load(self, weights: Path) -> None:
        """Take a checkpoint with torchvision's names, without its classifier.

        Raises BackboneError if a name or shape does not fit.
        """
        tensors = {name: torch.tensor(values) for name, values in read_checkpoint(weights).items()
                   if name.split(".")[0] not in HEADS}
        try:
            self.network.load_state_dict(tensors, strict=True)
        except RuntimeError as error:
            raise BackboneError(f"{weights} does not fit: {' '.join(str(error).split())[:200]}",
                                "give weights of this very network") from error


def export(extractor: FeatureExtractor, name: str, out: Path) -> None:
    """Write the extractor as a backbone file with a free batch axis."""
    images = torch.zeros((2, SIZE, SIZE, 3), dtype=torch.uint8)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        dimension = extractor.eval()(images).shape[1]
        # The tracing exporter folds batch normalisation, keeps our opset and needs no onnxscript.
        torch.onnx.export(extractor, (images,), out, input_names=["image"],
                          output_names=["features"], opset_version=OPSET, dynamo=False,
                          dynamic_axes={"image": {0: "n"}, "features": {0: "n"}})
    model = onnx.load_model(out)
    out.write_bytes(finish_backbone(model, name, "image", (SIZE, SIZE, 3), dimension))


def download(name: str) -> Path:
    """ImageNet weights in the cache, checked against the hash in their file name.

    The first published set: longer recipes raise ImageNet accuracy, but the features transfer worse
    (Kornblith et al. 2021, "Why do better loss functions lead to less transferable features?").
    Raises BackboneError if the network can't be reached.
    """
    weights = import_torchvision().models.get_model_weights(name)["IMAGENET1K_V1"]
    path = cache_folder() / "weights" / str(weights.url).rpartition("/")[2]
    prefix = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(weights.url, str(path), prefix and prefix[1], False)
        except (OSError, RuntimeError) as error:    # URLError is an OSError
            raise BackboneError(f"can't download {weights.url}: {error}",
                                "fetch it elsewhere and give --weights FILE") from error
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, help=".pth or .safetensors, instead of a download")
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        extractor = FeatureExtractor(given.name)
        extractor.load(given.weights or download(given.name))
        export(extractor, given.name, given.out)
    except EdgeclError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
