"""`fastcifar export`: a run as a file for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from fastcifar.cli import options
from fastcifar.cli.command import Command
from fastcifar.cli.param_types import PATH, Choice
from fastcifar.cli.settings import as_flags, given_on_command_line


@click.command(cls=Command, short_help="Write a network as ONNX or .pt2, for other programs.")
@options.run
@click.option(
    "--format",
    default="onnx",
    show_default=True,
    type=Choice(("onnx", "torch")),
    help="onnx: for ONNX Runtime and others; torch: for torch.export.load (.pt2).",
)
@click.option("--output", type=PATH, help="The file to write.  [default: export/model.onnx or .pt2 in RUN]")
@click.option("--model-card", is_flag=True, help="Also write a description in Markdown next to the file.")
@options.trusted_model
@options.run_data_dir
@options.runs_dir
@options.threads
@options.as_json
@click.pass_context
def export(
    context: click.Context,
    /,
    run: str | None,
    format: str,
    output: Path | None,
    model_card: bool,
    model: str | None,
    data_dir: Path | None,
    runs_dir: Path,
    threads: int | None,
    as_json: bool,
) -> None:
    """Export RUN (a name or path; by default the latest) for other programs.

    The file takes images as they are, (N, height, width, 3) uint8 RGB, any number of them, and returns probabilities,
    calibrated where the run is: normalisation and softmax are inside. Class names and image size are in its metadata.
    Before it is kept, it classifies all test images and is compared with the network in float32 torch.
    """
    import json

    from fastcifar.bars import Bars
    from fastcifar.cli.output import command_line, show_next, show_next_on_run, table
    from fastcifar.inference.export import export as export_run
    from fastcifar.training import find_run
    from fastcifar.training.device import choose_threads

    choose_threads(threads)
    folder = find_run(run, runs_dir, trained=True)
    with Bars() as bars:
        exported = export_run(
            folder,
            format=format,
            output=output,
            model_card=model_card,
            data_dir=data_dir,
            trusted=model,
            reporter=bars,
        )
    if as_json:
        click.echo(json.dumps({"run": folder.path, **vars(exported)}, default=str))
        return
    total = exported.num_images
    temperature = exported.temperature
    rows = [
        ("run", folder.path),
        ("test images", f"{total:,}"),
        ("accuracy", f"{exported.accuracy:.2%}"),
        ("same class as float32 torch", _share(exported.num_agreeing, total)),
        ("same class as eval", _share(exported.num_agreeing_with_eval, total)),
        ("largest difference", f"{exported.largest_difference:.1e} in a probability, to float32 torch"),
        (
            "calibration",
            f"none: {exported.not_calibrated}" if temperature is None else f"temperature {temperature:.4f}",
        ),
        ("size", f"{exported.num_bytes / 1e6:,.1f} MB"),
    ]
    click.echo(table(rows))
    click.echo(exported.path)
    if exported.model_card is not None:
        click.echo(exported.model_card)
        show_next_on_run(context, folder)
    else:
        needed = as_flags(context, given_on_command_line(context, ["model", "data_dir"]))
        needed += as_flags(context, given_on_command_line(context, ["format", "output"]))
        show_next(command_line("fastcifar", "export", folder.path, *needed, "--model-card"))


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({count / total:.2%})"
