"""The command line: Click and nothing else. Commands parse, call and print."""

from __future__ import annotations

import click

from fastcifar import __version__
from fastcifar.cli.audit import audit
from fastcifar.cli.bench import bench
from fastcifar.cli.command import normalised
from fastcifar.cli.completion import completion
from fastcifar.cli.convert import convert
from fastcifar.cli.doctor import doctor
from fastcifar.cli.eval import evaluate
from fastcifar.cli.explain import explain
from fastcifar.cli.export import export
from fastcifar.cli.inspect import inspect
from fastcifar.cli.lr_find import lr_find
from fastcifar.cli.predict import predict
from fastcifar.cli.preview import preview
from fastcifar.cli.program import Program
from fastcifar.cli.recipes import recipes
from fastcifar.cli.report import report
from fastcifar.cli.runs import runs
from fastcifar.cli.sweep import sweep
from fastcifar.cli.train import train


@click.group(
    "fastcifar",
    cls=Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": normalised},
)
@click.version_option(__version__, "--version", "-V", prog_name="fastcifar")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.pass_context
def main(context: click.Context, debug: bool) -> None:
    """Train image classifiers on small images, fast, and see what they look at.

    \b
    fastcifar convert
    fastcifar train --epochs 50 --sched plateau
    fastcifar explain --n 25
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (
    convert,
    inspect,
    preview,
    audit,
    recipes,
    lr_find,
    train,
    sweep,
    evaluate,
    predict,
    explain,
    report,
    runs,
    export,
    bench,
    doctor,
    completion,
):
    main.add_command(_command)
