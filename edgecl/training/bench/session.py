"""One learner through the steps of a scenario: a method at work on a network."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edgecl.errors import BadInput, StateError
from edgecl.rounds.method import read_method
from edgecl.rounds.parts import WHERE
from edgecl.training.batch import Batch
from edgecl.training.bench.options import RunOptions
from edgecl.training.composition import balance_of, parts_of
from edgecl.training.loop import Parts, learning_round
from edgecl.training.networks.network import NETWORKS, build, outputs
from edgecl.training.passes import Allowance
from edgecl.training.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from edgecl.training.networks.pretrained import Trunk

DTYPES = {"uint8": torch.uint8, "float32": torch.float32}


class MethodRun:
    """One learner through the steps of a scenario.

    method: a name or a .toml file; network: see `edgecl.training.networks.network`, or a pretrained image backbone, of
    which the last `options.blocks` are tuned, and of a sample its activation below them is kept; input_shape
    and dtype: of one sample, "uint8" images [h, w, c], or "float32" windows [time, channels] or vectors [d]; memory:
    bytes for exemplars. Raises BadInput for unknown or invalid arguments, BudgetError if the memory can't hold an
    exemplar.
    """

    def __init__(self, method: str | Path, network: str, input_shape: tuple[int, ...], dtype: str, memory: int,
                 seed: int, options: RunOptions | None = None) -> None:
        options = options or RunOptions()
        if min(input_shape) < 1 or min(memory, seed) < 0 or dtype not in DTYPES:
            raise BadInput(f"memory {memory}, seed {seed}, samples of {dtype} {list(input_shape)}",
                           f"give counts, and a dtype of {' or '.join(DTYPES)}")
        torch.set_num_threads(options.threads)
        self.method, self.seed, self.rounds = read_method(method), seed, 0
        self.classes: list[int] = []
        self.input = torch.empty((0, *input_shape), dtype=DTYPES[dtype])
        self.trunk: Trunk | None = None
        kept, top = self.input, None
        if network not in NETWORKS and not WHERE.fullmatch(network):
            from edgecl.training.networks import pretrained  # brings onnx

            top = pretrained.TunedBlocks(network, options.blocks, options.threads)
            self.trunk, kept = top.trunk, top.nothing
        self.nothing = Batch(kept, torch.empty(0, dtype=torch.int64))
        (memory_part,), (head,) = (parts_of(self.method, kind) for kind in ("memory", "head"))
        plastic = None
        if self.method.plastic:
            (plasticity,), (rule,) = (parts_of(self.method, kind) for kind in ("plasticity", "task_rule"))
            if top is not None:
                raise BadInput(f"{self.method.name} divides the units of small networks, not those of {network}",
                               f"give --backbone {', '.join(NETWORKS)}, or a method without plasticity")
            plastic = plasticity(memory, rule())
        self.parts = Parts(memory_part(memory, self.nothing), balance_of(self.method),
                           [constraint() for constraint in parts_of(self.method, "constraint")], plastic)
        self.network = top.network(head) if top else build(network, tuple(input_shape), dtype, head, seed)
        training = self.method.training
        rate = training["rate"] if options.rate is None else options.rate
        self.plan = Plan(options.epochs, options.batch, rate, training["momentum"], training["decay"],
                         tuple(training["milestones"]), training["factor"], training["clip"])

    def learn(self, x: np.ndarray, y: np.ndarray, progress: Callable[[int, float], None] | None = None) -> None:
        """One round on samples of one step: x [n, ...], class numbers int64 [n].

        progress: called after each step with the samples done, replayed ones included, and the loss. Raises BadInput
        for samples of another shape or dtype, BudgetError if the memory can't hold an exemplar of each class.
        """
        samples, y = self._samples(x), np.asarray(y)
        if y.dtype.kind not in "iu" or y.shape != (len(samples),) or not len(y):
            raise BadInput(f"labels of {y.dtype} {list(y.shape)} for {len(samples)} samples",
                           "give class numbers [n], n > 0")
        classes = self.classes + sorted(set(y.tolist()) - set(self.classes))
        memory = self.parts.memory
        parameters = self._parameters(len(classes))
        memory.reserve(sum(part.reserves(parameters, memory) for part in self.parts.constraints))
        memory.check(len(classes))
        if self.parts.plasticity is not None:
            self.parts.plasticity.check(self.network, len(np.unique(y)))
        column = {number: i for i, number in enumerate(classes)}
        new = Batch(samples, torch.tensor([column[number] for number in y.tolist()]))
        tuned = self.method.tuned == "all" or (self.method.tuned == "first" and self.rounds == 0)
        plan = self.plan if tuned else Plan(0, self.plan.batch, self.plan.rate)
        generator = np.random.default_rng([self.seed, self.rounds])     # of the round's own: it need not be saved
        allowance = Allowance() if progress is None else Allowance(progress=progress)
        learning_round(self.network, self.parts, new, len(classes), plan, generator, allowance)
        self.classes, self.rounds = classes, self.rounds + 1

    def predict(self, x: np.ndarray, among: Sequence[int] | None = None) -> np.ndarray:
        """Class numbers int64 [n]; among: only these classes may be answered (task-aware evaluation)."""
        numbers, served = np.array(self.classes, np.int64), self._served()
        allowed = np.ones(len(numbers), bool) if among is None else np.isin(numbers, list(among))
        if not allowed.any():
            raise BadInput(f"none of the classes {list(among or ())} is known", "teach one of them first")
        logits = outputs(lambda part: served(part)[1], self._samples(x)).numpy()
        return numbers[allowed][np.argmax(logits[:, allowed], 1)]

    def usage(self) -> dict[str, list[list[float]]]:
        """Layer -> for each round's sub-network, the share of each unit's inputs that it uses; empty without any."""
        return self.parts.plasticity.usage(self.network) if self.parts.plasticity is not None else {}

    @property
    def nbytes(self) -> int:
        """All that is kept between rounds besides the served network."""
        return sum(part.nbytes for _, part in self._owners())

    def state(self) -> dict[str, np.ndarray]:
        """All of it, as arrays without objects; later changes do not affect them."""
        arrays = {"method": np.array(self.method.name), "classes": np.array(self.classes, np.int64),
                  "rounds": np.array([self.seed, self.rounds], np.int64)}
        for owner, values in self._owners():
            arrays |= {f"{owner}/{name}": np.array(array) for name, array in values.state().items()}
        return arrays | {f"network/{name}": np.array(t.numpy()) for name, t in self.network.state_dict().items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on where `state` was taken; raises StateError for another method or network."""
        if str(state["method"]) != self.method.name:
            raise StateError(f"the state is of {state['method']}, not {self.method.name}",
                             "load it into a session of its own method")
        classes = [int(number) for number in state["classes"]]
        (make,) = parts_of(self.method, "head")
        head = make(self.network.head.weight.shape[-1])
        head.extend(len(classes), np.random.default_rng(0))
        self.network.head = head
        try:
            self.network.load_state_dict({name: torch.tensor(a) for name, a in below("network", state).items()})
        except RuntimeError as error:
            raise StateError(f"the state does not fit: {' '.join(str(error).split())[:200]}",
                             "load it into a session with its network and input") from error
        for owner, values in self._owners():
            values.load(below(owner, state))
        self.classes, (self.seed, self.rounds) = classes, (int(number) for number in state["rounds"])
        if self.rounds:
            self.parts.balance.restore(self.network, self.parts.memory)

    def export(self) -> bytes:
        """What serves, as ONNX: input -> features, logits; see `edgecl.training.networks.export`."""
        from edgecl.training.networks.export import export  # onnx takes 8 MB, and training needs none of it

        example = torch.zeros((2, *self.nothing.x.shape[1:]), dtype=self.nothing.x.dtype)
        return export(self._served(), example, self.classes, self.trunk.model if self.trunk else None)

    def _served(self) -> nn.Module:
        if not self.classes:
            raise StateError("nothing was learned yet", "call learn first")
        if self.parts.plasticity is not None:
            return self.parts.plasticity.serve(self.network)
        return self.parts.balance.fold(self.network).eval()

    def _parameters(self, classes: int) -> int:
        """Of all parameters, once there are so many outputs."""
        return sum(p.shape[1:].numel() * classes if name.startswith("head.") and p.dim() else p.numel()
                   for name, p in self.network.named_parameters())

    def _owners(self) -> list[tuple[str, Any]]:
        plastic = [("plasticity", self.parts.plasticity)] if self.parts.plasticity is not None else []
        return [("memory", self.parts.memory), ("balance", self.parts.balance), *plastic,
                *((f"constraint{i}", part) for i, part in enumerate(self.parts.constraints))]

    def _samples(self, x: np.ndarray) -> Tensor:
        """As a tensor, which may share the memory of x: what is kept is copied by the parts."""
        x, wanted = np.asarray(x), self.input
        dtype = str(wanted.dtype).removeprefix("torch.")
        if x.shape[1:] != tuple(wanted.shape[1:]) or x.dtype != dtype or x.ndim < 2:
            raise BadInput(f"samples of {x.dtype} {list(x.shape)}", f"give {dtype} {['n', *wanted.shape[1:]]}")
        if not np.isfinite(x).all():
            raise BadInput(f"{int((~np.isfinite(x)).sum())} values are NaN or infinite", "leave those samples out")
        if self.trunk is not None:
            return torch.from_numpy(self.trunk(x))
        return torch.from_numpy(np.require(x, requirements=("C", "W")))


def below(owner: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of one owner, named as it names them."""
    return {name.removeprefix(f"{owner}/"): array for name, array in state.items() if name.startswith(f"{owner}/")}
