"""Ids of stored samples as people write them: GENERATION-NUMBER, such as 12-5."""
from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgecl.errors import BadInput

if TYPE_CHECKING:
    from edgecl.exemplars.stored import StoredSample

NUMBER_BITS = 32        # of an id: the number of the sample in its generation
MOST = 2 ** 31 - 1      # of either number: every sum of the two fits 63 bits
FORM = re.compile(r"(\d{1,10})-(\d{1,10})", re.ASCII)


def sample_id(sample: StoredSample | int) -> str:
    """How people write the id of a stored sample, or this id. Raises ValueError for a sample that is not committed
    yet."""
    number = sample if isinstance(sample, int) else sample.id
    if number is None:
        raise ValueError("a sample has no id until it is committed")
    return f"{number >> NUMBER_BITS}-{number & (1 << NUMBER_BITS) - 1}"


def parse_sample_id(text: str) -> int:
    """The id that somebody has written. Raises BadInput."""
    form = FORM.fullmatch(text.strip())
    numbers = [int(part) for part in form.groups()] if form else []
    if not numbers or max(numbers) > MOST:
        raise BadInput(f"{text!r} is not the id of a sample", "write it as `edgecl samples` lists it, such as 12-5")
    return numbers[0] << NUMBER_BITS | numbers[1]
