"""Write docs/commands.md, the options of every command, from the command line itself."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any

import click

from fastcifar.cli import main
from fastcifar.cli.command import aliases_of
from fastcifar.config import SETTINGS

PAGE = Path(__file__).parent.parent / "docs" / "commands.md"
HEAD = """# Commands

Written by `make docs` from the command line itself. `fastcifar COMMAND --help`, or `-h`, describes the same options;
that of `train`, `lr-find` and `sweep` only the common ones, and `--help-all` all of them. Results go to stdout,
progress and log to stderr. `fastcifar --version`, or `-V`, shows the version; `fastcifar --debug COMMAND` shows a
traceback when something fails. `fastcifar val` is `fastcifar eval --split val`, and `fastcifar test` is
`fastcifar eval --split test`. [Coming from timm, fastai or Ultralytics](coming-from.md) has the options that have other
names there.
"""

MIN_SETTINGS = 10
"""A command with as many settings among its options refers to docs/settings.md for them."""


def page() -> str:
    """The text of docs/commands.md."""
    assert isinstance(main, click.Group)
    sections = [_section(name, main.commands[name]) for name in main.list_commands(click.Context(main))]
    return "\n".join([HEAD, *sections])


def _section(name: str, command: click.Command, level: str = "##") -> str:
    text = "\n\n".join(map(_paragraph, inspect.cleandoc(command.help or "").split("\n\n")))
    arguments = [_argument(param) for param in command.params if isinstance(param, click.Argument)]
    usage = " ".join(["fastcifar", name, "[OPTIONS]", *arguments])
    options = [option for option in command.params if isinstance(option, click.Option)]
    settings = [option for option in options if option.name in SETTINGS and option.name != "recipe"]
    own = options if len(settings) < MIN_SETTINGS else [option for option in options if option not in settings]
    rows = ["| option | meaning |", "| --- | --- |", *map(_row, own)] if own else []
    flags = ", ".join(f"`{' / '.join([*option.opts, *option.secondary_opts])}`" for option in settings)
    more = f"\nAnd these [settings](settings.md): {flags}.\n" if own is not options else ""
    names = "; ".join(f"`{', '.join(others)}`: `{option.opts[0]}`" for option, others in aliases_of(command))
    more += f"\nOther names: {names}.\n" if names else ""
    commands = command.commands if isinstance(command, click.Group) else {}
    parts = [_section(f"{name} {each}", commands[each], f"{level}#") for each in commands]
    return "\n".join([f"{level} fastcifar {name}", "", f"    {usage}", "", text, "", *rows, more, *parts])


def _paragraph(text: str) -> str:
    """A paragraph of a help text; one that is not wrapped, as code."""
    if text.startswith("\b\n"):
        return textwrap.indent(text.removeprefix("\b\n"), "    ")
    return text.replace("<", "&lt;")


def _argument(argument: click.Argument) -> str:
    name = (argument.name or "").upper()
    return argument.metavar or (name if argument.required else f"[{name}]")


def _row(option: click.Option) -> str:
    flags = " / ".join([*option.opts, *option.secondary_opts])
    value = "" if option.is_flag else f" {_metavar(option)}"
    default = _default(option)
    notes = [f"default: {default}"] if default else []
    notes += [f"environment variable: {option.envvar}"] if option.envvar else []
    text = " ".join((option.help or "").replace("<", "&lt;").split())
    text += f" [{'; '.join(notes)}]" if notes else ""
    return f"| `{_escaped(flags + value)}` | {_escaped(text)} |"


def _metavar(option: click.Option) -> str:
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "|".join(map(str, option.type.choices))
    return option.type.name.upper().removesuffix(" RANGE")


def _default(option: click.Option) -> str | None:
    default: Any = option.default
    if isinstance(option.show_default, str):
        return option.show_default
    if not option.show_default or default is None:
        return None
    if isinstance(default, bool):
        names = option.opts if default else option.secondary_opts
        return names[0].removeprefix("--") if names else None
    return str(default)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
