"""Opens loggers by name, and says how their dashboards are opened."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from pathlib import Path

from fastcifar.errors import MissingExtraError, describe
from fastcifar.io.paths import command_line
from fastcifar.loggers.base import Loggers, RunLogger

CLASSES = {"tensorboard": "TensorBoardLogger", "wandb": "WandbLogger", "trackio": "TrackioLogger"}


def open_loggers(
    names: Iterable[str], *, group: str | None = None, is_main: bool = True, strict: bool = False
) -> Loggers:
    """Loggers of these names, of `fastcifar.config.LOGGERS`, to be closed by the caller (`with`).

    group, strict: see `Loggers`. is_main: False in the processes that log nothing. Raises MissingExtraError (3) if the
    package of one cannot be imported.
    """
    loggers = {name: _make(name) for name in names}
    return Loggers(loggers if is_main else {}, group=group, strict=strict)


def _make(name: str) -> RunLogger:
    try:
        logger: RunLogger = getattr(importlib.import_module(f"fastcifar.loggers.{name}_logger"), CLASSES[name])()
    except Exception as error:  # an installed package that is broken raises anything
        raise MissingExtraError(f"logging to {name}", name, describe(error, 300)) from error
    return logger


def view_commands(names: Iterable[str], path: Path) -> list[str]:
    """The commands that show these logs of the run, or the group of runs, at `path`."""
    runs = "" if (path / "wandb").is_dir() else "/*"
    commands = {
        "tensorboard": command_line("tensorboard", "--logdir", path.parent),
        "wandb": f"{command_line('wandb', 'sync', path)}{runs}/wandb/offline-run-*",
        "trackio": command_line("trackio", "show", "--project", "fastcifar"),
    }
    if os.environ.get("WANDB_MODE", "offline") != "offline":
        del commands["wandb"]  # it is there already
    return [commands[name] for name in names if name in commands]
