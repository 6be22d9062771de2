"""Betons of other programs: read if they have an image and a label, else refused as not supported, with the reason."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fastcifar import make_loader
from fastcifar.cli import main
from fastcifar.converters import Source, convert
from fastcifar.data.beton import Beton, open_beton
from fastcifar.data.fields import FIELD, IMAGE
from fastcifar.data.tables import ALLOCATION, HEADER, MIN_PAGE_SIZE
from fastcifar.errors import DataError
from tests.test_loaders import LOADERS
from tests.test_writer import random_split

NUM, SIDE = 12, 8
PIXELS = np.random.default_rng(0).integers(0, 256, (NUM, SIDE, SIDE, 3), np.uint8)
LABELS = np.arange(NUM) % 3
INLINE: dict[int, Any] = {0: "<f8", 1: "<i8", 2: IMAGE, 3: "<u8,<u8", 4: "<u8", 5: "<u8,<u8", 6: "<u8", 255: "<u8"}


def write(path: Path, fields: list[tuple[str, int]], modes: Any = 1, **values: Any) -> Path:
    """What FFCV writes for these fields, (name, type), with images in the first one of type 2; values: by name."""
    dtype = np.dtype([("", INLINE[kind]) for _, kind in fields], align=True)
    records = np.zeros(NUM, dtype)
    pages_start = -(-(HEADER.itemsize + len(fields) * FIELD.itemsize + records.nbytes) // MIN_PAGE_SIZE) * MIN_PAGE_SIZE
    pointers = pages_start + np.arange(NUM) * PIXELS[0].size
    descriptors = np.zeros(len(fields), FIELD)
    for i, (name, kind) in enumerate(fields):
        descriptors[i]["type_id"] = kind
        descriptors[i]["name"][: len(name)] = list(name.encode())
        if kind == 2:
            column = records[f"f{i}"]
            column["mode"], column["width"], column["height"], column["data_ptr"] = modes, SIDE, SIDE, pointers
        elif name in values:
            records[f"f{i}"] = values[name]
        if kind in (4, 6):
            descriptors[i]["arguments"][:9] = 4
    header = np.zeros(1, HEADER)
    header["version"], header["num_fields"], header["page_size"] = 2, len(fields), MIN_PAGE_SIZE
    header["num_samples"], header["alloc_table_ptr"] = NUM, pages_start + MIN_PAGE_SIZE
    table = np.zeros(NUM, ALLOCATION)
    table["sample_id"], table["ptr"], table["size"] = np.arange(NUM), pointers, PIXELS[0].size
    tables = header.tobytes() + descriptors.tobytes() + records.tobytes()
    page = PIXELS.tobytes().ljust(MIN_PAGE_SIZE, b"\0")
    path.write_bytes(tables.ljust(pages_start, b"\0") + page + table.tobytes())
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_beton(path)
    assert "damaged" not in str(caught.value)
    assert "convert again" not in str(caught.value)
    return str(caught.value)


READ = {
    "as fastcifar writes it": [("image", 2), ("label", 1)],
    "other order": [("label", 1), ("image", 2)],
    "other names": [("img", 2), ("target", 1)],
    "a number more": [("image", 2), ("label", 1), ("idx", 1)],
    "numbers around": [("idx", 1), ("weight", 0), ("image", 2), ("score", 0), ("label", 1), ("fold", 1)],
    "a name of its own": [("pixels", 2), ("species", 1)],
    "the longest name": [("x" * 16, 2), ("label", 1)],
}


@pytest.mark.parametrize("name", list(READ))
def test_image_and_label_are_found_among_other_fields(tmp_path: Path, name: str) -> None:
    fields = READ[name]
    label = next(n for n, kind in fields if kind == 1 and n not in ("idx", "fold"))
    others = {n: np.arange(NUM) + 1_000 for n, kind in fields if kind in (0, 1) and n != label}
    path = write(tmp_path / "a.beton", fields, **{label: LABELS}, **others)
    opened = open_beton(path)
    np.testing.assert_array_equal(opened.images(np.arange(NUM)), PIXELS)
    assert opened.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("name", ["other order", "numbers around"])
@pytest.mark.parametrize("loader", LOADERS)
def test_every_loader_reads_them(tmp_path: Path, loader: str, name: str) -> None:
    path = write(tmp_path / "a.beton", READ[name], label=LABELS, idx=7, fold=8, weight=9.5, score=-1)
    batches = list(make_loader(path, loader=loader, train=False, batch_size=5, mean=(0, 0, 0), std=(1, 1, 1)))
    images = np.concatenate([batch.images.permute(0, 2, 3, 1).numpy() for batch in batches])
    np.testing.assert_array_equal(images, PIXELS)
    assert np.concatenate([batch.labels.numpy() for batch in batches]).tolist() == LABELS.tolist()


def test_the_ffcv_loader_gives_for_every_field_order_what_ffcv_itself_reads(tmp_path: Path) -> None:
    reader = pytest.importorskip("ffcv.reader", reason="FFCV is not installed").Reader
    for i, fields in enumerate(READ.values()):
        path = write(tmp_path / f"{i}.beton", fields, **{name: LABELS for name, kind in fields if kind == 1})
        found, opened = reader(str(path)), open_beton(path)
        assert found.field_names == [name for name, _ in fields]
        image = found.metadata[f"f{[kind for _, kind in fields].index(2)}"]
        assert image["data_ptr"].tolist() == opened.offsets.tolist()


NOT_READ = {
    "one-hot": ([("image", 2), ("label", 4)], "'label' is not an integer; write the class index"),
    "one-hot and an index": ([("image", 2), ("label", 4), ("idx", 1)], "'label' is not an integer"),
    "a label of 0.5": ([("image", 2), ("label", 0)], "'label' is not an integer"),
    "no label": ([("image", 2)], "has 1 field ('image': RGBImageField): no label"),
    "an index for a label": ([("image", 2), ("idx", 1)], "no label"),
    "two numbers": ([("image", 2), ("age", 1), ("sex", 1)], "several integers of which none is called 'label'"),
    "no image": ([("label", 1)], "no image"),
    "an image as an array": ([("image", 4), ("label", 1)], "no image"),
    "two images": ([("image", 2), ("mask", 2), ("label", 1)], "several images"),
    "JSON": ([("image", 2), ("label", 1), ("about", 5)], "JSONField cannot be read"),
    "bytes": ([("image", 2), ("label", 1), ("raw", 3)], "BytesField cannot be read"),
    "a tensor": ([("image", 2), ("label", 1), ("box", 6)], "TorchTensorField cannot be read"),
    "a field of its own": ([("image", 2), ("label", 1), ("x", 255)], "a custom field cannot be read"),
}


@pytest.mark.parametrize("name", list(NOT_READ))
def test_unsupported_fields_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    fields, reason = NOT_READ[name]
    path = write(tmp_path / "a.beton", fields)
    message = refusal(path)
    assert message.startswith(f"{path}: not supported: has {len(fields)} field")
    assert reason in message
    done = CliRunner().invoke(main, ["inspect", str(path)])
    assert (done.exit_code, "not supported" in done.output) == (4, True)


def test_raw_and_jpeg_images_in_one_file_are_not_supported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.beton", READ["as fastcifar writes it"], modes=np.arange(NUM) % 2, label=LABELS)
    assert "image 1 has mode 1, image 0 mode 0 (1: raw, 0: JPEG), as FFCV's write_mode 'proportion'" in refusal(path)


@pytest.mark.parametrize("label", [-1, -100, 2**40])
def test_a_label_that_is_not_a_class_index_is_not_supported(tmp_path: Path, label: int) -> None:
    path = write(tmp_path / "a.beton", READ["as fastcifar writes it"], label=np.where(LABELS == 2, label, LABELS))
    assert f"image 2 has label {label}; expected a class index" in refusal(path)


@pytest.mark.parametrize(
    ("labels", "warning"),
    [
        (LABELS + 1, "no image of 1 of 4 classes: 0;"),
        (LABELS * 5, "no image of 8 of 11 classes: 1, 2, 3, 4, 6, 7, 8, 9;"),
    ],
)
def test_labels_that_leave_classes_without_an_image_are_warned_of(
    tmp_path: Path, labels: Any, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.beton", READ["as fastcifar writes it"], label=labels)
    with caplog.at_level(logging.WARNING, "fastcifar"):
        loader = make_loader(path, batch_size=4, loader="resident")
    assert warning in caplog.text
    assert "labels are expected to be 0, 1, 2, …" in caplog.text
    assert loader.beton.labels.tolist() == labels.tolist()
    done = CliRunner().invoke(main, ["inspect", str(path)])
    assert warning in done.output
    assert done.exit_code == 0


def damage(change: Callable[[Any, Any], None]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        data = np.fromfile(path, np.uint8)
        start = HEADER.itemsize
        change(data[:start].view(HEADER), data[start : start + 2 * FIELD.itemsize].view(FIELD))
        data.tofile(path)

    return make


def same_name(header: Any, fields: Any) -> None:
    fields["name"][1] = fields["name"][0]


DAMAGE = {
    "no fields": damage(lambda header, fields: header["num_fields"].fill(0)),
    "60,000 fields": damage(lambda header, fields: header["num_fields"].fill(60_000)),
    "a name that is not text": damage(lambda header, fields: fields["name"][1].fill(255)),
    "a name with a hole": damage(lambda header, fields: fields["name"][1].__setitem__(1, 0)),
    "no name": damage(lambda header, fields: fields["name"][1].fill(0)),
    "a name twice": damage(same_name),
    "an unknown type": damage(lambda header, fields: fields["type_id"].__setitem__(1, 77)),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_descriptors_that_ffcv_does_not_write_are_damaged(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.beton", READ["as fastcifar writes it"], label=LABELS)
    DAMAGE[name](path)
    with pytest.raises(DataError, match="damaged beton"):
        open_beton(path)


def test_convert_warns_of_empty_classes_and_refuses_labels_without_a_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = {"train": random_split(6), "test": random_split(2)}
    names = tuple(f"class {i}" for i in range(12))
    with caplog.at_level(logging.WARNING, "fastcifar"):
        convert(Source(description="", class_names=names, splits=splits), tmp_path)
    assert "train.beton: no image of " in caplog.text
    opened: Beton = open_beton(tmp_path / "train.beton")
    assert opened.class_names == names
    splits = {"train": random_split(60), "test": random_split(2)}
    with pytest.raises(DataError, match=r"has label \d; expected 0\.\.1, of 2 classes"):
        convert(Source(description="", class_names=("a", "b"), splits=splits), tmp_path)
