"""How settings become options of the command line, and the options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import click

from fastcifar.config import SETTINGS, DataConfig, RuntimeConfig
from fastcifar.config import setting as kinds
from fastcifar.config.setting import Setting
from fastcifar.errors import UsageError
from fastcifar.io.paths import data_folder, user_path

Command = TypeVar("Command", bound=Callable[..., Any])
Option = Callable[[Command], Command]


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


class Parsed(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A value with a syntax of its own."""

    def __init__(self, name: str, parse: Callable[[str], Any], expected: str) -> None:
        """name: the syntax, for help texts. parse: raises ValueError for other text than is `expected`."""
        self.name, self._parse, self._expected = name, parse, expected

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if not isinstance(value, str):  # of a recipe: the configuration checks it
            return value
        try:
            return self._parse(value)
        except ValueError:
            self.fail(f"{value!r}; expected {self._expected}", param, context)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, _names(text)))


def _name_or_integers(names: tuple[str, ...], text: str) -> str | tuple[int, ...]:
    return text if text in names else _integers(text)


def _sizes(text: str) -> tuple[tuple[int, float], ...]:
    pairs = [part.split(":") for part in _names(text)]
    return tuple((int(side), float(until)) for side, until in pairs)


def _rate(text: str) -> float | str:
    return text if text == "auto" else float(text)


def _seeds(text: str) -> tuple[int, ...]:
    seeds = _integers(text)
    if "," in text:
        return seeds
    if len(seeds) != 1 or not 1 <= seeds[0] <= MAX_SEEDS:
        raise ValueError
    return tuple(range(seeds[0]))


MAX_SEEDS = 1_000
SEEDS = Parsed("n|seed,…", _seeds, f"their number, 1..{MAX_SEEDS:,}, or the seeds, e.g. 3,7,11")
SEEDS_HELP = "Train one run for each of so many seeds, 0, 1, …; or for each of these, e.g. 3,7,11."
CLICK_TYPES: dict[type, Any] = {
    kinds.Integer: int,
    kinds.Number: float,
    kinds.Text: str,
    kinds.RateOrAuto: Parsed("float|auto", _rate, "a number or 'auto'"),
    kinds.Integers: Parsed("n,n,…", _integers, "whole numbers, e.g. 15,25"),
    kinds.SizesUntil: Parsed("side:until,…", _sizes, "pairs, e.g. 20:0.3,24:0.7"),
    kinds.Names: Parsed("name,…", _names, "names"),
}


class SettingOption(click.Option):
    """An option with the section of the help text that lists it."""

    def __init__(self, *args: Any, section: str = "", **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.section = section


class SettingsCommand(click.Command):
    """A command whose help lists its settings in sections."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(context):
            record = param.get_help_record(context) if isinstance(param, click.Option) else None  # not the argument
            if record is not None:
                sections.setdefault(getattr(param, "section", "") or "Options", []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)


def option(name: str, default: Any, declared: Setting, section: str = "") -> Option[Any]:
    """The option of one setting."""
    flag, kind = f"--{name.replace('_', '-')}", declared.kind
    if isinstance(kind, kinds.Switch) and kind.off:
        flag = f"{flag}/{kind.off}"
    text = declared.description
    if declared.default_text:
        default, text = None, f"{text}  [default: {declared.default_text}]"
    elif isinstance(default, tuple) and default:
        default = ",".join(map(str, default))
    keywords: dict[str, Any] = {"is_flag": True} if isinstance(kind, kinds.Switch) else {"type": _click_type(kind)}
    if isinstance(kind, kinds.Names) and kind.can_be_empty:
        keywords |= {"multiple": True, "callback": _join_names}
    if isinstance(kind, kinds.Text) and kind.metavar:
        keywords["metavar"] = kind.metavar
    shown = default not in (None, "", ()) and (not isinstance(default, bool) or "/" in flag)
    return click.option(
        flag, cls=SettingOption, section=section, default=default, show_default=shown, help=text, **keywords
    )


def _join_names(context: click.Context, parameter: click.Parameter, values: Iterable[Any]) -> tuple[str, ...]:
    """The names of an option that was repeated, or separated by commas, or both; none for 'none'."""
    names = chain.from_iterable((each,) if isinstance(each, str) else each for each in values)
    return tuple(name for name in names if name != "none")


def _click_type(kind: Any) -> Any:
    if isinstance(kind, kinds.Choice):
        return click.Choice(kind.names)
    if isinstance(kind, kinds.NameOrIndices):
        expected = f"one of: {', '.join(kind.names)}; or indices of test images, e.g. 3,14"
        return Parsed(f"{'|'.join(kind.names)}|index,…", partial(_name_or_integers, kind.names), expected)
    return CLICK_TYPES[type(kind)]


PATH = UserPath()
_data_dir = partial(
    click.option, "--data-dir", envvar="FASTCIFAR_DATA_DIR", show_envvar=True, type=UserPath(data_folder)
)
data_dir = _data_dir(default=DataConfig.data_dir, show_default=True, help=SETTINGS["data_dir"][2].description)
run_data_dir = _data_dir(help="Folder with train.beton and test.beton.  [default: the data folder of the run]")
runs_dir = click.option(
    "--runs-dir",
    default="runs",
    show_default=True,
    envvar="FASTCIFAR_RUNS_DIR",
    show_envvar=True,
    type=PATH,
    help="Folder with the runs.",
)
device = option("device", RuntimeConfig.device, SETTINGS["device"][2], "Device and logging")
threads = option("threads", RuntimeConfig.threads, SETTINGS["threads"][2], "Device and logging")
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
trusted_model = click.option(
    "--model", help="Required if the network of the run is package.module:function: allows its code to run."
)
