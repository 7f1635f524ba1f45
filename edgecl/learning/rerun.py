"""Samples through another backbone than the one that their features came from."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecl.backbones.session import Backbone
from edgecl.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgecl.exemplars.input_codecs import InputCodec


def rerun(model: bytes, features: NDArray[np.float32], inputs: Sequence[bytes],
          codec: InputCodec | None) -> NDArray[np.float32]:
    """Features by a tuned backbone, float32 [n, d], of samples that went through the one before: from what is kept of
    them, or, if there is no input, by the adapter that came behind it. Raises StateError if it has none."""
    if codec is not None:
        return Backbone(model).features(decoded(inputs, codec))
    from edgecl.backbones.adapters import adapted, adapters

    if not adapters(model):
        raise StateError("the backbone has changed, and these samples went through another one", "try again")
    return adapted(model, features)


def decoded(inputs: Sequence[bytes], codec: InputCodec) -> np.ndarray:
    """Samples [n, ...] as they are kept."""
    return np.stack([codec.decode(each) for each in inputs])
