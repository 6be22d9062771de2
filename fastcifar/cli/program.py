"""The program around the commands: streams, environment, errors as exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any

import click

from fastcifar.cli.command import CommandGroup, normalised
from fastcifar.cli.familiar import COMMANDS
from fastcifar.cli.output import log_to_stderr
from fastcifar.cli.signals import signals_as_exceptions
from fastcifar.errors import FastcifarError, Stopped, UsageError, one_line

LAST_STREAM = 2
OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "100000"}
"""Idle OpenMP threads spin for some milliseconds, then sleep. Sleeping at once costs 3% of the training
speed; longer spinning takes the CPUs from other processes (benchmarks.busy)."""


class Program(CommandGroup):
    """A group in which every failure becomes one line on stderr and an exit code."""

    other_names = tuple(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, rest = normalised(args[0]), args[1:]
        if name in COMMANDS and name not in self.commands:
            command, *options = COMMANDS[name]
            if any(word.partition("=")[0] == options[0] for word in rest):
                message = f"{name} is {' '.join(COMMANDS[name])}: write {options[0]} with {command} only"
                raise click.UsageError(message, ctx)
            args = [command, *options, *rest]
        return super().resolve_command(ctx, args)

    def main(self, args: Any = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        _prepare_streams()
        _prepare_environment()
        arguments = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in arguments
        arguments = [argument for argument in arguments if argument != "--debug"]
        extra.pop("standalone_mode", None)
        with signals_as_exceptions() as signums:
            try:
                with log_to_stderr(debug):
                    result = super().main(arguments, prog_name, standalone_mode=False, **extra)
                code = result if isinstance(result, int) else 0
            except (Exception, Stopped) as error:
                if debug:
                    raise
                for signum in signums:
                    signal.signal(signum, signal.SIG_IGN)  # the program ends now: its last message is printed
                code = _report_error(error)
        sys.exit(code)


def _prepare_streams() -> None:
    """Open the null device for streams that the shell closed (`2>&-`), so that no other file gets their descriptors;
    replace characters that the encoding of a stream does not have."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= LAST_STREAM:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the program)
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and (stream.errors == "strict" or stream.encoding != "utf-8"):
            stream.reconfigure(errors="replace")


def _prepare_environment() -> None:
    """Set the variables that libraries read when they are imported. To be called before torch is."""
    if not OPENMP.keys() & os.environ.keys():
        os.environ.update(OPENMP)
    if os.environ.get("WORLD_SIZE", "") in ("", "0", "1"):  # left behind by a scheduler or an earlier session
        for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)


def _report_error(error: Exception | Stopped) -> int:
    """Print one line on stderr; return the exit code."""
    if isinstance(error, click.Abort):
        click.echo("Stopped.", err=True)
        return 130
    if isinstance(error, Stopped):
        click.echo(one_line(error), err=True)
        return error.exit_code
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context else ""
        message, code = f"{error.format_message()}{hint}", error.exit_code
    elif isinstance(error, FastcifarError):
        message, code = str(error), error.exit_code
    elif isinstance(error, OSError):
        message, code = f"{error.filename or 'output'}: {error.strerror or error}", 1
    else:
        message = f"{type(error).__name__}: {error} (unexpected error; please report it with the output of --debug)"
        code = 1
    # the same in all processes of torchrun: only rank 0 prints it
    is_shared = isinstance(error, (click.ClickException, UsageError))
    if not is_shared or "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0":
        click.echo(f"Error: {one_line(message)}", err=True)
    return code
