"""A method is a named composition of parts; here it is read from its .toml file and checked, without torch."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecl.errors import BadInput
from edgecl.files.tables import Rule
from edgecl.settings import read_toml

FOLDER = Path(__file__).parents[1] / "methods"
TUNED = ("all", "first", "none")
Number = float | int | bool | str


@dataclass(frozen=True)
class PartSpec:
    """A row of `PARTS`: where the class is, the numbers it takes by keyword, what it needs from and gives to others.

    where: `module.Class` in edgecl.training; numbers: name -> type, or the texts to choose from.
    """

    where: str
    numbers: dict[str, type | tuple[str, ...]] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset()


DUAL = frozenset({"a recent and a long-term memory"})
EXEMPLARS, STATISTICS, LOGITS, AFFINE, SUBNETWORKS = (
    frozenset({name}) for name in ("exemplars", "statistics", "logits", "affine outputs", "sub-networks"))
PARTS: dict[str, dict[str, PartSpec]] = {
    "memory": {
        "none": PartSpec("memory.base.Memory"),
        "reservoir": PartSpec("memory.exemplars.Reservoir", gives=EXEMPLARS),
        "herding": PartSpec("memory.exemplars.Herding", gives=EXEMPLARS),
        "everything": PartSpec("memory.exemplars.Everything", gives=EXEMPLARS),
        "greedy": PartSpec("memory.replay.Greedy", gives=EXEMPLARS),
        "recorded": PartSpec("memory.replay.Recorded", {"replayed": float, "recording": ("insertion", "round")},
                         gives=EXEMPLARS | LOGITS),
        "by-gradient": PartSpec("memory.replay.ByGradient", gives=EXEMPLARS),
        "episodes": PartSpec("memory.episodes.Episodes", {"each": int}, gives=EXEMPLARS),
        "statistics": PartSpec("memory.statistics.Statistics",
                               {"layer": ("map", "features"), "power": float, "projection": int}, gives=STATISTICS),
        "gaussians": PartSpec("memory.gaussians.Gaussians", {"rank": int, "pace": float,
                                                  "moves": ("map", "means", "best", "none")}),
        "translated": PartSpec("memory.fetril.Translated"),
        "latent": PartSpec("memory.latent.Latent", {"patterns": int, "bits": int}),
        "generator": PartSpec("memory.generator.GenerativeReplay", {"steps": int, "recalls": bool}),
        "fearnet": PartSpec("memory.fearnet.FearNet", {"sleep": int, "dreams": int}, gives=DUAL)},
    "constraint": {
        "distillation": PartSpec("constraints.distillation.Distillation",
                                 {"temperature": float, "strength": float, "squared": bool}),
        "class-share": PartSpec("constraints.distillation.ClassShare", {"temperature": float}),
        "by-round": PartSpec("constraints.distillation.ByRound", {"temperature": float}),
        "logit-replay": PartSpec("constraints.distillation.LogitReplay", {"strength": float}, needs=LOGITS),
        "less-forget": PartSpec("constraints.feature_distillation.LessForget", {"lambda_base": float}),
        "margin-ranking": PartSpec("constraints.head_rules.MarginRanking", {"margin": float, "hardest": int}),
        "fixed-classes": PartSpec("constraints.head_rules.FixedClasses"),
        "positive-weights": PartSpec("constraints.head_rules.PositiveWeights"),
        "pooled-outputs": PartSpec("constraints.feature_distillation.PooledOutputs", {"spatial": float, "flat": float}),
        "gradient-noise": PartSpec("constraints.gradient_noise.GradientNoise", {"eta": float, "fading": float}),
        "l2": PartSpec("constraints.importances.Quadratic", {"importance": float}),
        "fisher": PartSpec("constraints.importances.Fisher", {"importance": float, "gamma": float, "samples": int,
                                              "labels": ("exact", "drawn"), "form": ("online", "offline")}),
        "path-integral": PartSpec("constraints.path_integrals.PathIntegral", {"importance": float, "damping": float}),
        "riemannian-walk": PartSpec("constraints.path_integrals.RiemannianWalk",
                                    {"importance": float, "alpha": float, "every": int, "damping": float}),
        "sensitivity": PartSpec("constraints.importances.Sensitivity", {"importance": float, "samples": int}),
        "task-gradients": PartSpec("constraints.projections.TaskGradients",
                                   {"reference": int, "margin": float, "ridge": float}, needs=EXEMPLARS),
        "average-gradient": PartSpec("constraints.projections.AverageGradient", {"reference": int}, needs=EXEMPLARS)},
    "plasticity": {
        "packnet": PartSpec("plasticity.packnet.PackNet", {"pruned": float}, gives=SUBNETWORKS),
        "lottery": PartSpec("plasticity.lottery.Lottery", {"prunings": int, "given_up": float}, gives=SUBNETWORKS),
        "clnp": PartSpec("plasticity.clnp.Clnp", {"sparsity": float, "margin": float}, gives=SUBNETWORKS),
        "pathnet": PartSpec("plasticity.pathnet.PathNet",
                            {"modules": int, "active": int, "population": int, "tournaments": int}, gives=SUBNETWORKS),
        "cpg": PartSpec("plasticity.cpg.Cpg", {"goal": float, "most": float, "mask_rate": float}, gives=SUBNETWORKS),
        "den": PartSpec("plasticity.den.Den", {"l1": float, "l2": float, "group": float, "drift": float, "units": int,
                                               "loss": float, "split": float}, gives=SUBNETWORKS)},
    "task_rule": {
        "none": PartSpec("plasticity.task_rules.TaskRule"),
        "entropy": PartSpec("plasticity.task_rules.Entropy", needs=SUBNETWORKS),
        "nearest-mean": PartSpec("plasticity.task_rules.NearestMean", needs=SUBNETWORKS),
        "ncm": PartSpec("plasticity.task_rules.Gate", needs=SUBNETWORKS)},
    "balance": {
        "gate": PartSpec("memory.fearnet.Gated", needs=DUAL),
        "imprinting": PartSpec("balance.corrections.Imprinting"),
        "fine-tuning": PartSpec("balance.corrections.FineTuning",
                                {"passes": float, "slower": float, "afresh": bool}, needs=EXEMPLARS),
        "bias-correction": PartSpec("balance.corrections.BiasCorrection", needs=EXEMPLARS | AFFINE),
        "alignment": PartSpec("balance.corrections.Alignment", needs=AFFINE),
        "rectified": PartSpec("balance.corrections.Rectified", needs=EXEMPLARS),
        "temperature": PartSpec("balance.corrections.Temperature"),
        "exemplar-means": PartSpec("balance.base.ExemplarMeans", needs=EXEMPLARS),
        "closed-form": PartSpec("balance.base.ClosedForm", {"solver": ("nearest-mean", "slda", "ridge")},
                                needs=STATISTICS)},
    "head": {
        "softmax": PartSpec("networks.heads.Softmax", gives=AFFINE),
        "sigmoid": PartSpec("networks.heads.Sigmoid", gives=AFFINE),
        "asymmetric": PartSpec("networks.heads.Asymmetric", gives=AFFINE),
        "cosine": PartSpec("networks.heads.Cosine"),
        "proxies": PartSpec("networks.heads.Proxies", {"proxies": int})},
}
DEFAULTS = {"memory": "none", "constraint": (), "plasticity": (), "task_rule": "none", "balance": (),
            "head": "softmax"}
TRAINING: dict[str, Any] = {"rate": 0.0, "momentum": 0.0, "decay": 0.0, "milestones": (), "factor": 1.0,
                            "clip": 0.0}
TEXTS = {"paper": (Rule(), ""), "differs": (Rule(), ""), "tuned": (Rule(choices=TUNED), "all")}
KEYS = {*TEXTS, *PARTS, *TRAINING}


@dataclass(frozen=True)
class Method:
    """A composition that can work.

    parts: kind -> names; numbers: of the parts, by name; tuned: the rounds that train the network (all, first, none);
    training: rate, momentum, decay (of weights), and the shares of a round (`milestones`) after which the rate is
    divided by `factor`, and the largest norm of the gradients (`clip`, 0 for any).
    """

    name: str
    paper: str
    differs: str
    tuned: str
    parts: dict[str, tuple[str, ...]]
    numbers: dict[str, Number]
    training: dict[str, Any]

    @property
    def plastic(self) -> bool:
        """Whether each round gets a sub-network of its own, so that answers need a task or a rule that infers it."""
        return bool(self.parts["plasticity"])

    def rows(self) -> list[tuple[str, PartSpec]]:
        """(kind, row) of each part."""
        return [(kind, PARTS[kind][name]) for kind, names in self.parts.items() for name in names]


def method_names() -> list[str]:
    """The methods that come with edgecl, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_method(method: str | Path) -> Method:
    """The method of that name, or of a .toml file.

    Raises BadInput for an unknown method, key, part or number, and for a composition that can't work.
    """
    path = Path(method) if str(method).endswith(".toml") else FOLDER / f"{method}.toml"
    if not path.is_file():
        raise BadInput(f"there is no method {str(method)!r}",
                       f"give a .toml file or one of {', '.join(method_names())}")
    named = {name for rows in PARTS.values() for row in rows.values() for name in row.numbers}
    values = read_toml(path, KEYS | named)
    parts = {kind: _chosen(path, kind, values.get(kind, default)) for kind, default in DEFAULTS.items()}
    paper, differs, tuned = (rule.take(values.get(name, default), f"{path.name}: {name}")
                             for name, (rule, default) in TEXTS.items())
    training = {key: values.get(key, default) for key, default in TRAINING.items()}
    numbers = {key: value for key, value in values.items() if key in named}
    found = Method(path.stem, paper, differs, tuned, parts, numbers, training)
    _check_numbers(path, found)
    _check_works(path, found)
    return found


