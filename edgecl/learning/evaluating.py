"""How accurate the head that answers is on labelled samples."""
from __future__ import annotations

from typing import TYPE_CHECKING

from edgecl.errors import BadInput
from edgecl.learning.status import known_are
from edgecl.results import Evaluation
from edgecl.samples import NOTHING, batches_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgecl.learning.serving import Serving
    from edgecl.samples import Sample


def evaluated(serving: Serving, samples: Iterable[Sample]) -> Evaluation:
    """See `Learner.evaluate`."""
    known = set(serving.head.labels)
    correct: dict[str, list[bool]] = {}
    unknown: dict[str, list[bool]] = {}
    for batch in batches_of(samples):
        for answer, label in zip(serving.predict(batch.data)[0], batch.labels):
            if label is None:
                raise BadInput("a sample to evaluate has no label", "give a folder with one subfolder per class")
            correct.setdefault(label, []).append(answer.right(label))
            unknown.setdefault(label, []).append(answer.unknown is True)
    taught = {label: values for label, values in sorted(correct.items()) if label in known}
    if not taught:
        raise BadInput("none of the samples to evaluate is of a known class", known_are(sorted(known)))
    n, named = sum(map(len, taught.values())), [unknown[label] for label in taught if label != NOTHING]
    return Evaluation(sum(map(sum, taught.values())) / n, {k: sum(v) / len(v) for k, v in taught.items()}, n,
                      sum(map(sum, named)) / max(sum(map(len, named)), 1),
                      {k: sum(v) / len(v) for k, v in sorted(unknown.items()) if k not in known})
