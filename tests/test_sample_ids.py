"""How ids of stored samples are written."""
from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgecl.errors import BadInput
from edgecl.exemplars.sample_ids import MOST, parse_sample_id, sample_id

NUMBERS = st.integers(0, MOST)


@given(NUMBERS, NUMBERS)
@example(12, 5)
@example(MOST, MOST)
def test_an_id_is_read_as_it_was_written(generation, number):
    written = sample_id(generation << 32 | number)
    assert written == f"{generation}-{number}"
    assert parse_sample_id(written) == parse_sample_id(f" {written}\n") == generation << 32 | number


@pytest.mark.parametrize("text", ["", "12", "12-", "-5", "12--5", "12-5-3", "12 - 5", "1_2-5", "٣-٤", "0x1-2",
                                  "mug.jpg", f"{2 ** 31}-0", f"0-{2 ** 31}", "9" * 99 + "-1",
                                  "12-5\x00", "1.0-5", "--5"])
def test_what_is_not_an_id_is_refused_with_the_cure(text):
    with pytest.raises(BadInput, match="is not the id of a sample; write it as"):
        parse_sample_id(text)
