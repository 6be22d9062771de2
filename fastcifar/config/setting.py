"""How a setting is declared: once, with its default, its description and the values that it can have.

Checks, flags, help texts, recipes and the settings page of the documentation are derived from the declaration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from fastcifar.errors import UsageError
from fastcifar.io.checks import require_bool, require_choice, require_float, require_int, require_number


@dataclass(frozen=True)
class Integer:
    """A whole number of at least `low` and at most `high`."""

    low: int
    high: int | None = None

    def check(self, name: str, value: Any) -> int:
        return require_int(name, value, self.low, self.high)


@dataclass(frozen=True)
class Number:
    """A finite number: `low` or more, up to `high`; without the bounds themselves if `above` or `below`."""

    low: float
    high: float | None = None
    above: bool = False
    below: bool = False

    def check(self, name: str, value: Any) -> float:
        if self.high is None or self.below:
            require_float(name, value, self.low, above=self.above, high=math.inf if self.high is None else self.high)
        else:
            require_number(name, value, self.low, self.high)
        return value


@dataclass(frozen=True)
class Choice:
    """One of some names."""

    names: tuple[str, ...]

    def check(self, name: str, value: Any) -> str:
        require_choice(name, value, self.names)
        return value


@dataclass(frozen=True)
class Switch:
    """True or False; `off` is the flag for False."""

    off: str = ""

    def check(self, name: str, value: Any) -> bool:
        require_bool(name, value)
        return value


@dataclass(frozen=True)
class Text:
    """Text, or what the configuration checks itself."""

    metavar: str = ""

    def check(self, name: str, value: Any) -> Any:
        return value


@dataclass(frozen=True)
class RateOrAuto:
    """A learning rate, or 'auto'."""

    def check(self, name: str, value: Any) -> float | str:
        if value != "auto":
            require_float(name, value, 0.0, above=True)
        return value


@dataclass(frozen=True)
class Integers:
    """Whole numbers of at least `low`, each once, rising."""

    low: int

    def check(self, name: str, value: Any) -> tuple[int, ...]:
        numbers = as_tuple(name, value)
        for number in numbers:
            require_int(name, number, self.low)
        if list(numbers) != sorted(set(numbers)):
            raise UsageError(f"{name} is {list(numbers)}; expected each number once, in rising order")
        return numbers


@dataclass(frozen=True)
class SizesUntil:
    """Pairs (side, share of the steps), the shares rising."""

    def check(self, name: str, value: Any) -> tuple[tuple[int, float], ...]:
        pairs = tuple(as_tuple(name, pair) for pair in as_tuple(name, value))
        previous = 0.0
        for pair in pairs:
            if len(pair) != 2:
                raise UsageError(f"{name} is {pairs}; expected pairs of side and share, e.g. 24:0.5")
            require_int(f"the side in {name}", pair[0], 8, 1_024)
            require_number(f"the share in {name}", pair[1], previous, 1.0)
            previous = pair[1]
        return pairs


@dataclass(frozen=True)
class Names:
    """Names, each once; of `known`, if that is given."""

    known: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> tuple[str, ...]:
        for each in value if self.known else ():
            require_choice(name, each, self.known)
        require_distinct(name, value)
        return value


@dataclass(frozen=True)
class NameOrIndices:
    """One of some names, or indices, each once."""

    names: tuple[str, ...]

    def check(self, name: str, value: Any) -> str | tuple[int, ...]:
        if isinstance(value, str):
            require_choice(name, value, self.names)
            return value
        for index in value:
            require_int(name, index, 0)
        require_distinct(name, value)
        return value


Kind = Integer | Number | Choice | Switch | Text | RateOrAuto | Integers | SizesUntil | Names | NameOrIndices


@dataclass(frozen=True)
class Setting:
    """One declared setting. `name` is unique over all groups: its flag, its key in recipes and in config.yaml."""

    kind: Kind
    description: str
    name: str
    default_text: str
    """What stands for a default that is None or computed, in help texts."""


def setting(default: Any, kind: Kind, description: str, *, name: str = "", default_text: str = "") -> Any:
    """Declare a field of a `Config`. name: if it is not the field's. A default of None means that None is allowed."""
    return field(default=default, metadata={"setting": Setting(kind, description, name, default_text)})


class Config:
    """Base of the frozen dataclasses of settings: each value is checked when one is made.

    Raises UsageError for a value that is not allowed, with the value and what was expected.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __post_init__(self) -> None:
        for name, field_name, declared in settings_of(type(self)):
            value = getattr(self, field_name)
            if hasattr(value, "item"):  # NumPy's numbers: YAML cannot write them
                value = value.item()
            if value is not None or getattr(type(self), field_name, None) is not None:
                value = declared.kind.check(name, value)
            object.__setattr__(self, field_name, value)
        self.check()

    def check(self) -> None:
        """Raise UsageError for values that do not fit together."""


def settings_of(config_class: type) -> Iterator[tuple[str, str, Setting]]:
    """The settings that a `Config` declares itself: name, name of the field, declaration."""
    for each in fields(config_class):
        declared = each.metadata.get("setting")
        if declared is not None:
            yield declared.name or each.name, each.name, declared


def as_tuple(name: str, value: object) -> tuple[Any, ...]:
    """The list or tuple as a tuple. Raises UsageError if it is neither."""
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{name} is {value!r}; expected a list")
    return tuple(value)


def require_distinct(name: str, values: tuple[object, ...]) -> None:
    """Raise UsageError unless there is at least one value, and each once."""
    if not values or len(set(values)) != len(values):
        raise UsageError(f"{name} is {','.join(map(str, values))!r}; expected at least one, each once")
