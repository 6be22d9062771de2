"""`fastcifar predict`: the classes of the user's own images."""

from __future__ import annotations

from pathlib import Path

import click

from fastcifar.cli import images, options
from fastcifar.cli.command import Command
from fastcifar.cli.param_types import PATH
from fastcifar.cli.settings import as_flags, given_on_command_line

MAX_SHOWN = 8
"""Words of a command that is shown."""


@click.command(cls=Command, short_help="Classify images of your own with a trained network.")
@click.argument("paths", nargs=-1, required=True, type=images.PATH_OR_STDIN, metavar="PATH...")
@click.option("--run", shell_complete=options.complete_runs, help="Name or path of the run.  [default: the latest]")
@click.option("--top", default=3, show_default=True, help="Number of classes that are shown, the most probable first.")
@click.option("--csv", "csv_file", type=PATH, metavar="FILE", help="Write a table to FILE instead of stdout.")
@click.option("--maps", is_flag=True, help="Draw class activation maps as well, as 'fastcifar explain PATH...' does.")
@options.trusted_model
@options.runs_dir
@options.device
@options.threads
@options.as_json
@click.pass_context
def predict(
    context: click.Context,
    /,
    paths: tuple[Path | str, ...],
    run: str | None,
    top: int,
    csv_file: Path | None,
    maps: bool,
    model: str | None,
    runs_dir: Path,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Classify images of your own: their most probable classes.

    PATH is a file, a folder, a pattern such as 'cats/*.jpg', a zip or tar, a beton, or '-' for paths on stdin, one on
    each line. Images of any size are resized as those of the training data were. Files that cannot be read are named
    at the end, and the exit code is 4.
    """
    import json

    from fastcifar.bars import Bars
    from fastcifar.cli.output import command_line, show_next, show_next_on_run, table
    from fastcifar.config import MAX_EXPLAINED, ExplainConfig
    from fastcifar.data.image_files import EXTENSIONS
    from fastcifar.errors import UsageError
    from fastcifar.inference import predict_files
    from fastcifar.io.atomic import write_csv
    from fastcifar.io.checks import require_int
    from fastcifar.io.paths import make_folder, require_file_path
    from fastcifar.report import write_report_or_warn
    from fastcifar.training import find_run
    from fastcifar.training.device import choose_threads

    require_int("top", top, 1)
    if csv_file is not None:
        require_file_path(csv_file, "CSV", "classes.csv")
        inputs = [path.resolve() for path in paths if isinstance(path, Path)]
        if csv_file.resolve() in inputs or csv_file.name.lower().endswith((*EXTENSIONS, ".beton")):
            # `--csv *.png`, expanded by a shell
            raise UsageError(f"{csv_file}: a file of images; expected the name of a CSV file, e.g. classes.csv")
        make_folder(csv_file.parent)
    images.require_no_run(paths, runs_dir)
    choose_threads(threads)
    folder = find_run(run, runs_dir, trained=True)
    given = images.with_stdin(paths)
    files: tuple[Path, ...] = ()
    with Bars() as bars:
        if maps:
            from fastcifar.explain import explain_run

            explanation = explain_run(
                folder, ExplainConfig(), images=given, device=device, trusted=model, reporter=bars
            )
            assert explanation.own is not None
            found, files = explanation.own, explanation.files
        else:
            found = predict_files.predict(given, folder, device=device, trusted=model, reporter=bars)
    report = write_report_or_warn(folder) if files else None
    if csv_file is not None:
        write_csv(csv_file, *images.to_csv(found, top))
    if as_json:
        about = {"run": folder.path, "csv": csv_file, "files": files, "report": report}
        click.echo(json.dumps({**about, **images.to_json(found, top)}, default=str))
    elif len(found):
        if csv_file is None:
            images.show_images(found, top)
            click.echo()
        click.echo(table([("run", folder.path), *images.summary(found)]))
        images.show_files(csv_file, *files, report)
        if maps or len(found) > MAX_EXPLAINED or len(paths) > MAX_SHOWN or images.STDIN in paths:
            show_next_on_run(context, folder)
        else:
            needed = as_flags(context, given_on_command_line(context, ["run", "model", "runs_dir"]))
            show_next(command_line("fastcifar", "predict", *paths, "--maps", *needed))
    images.report_errors(found)
