"""`fastcifar audit`: what is wrong with a dataset."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastcifar.cli import options
from fastcifar.cli.command import Command
from fastcifar.cli.param_types import CLICK_TYPES, PATH
from fastcifar.cli.settings import flags, given_on_command_line
from fastcifar.config import setting as kinds

if TYPE_CHECKING:
    from fastcifar.audit.run import Audit
    from fastcifar.data.manifest import Manifest


@click.command(cls=Command, short_help="Find duplicates, leaks, wrong labels and odd images.")
@options.data_dir
@click.option("--out", type=PATH, default="audit", show_default=True, help="Folder for the results.")
@click.option(
    "--only",
    type=CLICK_TYPES[kinds.Names],
    metavar="PART,…",
    help="Some of: duplicates, labels, images.  [default: all]",
)
@click.option(
    "--folds",
    type=click.IntRange(2),
    default=4,
    show_default=True,
    help="Number of trainings that judge the labels; each leaves out the images that it judges.",
)
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    help="Settings of these trainings.  [default: 'fast', with more epochs for few images]",
)
@click.option(
    "--predictions",
    type=PATH,
    metavar="FILE",
    help="Judge the labels by these probabilities or logits (.npz, .npy, .csv) of networks that did not see them.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of trainings and folds.")
@options.device
@options.threads
@options.as_json
@click.pass_context
def audit(
    context: click.Context,
    /,
    data_dir: Path,
    out: Path,
    only: tuple[str, ...] | None,
    folds: int,
    recipe: str | None,
    predictions: Path | None,
    seed: int,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Look for duplicates and leaks between train.beton and test.beton, wrong labels, and odd images.

    A page to look at (index.html) and a table to edit (issues.csv) go to audit/. Labels are judged by trainings that
    leave out the images they judge; the same command continues them after an interruption.
    """
    unused = given_on_command_line(context, ("folds", "recipe", "seed"))
    if predictions is not None and unused:
        raise click.UsageError(f"--{unused[0]} is of the trainings; cannot be combined with --predictions", context)
    if only is not None and "labels" not in only and unused:
        raise click.UsageError(
            f"{flags(unused)}: no network is trained; leave it out, or add 'labels' to --only", context
        )

    import json

    from fastcifar.augment.kernel import numba_module
    from fastcifar.errors import FastcifarError

    try:
        numba_module()
    except ImportError as error:
        raise FastcifarError(f"the search for similar images cannot be compiled ({error})") from error

    from fastcifar.audit.issues import PARTS
    from fastcifar.audit.run import audit as audit_data
    from fastcifar.bars import Bars
    from fastcifar.report.audit import write_audit_page
    from fastcifar.training.device import choose_threads

    choose_threads(threads)
    with Bars() as bars:
        result = audit_data(
            data_dir,
            out,
            only=PARTS if only is None else only,
            folds=folds,
            recipe=recipe,
            predictions=predictions,
            seed=seed,
            device=device,
            reporter=bars,
        )
        page = write_audit_page(result, bars)
    if as_json:
        facts = {"data_dir": data_dir, "parts": result.parts, "counts": result.counts(), "leaked": result.leaked}
        facts |= {"certain": result.counts(certain=True)}
        files = {"seconds": result.seconds, "issues": result.issues.path, "page": page}
        click.echo(json.dumps({**facts, **files}, default=str))
        return
    _show(result, page)


def _show(result: Audit, page: Path) -> None:
    from fastcifar.cli.output import command_line, show_next, table
    from fastcifar.errors import FastcifarError
    from fastcifar.training.progress import duration
    from fastcifar.training.run_folder import find_run

    names = list(result.splits)
    certain = result.counts(certain=True)
    rows = [("found", *names, "of these certain")]
    for kind, by_split in result.counts().items():
        num_certain = sum(certain.get(kind, {}).values())
        rows.append((kind, *(f"{by_split[name]:,}" for name in names), f"{num_certain:,}"))
    click.echo(table(rows) if len(rows) > 1 else "nothing found")
    if "duplicates" in result.parts and "test" in result.splits:
        exact, near, possible = (result.leaked[name] for name in ("exact", "near", "possible"))
        leaked, num = exact + near, len(result.splits["test"])
        click.echo(
            f"{leaked:,} of {num:,} test images ({leaked / num:.2%}) are also training images, {exact:,} of them "
            f"exactly; {possible:,} more may be"
        )
    click.echo("time: " + ", ".join(f"{part} {duration(seconds)}" for part, seconds in result.seconds.items()))
    click.echo(page)
    click.echo(result.issues.path)
    manifest, issues = result.splits["train"].manifest, result.issues.path
    clean = result.data_dir.parent / f"{result.data_dir.resolve().name}-clean"  # also of '.', which has no name
    convert = ["fastcifar", "convert", *_convert_flags(manifest)]
    known = [line.issue for line in result.issues.lines if line.origin]  # else they are not found in the source
    to_drop, labels = any(issue.action == "drop" for issue in known), any(issue.kind == "label" for issue in known)
    if (to_drop or labels) and "SOURCE" in convert:
        click.echo("SOURCE: that of the first conversion; repeat its --test-share and other options too")
    if to_drop:
        show_next(command_line(*convert, "--drop", issues, "--data-dir", clean))
    if labels:
        click.echo(f"decide about the labels first: 'relabel', 'drop' or 'keep' in the column action of {issues}")
        show_next(command_line(*convert, "--drop", issues, "--relabel", issues, "--data-dir", clean))
    if "test" in result.splits:
        with suppress(FastcifarError):  # there is no run yet
            find_run(None, os.environ.get("FASTCIFAR_RUNS_DIR", "runs"), trained=True)
            show_next(command_line("fastcifar", "eval", "--without", issues))


def _convert_flags(manifest: Manifest | None) -> list[str]:
    """What the manifest knows of the flags of the conversion; --test-share and --seed are not in it."""
    from fastcifar.converters.official import DOWNLOADED
    from fastcifar.data.manifest import Conversion

    if manifest is None:
        return ["--source", "SOURCE"]
    flags_of = {DOWNLOADED["cifar10"]: [], DOWNLOADED["cifar100"]: ["--dataset", "cifar100"]}
    flags = flags_of.get(manifest.source, ["--source", "SOURCE"])
    facts, default = manifest.conversion, Conversion()
    if facts.size is not None:
        flags += ["--size", "x".join(map(str, facts.size))]
    if facts.fit != default.fit:
        flags += ["--fit", facts.fit]
    if facts.background != default.background:
        flags += ["--background", ",".join(map(str, facts.background))]
    return flags + ["--skip-broken"] * bool(facts.skipped)
