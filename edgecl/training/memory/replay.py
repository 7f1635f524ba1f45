"""Memories of exemplars that select by more than the class, or keep more than the sample."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from edgecl.errors import BudgetError
from edgecl.training.batch import Batch, Seen, is_held
from edgecl.training.memory.exemplars import CLASS_BYTES, Exemplars, Reservoir
from edgecl.training.networks.network import outputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays

FLOAT_BYTES = 4
COMPARED = 10       # exemplars that a new sample's gradient is compared with (Aljundi et al. 2019, section 4.1)


class Greedy(Exemplars):
    """The first samples of each class, as many as fit; if room runs out, the largest class loses a random one (Prabhu
    et al. 2020, algorithm 1). Nothing is replayed: it serves to learn from the memory alone."""

    def observe(self, new: Batch, generator: np.random.Generator, seen: Seen | None = None) -> None:
        for sample, column in zip(new.x, new.y.tolist()):
            kept = self.kept.setdefault(column, [])
            self.seen[column] = self.seen.get(column, 0) + 1
            capacity, held = self.capacity(), sum(map(len, self.kept.values()))
            if held < capacity or len(kept) < capacity // len(self.kept):
                kept.append(sample.clone())
                held += 1
            for _ in range(held - capacity):
                largest = max(self.kept.values(), key=len)
                largest.pop(int(generator.integers(len(largest))))


class Recorded(Reservoir):
    """A class-balanced reservoir that keeps with each sample its logits as they were when it came (Buzzega et al. 2020,
    DER++). Two independent draws are replayed: one for its logits, one for its labels, which count `replayed` times
    those of new samples.

    recording: the logits are those of the pass in which a sample arrived ("insertion"), or of the network at the end of
    its round ("round"). If all outputs exist from the start, as in the paper, those of later classes have learned by
    then that none of n samples was theirs. An output that comes later is recorded as if it had learned that: with a
    probability of 1 / (n + 1), by the rule of succession.
    """

    def __init__(self, room: int, nothing: Batch, replayed: float, recording: str) -> None:
        self.replayed, self.recording, self.width = replayed, recording, 0
        self.logits: dict[int, list[Tensor]] = {}
        super().__init__(room, nothing)

    def check(self, classes: int) -> None:
        least = classes * (self.size + FLOAT_BYTES * max(classes, self.width) + CLASS_BYTES) + self.reserved
        if self.room < least:
            raise BudgetError(f"{self.room} bytes can't hold {self.reserved_text}an exemplar of {self.size} bytes and "
                              f"its logits of each of {classes} class{'es' * (classes > 1)}",
                              f"give --memory {least} or more")

    def capacity(self) -> int:
        size = self.size + FLOAT_BYTES * self.width
        return max(self.room - self.reserved - CLASS_BYTES * len(self.kept), 0) // size

    def begin(self, network: Network, known: int) -> None:
        self._complete(network, known)

    def update(self, new: Batch, network: Network) -> None:
        self._complete(network, network.head.classes)

    def _complete(self, network: Network, known: int) -> None:
        """Give every exemplar a logit of each output; the network has learned the first `known`."""
        self.width = max(self.width, network.head.classes)
        for column, kept in self.kept.items():
            logits = self.logits.setdefault(column, [])
            logits += [torch.empty(0)] * (len(kept) - len(logits))
            lacking = [place for place, each in enumerate(logits) if len(each) < self.width]
            if lacking:
                samples = torch.stack([kept[place] for place in lacking])
                for place, found in zip(lacking, outputs(lambda x: network(x)[1], samples, network.block)):
                    logits[place] = self._extended(logits[place] if len(logits[place]) else found[:known])
        self._shrink(np.random.default_rng(sum(self.seen.values())))    # longer logits take more room

    def _extended(self, logits: Tensor) -> Tensor:
        """Plus those of outputs that came later."""
        unseen = logits.logsumexp(0) - math.log(sum(self.seen.values()) + 1)
        return torch.cat([logits, unseen.expand(self.width - len(logits))])

    def observe(self, new: Batch, generator: np.random.Generator, seen: Seen | None = None) -> None:
        found = seen.logits if seen else torch.empty(len(new), 0)
        self.width = max(self.width, found.shape[1])
        if self.recording == "round":
            found = found[:, :0]
        for sample, column, logits in zip(new.x, new.y.tolist(), found):
            kept, recorded = self.kept.setdefault(column, []), self.logits.setdefault(column, [])
            self.seen[column] = self.seen.get(column, 0) + 1
            if self.seen[column] == len(kept) + 1:
                kept.append(sample.clone())
                recorded.append(logits.clone())
            elif generator.random() * self.seen[column] < len(kept):
                place = int(generator.integers(len(kept)))
                kept[place], recorded[place] = sample.clone(), logits.clone()
            self._shrink(generator)

    def _shrink(self, generator: np.random.Generator) -> None:
        while sum(map(len, self.kept.values())) > self.capacity():
            largest = max(self.kept, key=lambda column: len(self.kept[column]))
            place = int(generator.integers(len(self.kept[largest])))
            for values in (self.kept[largest], self.logits[largest]):
                values[place] = values[-1]
                values.pop()

    def replay(self, n: int, generator: np.random.Generator) -> Batch | None:
        drawn = self.drawn(n, generator) + self.drawn(n, generator)
        if not drawn:
            return None
        recorded = torch.full((2 * n, self.width), torch.nan)
        for row, (column, place) in enumerate(drawn[:n]):
            logits = self.logits[column][place]
            recorded[row, :len(logits)] = logits
        return Batch(torch.stack([self.kept[column][place] for column, place in drawn]),
                     torch.tensor([column for column, _ in drawn]),
                     torch.tensor([0.0] * n + [self.replayed] * n), recorded)

    def state(self) -> Arrays:
        rows = [logits for column in self.kept for logits in self.logits.get(column, ())]
        padded = [F.pad(logits, (0, self.width - len(logits)), value=-torch.inf) for logits in rows]
        return super().state() | {"logits": (torch.stack(padded) if padded else torch.empty(0, self.width)).numpy()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        super().load(state)
        rows = torch.tensor(state["logits"])
        self.width = rows.shape[1]
        trimmed = iter([row[:int(row.isfinite().sum())].clone() for row in rows])
        self.logits = {column: [next(trimmed) for _ in kept] for column, kept in self.kept.items()}


class ByGradient(Exemplars):
    """Exemplars whose gradients point in many directions (Aljundi et al. 2019, algorithm 2, GSS-greedy).

    A sample's score C is 1 + the largest cosine of its gradient with those of up to ten random exemplars. If the memory
    is full and C < 1, an exemplar drawn with probability C_i / sum C is replaced with probability C_i / (C + C_i).
    Gradients are those of the last layer, (p - y) (x) h, whose cosine is a product of two cosines; the random exemplars
    are those replayed in the same step.
    """

    replays = True

    def __init__(self, room: int, nothing: Batch) -> None:
        self.scores: dict[int, list[float]] = {}
        super().__init__(room, nothing)

    def capacity(self) -> int:
        return max(self.room - self.reserved - CLASS_BYTES * len(self.kept), 0) // (self.size + FLOAT_BYTES)

    def check(self, classes: int) -> None:
        least = classes * (self.size + FLOAT_BYTES + CLASS_BYTES) + self.reserved
        if self.room < least:
            raise BudgetError(f"{self.room} bytes can't hold {self.reserved_text}an exemplar of {self.size} bytes and "
                              f"its score of each of {classes} class{'es' * (classes > 1)}",
                              f"give --memory {least} or more")

    def hold(self, old: Batch) -> None:
        super().hold(old)
        self.scores = {column: [1.0] * len(kept) for column, kept in self.kept.items()}

    def observe(self, new: Batch, generator: np.random.Generator, seen: Seen | None = None) -> None:
        found = scores(new, seen, generator) if seen else [1.0] * len(new)
        for sample, column, score in zip(new.x, new.y.tolist(), found):
            kept, marks = self.kept.setdefault(column, []), self.scores.setdefault(column, [])
            self.seen[column] = self.seen.get(column, 0) + 1
            while sum(map(len, self.kept.values())) > self.capacity():
                self._drop(*self._drawn(generator))      # a new class needs room
            if sum(map(len, self.kept.values())) < self.capacity():
                kept.append(sample.clone())
                marks.append(score)
            elif score < 1:
                other, place = self._drawn(generator)
                if generator.random() < replacing(self.scores[other][place], score):
                    self._drop(other, place)
                    kept.append(sample.clone())
                    marks.append(score)

    def _drawn(self, generator: np.random.Generator) -> tuple[int, int]:
        """The class and place of one, drawn in proportion to the scores."""
        places = [(column, place) for column, marks in self.scores.items() for place in range(len(marks))]
        chances = np.array([self.scores[column][place] for column, place in places]) + 1e-12
        return places[int(generator.choice(len(places), p=chances / chances.sum()))]

    def _drop(self, column: int, place: int) -> None:
        for values in (self.kept[column], self.scores[column]):
            values[place] = values[-1]      # type: ignore[index]
            values.pop()

    def replay(self, n: int, generator: np.random.Generator) -> Batch | None:
        """Each exemplar with the same chance."""
        places = [(column, place) for column, kept in self.kept.items() for place in range(len(kept))
                  if not (self.withholds and is_held(kept[place]))]
        if not places:
            return None
        drawn = [places[i] for i in generator.integers(len(places), size=n)]
        return Batch(torch.stack([self.kept[column][place] for column, place in drawn]),
                     torch.tensor([column for column, _ in drawn]))

    def state(self) -> Arrays:
        return super().state() | {"scores": np.array([score for column in self.kept for score in self.scores[column]],
                                                     np.float32)}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        super().load(state)
        values = iter(state["scores"].tolist())
        self.scores = {column: [next(values) for _ in kept] for column, kept in self.kept.items()}


def replacing(kept: float, new: float) -> float:
    """The probability that a kept exemplar of one score is replaced by a new one of another."""
    return kept / (new + kept) if kept > 0 else 0.0


def scores(new: Batch, seen: Seen, generator: np.random.Generator) -> list[float]:
    """1 + the largest cosine of each new sample's last-layer gradient with those of random exemplars; 1 if there are
    none."""
    if not len(seen.old_columns):
        return [1.0] * len(new)
    chosen = torch.from_numpy(generator.permutation(len(seen.old_columns))[:COMPARED])
    pull = _pull(seen.logits, new.y), _pull(seen.old_logits[chosen], seen.old_columns[chosen])
    cosines = (pull[0] @ pull[1].T) * (F.normalize(seen.features) @ F.normalize(seen.old_features[chosen]).T)
    return [float(np.float32(score)) for score in 1 + cosines.max(1).values]


def _pull(logits: Tensor, columns: Tensor) -> Tensor:
    """Unit vectors along p - y."""
    return F.normalize(logits.softmax(1) - F.one_hot(columns, logits.shape[1]))
