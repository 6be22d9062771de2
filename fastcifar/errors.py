"""One exception for each kind of error, each with its exit code; helpers for messages.

A message is one line: the value, what was expected, what to do.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable

_ADDRESS = re.compile(r"( object)? at 0x[0-9a-fA-F]+")


def one_line(text: object, max_length: int | None = None) -> str:
    """The text, or the message of an exception, on one line: no memory addresses, no control characters.

    For an exception without a message, the name of its type.
    """
    line = _ADDRESS.sub("", str(text))
    if not line.isprintable():  # else its spaces may belong to a command
        line = " ".join("".join(c if c.isprintable() else " " for c in line).split())
    return (line.strip() or type(text).__name__)[:max_length]


def describe(error: BaseException, max_length: int | None = None) -> str:
    """An error on one line: only the message of one of ours, type and message of any other."""
    if isinstance(error, FastcifarError):
        return one_line(error, max_length)
    return one_line(f"{type(error).__name__}: {error}".removesuffix(": "), max_length)


def escape(text: str) -> str:
    """The text with an escape, e.g. \\x1b, for each character that is not printable."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def join_names(names: Iterable[str], max_names: int = 12) -> str:
    """The first names, separated by commas, and the total number if there are more."""
    names = list(names)
    return ", ".join(names[:max_names]) + (f", … ({len(names):,} in all)" if len(names) > max_names else "")


class FastcifarError(Exception):
    """The run failed. Base of all errors that a user can cause; the message has no memory addresses.

    Examples:
        >>> try:
        ...     open_beton("missing.beton")
        ... except FastcifarError as error:
        ...     print(type(error).__name__, error.exit_code)
        DataError 4
    """

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(_ADDRESS.sub("", arg) if isinstance(arg, str) else arg for arg in args))


class UsageError(FastcifarError, ValueError):
    """A setting has an invalid value."""

    exit_code = 2


class MissingExtraError(FastcifarError, ImportError):
    """An optional dependency is not installed; the message ends with the command that installs it."""

    exit_code = 3

    def __init__(self, what: str, extra: str, reason: str) -> None:
        install = f"pip install 'fastcifar[{extra}]'"
        if extra == "ffcv":
            install = f"apt-get install pkg-config libopencv-dev libturbojpeg0-dev && {install}"
        super().__init__(f"{what} needs {extra}, which is not installed ({reason}); install it with: {install}")


class DataError(FastcifarError):
    """Data is missing, damaged, or not of the expected kind."""

    exit_code = 4


class DivergedError(FastcifarError):
    """The training loss is not finite."""

    exit_code = 5


class CheckpointError(FastcifarError):
    """A checkpoint is missing, damaged, or belongs to another model or data."""

    exit_code = 6


class Stopped(BaseException):
    """A signal ended the run, after it was saved. As KeyboardInterrupt, no `except Exception` catches it."""

    def __init__(self, signum: int, message: str, *, in_notebook: str | None = None) -> None:
        """in_notebook: the message there, where the remedy is not a command."""
        begin = f"stopped by {signal.Signals(signum).name}: "
        super().__init__(begin + message)
        self.exit_code = 128 + signum
        self._in_notebook = begin + (in_notebook or message)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback: whoever interrupts a cell needs none."""
        return [self._in_notebook]
