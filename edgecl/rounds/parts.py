"""The parts of methods: a row for each, with all that is known of it without importing it."""
from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecl.errors import BadInput
from edgecl.files.tables import Rule

Number = float | int | bool | str
PER_SAMPLE_GRADIENT = 6     # forward passes that the squared gradients of one sample take
OLD = ("", "logits", "features")


@dataclass(frozen=True)
class PartSpec:
    """A row of `PARTS`: where the class is, the numbers it takes by keyword, what it needs from and gives to others.

    where: `module.Class` in edgecl.training; numbers: name -> type, or the texts to choose from.

    What it costs in a round. copies: of the activations of all samples, besides the samples themselves; weights: copies
    of the learned weights; per_round: as many more of them for each earlier round; new_passes, all_passes: forward
    passes of each new sample, and of each sample, after the last step, a number `samples` being the most new ones;
    old: "logits" or "features", if it asks for those of the network before the round; replays: kept samples pass
    through the whole network beside new ones, so that a copy of the old network must answer for them; whole: each epoch
    goes through all that it keeps; phases: it trains more after the round's own steps.

    Where it works. from_statistics: without any stored sample; untrained: it answers if nothing is trained;
    bench_only: what it needs that a state can't keep or serve, "" for nothing.
    """

    where: str
    numbers: dict[str, type | tuple[str, ...]] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset()
    copies: int = 0
    weights: int = 0
    per_round: int = 0
    old: str = ""
    replays: bool = False
    whole: bool = False
    phases: bool = False
    new_passes: float = 0.0
    all_passes: float = 0.0
    from_statistics: bool = False
    untrained: bool = False
    bench_only: str = ""


DUAL = frozenset({"a recent and a long-term memory"})
EXEMPLARS, STATISTICS, LOGITS, AFFINE, SUBNETWORKS = (
    frozenset({name}) for name in ("exemplars", "statistics", "logits", "affine outputs", "sub-networks"))
