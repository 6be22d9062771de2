"""The command line: Click and nothing else. Commands parse, call and report; errors become exit codes here."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import click

from fastcifar import __version__
from fastcifar.cli.bench import bench
from fastcifar.cli.convert import convert
from fastcifar.cli.doctor import doctor
from fastcifar.cli.eval import evaluate
from fastcifar.cli.explain import explain
from fastcifar.cli.inspect import inspect
from fastcifar.cli.lr_find import lr_find
from fastcifar.cli.output import log_to_stderr
from fastcifar.cli.preview import preview
from fastcifar.cli.recipes import recipes
from fastcifar.cli.report import report
from fastcifar.cli.train import train
from fastcifar.errors import FastcifarError, Stopped, UsageError, one_line

LAST_STREAM = 2
OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "100000"}
"""Idle OpenMP threads spin for some milliseconds, then sleep. To sleep at once costs 3% of the speed of training, to
spin on takes the CPUs from other processes (benchmarks/busy.py)."""


class Program(click.Group):
    """A group whose every failure is one line on stderr and an exit code."""

    def main(self, args: Any = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        _prepare_streams()
        _prepare_environment()
        given = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in given
        given = [arg for arg in given if arg != "--debug"]
        extra.pop("standalone_mode", None)
        before, hook = _handle_signals(), sys.unraisablehook
        sys.unraisablehook = lambda lost: _ask_again(lost, hook)
        try:
            with log_to_stderr(debug):
                result = super().main(given, prog_name, standalone_mode=False, **extra)
            code = result if isinstance(result, int) else 0
        except Exception as error:
            if debug:
                raise
            for signum in before:
                signal.signal(signum, signal.SIG_IGN)  # it ends now, and says why
            code = _tell(error)
        finally:
            sys.unraisablehook = hook
            for signum, handler in before.items():
                signal.signal(signum, handler)
        sys.exit(code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of use


def _prepare_streams() -> None:
    """What a shell has closed (`2>&-`) must be nobody else's file, and what is said there is lost, not an error; nor is
    a character that the stream's encoding does not have: it is replaced."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= LAST_STREAM:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the program)
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and (stream.errors == "strict" or not _is_utf8(stream.encoding)):
            stream.reconfigure(errors="replace")


def _prepare_environment() -> None:
    """Set what libraries read from the environment when they are imported, before torch is."""
    if not OPENMP.keys() & os.environ.keys():
        os.environ.update(OPENMP)
    if os.environ.get("WORLD_SIZE", "") in ("", "0", "1"):  # left behind by a scheduler or an earlier session
        for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)


def _is_utf8(encoding: str) -> bool:
    return encoding.lower().replace("-", "").replace("_", "") == "utf8"


def _tell(error: Exception) -> int:
    """One line on stderr; the exit code."""
    if isinstance(error, click.Abort):
        click.echo("Stopped.", err=True)
        return 130
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context else ""
        message, code = f"{error.format_message()}{hint}", error.exit_code
    elif isinstance(error, FastcifarError):
        message, code = str(error), error.exit_code
        if isinstance(error, Stopped):
            click.echo(one_line(message), err=True)
            return code
    elif isinstance(error, OSError):
        message, code = f"{error.filename or 'output'}: {error.strerror or error}", 1
    else:
        message = f"{type(error).__name__}: {error} (unexpected error; please report it with the output of --debug)"
        code = 1
    shared = isinstance(error, (click.ClickException, UsageError))  # by all processes of torchrun: the first speaks
    if not shared or "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0":
        click.echo(f"Error: {one_line(message)}", err=True)
    return code


def _handle_signals() -> dict[int, Any]:
    """Let Ctrl-C and SIGTERM unwind the program, so that it clears up; returns the handlers to put back."""

    def stop(signum: int, frame: FrameType | None) -> None:
        torch = getattr(sys.modules.get("torch"), "__spec__", None)
        if getattr(torch, "_initializing", False):  # what is raised while torch is imported ends the process
            _send_later(signum)
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise Stopped(signum, "nothing was replaced that was not complete")

    if threading.current_thread() is not threading.main_thread():
        return {}
    signums = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, or somebody else's
        signums.append(signal.SIGINT)
    return {signum: signal.signal(signum, stop) for signum in signums}


def _ask_again(lost: sys.UnraisableHookArgs, otherwise: Callable[[sys.UnraisableHookArgs], Any]) -> None:
    """Python drops what is raised while it frees something: a signal that came just then is sent once more."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        signum = signal.SIGINT
    elif isinstance(lost.exc_value, Stopped):
        signum = signal.SIGTERM
    else:
        otherwise(lost)
        return
    _send_later(signum)  # not from here: it would be dropped again


def _send_later(signum: int) -> None:
    def send() -> None:
        if signal.getsignal(signum) not in (signal.SIG_DFL, signal.default_int_handler):  # the program has not ended
            os.kill(os.getpid(), signum)

    timer = threading.Timer(0.05, send)
    timer.daemon = True
    timer.start()


@click.group(
    "fastcifar", cls=Program, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="fastcifar")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.pass_context
def main(context: click.Context, debug: bool) -> None:
    """Train image classifiers at CIFAR scale, fast, and see what they look at.

    \b
    fastcifar convert
    fastcifar train --epochs 50 --sched plateau
    fastcifar explain --n 25
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (convert, inspect, preview, recipes, lr_find, train, evaluate, explain, report, bench, doctor):
    main.add_command(_command)
