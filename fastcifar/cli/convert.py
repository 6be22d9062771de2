"""`fastcifar convert`: writes train.beton and test.beton from a source of images."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastcifar.cli import options
from fastcifar.cli.command import Command
from fastcifar.cli.param_types import CLICK_TYPES, PATH, Parsed, UserPath
from fastcifar.cli.settings import as_flags, given_on_command_line
from fastcifar.config import setting as kinds
from fastcifar.errors import DataError, UsageError

if TYPE_CHECKING:
    from fastcifar.data.manifest import Manifest

log = logging.getLogger(__name__)


def _size(text: str) -> tuple[int, int]:
    """(height, width) of `64` or `64x48`."""
    match = re.fullmatch(r"(\d{1,6})(?:[xX×](\d{1,6}))?", text.strip())
    if not match:
        raise ValueError
    return int(match[1]), int(match[2] or match[1])


def _colour(text: str) -> tuple[int, ...]:
    """(red, green, blue) of a name, hexadecimal RGB, or three numbers."""
    from PIL import ImageColor

    is_numbers = re.fullmatch(r"\d+,\d+,\d+", text)
    return ImageColor.getrgb(f"rgb({text})" if is_numbers else text)[:3]


SIZE = Parsed("size", _size, "pixels, e.g. 64, or height x width, e.g. 64x48")
COLOUR = Parsed("colour", _colour, "a colour, e.g. white, black or '#7f7f7f'")


@click.command(cls=Command, short_help="Write images as FFCV betons, checked, with a manifest.")
@click.option(
    "--source",
    default="download",
    show_default=True,
    envvar="FASTCIFAR_SOURCE",
    show_envvar=True,
    type=UserPath(words=("download", "synthetic"), prefixes=("torchvision:", "hf:")),
    metavar="PATH|NAME",
    help="Images: a folder, tar or zip with train/<class>/* and test/<class>/*, or class folders alone; a table of "
    "paths and labels (.csv, .tsv, .parquet); arrays (.npz, .npy, .mat); a Hugging Face dataset (.parquet, .arrow, a "
    "folder of them, or hf:OWNER/NAME); torchvision:NAME, e.g. torchvision:SVHN; CIFAR's official archive or its "
    "unpacked folder; 'download' for that; 'synthetic'.",
)
@click.option(
    "--dataset",
    type=click.Choice(["cifar10", "cifar100"]),
    default="cifar10",
    show_default=True,
    help="What 'download' means.",
)
@click.option(
    "--size",
    type=SIZE,
    metavar="SIDE|HEIGHTxWIDTH",
    help="Resize all images to this many pixels, e.g. 64 or 64x48. Required if the images have several sizes.",
)
@click.option(
    "--fit",
    type=click.Choice(["crop", "pad", "stretch"]),
    default="crop",
    show_default=True,
    help="How an image of other proportions is resized: cropped at its centre, padded, or stretched.",
)
@click.option(
    "--background",
    type=COLOUR,
    default="white",
    show_default=True,
    metavar="COLOUR",
    help="Under transparent pixels and around padded images.",
)
@click.option(
    "--test-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Make this share of each class test images, where the source has none, e.g. 0.2.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the choice of test images.")
@click.option("--skip-broken", is_flag=True, help="Skip images that cannot be read, up to 1%; an error otherwise.")
@click.option(
    "--skip-empty-classes",
    is_flag=True,
    help="Skip class folders without images, which are an error otherwise: the classes after them get other labels.",
)
@click.option(
    "--images-root",
    type=PATH,
    metavar="FOLDER|ARCHIVE",
    help="Where the images of a table are: its paths are relative to it.  [default: the folder of the table]",
)
@click.option("--image-column", metavar="NAME", help="Column of paths or images.  [default: detected]")
@click.option("--label-column", metavar="NAME", help="Column of labels.  [default: detected]")
@click.option("--split-column", metavar="NAME", help="Column of 'train' and 'test'.  [default: detected]")
@click.option(
    "--labels-file",
    type=PATH,
    metavar="FILE",
    help="Labels of an .npy file of images.  [default: found by its name]",
)
@click.option(
    "--channels", type=click.Choice(["first", "last"]), help="Axis of arrays whose shape fits both, e.g. (N, 3, 32, 3)."
)
@click.option(
    "--max-value",
    type=click.FloatRange(0, min_open=True),
    metavar="VALUE",
    help="Value of white in arrays.  [default: 255; 65535 for uint16; 1 for floats]",
)
@click.option(
    "--encode",
    type=click.Choice(["raw", "jpeg"]),
    default="raw",
    show_default=True,
    help="jpeg: smaller files for large images; only the ffcv loader reads them, with FFCV installed.",
)
@click.option(
    "--quality", type=click.IntRange(1, 100), default=90, show_default=True, help="JPEG quality, with --encode jpeg."
)
@click.option(
    "--drop",
    type=PATH,
    metavar="FILE",
    help="Leave out the images that an issues.csv of 'fastcifar audit' says to drop: if it was not edited, exact "
    "duplicates, exact leaks and near-leaks that are certain.",
)
@click.option(
    "--drop-kinds",
    type=CLICK_TYPES[kinds.Names],
    metavar="KIND,…",
    help="Drop all lines of these kinds, e.g. exact-leak,label, but for those whose action is 'keep', or, with "
    "--relabel, 'relabel'.",
)
@click.option(
    "--relabel",
    type=PATH,
    metavar="FILE",
    help="Give images the labels that an edited issues.csv suggests, where its action is 'relabel'.",
)
@options.data_dir
@options.as_json
@click.pass_context
def convert(
    context: click.Context,
    /,
    source: str | Path,
    size: tuple[int, int] | None,
    fit: str,
    background: tuple[int, int, int],
    skip_broken: bool,
    encode: str,
    quality: int,
    drop: Path | None,
    drop_kinds: tuple[str, ...] | None,
    relabel: Path | None,
    data_dir: Path,
    as_json: bool,
    **settings: Any,
) -> None:
    """Write images as FFCV betons, read back and compared, with a manifest.

    Grey, transparent, 16-bit and CMYK images become RGB, and EXIF orientation is applied; the summary counts what was
    changed. Existing files are replaced only when both new files are complete.
    """
    from fastcifar.audit.edits import read_edits
    from fastcifar.cli.output import command_line, show_next, train_command
    from fastcifar.converters import convert as write
    from fastcifar.converters.writer import MixedSizesError

    if encode != "jpeg" and given_on_command_line(context, ["quality"]):
        raise UsageError(f"--quality is {quality}, and --encode {encode}; expected --encode jpeg")
    if encode == "jpeg":
        from fastcifar.loaders import missing_part

        if (problem := missing_part("ffcv", "jpeg")) is not None:  # said before an hour of converting
            log.warning("%s", problem)
    edits = read_edits(drop, drop_kinds or (), relabel) if drop or drop_kinds or relabel else None
    for action, file, found in (("drop", drop, edits and edits.drop), ("relabel", relabel, edits and edits.relabel)):
        if file is not None and not found:
            expected = "lines of these kinds" if action == "drop" and drop_kinds else f"{action!r} in the column action"
            log.warning("--%s %s: 0 images; expected %s: edit the file first", action, file, expected)
    try:
        manifests = write(
            source,
            data_dir,
            size=size,
            fit=fit,
            background=background,
            skip_broken=skip_broken,
            jpeg_quality=quality if encode == "jpeg" else None,
            edits=edits,
            **settings,
        )
    except MixedSizesError as error:
        flags = as_flags(context, given_on_command_line(context, context.params))
        command = command_line("fastcifar", "convert", *flags, "--size", str(error.side))
        raise DataError(f"{error.problem}; resize them with: {command}") from error
    if as_json:
        click.echo(json.dumps({name: asdict(manifest) for name, manifest in manifests.items()}))
        return
    class_counts = _show(manifests, data_dir)
    inspect = command_line("fastcifar", "inspect", data_dir / "train.beton")
    folder = as_flags(context, given_on_command_line(context, ["data_dir"]))
    show_next(inspect, train_command(class_counts["train"], *folder))


def _show(manifests: Mapping[str, Manifest], data_dir: Path) -> dict[str, list[int]]:
    """Print what was written; return the number of images of each class, by split."""
    import numpy as np

    from fastcifar.converters.summary import describe
    from fastcifar.data.beton_file import open_file
    from fastcifar.data.tables import read_tables
    from fastcifar.errors import join_names
    from fastcifar.io.paths import data_folder

    class_counts = {}
    for name, manifest in manifests.items():
        height, width, _ = manifest.image_shape
        click.echo(
            f"{data_dir / name}.beton: {manifest.num_samples:,} images of {height}x{width}, "
            f"{len(manifest.class_names)} classes, from {manifest.source}"
        )
        labels = read_tables(open_file(data_folder(data_dir) / f"{name}.beton")).labels
        class_counts[name] = counts = np.bincount(labels, minlength=len(manifest.class_names)).tolist()
        by_class = (f"{class_name} ({count:,})" for class_name, count in zip(manifest.class_names, counts, strict=True))
        click.echo(f"{name}: images of each class: {join_names(by_class)}")
    for line in describe(manifests):
        click.echo(line)
    return class_counts
