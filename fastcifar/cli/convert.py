"""`fastcifar convert`: writes train.beton and test.beton from a source of images."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from fastcifar.cli import options
from fastcifar.cli.settings import as_flags, given_on_command_line


@click.command()
@click.option(
    "--source",
    default="download",
    show_default=True,
    envvar="FASTCIFAR_SOURCE",
    show_envvar=True,
    type=options.UserPath(words=("download", "synthetic")),
    metavar="PATH|download|synthetic",
    help="Official CIFAR archive or its unpacked folder; a folder of images (train/<class>/*, test/<class>/*) or a tar "
    "or zip of one; 'download'; 'synthetic'.",
)
@click.option(
    "--dataset",
    type=click.Choice(["cifar10", "cifar100"]),
    default="cifar10",
    show_default=True,
    help="What to download.",
)
@click.option(
    "--encode",
    type=click.Choice(["raw", "jpeg"]),
    default="raw",
    show_default=True,
    help="jpeg: smaller files for large images; only the ffcv loader reads them.",
)
@click.option(
    "--quality", type=click.IntRange(1, 100), default=90, show_default=True, help="JPEG quality, with --encode jpeg."
)
@click.option(
    "--skip-empty-classes",
    is_flag=True,
    help="Skip class folders without images, which are an error otherwise: the classes after them get other labels.",
)
@options.data_dir
@options.as_json
@click.pass_context
def convert(
    context: click.Context,
    /,
    source: str | Path,
    dataset: str,
    encode: str,
    quality: int,
    skip_empty_classes: bool,
    data_dir: Path,
    as_json: bool,
) -> None:
    """Write images as FFCV betons, read back and compared, with a manifest.

    Existing files are replaced only when both new files are complete.
    """
    from fastcifar import converters
    from fastcifar.cli.output import Bars, command_line, show_next
    from fastcifar.data.statistics import require_classes

    with Bars() as bars:
        bars.begin("opening")
        with converters.open_source(
            source, dataset=dataset, download_dir=data_dir, skip_empty_classes=skip_empty_classes
        ) as opened:
            require_classes(source, opened.class_names)
            bars.begin("images", 2 * sum(map(len, opened.splits.values())))  # each is written, then compared
            manifests = converters.convert(
                opened,
                data_dir,
                lambda split, count: bars.advance(count),
                jpeg_quality=quality if encode == "jpeg" else None,
            )
    if as_json:
        click.echo(json.dumps({name: asdict(manifest) for name, manifest in manifests.items()}))
        return
    for name, manifest in manifests.items():
        path = data_dir / f"{name}.beton"
        height, width, _ = manifest.image_shape
        click.echo(
            f"{path}: {manifest.num_samples:,} images of {height}x{width}, {len(manifest.class_names)} classes, "
            f"from {manifest.source}"
        )
    inspect = command_line("fastcifar", "inspect", data_dir / "train.beton")
    show_next(
        inspect, command_line("fastcifar", "train", *as_flags(context, given_on_command_line(context, ["data_dir"])))
    )
