"""Latent replay: exemplars are activations at a cut layer, in 8 bits per number or as product codes."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from edgecl.errors import BadInput, BudgetError
from edgecl.exemplars.product_quantiser import ProductQuantiser
from edgecl.training.batch import Batch
from edgecl.training.memory.at_layer import PLACE_BYTES, Above
from edgecl.training.memory.exemplars import CLASS_BYTES, Reservoir

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays

SCALE_BYTES = 8     # of an exemplar beside its numbers: its least one and its step, float32 each
LARGEST_CODE = 255  # of 8 bits
CODEBOOK_PART = 4   # a codebook takes at most one part in so many of the room


class Latent(Above):
    """A class-balanced reservoir of activations above a cut; what lies below is frozen after the first round
    (Pellegrini et al. 2020, section IV: AR1*free with latent replay).

    The cut is the lowest with learned layers under it at which `patterns` exemplars fit into the room; if there is no
    such cut, that of the fewest numbers. Vectors are taken as features, and so are activations of a frozen trunk: they
    are cut already. bits: 8; 32 for float32; 1 to 4 for product codes of so many bits per number, whose codebook is
    trained on the first round's activations and then stays (Hayes et al. 2020, REMIND, section 4.1), in a share of the
    room.
    """

    def __init__(self, room: int, nothing: Batch, patterns: int, bits: int) -> None:
        super().__init__(room, nothing)
        if bits not in (1, 2, 3, 4, 8, 32):
            raise BadInput(f"bits = {bits}", "give 8, 32 for floats, or 1 to 4 for product codes")
        self.coded = bits < 8
        self.book: ProductQuantiser | None = None
        self.patterns, self.bits, self.seed = patterns, bits, 0
        self.store: Reservoir | None = None
        if self._cut_already():
            self.place, self.shape = 0, nothing.x.shape[1:]
            self._open()

    def _cut_already(self) -> bool:
        return self.nothing.x.dim() == 2 or self.nothing.x.dtype == torch.float16

    def size(self, numbers: int) -> int:
        """Bytes of an exemplar."""
        if self.book is not None:
            return self.book.dtype(numbers).itemsize
        return numbers + SCALE_BYTES if self.bits == 8 else -(-numbers * self.bits // 8)

    def chosen(self, network: Network, x: Tensor) -> int:
        known, found = 0, {}
        for place, (_, layer) in enumerate(network.layers()[:-1], network.start + 1):
            known += sum(p.numel() for p in layer.parameters())
            if known:
                found[place] = self.size(network.below(x, place).numel())
        fits = [place for place, size in found.items() if self.patterns * size <= self.room]
        return fits[0] if fits else min(found, key=found.__getitem__, default=network.map_place)

    def choose(self, network: Network, x: Tensor) -> None:
        super().choose(network, x)
        if self.store is None:
            self._open()

    def _make_book(self, x: Tensor) -> None:
        """For product codes, from the first activations [n, ...]. Raises BadInput if none fits."""
        if self.coded and self.book is None:
            rows = x.flatten(1).float().numpy()
            self.book = ProductQuantiser.train(rows, self.size(rows.shape[1]), self.room // CODEBOOK_PART)
            self.store = None
            self._open()

    def _open(self) -> None:
        if self.room < (least := PLACE_BYTES + self.size(self.shape.numel()) + CLASS_BYTES):
            raise BudgetError(f"{self.room} bytes can't hold an exemplar of {self.shape.numel()} activations",
                              f"give --memory {least} or more")
        shared = self.book.shared_bytes if self.book is not None else 0
        empty = self.packed(torch.zeros(0, *self.shape), torch.zeros(0).long())
        self.store = Reservoir(self.room - PLACE_BYTES - shared, empty)

    def check(self, classes: int) -> None:
        most = self.room // CODEBOOK_PART if self.coded else 0
        shared = most if self.book is None else self.book.shared_bytes
        least = PLACE_BYTES + shared + classes * (self.size(self.shape.numel()) + CLASS_BYTES)
        if self.store is not None and self.room < least:
            raise BudgetError(f"{self.room} bytes can't hold {self.shape.numel()} activations of each of {classes} "
                              f"classes", f"give --memory {least} or more")

    def packed(self, x: Tensor, y: Tensor) -> Batch:
        """Activations [n, ...] as bytes, uint8 [n, numbers + 8] or product codes, or as floats [n, numbers]."""
        rows = x.flatten(1).float()
        if self.bits == 32:
            return Batch(rows, y)
        if self.book is not None:
            return Batch(torch.from_numpy(self.book.encode(rows.numpy())["codes"]), y)
        if not len(rows):
            return Batch(torch.empty(0, rows.shape[1] + SCALE_BYTES, dtype=torch.uint8), y)
        least = rows.amin(1, keepdim=True)
        step = ((rows.amax(1, keepdim=True) - least) / LARGEST_CODE).clamp(min=torch.finfo(torch.float32).tiny)
        numbers = ((rows - least) / step).round().clamp(0, LARGEST_CODE).to(torch.uint8)
        return Batch(torch.cat([torch.cat([least, step], 1).view(torch.uint8), numbers], 1), y)

    def unpacked(self, rows: Tensor) -> Tensor:
        """The inverse of `packed`, to half a step, or to the nearest centroids: float32 [n, ...]."""
        if self.book is not None:
            codes = rows.numpy().view(self.book.dtype(self.shape.numel()))[:, 0]
            rows = torch.from_numpy(self.book.decode(codes))
        if self.bits == 8:
            scale = rows[:, :SCALE_BYTES].contiguous().view(torch.float32)
            rows = scale[:, :1] + scale[:, 1:] * rows[:, SCALE_BYTES:]
        return rows.view(-1, *self.shape)

    def hold(self, old: Batch) -> None:
        if self.store is None:      # a worker's samples are activations already
            self.place, self.shape = 0, old.x.shape[1:]
            self._open()
        self._make_book(old.x)
        assert self.store is not None
        self.store.hold(self.packed(old.x, old.y))
        self.columns = list(self.store.kept)

    def enter(self, new: Batch, network: Network, generator: np.random.Generator) -> tuple[Network, Batch]:
        self.seed = int(generator.integers(2**31))
        return super().enter(new, network, generator)

    def replay(self, n: int, generator: np.random.Generator) -> Batch | None:
        drawn = self.store.replay(n, generator) if self.store is not None and n else None
        if drawn is None:
            return None
        return self.arrive(self.unpacked(drawn.x).to(self.kind), drawn.y)

    @property
    def kind(self) -> torch.dtype:
        """The dtype of new samples, if replayed ones join them."""
        return self.nothing.x.dtype if self.place == 0 else torch.float32

    def update(self, new: Batch, network: Network) -> None:
        self.choose(network, new.x)
        x = self.activations(new.x, network)
        self._make_book(x)
        assert self.store is not None
        self.store.observe(self.packed(x, new.y), np.random.default_rng(self.seed))
        self.before, self.columns = None, list(self.store.kept)

    def state(self) -> Arrays:
        place = {"place": np.array(self.place, np.int32)}
        book = {} if self.book is None else {f"book/{name}": a for name, a in self.book.to_arrays().items()}
        return place if self.store is None else {**place, **book, **self.store.state()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.place = int(state["place"])
        if "x" not in state:
            return
        numbers = state["x"].shape[1] - (SCALE_BYTES if self.bits == 8 else 0)
        if "book/books" in state:
            self.book = ProductQuantiser.from_arrays({name.removeprefix("book/"): a for name, a in state.items()})
            numbers = len(self.book.mean)
        self.shape = self.shape if self.shape.numel() == numbers else torch.Size([numbers])
        self.store = None
        self._open()
        assert self.store is not None
        self.store.load(state)
        self.columns = list(self.store.kept)
