"""How settings become options of the command line, and the options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from fastcifar.config import SETTINGS, RuntimeConfig
from fastcifar.config import setting as kinds
from fastcifar.config.setting import Setting
from fastcifar.errors import UsageError
from fastcifar.io.paths import data_folder, user_path

Command = TypeVar("Command", bound=Callable[..., Any])
Option = Callable[[Command], Command]


class UserPath(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A path, read in the same way on the command line, in the environment and in Python."""

    name = "path"

    def __init__(self, read: Callable[[Any], Path] = user_path, words: tuple[str, ...] = ()) -> None:
        """words: values that are accepted in place of a path."""
        self._read, self._words = read, words

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if value in self._words:
            return value
        try:
            return self._read(value)
        except UsageError as error:
            self.fail(str(error), param, context)


class Rate(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A learning rate, or 'auto'."""

    name = "float|auto"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float | str:
        return "auto" if value == "auto" else click.FLOAT.convert(value, param, context)


class Numbers(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Comma-separated whole numbers."""

    name = "n,n,…"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, str):
            try:
                return tuple(int(part) for part in value.split(",") if part.strip())
            except ValueError:
                self.fail(f"{value!r} is not a list of whole numbers; expected e.g. 15,25", param, context)
        return tuple(value)


class Sizes(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Comma-separated pairs side:until."""

    name = "side:until,…"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if isinstance(value, str):
            try:
                pairs = [part.split(":") for part in value.split(",") if part.strip()]
                return tuple((int(side), float(until)) for side, until in pairs)
            except ValueError:
                self.fail(f"{value!r} is not a list of pairs; expected e.g. 20:0.3,24:0.7", param, context)
        return tuple(map(tuple, value))


class Names(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Comma-separated names."""

    name = "name,…"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class Selection(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """One of some names, or comma-separated indices of images."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self.name = f"{'|'.join(names)}|index,…"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if not isinstance(value, str) or value in self._names:
            return value
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if not all(part.isascii() and part.isdigit() for part in parts):
            known = ", ".join(self._names)
            self.fail(f"{value!r}; expected one of: {known}; or indices of test images, e.g. 3,14", param, context)
        return tuple(map(int, parts))


CLICK_TYPES: dict[type, Any] = {
    kinds.Integer: int,
    kinds.Number: float,
    kinds.Text: str,
    kinds.RateOrAuto: Rate(),
    kinds.Integers: Numbers(),
    kinds.SizesUntil: Sizes(),
    kinds.Names: Names(),
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
    elif isinstance(default, tuple):
        default = ",".join(map(str, default))
    keywords: dict[str, Any] = {"is_flag": True} if isinstance(kind, kinds.Switch) else {"type": _click_type(kind)}
    if isinstance(kind, kinds.Text) and kind.metavar:
        keywords["metavar"] = kind.metavar
    shown = default not in (None, "") and (not isinstance(default, bool) or "/" in flag)
    return click.option(
        flag, cls=SettingOption, section=section, default=default, show_default=shown, help=text, **keywords
    )


def _click_type(kind: Any) -> Any:
    if isinstance(kind, kinds.Choice):
        return click.Choice(kind.names)
    return Selection(kind.names) if isinstance(kind, kinds.NameOrIndices) else CLICK_TYPES[type(kind)]


PATH = UserPath()
data_dir = click.option(
    "--data-dir",
    default="data",
    show_default=True,
    envvar="FASTCIFAR_DATA_DIR",
    show_envvar=True,
    type=UserPath(data_folder),
    help=SETTINGS["data_dir"][2].description,
)
run_data_dir = click.option(
    "--data-dir",
    envvar="FASTCIFAR_DATA_DIR",
    show_envvar=True,
    type=UserPath(data_folder),
    help="Folder with train.beton and test.beton.  [default: the data folder of the run]",
)
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
