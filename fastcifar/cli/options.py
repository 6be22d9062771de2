"""How settings become options of the command line, and the options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial, wraps
from itertools import chain
from pathlib import Path
from textwrap import TextWrapper
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from fastcifar.cli.command import Command, aliases_of
from fastcifar.cli.familiar import VALUES
from fastcifar.config import SETTINGS, DataConfig, RuntimeConfig
from fastcifar.config import setting as kinds
from fastcifar.config.setting import Setting
from fastcifar.errors import UsageError
from fastcifar.io.paths import data_folder, user_path

Function = TypeVar("Function", bound=Callable[..., Any])
Option = Callable[[Function], Function]


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
    kinds.DeviceName: Device(),
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


class SettingsCommand(Command):
    """A command whose help lists its settings in sections; if some are `common`, only those, and --help-all the
    others too."""

    def __init__(self, *args: Any, common: tuple[str, ...] = (), **keywords: Any) -> None:
        """common: the names of parameters."""
        super().__init__(*args, **keywords)
        self._common = common
        if common:
            text = "Show all options, and their other names, and exit."
            names = ["--help-all"]
            self.params.append(
                click.Option(names, is_flag=True, is_eager=True, expose_value=False, callback=_show_all, help=text)
            )

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        show_all = not self._common or HELP_ALL in context.meta
        options = {param.name: param for param in self.get_params(context) if isinstance(param, click.Option)}
        if not show_all:
            others = [name for name, param in options.items() if not getattr(param, "section", "")]
            shown = [options.pop(name) for name in dict.fromkeys((*self._common, *others))]
            records = [record for param in shown if (record := param.get_help_record(context))]
            with formatter.section("Options"):
                formatter.write_dl(records)
        sections: dict[str, list[click.Option]] = {}
        for param in options.values():
            if not param.hidden:
                sections.setdefault(getattr(param, "section", "") or "Options", []).append(param)
        if not show_all:
            with formatter.section("More (--help-all describes them)"):
                width = max(map(len, sections)) + 2
                for section, params in sections.items():
                    names = ", ".join(param.opts[0] for param in params)
                    wrapper = TextWrapper(formatter.width, f"  {section:<{width}}", " " * (width + 2))
                    wrapper.break_on_hyphens = False
                    formatter.write(f"{wrapper.fill(names)}\n")
            return
        for section, params in sections.items():
            with formatter.section(section):
                formatter.write_dl([record for param in params if (record := param.get_help_record(context))])
        if self._common:
            with formatter.section("Other names"):
                formatter.write_dl([(option.opts[0], ", ".join(names)) for option, names in aliases_of(self)])


HELP_ALL = "fastcifar.help_all"


def _show_all(context: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        context.meta[HELP_ALL] = True
        click.echo(context.get_help())
        context.exit()


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
    is_switch = isinstance(kind, kinds.Switch)
    keywords: dict[str, Any] = {"is_flag": True} if is_switch else {"type": _click_type(name, kind)}
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


def _click_type(name: str, kind: Any) -> Any:
    if isinstance(kind, kinds.Text) and kind.path:
        return PATH
    if isinstance(kind, kinds.Choice):
        return Choice(kind.names, VALUES.get(name))
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


def run(function: Callable[..., Any]) -> Callable[..., Any]:
    """RUN, the name or path of a run: an argument, or the value of --run. None if it is not given."""

    @click.argument("run", required=False, shell_complete=complete_runs)
    @run_option
    @wraps(function)
    def command(*args: Any, run: str | None, named_run: str | None, **values: Any) -> Any:
        if run is not None and named_run is not None:
            message = f"RUN is {run!r}, and --run {named_run!r}; expected one of them"
            raise click.UsageError(message, click.get_current_context())
        return function(*args, run=named_run if run is None else run, **values)

    return command


def complete_runs(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """The names of runs, and files."""
    folders = sorted(Path(context.params.get("runs_dir") or "runs").glob("*/weights"))
    names = [folder.parent.name for folder in folders]
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def complete_runs_and_groups(
    context: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """The names of groups and runs, and files."""
    folders = sorted(Path(context.params.get("runs_dir") or "runs").glob("*/group.yaml"))
    groups = [folder.parent.name for folder in folders if folder.parent.name.startswith(incomplete)]
    found = [item for item in complete_runs(context, param, incomplete) if not groups or item.type == "plain"]
    return [*map(CompletionItem, groups), *found]


run_option = click.option(
    "--run", "named_run", hidden=True, metavar="RUN", shell_complete=complete_runs, help="The same as RUN."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def _require_code(context: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Else `eval --model runs/small` evaluates the latest run."""
    if value is not None and ":" not in value and not context.resilient_parsing:
        raise click.BadParameter(
            f"{value!r} is no code of your own, package.module:function; the network is that of the run: leave it out",
            context,
            param,
        )
    return value


trusted_model = click.option(
    "--model",
    callback=_require_code,
    help="Required if the network of the run is package.module:function (allows its code to run) or timm:hf-hub:… "
    "(allows a download).",
)
