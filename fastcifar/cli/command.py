"""The class of all commands: it accepts the names that users of other tools type, or says what to write instead."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import click

from fastcifar.cli.familiar import ALIASES, ANSWERS, COMMAND_ANSWERS, Answer
from fastcifar.io.paths import command_line

KEY_VALUE = re.compile(r"[A-Za-z][\w-]*=.*", re.DOTALL)
SINGLE_DASH = re.compile(r"-[A-Za-z][\w-]+")
DASHES = "–—−"  # what word processors make of two hyphens
MAX_WORDS = 20
TAKEN_TOGETHER = ("source", "drop", "relabel", "on", "without")
"""Options with one value of which two can only mean both; so can those of a list."""
CLOSE = 0.75  # difflib's ratio, of names that begin alike: `trian`, not `export` for `report`


class Command(click.Command):
    """A command whose options have the other names of `familiar.ALIASES` too, which help texts leave out."""

    def make_parser(self, ctx: click.Context) -> Any:
        parser = super().make_parser(ctx)
        for param, names in aliases_of(self):
            alias = copy(param)
            alias.opts, alias.secondary_opts = names, []
            alias.add_to_parser(parser, ctx)
        return parser

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        self._refuse_single_dash(ctx, given)
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(no_such_option(self, ctx, error.option_name), ctx) from None
        except click.BadOptionUsage as error:
            raise click.UsageError(f"{error.message}{self._choices(error.option_name)}", ctx) from None
        except click.UsageError as error:
            # what Click refuses as superfluous; not a value that is wrong
            extra = [] if isinstance(error, click.BadParameter) else self._superfluous(ctx, given)
            if extra:
                raise click.UsageError(self._about_words(ctx, extra) or error.message, ctx) from None
            raise
        self._refuse_twice(ctx, given)
        words = [word for word in self._values_of_arguments(ctx) if _is_missing(word, ctx)]
        if message := self._about_settings(ctx, words):
            raise click.UsageError(message, ctx)
        return rest

    def _refuse_single_dash(self, context: click.Context, arguments: Sequence[str]) -> None:
        """Else `-output x` is -o with the value 'utput', and `-lr 0.1` an unknown option -l."""
        known = options_by_name(self)
        ends = "--" if not isinstance(self, click.Group) else next((a for a in arguments if a[:1] != "-"), "--")
        for word in arguments[: arguments.index(ends)] if ends in arguments else arguments:
            name = f"-{word.partition('=')[0]}"
            if SINGLE_DASH.fullmatch(word.partition("=")[0]) and normalised(name) in known:
                raise click.UsageError(f"No such option {word!r}: write {name}, with two hyphens", context)

    def _refuse_twice(self, context: click.Context, arguments: list[str]) -> None:
        """Click uses the last value of an option, without a word about the others."""
        seen = set()
        for param in self.make_parser(context).parse_args(list(arguments))[2]:
            is_list = (param.type.name or "").endswith(",…") and not param.multiple
            if param.name in seen and (is_list or param.name in TAKEN_TOGETHER):
                flag = f"--{normalised(param.name)}"
                raise click.UsageError(
                    f"{flag} is given twice: write {flag} {param.make_metavar(context)} once", context
                )
            seen.add(param.name)

    def _choices(self, name: str) -> str:
        param = options_by_name(self).get(name)
        kind = param.type if param else None
        return f" Expected one of: {', '.join(map(str, kind.choices))}." if isinstance(kind, click.Choice) else ""

    def _superfluous(self, context: click.Context, arguments: list[str]) -> list[str]:
        """The words that are neither options nor arguments of this command."""
        try:
            _, rest, _ = self.make_parser(context).parse_args(list(arguments))
        except click.UsageError:
            return []
        return [] if isinstance(self, click.Group) else list(rest)

    def _values_of_arguments(self, context: click.Context) -> Iterator[str]:
        for param in self.params:
            if isinstance(param, click.Argument):
                value = context.params.get(param.name or "")
                yield from (str(each) for each in (value if isinstance(value, tuple) else (value,)) if each is not None)

    def _about_words(self, context: click.Context, words: list[str]) -> str | None:
        """What to write instead of superfluous words; None if there is nothing to say."""
        if message := self._about_settings(context, words, also_unknown=True):
            return message
        first = words[0]
        if first[0] in DASHES:
            return f"Got unexpected extra argument ({first}): write --{first.lstrip(DASHES + '-')}, with two hyphens"
        folder = Path(first)
        if "--data-dir" in options_by_name(self) and (folder.is_dir() or folder.suffix == ".beton"):
            return f"Got unexpected extra argument ({first}): write {command_line('--data-dir', folder)}"
        return None

    def _about_settings(self, context: click.Context, words: Iterable[str], also_unknown: bool = False) -> str | None:
        """What to write instead of words such as 'epochs=50', as Ultralytics has them; None without such words."""
        flags, notes, first = [], [], ""
        for word in [word for word in words if KEY_VALUE.fullmatch(word)][:MAX_WORDS]:
            flag, note = self._translated(context, *word.split("=", 1))
            if not flag and not note and not also_unknown:
                continue
            first = first or word
            flags += [flag] if flag else []
            notes += [note] if note else [] if flag else [f"{word.split('=', 1)[0]}: no such option"]
        if not first:
            return None
        write = [f"write {' '.join(flags)}"] if flags else []
        return f"{first!r}: options are written --name VALUE: {'; '.join([*write, *notes])}"

    def _translated(self, context: click.Context, key: str, value: str) -> tuple[str, str]:
        """The option for `key=value`, and what there is to say."""
        name = normalised(f"--{key}")
        param = options_by_name(self).get(name)
        text = answer_to(ANSWERS, f"{key}=", self.name)
        if text is None and param is not None:
            return _as_flag(context, param, value)
        text = text or answer_to(ANSWERS, name, self.name)
        return "", f"{key}: {text}" if text else ""


class CommandGroup(Command, click.Group):
    """Commands, in the order of use; other names of them are answered."""

    other_names: tuple[str, ...] = ()
    """Of commands, which may be suggested too."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = normalised(args[0])
        if name not in self.commands and not ctx.resilient_parsing:
            raise click.UsageError(self._no_such_command(name), ctx)
        return super().resolve_command(ctx, args)

    def _no_such_command(self, name: str) -> str:
        problem = f"No such command {name!r}"
        if "=" in name:
            return f"{problem}: write the command first, and options as --name VALUE: 'fastcifar train --epochs 50'"
        if text := answer_to(COMMAND_ANSWERS, name.casefold(), None):
            return f"{problem}: {text}"
        similar = near(name, [*self.commands, *self.other_names])
        return f"{problem}; did you mean {' or '.join(similar)}?" if similar else f"{problem}."

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _as_flag(context: click.Context, param: click.Option, value: str) -> tuple[str, str]:
    is_no = value.casefold() in ("false", "no", "off", "0")
    if param.is_bool_flag:
        if is_no:
            return (param.secondary_opts or [""])[0], "" if param.secondary_opts else f"leave out {param.opts[0]}"
        return param.opts[0], ""
    if param._flag_needs_value and value.casefold() in ("true", "yes", "on", "1"):
        return param.opts[0], ""
    try:
        param.type.convert(value, param, context)
    except click.BadParameter as error:
        return "", f"{param.opts[0]}: {error.message}"
    return command_line(param.opts[0], value), ""


