"""Datasets of Hugging Face: Parquet and Arrow files, folders of them, names on the hub."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from fastcifar.converters import Broken, Sample, SourceOptions, convert, open_source
from fastcifar.converters.arrow_files import ArrowFile
from fastcifar.data.image_files import ImageError
from fastcifar.errors import DataError, MissingExtraError, UsageError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
IMAGE_FEATURE = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}


def png(value: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def table(
    num: int = 6,
    first: int = 0,
    *,
    paths: Sequence[str | None] | None = None,
    contents: Sequence[bytes | None] | None = None,
    labels: Any = None,
    features: Any = IMAGE_FEATURE,
    **more: Any,
) -> Any:
    """Images of value 0, 1, … with labels 0, 1, 0, …, as `datasets` stores them."""
    contents = [png(first + i) for i in range(num)] if contents is None else contents
    names = paths or [None] * num
    images = pa.StructArray.from_arrays(
        [pa.array(contents, pa.binary()), pa.array(names, pa.string())], names=["bytes", "path"]
    )
    labels = pa.array([i % 2 for i in range(num)] if labels is None else labels)
    made = pa.table({"image": images, "label": labels, **more})
    return made.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    )


def write(path: Path, content: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(content, path, **options)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, content.schema, **options) as out:
            out.write_table(content, max_chunksize=4)
    return path


def read(path: Path | str, **options: Any) -> dict[str, list[Any]]:
    """(value, label, origin) of each image, or the reason why it is broken."""
    with open_source(path, SourceOptions(**options)) as source:
        return {
            name: [
                (int(s.image[0, 0, 0]), s.label, s.origin) if isinstance(s, Sample) else (s.origin, s.reason)
                for s in split
            ]
            for name, split in source.splits.items()
        }


def message(path: Path, **options: Any) -> str:
    with pytest.raises((DataError, UsageError)) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["train"], ["test"]),
        (["data/train-00000-of-00002", "data/train-00001-of-00002"], ["data/test-00000-of-00001-0123456789abcdef"]),
        (["plain_text/train/0000", "plain_text/train/0001"], ["plain_text/test/0000"]),
        (["cifar10-train"], ["cifar10-test"]),
        (["Training"], ["Testing"]),
    ],
)
def test_the_files_of_each_split_are_found_by_their_names(
    tmp_path: Path, train: list[str], test: list[str], suffix: str
) -> None:
    for index, name in enumerate((*train, *test)):
        write(tmp_path / f"{name}.{suffix}", table(3, 10 * index))
    (tmp_path / "README.md").write_text("a dataset")
    found = read(tmp_path)
    values = [10 * index + i for index in range(len(train)) for i in range(3)]
    assert found["train"] == [(v, v % 10 % 2, f"train[{i}]") for i, v in enumerate(values)]
    assert [value for value, *_ in found["test"]] == [10 * len(train) + i for i in range(3)]


def test_one_file_is_divided_by_test_share_and_the_classes_come_from_its_metadata(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", table(20, paths=[f"{i}.png" for i in range(20)]), row_group_size=3)
    with open_source(path, SourceOptions(test_share=0.2)) as source:
        assert source.class_names == ("cat", "dog")
        samples = {name: list(split) for name, split in source.splits.items()}
    assert {name: len(split) for name, split in samples.items()} == {"train": 16, "test": 4}
    for sample in (*samples["train"], *samples["test"]):
        assert isinstance(sample, Sample)
        value = int(sample.image[0, 0, 0])
        assert (sample.label, sample.origin) == (value % 2, f"{value}.png")
    assert "--test-share" in message(path)


def test_any_position_can_be_read_after_any_other(tmp_path: Path) -> None:
    for path in (
        write(tmp_path / "a.parquet", table(30), row_group_size=7),
        write(tmp_path / "b.arrow", table(30)),
    ):
        with open_source(path, SourceOptions(test_share=0.5)) as source:
            split: Any = source.splits["train"]
            for position in (29, 0, 13, 12, 28, 29, 3):
                assert split.decode(split.fetch(position)).pixels[0, 0, 0] == position


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_validation_is_used_to_test_only_without_a_test_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    write(tmp_path / "train.parquet", table(4))
    write(tmp_path / f"{name}-00000-of-00001.parquet", table(4, 50))
    assert read(tmp_path)["test"][0][0] == 50
    assert f"no test images; the images of {name} are used to test" in caplog.text
    write(tmp_path / "test.parquet", table(4, 100))
    assert read(tmp_path)["test"][0][0] == 100


def test_hidden_files_and_caches_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / "pets.arrow", table(6))
    for name in ("cache-0123.arrow", ".pets.arrow", ".cache/pets.arrow"):
        write(tmp_path / name, table(4))
    assert sum(len(split) for split in read(tmp_path, test_share=0.5).values()) == 6


def test_other_splits_are_named_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train", "test", "extra"):
        write(tmp_path / f"{name}-00000-of-00001.parquet", table(4))
    assert set(read(tmp_path)) == {"train", "test"}
    assert "extra is not used" in caplog.text


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["train-00000-of-00002", "test"], "file 00001-of-00002 of train is missing; found 1"),
        (["train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"], "several sets of files for train"),
        (["train-00000-of-00001", "train-00000-of-00001-abc0"], "several sets of files for train"),
        (["a/train", "b/train"], "holds several datasets: a, b; give one"),
        (["train", "training"], "has train, training; expected one of them"),
        (["train_test"], "its name has train, test; expected one"),
        (["test"], "has the splits test; expected train and test"),
        (["train", "x.arrow"], "has Parquet and Arrow files"),
    ],
)
def test_files_that_are_missing_or_contradict_each_other_are_an_error(
    tmp_path: Path, files: list[str], expected: str
) -> None:
    for name in files:
        write(tmp_path / (name if "." in name else f"{name}.parquet"), table())
    assert expected in message(tmp_path)


def saved(path: Path, *splits: str) -> Path:
    """What `save_to_disk` writes; without splits, a single dataset."""
    for index, split in enumerate(splits or ("",)):
        names = [f"data-{shard:05d}-of-00002.arrow" for shard in range(2)]
        for shard, name in enumerate(names):
            write(path / split / name, table(5, 100 * index + 10 * shard))
        (path / split / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
        (path / split / "dataset_info.json").write_text("{}")
        write(path / split / "cache-0123.arrow", table(1))
    if splits:
        (path / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    return path


def test_a_saved_dataset_is_read_as_its_state_says(tmp_path: Path) -> None:
    found = read(saved(tmp_path / "a", "train", "test"))
    assert [value for value, *_ in found["train"]] == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert [value for value, *_ in found["test"]] == [100, 101, 102, 103, 104, 110, 111, 112, 113, 114]
    assert len(read(saved(tmp_path / "b"), test_share=0.2)["train"]) == 8


def test_a_saved_dataset_with_a_missing_file_or_split_is_an_error(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", "train", "test")
    (folder / "train" / "data-00001-of-00002.arrow").unlink()
    assert "data-00001-of-00002.arrow is missing; expected 2 files" in message(folder)
    folder = saved(tmp_path / "b", "train", "test")
    shutil.rmtree(folder / "test")
    assert "the split 'test' is missing" in message(folder)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"_data_files": [{"filename": "../x.arrow"}]}, "names the file '../x.arrow'"),
        ({"_data_files": [{"filename": 3}]}, "names the file 3"),
        ({"_data_files": []}, "not a dataset that a current version"),
        ({"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": [{"filename": "i"}]}, "save it again"),
        ("[" * 100_000, "cannot be read"),
        ([], "not a mapping"),
    ],
)
def test_a_hostile_state_is_an_error(tmp_path: Path, state: Any, expected: str) -> None:
    folder = saved(tmp_path / "a", "train", "test")
    (folder / "train" / "state.json").write_text(state if isinstance(state, str) else json.dumps(state))
    assert expected in message(folder)


def test_what_datasets_itself_writes_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})

    def make(first: int) -> Any:
        images = [PIL.Image.fromarray(np.full((8, 8, 3), first + i, np.uint8)) for i in range(10)]
        return datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(10)]}, features=features)

    both = datasets.DatasetDict(train=make(0), test=make(100))
    both.save_to_disk(tmp_path / "a", num_shards={"train": 3, "test": 1})
    for name, split in both.items():
        split.to_parquet(tmp_path / "b" / "data" / f"{name}-00000-of-00001.parquet")
    expected = {
        name: [(first + i, i % 2, f"{name}[{i}]") for i in range(10)] for name, first in (("train", 0), ("test", 100))
    }
    assert read(tmp_path / "a") == read(tmp_path / "b") == expected


@pytest.mark.parametrize("kind", ["binary", "large_binary", "large struct", "struct"])
def test_images_are_bytes_or_structs_of_bytes(tmp_path: Path, kind: str) -> None:
    contents = [png(i) for i in range(6)]
    if kind == "large struct":
        images = pa.StructArray.from_arrays(
            [pa.array([None] * 6, pa.large_string()), pa.array(contents, pa.large_binary())], names=["path", "bytes"]
        )
    elif kind == "struct":
        images = pa.array([{"bytes": content, "path": None} for content in contents])  # paths are of the type null
    else:
        images = pa.array(contents, getattr(pa, kind)())
    made = pa.table({"id": list(range(6)), "photo": images, "class": ["cat", "dog"] * 3})
    for suffix in ("parquet", "arrow"):
        found = read(write(tmp_path / f"a.{suffix}", made), test_share=0.5)
        assert sorted((value, label) for value, label, _ in (*found["train"], *found["test"])) == [
            (i, i % 2) for i in range(6)
        ]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["dog", "cat"] * 3, ("cat", "dog")),
        ([10, 9] * 3, ("9", "10")),
        (pa.array(["dog", "cat"] * 3).dictionary_encode(), ("cat", "dog")),
        (pa.DictionaryArray.from_arrays(pa.array([1, 0] * 3, pa.uint8()), pa.array(["dog", "cat"])), ("cat", "dog")),
        (pa.array([2**63, 0] * 3, pa.uint64()), ("0", str(2**63))),
    ],
)
def test_labels_without_names_are_classes_in_sorted_order(tmp_path: Path, labels: Any, names: tuple[str, ...]) -> None:
    for suffix in ("parquet", "arrow"):
        path = write(tmp_path / f"a.{suffix}", table(labels=labels, features=None))
        with open_source(path, SourceOptions(test_share=0.4)) as source:
            assert source.class_names == names
            assert [s.label for s in source.splits["train"] if isinstance(s, Sample)].count(1) == 2


def test_columns_are_chosen_by_name_or_flag(tmp_path: Path) -> None:
    fine = {"fine_label": {"_type": "ClassLabel", "names": ["x", "y"]}}
    coarse = {"coarse_label": {"_type": "ClassLabel", "names": ["z", "w"]}}
    images = table(4)["image"]
    made = pa.table({"img": images, "mask": images, "fine_label": [0, 1, 0, 1], "coarse_label": [1, 1, 0, 0]})
    features = {"img": {"_type": "Image"}, "mask": {"_type": "Image"}, **fine, **coarse}
    path = write(
        tmp_path / "a.parquet",
        made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
    )
    struct = "struct<bytes: binary, path: string>"
    columns = f"the columns are: img ({struct}), mask ({struct}), fine_label (int64), coarse_label (int64)"
    assert f"has several columns of images: img, mask; name it with --image-column; {columns}" in message(path)
    assert "has several columns of labels: fine_label, coarse_label; name it with --label-column" in message(
        path, image_column="img"
    )
    with open_source(path, SourceOptions(image_column="img", label_column="coarse_label", test_share=0.5)) as source:
        assert source.class_names == ("z", "w")
    with pytest.raises(UsageError, match="--label-column is 'lable'; the columns are: img"):
        read(path, image_column="img", label_column="lable")
    assert "column 'mask' cannot be a column of labels" in message(path, image_column="img", label_column="mask")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 2, 1], "train[2]: label 2; expected 0..1"),
        ([0, 1, -1, 1], "train[2]: label -1; expected 0..1 (-1 marks images without a label)"),
        (pa.array([0, 1, None, 1]), "train[2]: the label is null"),
        (pa.array(["a", None, "b", "a"]), "train[1]: the label is null"),
        (pa.array(["a", None, "b", "a"]).dictionary_encode(), "train[1]: the label is null"),
        ([0.0, 1.0, 0.0, 1.0], "no column of labels"),
        ([[0], [1], [0], [1]], "no column of labels"),
        (["Cat", "cat", "dog", "dog"], "differ only in case"),
        (["a\x1b[1m", "b", "b", "b"], "not printable"),
        (["x" * 300, "b", "b", "b"], "has 300 characters"),
        (["a", "b", " ", "b"], "train[2]: label ' '; expected a class name"),
    ],
)
def test_labels_that_cannot_be_used_are_an_error(tmp_path: Path, labels: Any, expected: str) -> None:
    features = IMAGE_FEATURE if "0..1" in expected else None
    for suffix in ("parquet", "arrow"):
        path = write(tmp_path / f"a.{suffix}", table(4, labels=labels, features=features))
        assert expected in message(path, test_share=0.5)


def test_more_classes_than_a_beton_can_hold_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.converters.columns.MAX_CLASSES", 3)
    path = write(tmp_path / "a.parquet", table(labels=range(6), features=None))
    assert "train[3]: over 3 different labels, e.g. 3" in message(path, test_share=0.5)
    features = {**IMAGE_FEATURE, "label": {"_type": "ClassLabel", "names": list("abcd")}}
    assert "4 classes; expected at most 3" in message(write(path, table(features=features)), test_share=0.5)


def test_a_test_label_that_no_training_image_has_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", table(4, labels=["a", "b"] * 2, features=None))
    write(tmp_path / "test.parquet", table(4, labels=["a", "b", "c", "b"], features=None))
    assert "test[2]: label 'c', which no training image has; expected one of: a, b" in message(tmp_path)


def test_files_with_other_columns_or_class_names_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", table())
    write(tmp_path / "test.parquet", table().rename_columns(["image", "class"]))
    assert "column 'label' is not there" in message(tmp_path)
    names = {**IMAGE_FEATURE, "label": {"_type": "ClassLabel", "names": ["dog", "cat"]}}
    write(tmp_path / "test.parquet", table(features=names))
    assert "its class names are not those of" in message(tmp_path)


@pytest.mark.parametrize("value", ["[]", "{", '{"info": 3}', "[" * 100_000])
def test_metadata_that_cannot_be_read_is_an_error(tmp_path: Path, value: str) -> None:
    path = write(tmp_path / "a.parquet", table().replace_schema_metadata({"huggingface": value}))
    assert "its 'huggingface' metadata cannot be read" in message(path)


@pytest.mark.parametrize("names", [3, [1, 2], {"a": 1}])
def test_class_names_that_are_not_a_list_of_text_are_an_error(tmp_path: Path, names: Any) -> None:
    features = {**IMAGE_FEATURE, "label": {"_type": "ClassLabel", "names": names}}
    assert "are not a list of text" in message(write(tmp_path / "a.parquet", table(features=features)))


def test_null_and_damaged_images_are_broken(tmp_path: Path) -> None:
    contents = [png(0), None, b"no image", png(3), png(4)[:-30], png(5)]
    for suffix in ("parquet", "arrow"):
        path = write(tmp_path / f"train.{suffix}", table(contents=contents))
        write(tmp_path / f"test.{suffix}", table())
        with open_source(tmp_path) as source:
            broken = {s.origin: s.reason for s in source.splits["train"] if isinstance(s, Broken)}
        assert broken["train[1]"] == "is null"
        assert "not a readable image" in broken["train[2]"]
        assert set(broken) == {"train[1]", "train[2]", "train[4]"}
        for file in (path, tmp_path / f"test.{suffix}"):
            file.unlink()


def test_a_null_struct_is_broken_whatever_it_hides(tmp_path: Path) -> None:
    images = pa.StructArray.from_arrays(
        [pa.array([png(i) for i in range(4)]), pa.array(["a", "b", "c", "d"])],
        names=["bytes", "path"],
        mask=pa.array([False, True, False, False]),
    )
    path = write(tmp_path / "a.arrow", pa.table({"image": images, "label": [0, 1, 0, 1]}))
    with open_source(path, SourceOptions(test_share=0.5)) as source:
        found = [s.reason for split in source.splits.values() for s in split if isinstance(s, Broken)]
    assert found == ["is null"]


def test_images_next_to_the_table_are_read_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "a" / "images").mkdir(parents=True)
    for index in range(4):
        (tmp_path / "a" / "images" / f"{index}.png").write_bytes(png(index))
    paths = [f"images/{i}.png" for i in range(4)]
    path = write(tmp_path / "a" / "x.parquet", table(4, contents=[None] * 4, paths=paths))
    found = read(path, test_share=0.5)
    assert sorted((*found["train"], *found["test"])) == [(i, i % 2, f"images/{i}.png") for i in range(4)]
    (tmp_path / "secret.png").write_bytes(png(9))
    for outside in ("../secret.png", str(tmp_path / "secret.png"), "images/../../secret.png", "https://x.org/a.png"):
        write(path, table(4, contents=[None] * 4, paths=[*paths[:3], outside]))
        assert "is not in the file, and outside the folder" in message(path, test_share=0.5)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_truncated_or_other_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", table(40))
    content = path.read_bytes()
    kind = suffix.capitalize()
    for length in (0, 3, 100, len(content) // 2, len(content) - 8, len(content) - 1):
        path.write_bytes(content[:length])
        assert f"truncated or corrupt {kind} file" in message(path, test_share=0.5)
    path.write_bytes(b"<!doctype html>" + b" " * 100)
    assert "it is an HTML page" in message(path, test_share=0.5)


def test_what_is_no_regular_file_is_an_error(tmp_path: Path) -> None:
    for suffix in ("parquet", "arrow"):
        pipe = tmp_path / suffix / f"train.{suffix}"
        pipe.parent.mkdir()
        os.mkfifo(pipe)
        assert "(not a regular file)" in message(pipe.parent)


def test_damaged_bytes_give_images_or_one_line_and_never_a_crash(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for suffix in ("parquet", "arrow"):
        content = write(tmp_path / f"a.{suffix}", table(12)).read_bytes()
        for _ in range(60):
            damaged = bytearray(content)
            for position in random.integers(0, len(content), 4).tolist():
                damaged[position] = int(random.integers(256))
            (tmp_path / f"b.{suffix}").write_bytes(bytes(damaged))
            with contextlib.suppress(DataError):
                read(tmp_path / f"b.{suffix}", test_share=0.5)


def test_offsets_outside_an_arrow_file_are_refused(tmp_path: Path) -> None:
    content = write(tmp_path / "a.arrow", table(4)).read_bytes()
    sizes = [0, *np.cumsum([len(png(i)) for i in range(4)]).tolist()]
    offsets = struct.pack("<5i", *sizes)
    assert content.count(offsets) == 1
    (tmp_path / "a.arrow").write_bytes(content.replace(offsets, struct.pack("<5i", *sizes[:4], 2**30)))
    assert "truncated or corrupt Arrow file" in message(tmp_path / "a.arrow", test_share=0.5)


def test_compressed_arrow_and_feather_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", table(4), options=pa.ipc.IpcWriteOptions(compression="zstd"))
    assert "compressed; write it with save_to_disk" in message(path)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table().schema) as out:
        out.write_table(table())
    assert "a Feather file" in message(path)


def test_a_file_of_too_many_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.converters.arrow_files.MAX_ROWS", 5)
    for suffix in ("parquet", "arrow"):
        assert "6 rows; expected at most 5" in message(write(tmp_path / f"a.{suffix}", table()))


def test_a_huge_cell_is_a_broken_image_and_few_are_held_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastcifar.converters.arrow_files.MAX_IMAGE_BYTES", 2**20)
    large = pa.array([b"x" * 2**21]).dictionary_encode()
    images = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), large.dictionary)
    made = pa.table({"image": images, "label": [0, 1] * 32})
    path = write(tmp_path / "a.parquet", made, store_schema=False)
    assert path.stat().st_size < 2**18  # a dictionary of one cell
    before = pa.total_allocated_bytes()
    cells = ArrowFile(path).cells("image", 0)
    assert "has 2 MiB; expected at most" in str(next(cells))
    assert pa.total_allocated_bytes() - before < 12 * 2**21
    cells.close()  # type: ignore[attr-defined]


def test_a_huge_path_is_a_broken_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.converters.arrow_files.MAX_IMAGE_BYTES", 2**20)
    path = write(tmp_path / "a.parquet", table(2, paths=["x" * 2**21, None]))
    assert [isinstance(cell, ImageError) for cell in ArrowFile(path).cells("image", 0)] == [True, False]


def test_long_labels_are_refused_and_those_of_few_rows_are_held_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of kilobytes can hold gigabytes of text."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = pa.table({"image": [b"x"] * 4, "label": [f"{row}{'a' * 1_000}" for row in range(4)]})
    path = tmp_path / "a.parquet"
    with pq.ParquetWriter(path, rows.schema, compression="zstd") as writer:
        for _ in range(3):
            writer.write_table(rows)
    assert [len(indices) for _, indices in ArrowFile(path).labels("label")] == [4, 4, 4]  # a row group at a time
    with pytest.raises(DataError, match=r"label '0a{19}'… has 1,001 characters; expected at most 255"):
        open_source(path, SourceOptions(test_share=0.5))
    monkeypatch.setattr("fastcifar.converters.arrow_files.MAX_LABEL_BYTES", 4_000)
    with pytest.raises(DataError, match="'label' of row group 0 unpacks to 0 MiB; is it the label"):
        open_source(path, SourceOptions(test_share=0.5))


def test_a_row_group_that_expands_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.converters.arrow_files.MAX_EXPANSION", 0)
    monkeypatch.setattr("fastcifar.converters.arrow_files.MAX_GROUP_BYTES", 0)
    path = write(tmp_path / "a.parquet", table())
    with pytest.raises(DataError, match="row group 0 unpacks to"):
        list(ArrowFile(path).cells("image", 0))


def test_arrays_and_texts_are_not_images(tmp_path: Path) -> None:
    made = pa.table({"image": [[[0, 1], [2, 3]]] * 4, "label": [0, 1, 0, 1], "x\n" * 100: [0] * 4})
    reason = message(write(tmp_path / "a.arrow", made))
    assert "has no column of images; name it with --image-column; the columns are: image (list<" in reason
    assert len(reason) < 400
    with pytest.raises(DataError, match="column 'image' cannot be a column of images"):
        read(tmp_path / "a.arrow", image_column="image")


def test_a_folder_of_images_is_not_taken_for_a_dataset(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.png").write_bytes(png(1))
    write(tmp_path / "labels.parquet", pa.table({"file": ["a"], "label": ["b"]}))
    (tmp_path / "state.json").write_text("{}")
    with open_source(tmp_path) as source:
        assert source.class_names == ("cat", "dog")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", table())
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"fastcifar\[hf\]"):
        open_source(path)
    with pytest.raises(MissingExtraError, match=r"fastcifar\[hf\]"):
        open_source(tmp_path)


def test_a_dataset_of_the_hub_is_converted_with_its_names_and_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a stand-in for `load_dataset`: tests have no network."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})

    def load_dataset(path: str, name: str | None) -> Any:
        print("downloading")  # noqa: T201
        assert (path, name) == ("owner/pets", "small")
        rows = [{"bytes": png(i), "path": None} for i in range(6)]
        made = datasets.Dataset.from_dict({"img": rows, "label": [0, 1] * 3}, features=features)
        return datasets.DatasetDict(train=made, validation=made)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    manifests = convert("hf:owner/pets:small", tmp_path)
    assert manifests["train"].class_names == ("cat", "dog")
    assert manifests["train"].source == "hf:owner/pets:small, Hugging Face"
    assert read("hf:owner/pets:small")["test"] == [(i, i % 2, f"test[{i}]") for i in range(6)]
    assert read("hf:owner/pets:small", image_column="img", label_column="label")["test"][1][:2] == (1, 1)
    assert capsys.readouterr().out == ""


def test_files_of_the_hub_outside_its_cache_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "cache").mkdir()
    for name in ("cache/a.png", "b.png"):
        (tmp_path / name).write_bytes(png(7))
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "cache"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})

    def load_dataset(path: str, name: str | None) -> Any:
        rows = [{"bytes": None, "path": str(tmp_path / path)}] * 2
        made = datasets.Dataset.from_dict({"image": rows, "label": [0, 1]}, features=features)
        return datasets.DatasetDict(train=made, test=made)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [value for value, *_ in read("hf:cache/a.png")["train"]] == [7, 7]
    with pytest.raises(DataError, match="outside the cache of Hugging Face"):
        read("hf:b.png")


def test_errors_of_the_hub_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(path: str, name: str | None) -> Any:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"hf:a/b cannot be loaded \(ConnectionError: no network\)"):
        open_source("hf:a/b")
    with pytest.raises(UsageError, match="expected hf:OWNER/NAME"):
        open_source("hf:a/b/c")
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(MissingExtraError, match="4 or later is required"):
        open_source("hf:a/b")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"fastcifar\[hf\]"):
        open_source("hf:a/b")


def test_a_converted_parquet_keeps_paths_as_origins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    write(tmp_path / "in" / "train.parquet", table(paths=[f"{i}.png" for i in range(6)]))
    write(tmp_path / "in" / "test.parquet", table(first=50))
    convert(tmp_path / "in", tmp_path / "out")
    origins = {name: (tmp_path / "out" / f"{name}.beton.origins.txt").read_text().split() for name in ("train", "test")}
    assert origins == {"train": [f"{i}.png" for i in range(6)], "test": [f"test[{i}]" for i in range(6)]}