def _chosen(path: Path, kind: str, given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple) else (str(given),)
    several = isinstance(DEFAULTS[kind], tuple)
    unknown = [str(name) for name in names if name not in PARTS[kind]]
    if unknown or (len(names) != 1 and not several) or len(set(names)) < len(names):
        raise BadInput(f"{path.name}: {kind} is {given!r}",
                       f"give {'a list of' if several else 'one of'} {', '.join(PARTS[kind]) or 'nothing yet'}")
    return names


def _check_numbers(path: Path, method: Method) -> None:
    wanted = {name: kind for _, row in method.rows() for name, kind in row.numbers.items()}
    unused, missing = sorted(set(method.numbers) - set(wanted)), sorted(set(wanted) - set(method.numbers))
    if unused or missing:
        raise BadInput(f"{path.name}: " + "; ".join(
            [f"none of its parts takes {name}" for name in unused] + [f"{name} is missing" for name in missing]),
            f"its parts take {', '.join(wanted) or 'no numbers'}")
    takers: dict[str, list[str]] = {}
    for name, kind in wanted.items():
        _rule(kind).take(method.numbers[name], f"{path.name}: {name}")
        takers[name] = [part for kind_of_part, parts in method.parts.items() for part in parts
                        if name in PARTS[kind_of_part][part].numbers]
    if shared := [name for name, parts in takers.items() if len(parts) > 1]:
        raise BadInput(f"{path.name}: {shared[0]} is a number of both {' and '.join(takers[shared[0]])}",
                       "give a method only one of them")
    for name, value in method.training.items():
        for number in value if name == "milestones" and isinstance(value, list | tuple) else [value]:
            _rule(float).take(number, f"{path.name}: {name}")
    if not method.paper:
        raise BadInput(f"{path.name} has no paper", 'add a line such as paper = "Rebuffi et al. 2017"')


