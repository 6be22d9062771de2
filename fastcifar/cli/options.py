"""Options that several commands share."""

from __future__ import annotations

import os

import click


def _expand(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    return None if value is None else os.path.expanduser(value)


data_dir = click.option(
    "--data-dir",
    default="data",
    show_default=True,
    envvar="FASTCIFAR_DATA_DIR",
    show_envvar=True,
    callback=_expand,
    help="Folder of train.beton and test.beton.",
)
run_data_dir = click.option(
    "--data-dir",
    envvar="FASTCIFAR_DATA_DIR",
    show_envvar=True,
    callback=_expand,
    help="Folder of the betons.  [default: that of the run]",
)
runs_dir = click.option(
    "--runs-dir",
    default="runs",
    show_default=True,
    envvar="FASTCIFAR_RUNS_DIR",
    show_envvar=True,
    callback=_expand,
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
