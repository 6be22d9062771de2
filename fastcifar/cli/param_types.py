"""Types of options: how the text of a value is read, and what is said of another one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from fastcifar.config import SETTINGS
from fastcifar.config import setting as kinds
from fastcifar.errors import UsageError
from fastcifar.io.paths import user_path


class UserPath(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A path, read in the same way on the command line, in the environment and in Python."""

    name = "path"

    def __init__(
        self, read: Callable[[Any], Path] = user_path, words: tuple[str, ...] = (), prefixes: tuple[str, ...] = ()
    ) -> None:
        """words, prefixes: values, and beginnings of values, that are accepted in place of a path."""
        self._read, self._words, self._prefixes = read, words, prefixes

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if value in self._words or (isinstance(value, str) and value.startswith(self._prefixes)):
            return value
        try:
            return self._read(value)
        except UsageError as error:
            self.fail(str(error), param, context)

    def shell_complete(
        self, context: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """Let the shell complete the names of files and folders."""
        return [CompletionItem(incomplete, type="file")]


class Choice(click.Choice):  # type: ignore[type-arg,unused-ignore]
    """One of some names, in upper or lower case, or one of the other names of a value."""

    def __init__(self, names: Iterable[str], other_names: Mapping[str, str] | None = None) -> None:
        super().__init__(tuple(names), case_sensitive=False)
        self._other_names = other_names or {}

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if isinstance(value, str):
            value = self._other_names.get(value.casefold().replace("_", "-"), value)
        return super().convert(value, param, context)


class Device(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """The name of a device; a number is that of a GPU."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        text = str(value).strip().lower()
        if re.fullmatch(r"\[?\d+(, ?\d+)+\]?", text):
            several = "several GPUs need a process each: torchrun --nproc-per-node 2 -m fastcifar train …"
            is_train = context is not None and context.command.name == "train"
            self.fail(
                f"{value!r}; expected one device, e.g. cuda:0{'; ' + several if is_train else ''}", param, context
            )
        return f"cuda:{int(text)}" if re.fullmatch(r"[0-9]{1,4}", text) else "cuda" if text == "gpu" else text


class Parsed(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A value with a syntax of its own."""

    def __init__(
        self, name: str, parse: Callable[[str], Any], expected: str, as_text: Callable[[Any], str] | None = None
    ) -> None:
        """name: the syntax, for help texts. parse: raises ValueError for other text than is `expected`. as_text: the
        reverse of it, where that is not the values separated by commas."""
        self.name, self._parse, self._expected = name, parse, expected
        self.as_text = as_text or value_as_text

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if not isinstance(value, str):  # of a recipe: the configuration checks it
            return value
        try:
            return self._parse(value)
        except ValueError:
            self.fail(f"{value!r}; expected {self._expected}", param, context)


def value_as_text(value: Any) -> str:
    """'20:0.3,24:0.7' of ((20, 0.3), (24, 0.7))."""
    if not isinstance(value, tuple):
        return str(value)
    return ",".join(":".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in value)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, _names(text)))


def name_or_integers(names: tuple[str, ...], text: str) -> str | tuple[int, ...]:
    return text if text in names else _integers(text)


def _sizes(text: str) -> tuple[tuple[int, float], ...]:
    pairs = [part.split(":") for part in _names(text)]
    return tuple((int(side), float(until)) for side, until in pairs)


def _rate(text: str) -> float | str:
    return text if text == "auto" else float(text)


def _seeds(text: str) -> tuple[int, ...]:
    if "," not in text:
        if not 1 <= int(text) <= MAX_SEEDS:
            raise ValueError
        return tuple(range(int(text)))
    seeds = tuple(map(int, text.split(",")))
    for seed in seeds:
        SETTINGS["seed"][2].kind.check("seed", seed)
    if len(set(seeds)) < len(seeds):
        raise ValueError
    return seeds


def _seeds_as_text(seeds: tuple[int, ...]) -> str:
    return str(len(seeds)) if seeds == tuple(range(len(seeds))) else value_as_text(seeds)


MAX_SEEDS = 1_000
_EXPECTED = f"their number, 1..{MAX_SEEDS:,}, or the seeds, each once, e.g. 3,7,11"
SEEDS = Parsed("n|seed,…", _seeds, _EXPECTED, _seeds_as_text)
SEEDS_HELP = "Train one run for each of so many seeds, 0, 1, …; or for each of these, e.g. 3,7,11."


PATH = UserPath()
CLICK_TYPES: dict[type, Any] = {
    kinds.Integer: int,
    kinds.Number: float,
    kinds.Text: str,
    kinds.DeviceName: Device(),
    kinds.RateOrAuto: Parsed("float|auto", _rate, "a number or 'auto'"),
    kinds.Integers: Parsed("n,n,…", _integers, "whole numbers, e.g. 15,25"),
    kinds.SizesUntil: Parsed("side:until,…", _sizes, "pairs, e.g. 20:0.3,24:0.7"),
    kinds.Names: Parsed("name,…", _names, "names"),
}