def _rule(kind: type | tuple[str, ...]) -> Rule:
    """What a number of a part may be."""
    if isinstance(kind, tuple):
        return Rule(choices=kind)
    return Rule(bool) if kind is bool else Rule(
        kind, 0, 1e12, cure="a number of 0 or more" if kind is float else "a count")


def _check_works(path: Path, method: Method) -> None:
    given = frozenset().union(*(row.gives for _, row in method.rows()))
    for kind, row in method.rows():
        if lacks := row.needs - given:
            makers = {maker: [name for name, part in rows.items() if lacks & part.gives]
                      for maker, rows in PARTS.items()}
            maker = next(maker for maker, names in makers.items() if names)
            raise BadInput(f"{path.name}: its {kind} needs {', '.join(sorted(lacks))}, which {maker} = "
                           f"{_written(method.parts[maker])} does not provide",
                           f"give {maker} = {' or '.join(makers[maker])}")
    if method.plastic:
        _check_plastic(path, method)
    if method.tuned == "all" and "statistics" in given:
        raise BadInput(f"{path.name}: statistics of a network that keeps changing would be stale",
                       'give tuned = "first" or "none"')
    if method.tuned != "all" and not {"closed-form", "exemplar-means", "gate"}.intersection(method.parts["balance"]):
        raise BadInput(f"{path.name}: nothing learns if the network is not tuned",
                       'give tuned = "all", or balance = "closed-form"')
    if method.tuned != "none" and not method.training["rate"] > 0:
        raise BadInput(f"{path.name}: it tunes a network and has no rate", "give rate, the step size of SGD")
    if method.training["milestones"] and not method.training["factor"] >= 1:
        raise BadInput(f"{path.name}: factor is {method.training['factor']}",
                       "give what the rate is divided by, 1 or more")


def _written(names: tuple[str, ...]) -> str:
    """Parts as a .toml file has them."""
    return names[0] if len(names) == 1 else f"[{', '.join(names)}]"


def _check_plastic(path: Path, method: Method) -> None:
    """What was learned in a sub-network stays as it is: nothing else may touch its weights, or need old outputs."""
    if len(method.parts["plasticity"]) > 1:
        raise BadInput(f"{path.name}: plasticity is {list(method.parts['plasticity'])}", "give one of them")
    if method.parts["task_rule"] == ("none",):
        rules = [rule for rule in PARTS["task_rule"] if rule != "none"]
        raise BadInput(f"{path.name}: it has one sub-network per task, and no rule picks the one that answers",
                       f"give task_rule = {' or '.join(rules)}")
    others = [kind for kind in ("memory", "constraint", "balance") if method.parts[kind] not in ((), ("none",))]
    if others:
        raise BadInput(f"{path.name}: plasticity beside {', '.join(others)}, though frozen sub-networks forget nothing",
                       f"leave out {', '.join(others)}")
    if method.tuned != "all" or method.training["decay"]:
        raise BadInput(f"{path.name}: tuned is {method.tuned!r} and decay {method.training['decay']} with plasticity",
                       'give tuned = "all" and no decay, which would move frozen weights')
