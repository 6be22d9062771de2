"""Checks of settings: each raises UsageError with the value and what was expected."""

from __future__ import annotations

import difflib
import math
import operator
import sys
import unicodedata
from collections.abc import Collection
from typing import Any

from fastcifar.errors import UsageError, one_line

MAX_LISTED = 20


def shown(value: object) -> str:
    """A value in a message: on one line, not too long."""
    text = one_line(repr(value))
    return text if len(text) < 60 else f"{text[:50]}…"


def require_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise UsageError unless `value` is one of `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        alike = [other for other in allowed if unicodedata.normalize("NFKC", other) == _normalise(value)]
        if alike:  # both print alike
            raise UsageError(f"{name} is {value!a}; expected {alike[0]!a}, the same text in other characters")
        raise UsageError(f"{name} is {shown(value)}; expected one of: {format_choices(allowed, value)}")


def _normalise(value: object) -> object:
    return unicodedata.normalize("NFKC", value) if isinstance(value, str) else None


def format_choices(names: Collection[str], value: object) -> str:
    """The names, separated by commas; if there are many, those similar to `value` and the first ones."""
    if len(names) <= MAX_LISTED:
        return ", ".join(names)
    similar = difflib.get_close_matches(str(value), names, 3)
    listed = list(dict.fromkeys([*similar, *names]))[:MAX_LISTED]
    return f"{', '.join(listed)} … ({len(names)} in all)"


def require_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int, if it is an integer (also of NumPy) in low..high; else raise UsageError."""
    span = f"{low} or more" if high is None else f"{low}..{high}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"{name} is {shown(value)}; expected a whole number, {span}") from None
    if number < low or (high is not None and number > high):
        raise UsageError(f"{name} is {number}; expected {span}")
    return number


def require_number(
    name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False, below: bool = False
) -> None:
    """Raise UsageError unless `value` is a finite number in low..high; without the bounds if `above` or `below`."""
    kind = f"a number, {low:g}..{high:g}"
    if high == math.inf or above or below:
        kind = f"a number {'above' if above else 'of at least'} {low:g}"
        kind += "" if high == math.inf else f" and {'below' if below else 'at most'} {high:g}"
    if isinstance(value, str) and _is_number(value):
        raise UsageError(f"{name} is {value!r}, which is text; expected {kind}, written as 0.001 or 1.0e-3")
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < sys.float_info.max
    if not fits or not low <= value <= high or (above and value == low) or (below and value == high):
        raise UsageError(f"{name} is {shown(value)}; expected {kind}")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def require_utf8(name: str, value: str) -> None:
    """Raise UsageError unless the path `value` can be encoded as UTF-8."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{name} is {value!a}, which is not UTF-8; rename the folder") from None


def require_bool(name: str, value: object) -> None:
    """Raise UsageError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {shown(value)}; expected True or False")
