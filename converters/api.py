"""`fastcifar.convert`: any source of images to betons, from Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from fastcifar.bars import Bars
from fastcifar.converters.edits import Edits, edited
from fastcifar.converters.open_source import open_source, prepare
from fastcifar.converters.sources import Source, SourceOptions
from fastcifar.converters.writer import Progress, write_betons
from fastcifar.data.image_files import Preprocessing
from fastcifar.data.manifest import Manifest
from fastcifar.data.statistics import require_classes
from fastcifar.errors import UsageError
from fastcifar.io.checks import require_int, shown
from fastcifar.io.paths import data_folder


def convert(
    source: Any,
    data_dir: str | os.PathLike[str] = "data",
    progress: bool | Progress | None = True,
    *,
    test: Any = None,
    class_names: Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
    fit: str = "crop",
    background: tuple[int, int, int] = (255, 255, 255),
    skip_broken: bool = False,
    jpeg_quality: int | None = None,
    edits: Edits | None = None,
    **options: Any,
) -> dict[str, Manifest]:
    """Write images as `train.beton` and `test.beton` into `data_dir`; return their manifests by split.

    source: what `fastcifar convert --source` takes (a path or name), a `Source`, or the training images: a map-style
    dataset (`__len__` and `__getitem__`, e.g. `torch.utils.data.Dataset`) or an iterable of (image, label); or a
    mapping of both splits, {'train': …, 'test': …}. Items may also be mappings with an image and a label, as those of a
    Hugging Face `Dataset`. An image is one of Pillow; or an array or tensor of shape (H, W), (H, W, C) or (C, H, W),
    C = 1, 3 or 4: uint8, or float of values 0..1, not normalised. If an image of Pillow still has an EXIF orientation,
    it is applied, as that of a file. A label is an integer, or a class name. Each item is read once, in order, by the
    calling thread: random augmentation would be part of the images.
    test: the test images, likewise; without them give `test_share`.
    class_names: of labels 0, 1, …; by default those of `source.classes` (or of the dataset in a `Subset` or
    `ConcatDataset`, or of a Hugging Face `ClassLabel`), else the labels that occur in the training images, sorted.
    size: (height, width), or the side of a square, to which images are resized. fit: 'crop' covers the size and cuts
    at the sides, 'pad' fits into it, on the background, 'stretch' changes the aspect ratio. background: (red, green,
    blue), 0..255, also under transparent pixels. skip_broken: skip images that cannot be read, up to 1% of a split.
    jpeg_quality: 1..100, to store images as JPEG. edits: images to leave out or relabel, e.g. those of
    `fastcifar.audit.edits.read_edits`. options: how the source is read, as by the flags of `fastcifar convert`:
    dataset, test_share (0..1, of each class, where the source has no test images), seed, skip_empty_classes,
    images_root, image_column, label_column, split_column, labels_file, channels, max_value; and download_dir.
    progress: show a progress bar, in a terminal or a notebook; or a function that is called with the name of a split
    and a number of images whenever they are done.

    Raises UsageError (exit code 2) for invalid arguments, DataError (4) for images or labels that cannot be converted,
    FastcifarError (1) if `data_dir` is not writable. Existing betons are then unchanged.

    Examples:
        >>> images = np.zeros((40, 16, 16, 3), np.uint8)
        >>> pairs = [(image, "cat" if index % 2 else "dog") for index, image in enumerate(images)]
        >>> manifests = convert(pairs, "blank-data", test_share=0.25)
        >>> manifests["train"].num_samples, manifests["train"].class_names
        (30, ('cat', 'dog'))
    """
    if not isinstance(progress, bool) and progress is not None and not callable(progress):
        raise UsageError(f"progress is {shown(progress)}; expected True, False or a function")
    if jpeg_quality is not None:
        require_int("jpeg_quality", jpeg_quality, 1, 100)
    names = [field.name for field in fields(SourceOptions) if field.name != "preprocessing"]
    if unknown := sorted(set(options) - set(names)):
        raise UsageError(f"{unknown[0]} is not an option; expected some of: {', '.join(names)}")
    sides = size if size is None or isinstance(size, (tuple, list)) else (size, size)
    options.setdefault("download_dir", str(data_folder(data_dir)))
    chosen = SourceOptions(preprocessing=Preprocessing(size=sides, fit=fit, background=background), **options)
    with Bars(shown=progress is True) as bars:
        bars.begin("opening")
        with _open(source, test, class_names, chosen) as opened:
            require_classes(opened.name, opened.class_names)
            if edits is not None:
                opened = edited(opened, edits)
            bars.begin("images", 2 * sum(map(len, opened.splits.values())))  # each is written, then compared
            report = progress if callable(progress) else lambda split, count: bars.advance(count)
            return write_betons(opened, data_dir, report, jpeg_quality=jpeg_quality, skip_broken=skip_broken)


def _open(source: Any, test: Any, class_names: Sequence[str] | None, options: SourceOptions) -> Source:
    if isinstance(source, (Source, str, os.PathLike)):
        if test is not None or class_names is not None:
            name = "test" if test is not None else "class_names"
            raise UsageError(
                f"{name} is given, but the source is a path, a name or a Source; expected it for a dataset of Python"
            )
        return prepare(source, options) if isinstance(source, Source) else open_source(source, options)
    from fastcifar.converters.python_dataset import open_dataset

    return prepare(open_dataset(source, test, class_names, options), options)
