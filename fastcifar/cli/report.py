"""`fastcifar report`: one page about a run."""

from __future__ import annotations

from pathlib import Path

import click

from fastcifar.cli import options
from fastcifar.cli.command import Command


@click.command(cls=Command, short_help="Write report.html of a run: everything on one page.")
@options.run
@options.runs_dir
@options.as_json
@click.pass_context
def report(context: click.Context, /, run: str | None, runs_dir: Path, as_json: bool) -> None:
    """Write report.html of RUN (a name or path; by default the latest) into its folder.

    Settings, curves, test metrics, and the explained images with their sheets, in one self-contained file.
    """
    import json

    from fastcifar.cli.output import show_next_on_run
    from fastcifar.report import write_report
    from fastcifar.training import find_run

    folder = find_run(run, runs_dir, trained=True)
    file = write_report(folder)
    if as_json:
        click.echo(json.dumps({"run": str(folder.path), "file": str(file)}))
        return
    click.echo(file)
    show_next_on_run(context, folder)
