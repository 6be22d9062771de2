"""`fastcifar explain`: where the network looked when it was wrong."""

from __future__ import annotations

import click

from fastcifar.cli import options


@click.command()
@click.argument("run", required=False)
@click.option("--n", default=25, show_default=True, type=click.IntRange(min=1), help="How many misclassified images.")
@options.trusted_model
@click.option(
    "--data-dir",
    envvar="FASTCIFAR_DATA_DIR",
    show_envvar=True,
    help="Folder of test.beton.  [default: that of the run]",
)
@options.runs_dir
@options.device
@options.as_json
def explain(
    run: str | None, n: int, model: str | None, data_dir: str | None, runs_dir: str, device: str, as_json: bool
) -> None:
    """Draw Grad-CAM of misclassified test images of RUN (a name or path; the latest if not given).

    The images of largest loss come first; the map shows what spoke for the predicted class.
    """
    import json

    from fastcifar.cli.output import Bars
    from fastcifar.explain import explain_run
    from fastcifar.training import find_run

    folder = find_run(run, runs_dir, trained=True)
    with Bars() as bars:
        made = explain_run(
            folder, n=n, data_dir=data_dir, device=device, trusted=model, begin=bars.begin, advance=bars.advance
        )
    if as_json:
        facts = {
            "run": str(folder.path),
            "num_test": made.num_test,
            "num_wrong": made.num_wrong,
            "num_shown": made.num_shown,
            "stage": made.stage,
            "map_size": list(made.map_size),
            "files": [str(file) for file in made.files],
        }
        click.echo(json.dumps(facts))
        return
    click.echo(f"{made.num_wrong:,} of {made.num_test:,} test images misclassified by {folder.path}")
    if made.num_shown < n:
        click.echo(f"{n} were asked for, {made.num_shown} are there" + ("" if made.num_shown else ": nothing to draw"))
    for file in made.files:
        click.echo(file)
