"""One exception per way a run can end badly, each with its exit code.

A message is one line: the value given, what was expected, what to do.
"""

from __future__ import annotations

import re
import signal

_ADDRESS = re.compile(r"( object)? at 0x[0-9a-fA-F]+")


def without_addresses(text: str) -> str:
    """The text without memory addresses, which `repr` writes of objects that have no better one."""
    return _ADDRESS.sub("", text)


class FastcifarError(Exception):
    """The run failed; the base of every error that a user can cause or meet. Its message holds no memory address."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(without_addresses(arg) if isinstance(arg, str) else arg for arg in args))


class UsageError(FastcifarError, ValueError):
    """A setting has a value that cannot be used."""

    exit_code = 2


class MissingExtraError(FastcifarError, ImportError):
    """An optional part is not installed; the message ends with the line that installs it."""

    exit_code = 3

    def __init__(self, what: str, extra: str, reason: str = "") -> None:
        because = f" ({reason})" if reason else ""
        super().__init__(
            f"{what} needs {extra}, which is not installed{because}; install it with: {install_line(extra)}"
        )


class DataError(FastcifarError):
    """Data is missing, damaged, or not of the kind that was expected."""

    exit_code = 4


class DivergedError(FastcifarError):
    """The training loss is no longer finite."""

    exit_code = 5


class CheckpointError(FastcifarError):
    """A checkpoint is missing, damaged, or belongs to another model or data."""

    exit_code = 6


class Stopped(FastcifarError):  # noqa: N818 (a request carried out, not an error)
    """A signal asked the run to end, and it has saved."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}: {message}")
        self.exit_code = 128 + signum


def install_line(extra: str) -> str:
    """The command that installs the optional part `extra` ('ffcv' or 'albumentations')."""
    if extra == "ffcv":
        return "apt-get install pkg-config libopencv-dev libturbojpeg0-dev && pip install 'fastcifar[ffcv]'"
    return f"pip install 'fastcifar[{extra}]'"
