"""The form of JSON that was read: what else would come up as a TypeError far from where it was read."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

COUNT = range(2 ** 31)      # of numbers that are at least 0, and fit every place where they are kept


def has_form(value: Any, form: Any) -> bool:
    """Whether a value is of a form: a type; a range, for a whole number in it; [form] for a list of any length; a tuple
    of forms for a list of as many values."""
    if isinstance(form, range):
        return isinstance(value, int) and not isinstance(value, bool) and value in form
    if isinstance(form, list):
        return isinstance(value, list) and all(has_form(each, form[0]) for each in value)
    if isinstance(form, tuple):
        return isinstance(value, list) and len(value) == len(form) and all(map(has_form, value, form))
    return isinstance(value, form)


def have_forms(values: Any, forms: Mapping[str, Any]) -> bool:
    """Whether it is a table in which every key of `forms` that is there is of its form."""
    return isinstance(values, dict) and all(has_form(values[key], form) for key, form in forms.items() if key in values)