PLASTIC: dict[str, Any] = {"gives": SUBNETWORKS, "bench_only": "one sub-network per task"}
PARTS: dict[str, dict[str, PartSpec]] = {
    "memory": {
        "none": PartSpec("memory.base.Memory"),
        "reservoir": PartSpec("memory.exemplars.Reservoir", gives=EXEMPLARS, copies=1, replays=True),
        "herding": PartSpec("memory.exemplars.Herding", gives=EXEMPLARS, copies=2, whole=True, new_passes=1),
        "everything": PartSpec("memory.exemplars.Everything", gives=EXEMPLARS, copies=2, whole=True),
        "greedy": PartSpec("memory.replay.Greedy", gives=EXEMPLARS, copies=1),
        "recorded": PartSpec("memory.replay.Recorded", {"replayed": float, "recording": ("insertion", "round")},
                             gives=EXEMPLARS | LOGITS, copies=1, replays=True, new_passes=1),
        "by-gradient": PartSpec("memory.replay.ByGradient", gives=EXEMPLARS, copies=1, replays=True),
        "episodes": PartSpec("memory.episodes.Episodes", {"each": int}, gives=EXEMPLARS, copies=1),
        "statistics": PartSpec("memory.statistics.Statistics",
                               {"layer": ("map", "features"), "power": float, "projection": int}, gives=STATISTICS),
        "gaussians": PartSpec("memory.gaussians.Gaussians",
                              {"rank": int, "pace": float, "moves": ("map", "means", "best", "none")},
                              copies=2, new_passes=1, from_statistics=True),
        "translated": PartSpec("memory.fetril.Translated", copies=4, new_passes=1, from_statistics=True),
        "latent": PartSpec("memory.latent.Latent", {"patterns": int, "bits": int}, copies=1),
        "generator": PartSpec("memory.generator.GenerativeReplay", {"steps": int, "recalls": bool},
                              bench_only="a generator of its own"),
        "fearnet": PartSpec("memory.fearnet.FearNet", {"sleep": int, "dreams": int}, gives=DUAL,
                            bench_only="two memories and a gate")},
    "constraint": {
        "distillation": PartSpec("constraints.distillation.Distillation",
                                 {"temperature": float, "strength": float, "squared": bool}, old="logits"),
        "class-share": PartSpec("constraints.distillation.ClassShare", {"temperature": float}, old="logits"),
        "by-round": PartSpec("constraints.distillation.ByRound", {"temperature": float}, old="logits"),
        "logit-replay": PartSpec("constraints.distillation.LogitReplay", {"strength": float}, needs=LOGITS),
        "less-forget": PartSpec("constraints.feature_distillation.LessForget", {"lambda_base": float}, old="features"),
        "margin-ranking": PartSpec("constraints.head_rules.MarginRanking", {"margin": float, "hardest": int}),
        "fixed-classes": PartSpec("constraints.head_rules.FixedClasses"),
        "positive-weights": PartSpec("constraints.head_rules.PositiveWeights"),
        "pooled-outputs": PartSpec("constraints.feature_distillation.PooledOutputs", {"spatial": float, "flat": float},
                                   weights=1),
        "gradient-noise": PartSpec("constraints.gradient_noise.GradientNoise", {"eta": float, "fading": float},
                                   weights=1),
        "l2": PartSpec("constraints.importances.Quadratic", {"importance": float}, weights=2),
        "fisher": PartSpec("constraints.importances.Fisher",
                           {"importance": float, "gamma": float, "samples": int, "labels": ("exact", "drawn"),
                            "form": ("online", "offline")}, weights=3, new_passes=PER_SAMPLE_GRADIENT),
        "path-integral": PartSpec("constraints.path_integrals.PathIntegral", {"importance": float, "damping": float},
                                  weights=8),
        "riemannian-walk": PartSpec("constraints.path_integrals.RiemannianWalk",
                                    {"importance": float, "alpha": float, "every": int, "damping": float}, weights=12),
        "sensitivity": PartSpec("constraints.importances.Sensitivity", {"importance": float, "samples": int},
                                weights=3, new_passes=PER_SAMPLE_GRADIENT),
        "task-gradients": PartSpec("constraints.projections.TaskGradients",
                                   {"reference": int, "margin": float, "ridge": float}, needs=EXEMPLARS,
                                   copies=1, weights=3, per_round=1),
        "average-gradient": PartSpec("constraints.projections.AverageGradient", {"reference": int}, needs=EXEMPLARS,
                                     copies=1, weights=1)},
    "plasticity": {
        "packnet": PartSpec("plasticity.packnet.PackNet", {"pruned": float}, **PLASTIC),
        "lottery": PartSpec("plasticity.lottery.Lottery", {"prunings": int, "given_up": float}, **PLASTIC),
        "clnp": PartSpec("plasticity.clnp.Clnp", {"sparsity": float, "margin": float}, **PLASTIC),
        "pathnet": PartSpec("plasticity.pathnet.PathNet",
                            {"modules": int, "active": int, "population": int, "tournaments": int}, **PLASTIC),
        "cpg": PartSpec("plasticity.cpg.Cpg", {"goal": float, "most": float, "mask_rate": float}, **PLASTIC),
        "den": PartSpec("plasticity.den.Den", {"l1": float, "l2": float, "group": float, "drift": float, "units": int,
                                               "loss": float, "split": float}, **PLASTIC)},
    "task_rule": {
        "none": PartSpec("plasticity.task_rules.TaskRule"),
        "entropy": PartSpec("plasticity.task_rules.Entropy", needs=SUBNETWORKS),
        "nearest-mean": PartSpec("plasticity.task_rules.NearestMean", needs=SUBNETWORKS),
        "ncm": PartSpec("plasticity.task_rules.Gate", needs=SUBNETWORKS)},
    "balance": {
        "gate": PartSpec("memory.fearnet.Gated", needs=DUAL, untrained=True),
        "imprinting": PartSpec("balance.corrections.Imprinting"),
        "fine-tuning": PartSpec("balance.corrections.FineTuning",
                                {"passes": float, "slower": float, "afresh": bool}, needs=EXEMPLARS, copies=1,
                                phases=True),
        "bias-correction": PartSpec("balance.corrections.BiasCorrection", needs=EXEMPLARS | AFFINE, copies=1,
                                    all_passes=0.1),
        "alignment": PartSpec("balance.corrections.Alignment", needs=AFFINE),
        "rectified": PartSpec("balance.corrections.Rectified", needs=EXEMPLARS, copies=1, new_passes=1,
                              all_passes=1),
        "temperature": PartSpec("balance.corrections.Temperature", copies=1, all_passes=0.1),
        "exemplar-means": PartSpec("balance.base.ExemplarMeans", needs=EXEMPLARS, copies=1, all_passes=2,
                                   untrained=True),
        "closed-form": PartSpec("balance.base.ClosedForm", {"solver": ("nearest-mean", "slda", "ridge")},
                                needs=STATISTICS, untrained=True)},
    "head": {
        "softmax": PartSpec("networks.heads.Softmax", gives=AFFINE),
        "sigmoid": PartSpec("networks.heads.Sigmoid", gives=AFFINE, old="logits"),
        "asymmetric": PartSpec("networks.heads.Asymmetric", gives=AFFINE),
        "cosine": PartSpec("networks.heads.Cosine"),
        "proxies": PartSpec("networks.heads.Proxies", {"proxies": int})},
}


