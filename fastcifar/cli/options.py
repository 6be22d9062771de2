"""How settings become options of the command line, and the options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial, wraps
from itertools import chain
from pathlib import Path
from textwrap import TextWrapper
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from fastcifar.cli.command import Command, aliases_of
from fastcifar.cli.familiar import VALUES
from fastcifar.cli.param_types import CLICK_TYPES, PATH, Choice, Parsed, UserPath, name_or_integers
from fastcifar.config import SETTINGS, DataConfig, RuntimeConfig
from fastcifar.config import setting as kinds
from fastcifar.config.setting import Setting
from fastcifar.io.paths import data_folder

Function = TypeVar("Function", bound=Callable[..., Any])
Option = Callable[[Function], Function]


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
        return Parsed(f"{'|'.join(kind.names)}|index,…", partial(name_or_integers, kind.names), expected)
    return CLICK_TYPES[type(kind)]


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
    "--run", "named_run", metavar="RUN", shell_complete=complete_runs, help="Another way to write RUN."
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
