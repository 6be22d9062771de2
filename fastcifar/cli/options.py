"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fastcifar.errors import UsageError
from fastcifar.io.paths import data_folder, user_path


class UserPath(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A path that a user gives: the same on the command line, in the environment and in Python."""

    name = "path"

    def __init__(self, read: Callable[[Any], Path] = user_path, words: tuple[str, ...] = ()) -> None:
        """words: what is no path, but may stand where one is expected."""
        self._read, self._words = read, words

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if value in self._words:
            return value
        try:
            return self._read(value)
        except UsageError as error:
            self.fail(str(error), param, context)


PATH = UserPath()
data_dir = click.option(
    "--data-dir",
    default="data",
    show_default=True,
    envvar="FASTCIFAR_DATA_DIR",
    show_envvar=True,
    type=UserPath(data_folder),
    help="Folder of train.beton and test.beton.",
)
run_data_dir = click.option(
    "--data-dir",
    envvar="FASTCIFAR_DATA_DIR",
    show_envvar=True,
    type=UserPath(data_folder),
    help="Folder of the betons.  [default: that of the run]",
)
runs_dir = click.option(
    "--runs-dir",
    default="runs",
    show_default=True,
    envvar="FASTCIFAR_RUNS_DIR",
    show_envvar=True,
    type=PATH,
    help="Folder of the runs.",
)
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
threads = click.option(
    "--threads",
    type=click.IntRange(1, 1_024),
    help="Threads on the CPU.  [default: the CPUs that this process may use]",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
trusted_model = click.option(
    "--model", help="The run's own network, if that is package.module:function: says that its code may be run."
)