# parts of a user's own ---------------------------------------------------------------------------

WHERE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
COSTS: dict[str, type] = {"copies": int, "weights": int, "per_round": int, "new_passes": float, "all_passes": float,
                          "replays": bool, "phases": bool}
FACTS: dict[str, type | tuple[str, ...]] = {
    **COSTS, "old": OLD, "whole": bool, "from_statistics": bool, "untrained": bool, "bench_only": str,
    "needs": frozenset, "gives": frozenset}
GIVEN = sorted({name for rows in PARTS.values() for row in rows.values() for name in row.gives})


@dataclass(frozen=True)
class OwnPart(PartSpec):
    """A part of the user's own, from a table of the .toml. where: `package.module:Class`; given: its numbers, by name;
    folder: of the .toml, where the module is looked for last."""

    given: dict[str, Number] = field(default_factory=dict)
    folder: Path = Path()


def own_part(kind: str, table: dict[str, Any], path: Path) -> OwnPart:
    """The part that a table of the .toml at `path` names; nothing is imported.

    A cost that the table does not give is taken to be that of the most expensive part of its kind. Raises BadInput for
    a value of the wrong type.
    """
    where = table.get("where")
    if not isinstance(where, str) or not WHERE.fullmatch(where):
        raise BadInput(f"{path.name}: where = {where!r} in its {kind}", 'give where = "package.module:Class"')
    given, facts = {}, _assumed(kind)
    for name, value in table.items():
        label = f"{path.name}: {name} of its {kind}"
        if name in FACTS:
            facts[name] = _named(value, label) if FACTS[name] is frozenset else rule_of(FACTS[name]).take(value, label)
        elif not isinstance(value, int | float | str):      # bool is an int
            raise BadInput(f"{label} is {value!r}", "give a number, true, false or a text")
        elif name != "where":
            given[name] = value
    return OwnPart(where, given=given, folder=path.absolute().parent, **facts)


def _assumed(kind: str) -> dict[str, Any]:
    """The costs of the most expensive part of a kind, and what all parts of the kind share."""
    rows = list(PARTS[kind].values())
    assumed: dict[str, Any] = {cost: max(getattr(row, cost) for row in rows) for cost in COSTS}
    assumed["old"] = max((row.old for row in rows), key=OLD.index)
    assumed["gives"] = frozenset.intersection(*(row.gives for row in rows))
    assumed["bench_only"] = min(row.bench_only for row in rows)     # "" if one of them works in a state
    return assumed


def _named(value: Any, label: str) -> frozenset[str]:
    """What a part needs or gives."""
    if not isinstance(value, list) or not all(each in GIVEN for each in value):
        raise BadInput(f"{label} is {value!r}", f"give a list of {', '.join(GIVEN)}")
    return frozenset(value)


def source_file(where: str, folder: Path) -> Path | None:
    """The file of the module that `where` names, as a worker started here would find it; nothing is imported."""
    module = where.partition(":")[0].split(".")
    places = [Path(place, *module) for place in ("", *sys.path, str(folder))]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return next((file for file in files if file.is_file()), None)


def rule_of(kind: type | tuple[str, ...]) -> Rule:
    """What a value may be, see `PartSpec.numbers` and `FACTS`."""
    if isinstance(kind, tuple):
        return Rule(choices=kind, cure=" or ".join(text or '""' for text in kind) if "" in kind else "")
    return Rule(kind) if kind in (bool, str) else Rule(
        kind, 0, 1e12, cure="a number of 0 or more" if kind is float else "a count")
