"""How good the answers of a state are: what is taken for what, which samples are answered wrongly, and how far
confidence can be trusted."""
from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from edgecl.errors import BadInput
from edgecl.learning.status import known_are
from edgecl.results import LIKE_NOTHING, Calibrated, Evaluation, ReliabilityBin, WrongAnswer
from edgecl.samples import NOTHING, batches_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np

    from edgecl.learning.serving import Serving
    from edgecl.results import Prediction
    from edgecl.samples import Sample

    OnWrong = Callable[[WrongAnswer, np.ndarray], None]

BINS = 10       # of the reliability of confidence, equally wide


def evaluated(serving: Serving, samples: Iterable[Sample], on_wrong: OnWrong | None = None) -> Evaluation:
    """See `Learner.evaluate`."""
    known = set(serving.head.labels)
    counts, unknown = Counter[str](), Counter[str]()
    answers: dict[str, Counter[str]] = {}
    wrong, sure, untold = list[WrongAnswer](), list[tuple[float, bool]](), None
    for batch in batches_of(samples):
        predicted, _ = serving.predict(batch.data, batch.sources)
        for answer, label, data in zip(predicted, batch.labels, batch.data):
            if label is None:
                raise BadInput("a sample to evaluate has no label", "give a folder with one subfolder per class")
            counts[label] += 1
            unknown[label] += answer.unknown is True
            untold = answer.reason if answer.unknown is None else untold
            answers.setdefault(label, Counter())[_answered(answer, label, label in known)] += 1
            if label in known and (answer.label is not None or answer.reason == LIKE_NOTHING):
                sure.append((answer.confidence, (answer.label or NOTHING) == label))
            if not (answer.right(label) if label in known else answer.unknown):
                wrong.append(WrongAnswer(answer.source, label, label in known, answer.label, answer.confidence,
                                         answer.unknown))
                if on_wrong:
                    on_wrong(wrong[-1], data)
    taught = sorted(known & counts.keys())
    if not taught:
        raise BadInput("none of the samples to evaluate is of a known class", known_are(sorted(known)))
    n, right = sum(counts[label] for label in taught), sum(answers[label][label] for label in taught)
    named = [label for label in taught if label != NOTHING]
    strange = sorted(counts.keys() - known)
    return Evaluation(
        right / n, {label: answers[label][label] / counts[label] for label in taught}, n,
        sum(unknown[label] for label in named) / max(sum(counts[label] for label in named), 1),
        {label: unknown[label] / counts[label] for label in strange}, right, dict(sorted(counts.items())),
        {label: unknown[label] for label in sorted(counts)}, {label: _most_first(answers[label]) for label in taught},
        {label: _most_first(answers[label]) for label in strange}, tuple(wrong), calibrated(sure), untold)


def _answered(answer: Prediction, truth: str, known: bool) -> str:
    """What a sample counts as, so that what is right stands on the diagonal: its label, `nothing` if it has none, and,
    if another answer would not be wrong, what makes it right."""
    if not known:
        return "" if answer.unknown else answer.label or NOTHING
    return truth if answer.right(truth) else answer.label or NOTHING


def _most_first(answers: Counter[str]) -> dict[str, int]:
    return dict(sorted(answers.items(), key=lambda pair: (-pair[1], pair[0])))


def calibrated(answers: Sequence[tuple[float, bool]]) -> Calibrated:
    """How confidence agrees with accuracy, of answers (confidence, whether it is right): the expected calibration error
    (Naeini et al. 2015), the mean difference of the two over the bins, weighted by their samples."""
    rows: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for confidence, right in answers:
        rows[min(int(confidence * BINS), BINS - 1)].append((confidence, right))
    bins = tuple(ReliabilityBin(place / BINS, (place + 1) / BINS, len(mine),
                                sum(confidence for confidence, _ in mine) / len(mine),
                                sum(right for _, right in mine) / len(mine)) for place, mine in enumerate(rows) if mine)
    n = len(answers)
    return Calibrated(sum(each.n * abs(each.confidence - each.accuracy) for each in bins) / n if n else None, n, bins)
