"""How a setting is declared: once, with its default, its description and the values that it can have.

Checks, flags, help texts, recipes and the settings page of the documentation are derived from the declaration.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from fastcifar.errors import UsageError
from fastcifar.io.checks import require_bool, require_choice, require_int, require_number, shown


@dataclass(frozen=True)
class Integer:
    """A whole number of at least `low` and at most `high`."""

    low: int
    high: int | None = None

    def check(self, name: str, value: Any) -> None:
        require_int(name, value, self.low, self.high)


@dataclass(frozen=True)
class Number:
    """A finite number: `low` or more, up to `high`; without the bounds themselves if `above` or `below`."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def check(self, name: str, value: Any) -> None:
        require_number(name, value, self.low, self.high, above=self.above, below=self.below)


@dataclass(frozen=True)
class Choice:
    """One of some names."""

    names: tuple[str, ...]

    def check(self, name: str, value: Any) -> None:
        require_choice(name, value, self.names)


@dataclass(frozen=True)
class Switch:
    """True or False; `off` is the flag for False."""

    off: str = ""

    def check(self, name: str, value: Any) -> None:
        require_bool(name, value)


@dataclass(frozen=True)
class Text:
    """Text; also a path, if `path`."""

    metavar: str = ""
    path: bool = False

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, (str, os.PathLike) if self.path else str):
            raise UsageError(f"{name} is {shown(value)}; expected {'a path' if self.path else 'text'}")


@dataclass(frozen=True)
class DeviceName(Text):
    """The name of a device of torch, or 'auto'."""


@dataclass(frozen=True)
class RateOrAuto:
    """A learning rate, or 'auto'."""

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, str) or value != "auto":
            require_number(name, value, 0.0, above=True)


@dataclass(frozen=True)
class Integers:
    """Whole numbers of at least `low`, each once, rising."""

    low: int

    def check(self, name: str, value: Any) -> None:
        require_tuple(name, value, "a list")
        for number in value:
            require_int(name, number, self.low)
        if list(value) != sorted(set(value)):
            raise UsageError(f"{name} is {list(value)}; expected each number once, in rising order")


@dataclass(frozen=True)
class SizesUntil:
    """Pairs (side, share of the steps), the shares rising."""

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
            raise UsageError(f"{name} is {shown(value)}; expected pairs of side and share, e.g. 24:0.5")
        previous = 0.0
        for side, until in value:
            require_int(f"the side in {name}", side, 8, 1_024)
            require_number(f"the share in {name}", until, previous, 1.0)
            previous = until


@dataclass(frozen=True)
class Names:
    """Names, each once; of `known`, if that is given. At least one, unless `can_be_empty`."""

    known: tuple[str, ...] = ()
    can_be_empty: bool = False

    def check(self, name: str, value: Any) -> None:
        require_tuple(name, value, "a list of names")
        for each in value:
            if self.known:
                require_choice(name, each, self.known)
            elif not isinstance(each, str):
                raise UsageError(f"{name} has {shown(each)}; expected names")
        if value or not self.can_be_empty:
            require_distinct(name, value)


@dataclass(frozen=True)
class NameOrIndices:
    """One of some names, or indices, each once."""

    names: tuple[str, ...]

    def check(self, name: str, value: Any) -> None:
        if isinstance(value, str):
            require_choice(name, value, self.names)
            return
        require_tuple(name, value, f"one of: {', '.join(self.names)}; or a list of indices")
        for index in value:
            require_int(name, index, 0)
        require_distinct(name, value)


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
    by_name: ClassVar[str] = ""
    """For messages: how the settings of all groups are given by their names."""

    def __new__(cls, **values: Any) -> Config:
        try:
            require_known(values, cls.__dataclass_fields__)
        except UsageError as error:
            raise UsageError(f"{cls.__name__}: {error}{cls.by_name}") from None
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for each in fields(self):
            group, expected = getattr(self, each.name), each.default_factory
            if "setting" not in each.metadata and not isinstance(group, expected):  # type: ignore[arg-type]
                name = getattr(expected, "__name__", "")
                raise UsageError(f"{each.name} is {shown(group)}; expected {name}(…){self.by_name}")
        for name, field_name, declared in settings_of(type(self)):
            value = _plain(getattr(self, field_name))
            if value is not None or getattr(type(self), field_name, None) is not None:
                declared.kind.check(name, value)
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


def require_known(names: Iterable[Any], known: Collection[str]) -> None:
    """Raise UsageError if one of `names` is not the name of a setting."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"unknown setting {name!r}{hint}")


def _plain(value: Any) -> Any:
    """Lists and arrays of one dimension as tuples; numbers of NumPy, which YAML cannot write, as those of Python."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    if hasattr(value, "tolist") and value.ndim == 1:
        return tuple(value.tolist())
    return value.item() if hasattr(value, "item") and value.ndim == 0 else value


def require_tuple(name: str, value: object, expected: str) -> None:
    """Raise UsageError unless `value` was a list or a tuple."""
    if not isinstance(value, tuple):
        raise UsageError(f"{name} is {shown(value)}; expected {expected}")


def require_distinct(name: str, values: tuple[object, ...]) -> None:
    """Raise UsageError unless there is at least one value, and each once."""
    if not values or len(set(values)) != len(values):
        raise UsageError(f"{name} is {','.join(map(str, values))!r}; expected at least one, each once")
