"""`fastcifar inspect`: the content of a beton, and whether it is damaged."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from fastcifar.cli import options
from fastcifar.cli.command import Command
from fastcifar.cli.param_types import PATH
from fastcifar.config import DataConfig


@click.command(cls=Command, short_help="Show the content of a beton, and check it.")
@click.argument("beton", type=PATH)
@options.as_json
def inspect(beton: Path, as_json: bool) -> None:
    """Show the content of BETON; its structure is checked, and its SHA-256 against the manifest."""
    import numpy as np

    from fastcifar.cli.output import command_line, show_next, table, train_command
    from fastcifar.converters.summary import describe
    from fastcifar.data.beton import empty_classes, open_beton
    from fastcifar.data.manifest import manifest_path

    opened = open_beton(beton)
    counts = np.bincount(opened.labels, minlength=len(opened.class_names)).tolist()
    if not opened.verified:
        click.echo(
            f"warning: no manifest {manifest_path(beton)}: the structure was checked, the pixels cannot be",
            err=True,
        )
    if warning := empty_classes(opened):
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        facts = {
            "num_samples": len(opened),
            "encoding": opened.encoding,
            "image_shape": list(opened.image_shape),
            "class_names": list(opened.class_names),
            "class_counts": dict(zip(opened.class_names, counts, strict=True)),
            "mean": opened.mean.tolist(),
            "std": opened.std.tolist(),
            "sha256": opened.sha256,
            "verified": opened.verified,
            "conversion": asdict(opened.manifest.conversion) if opened.manifest else None,
        }
        click.echo(json.dumps(facts))
        return
    named = zip(opened.class_names, counts, strict=True)
    width = max(20, *map(len, opened.class_names))
    classes = "\n".join(f"  {name:<{width}} {count:>8,}" for name, count in named if count or opened.verified)
    rows = [
        ("images", f"{len(opened):,}"),
        ("image shape", "{} x {} x {}".format(*opened.image_shape)),
        ("encoding", opened.encoding),
        *([("source", opened.manifest.source)] if opened.manifest else []),
        ("mean (R, G, B)", ", ".join(f"{v:.2f}" for v in opened.mean)),
        ("std (R, G, B)", ", ".join(f"{v:.2f}" for v in opened.std)),
        ("SHA-256", opened.sha256),
        ("verified", "yes, SHA-256 matches the manifest" if opened.verified else "no, it has no manifest"),
    ]
    click.echo(f"{table(rows)}\nclasses\n{classes}")
    for line in describe({beton.name: opened.manifest} if opened.manifest else {}):
        click.echo(line)
    folder: list[str | Path] = [] if beton.parent == Path(DataConfig.data_dir) else ["--data-dir", beton.parent]
    if beton.name == "train.beton":
        show_next(command_line("fastcifar", "preview", *folder), train_command(counts, *folder))