def _is_missing(word: str, context: click.Context) -> bool:
    """Whether no file and no run has this name."""
    folders = (Path(), Path(context.params.get("runs_dir") or ""))
    return not any(os.path.lexists(folder / word) for folder in folders)


def aliases_of(command: click.Command) -> list[tuple[click.Option, list[str]]]:
    """The options of `command` that have other names, and these, as far as no option of the command has them."""
    options = [param for param in command.params if isinstance(param, click.Option)]
    taken = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    return [
        (option, names)
        for alias in ALIASES
        for option in options
        if option.name == alias.parameter and (not alias.commands or command.name in alias.commands)
        if (names := [name for name in alias.names if name not in taken])
    ]


def options_by_name(command: click.Command) -> dict[str, click.Option]:
    """The options of `command` by each of their names."""
    options = [param for param in command.params if isinstance(param, click.Option) and not param.hidden]
    own = {name: option for option in options for name in (*option.opts, *option.secondary_opts)}
    return {**{name: option for option, names in aliases_of(command) for name in names}, **own}


def normalised(name: str) -> str:
    """`--batch_size` as `--batch-size`."""
    return name.replace("_", "-")


def answer_to(answers: Iterable[Answer], name: str, command: str | None) -> str | None:
    """What to say about `name` in this command; None if there is nothing."""
    for names, text, commands in answers:
        if name in names and (not commands or command in commands):
            return text
    return None


def near(word: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that differ from `word` by a slip, or begin with it."""
    bare = word.lstrip("-")
    candidates = {name.lstrip("-"): name for name in names if name.lstrip("-")[:1] == bare[:1]}
    found = difflib.get_close_matches(bare, candidates, n=2, cutoff=CLOSE)
    longer = [name for name in candidates if len(bare) > 2 and name.startswith(bare)]
    return [candidates[name] for name in found or longer[:3]]


def no_such_option(command: click.Command, context: click.Context, name: str) -> str:
    """The message for an option that `command` does not have."""
    problem = f"No such option {name!r}"
    if text := answer_to(ANSWERS, name, command.name):
        return f"{problem}: {text}"
    if similar := near(name, options_by_name(command)):
        return f"{problem}; did you mean {' or '.join(similar)}?"
    program = context.find_root().command
    others = program.commands if isinstance(program, click.Group) else {}
    having = [f"'fastcifar {other}'" for other, each in others.items() if name in options_by_name(each)]
    if having:
        return f"{problem}: it is an option of {', '.join(having)}"
    return f"{problem}."
