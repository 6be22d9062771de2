"""Arrays of images in .npz, .npy and .mat files: found by name and shape, read by position, never with pickle."""

from __future__ import annotations

import io
import logging
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastcifar.converters import Sample, SourceOptions, array_files, open_source
from fastcifar.converters.array_names import read_words
from fastcifar.data.image_files import Preprocessing
from fastcifar.errors import DataError, FastcifarError, UsageError

RANDOM = np.random.default_rng(0)
Array = npt.NDArray[Any]


def images(*shape: int) -> npt.NDArray[np.uint8]:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def labels(count: int = 9) -> npt.NDArray[np.int64]:
    return np.arange(count) % 3


def read(
    path: Path, size: tuple[int, int] | None = None, **options: Any
) -> tuple[tuple[str, ...], dict[str, list[Sample]]]:
    """The class names, and the images of each split."""
    chosen = SourceOptions(preprocessing=Preprocessing(size=size), **options)
    with open_source(path, chosen) as source:
        found: dict[str, list[Any]] = {name: list(split) for name, split in source.splits.items()}
        assert all(isinstance(sample, Sample) for split in found.values() for sample in split)
        return source.class_names, found


def in_order(path: Path, **options: Any) -> list[Sample]:
    """All images of arrays without test images, in the order of the array."""
    _, splits = read(path, test_share=0.3, **options)
    return sorted(splits["train"] + splits["test"], key=lambda sample: int(sample.origin.split("[")[1][:-1]))


def save(folder: Path, **arrays: Array) -> Path:
    np.savez(folder / "a.npz", **arrays)  # type: ignore[arg-type]
    return folder / "a.npz"


def refusal(path: Path, kind: type[FastcifarError] = DataError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        in_order(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{path.parent}/", "")


# ---- which arrays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x_train", ("train", "images", ())),
        ("y_test", ("test", "labels", ())),
        ("X_train", ("train", "images", ())),
        ("Xtrain", ("train", "images", ())),
        ("trainY", ("train", "labels", ())),
        ("training_images", ("train", "images", ())),
        ("val_labels", ("val", "labels", ())),
        ("targets", (None, "labels", ())),
        ("arr_0", (None, None, ())),
        ("class_names", (None, "class names", ())),
        ("kmnist-train-imgs", ("train", "images", ("kmnist",))),
        ("train_32x32", ("train", None, ("32x32",))),
    ],
)
def test_names_of_arrays_are_understood(name: str, words: tuple[Any, ...]) -> None:
    assert read_words(name) == words


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_keras_names_make_both_splits(tmp_path: Path, write: Any) -> None:
    x, x_test = images(9, 6, 5, 3), images(3, 5, 4, 3)
    write(tmp_path / "a.npz", x_train=x, y_train=labels()[:, None], x_test=x_test, y_test=labels(3)[:, None])
    class_names, splits = read(tmp_path / "a.npz")
    assert class_names == ("0", "1", "2")
    assert np.array_equal([sample.image for sample in splits["train"]], x)
    assert np.array_equal([sample.image for sample in splits["test"]], x_test)
    assert [sample.label for sample in splits["train"]] == labels().tolist()
    assert splits["train"][7].origin == "x_train[7]"
    assert not splits["train"][7].changes


def test_medmnists_validation_images_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = {f"{split}_images": images(3, 4, 4) for split in ("train", "val", "test")}
    parts |= {f"{split}_labels": labels(3)[:, None].astype(np.uint8) for split in ("train", "val", "test")}
    _, splits = read(save(tmp_path, **parts))
    assert splits["test"][0].origin == "test_images[0]"
    assert "'val' is not used: there is a test set of its own" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ("images", "labels"),
        ("data", "target"),
        ("X", "y"),
        ("arr_1", "arr_0"),
        ("photos", "species"),
        ("train", "train_y"),
    ],
)
def test_arrays_without_split_are_found_by_name_or_shape(tmp_path: Path, names: tuple[str, str]) -> None:
    x = images(9, 5, 6, 3)
    samples = in_order(save(tmp_path, **{names[1]: labels(), names[0]: x}))
    assert np.array_equal([sample.image for sample in samples], x)
    assert [sample.label for sample in samples] == labels().tolist()


def test_arrays_that_are_used_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    in_order(save(tmp_path, x=images(9, 4, 4), y=labels(), old_x=images(9, 4, 4), old_y=labels()))
    assert caplog.messages[0].endswith("a.npz: images and labels: train: x, y")


def test_npy_files_are_found_by_the_names_of_their_partners(tmp_path: Path) -> None:
    x, x_test = images(9, 5, 6, 3), images(3, 5, 6, 3)
    arrays = {"X_train": x, "y_train": labels(), "X_test": x_test, "y_test": labels(3)}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    for source in (tmp_path, tmp_path / "X_train.npy", tmp_path / "y_test.npy"):
        _, splits = read(source)
        assert np.array_equal([sample.image for sample in splits["train"]], x)
        assert np.array_equal([sample.image for sample in splits["test"]], x_test)
        assert splits["test"][1].origin == "X_test.npy[1]"


def test_labels_of_an_npy_file_can_be_named(tmp_path: Path) -> None:
    np.save(tmp_path / "photos.npy", images(9, 4, 4))
    np.save(tmp_path / "species.npy", labels())
    assert "name them with --labels-file" in refusal(tmp_path / "photos.npy")
    samples = in_order(tmp_path / "photos.npy", labels_file=str(tmp_path / "species.npy"))
    assert [sample.label for sample in samples] == labels().tolist()
    missing = refusal(tmp_path / "photos.npy", labels_file=str(tmp_path / "nothing.npy"))
    assert missing == "nothing.npy: no such file; expected the labels, as --labels-file"


def test_a_folder_with_class_folders_is_no_folder_of_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", labels())
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="no images"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": images(9, 4, 4)}, "no pair of images and labels; expected e.g. x_train and y_train"),
        ({"foo": images(9, 4, 4), "bar": labels(), "baz": labels()}, "several are possible: bar, baz"),
        ({"x": images(9, 4, 4), "y": labels(), "x_test": images(9, 4, 4)}, "test: no labels"),
        ({"x_test": images(9, 4, 4), "y_test": labels()}, "no training images"),
        ({"x": images(9, 4, 4), "y": labels(7)}, "and y has 7 labels; expected one label for each image"),
        ({"x": images(9, 3072), "y": labels()}, "its images are flat; save it again with height and width"),
        ({"x": images(9, 784), "y": labels()}, "height and width, e.g. x.reshape(-1, 28, 28)"),
        ({"x": images(9, 3072), "y": labels()}, "x.reshape(-1, 3, 32, 32), or with (-1, 32, 32, 3) if the values of"),
        ({"x": images(4, 4, 3, 9), "y": labels()}, "expected the images along the first axis: save it again"),
        ({"x": np.asfortranarray(images(9, 5, 6, 3)), "y": labels()}, "save it again with numpy.ascontiguousarray"),
        ({"x": images(9, 5, 6, 7), "y": labels()}, "with 1, 3 or 4 channels C"),
        ({"x": images(9, 0, 4), "y": labels()}, "x has shape (9, 0, 4); expected images"),
        ({"x": images(0, 4, 4), "y": labels(0)}, "y has shape (0,); expected labels (N,)"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_an_error(tmp_path: Path, arrays: dict[str, Array], message: str) -> None:
    assert message in refusal(save(tmp_path, **arrays))


# ---- axes and values ----------------------------------------------------------------------------------------------


def test_the_shape_says_where_the_channels_are(tmp_path: Path) -> None:
    x = images(9, 6, 5, 3)
    for array in (x, x.transpose(0, 3, 1, 2)):
        samples = in_order(save(tmp_path, x=array, y=labels()))
        assert np.array_equal([sample.image for sample in samples], x)


def test_an_ambiguous_shape_needs_the_option(tmp_path: Path) -> None:
    x = images(9, 3, 5, 4)
    path = save(tmp_path, x=x, y=labels())
    assert "whose channels may be first or last; say which with --channels first or last" in refusal(path)
    first = in_order(path, channels="first")
    assert np.array_equal([sample.image for sample in first], x.transpose(0, 2, 3, 1))
    assert in_order(path, channels="last")[0].image.shape == (3, 5, 3)
    grey = save(tmp_path, x=images(9, 4, 4), y=labels())
    assert "without an axis of channels" in refusal(grey, UsageError, channels="first")


def test_grey_transparent_and_resized_images_are_counted(tmp_path: Path) -> None:
    grey = images(9, 5, 6)
    for array in (grey, grey[..., None], grey[:, None]):
        sample = in_order(save(tmp_path, x=array, y=labels()))[8]
        assert np.array_equal(sample.image, np.repeat(grey[8, ..., None], 3, axis=2))
        assert sample.changes == ("grey",)
    rgba = np.concatenate([images(9, 5, 6, 3), np.zeros((9, 5, 6, 1), np.uint8)], axis=3)
    sample = in_order(save(tmp_path, x=rgba, y=labels()), size=(2, 3))[0]
    assert sample.changes == ("transparent", "resized")
    assert sample.image.shape == (2, 3, 3)
    assert sample.size == (5, 6)
    assert (sample.image == 255).all()


WIDE = np.array([0, 1, 127, 128, 255, 256, 1_000, 40_000, 65_535])


@pytest.mark.parametrize(
    ("values", "options", "expected", "changes"),
    [
        (np.arange(9, dtype=np.uint8) * 30, {}, np.arange(9) * 30, ()),
        (np.arange(9) % 2 == 1, {}, np.arange(9) % 2 * 255, ("scaled",)),
        (WIDE.astype(np.uint16), {}, WIDE >> 8, ("16-bit",)),
        (WIDE.astype(">u2"), {}, WIDE >> 8, ("16-bit",)),
        (np.linspace(0, 1, 9), {}, np.rint(np.linspace(0, 255, 9)), ("scaled",)),
        (np.linspace(0, 1, 9, dtype=">f4"), {}, np.rint(np.linspace(0, 255, 9)), ("scaled",)),
        (np.arange(9) * 2.0, {"max_value": 16}, np.rint(np.arange(9) * 2 * 255 / 16), ("scaled",)),
        (np.arange(9) * 2, {"max_value": 16}, np.rint(np.arange(9) * 2 * 255 / 16), ("scaled",)),
        (np.arange(9, dtype=np.uint8) * 2, {"max_value": 16}, np.rint(np.arange(9) * 2 * 255 / 16), ("scaled",)),
        (np.arange(9) * 30, {"max_value": 255}, np.arange(9) * 30, ("scaled",)),
    ],
)
def test_values_become_0_to_255(
    tmp_path: Path, values: Array, options: dict[str, Any], expected: Array, changes: tuple[str, ...]
) -> None:
    x = np.broadcast_to(values[:, None, None, None], (9, 2, 2, 3)).astype(values.dtype)
    samples = in_order(save(tmp_path, x=x, y=labels()), **options)
    assert [int(sample.image[1, 1, 2]) for sample in samples] == expected.astype(int).tolist()
    assert samples[0].changes == changes


@pytest.mark.parametrize(
    ("value", "dtype", "options", "message"),
    [
        (16, "f8", {}, "x has dtype float64 and values of 0..16; expected 0..1: say which value is white"),
        (255, "f4", {}, "e.g. --max-value 255"),
        (200, "i8", {}, "expected uint8: say which value is white, e.g. --max-value 255"),
        (200, "u2", {}, "values of 0..200; expected 0..65535: say which value is white, e.g. --max-value 255"),
        (-0.5, "f8", {}, "x[8] has the value -0.5; expected values from 0 (black) to white: undo a normalisation"),
        (np.nan, "f8", {}, "x[8] has the value nan"),
        (np.inf, "f8", {"max_value": 3}, "x[8] has the value inf"),
        (-3, "i4", {"max_value": 3}, "x[8] has the value -3"),
        (17, "f8", {"max_value": 16}, "x[8] has the value 17; expected at most 16, as --max-value says"),
        (1j, "c16", {}, "it has dtype complex128; expected numbers or text"),
    ],
)  # fmt: skip
def test_values_of_another_range_are_an_error(
    tmp_path: Path, value: Any, dtype: str, options: dict[str, Any], message: str
) -> None:
    x = np.zeros((9, 2, 2), dtype)
    x[8, 1, 1] = value
    assert message in refusal(save(tmp_path, x=x, y=labels()), **options)


@pytest.mark.parametrize(("highest", "is_dark"), [(16, True), (17, False)])
def test_dark_images_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, highest: int, is_dark: bool
) -> None:
    in_order(save(tmp_path, x=np.full((9, 2, 2), highest, np.uint8), y=labels()))
    assert ("almost black: the largest value is 16, and white is 255; say if another" in caplog.text) == is_dark


# ---- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "names"),
    [
        (labels().astype(np.uint8) + 9, ("9", "10", "11")),
        (labels().astype(np.float32) - 1, ("-1", "0", "1")),
        (labels() == 1, ("0", "1")),
        (labels()[None], ("0", "1", "2")),
        (np.eye(4)[labels()], ("0", "1", "2", "3")),
        (np.eye(3, dtype=bool)[labels()], ("0", "1", "2")),
        (np.array(["cat", "dog", "ape"])[labels()], ("ape", "cat", "dog")),
        (np.array(["cat", "dog", "ape"])[labels()].astype("S"), ("ape", "cat", "dog")),
    ],
)
def test_labels_of_many_kinds(tmp_path: Path, array: Array, names: tuple[str, ...]) -> None:
    class_names, splits = read(save(tmp_path, x=images(9, 2, 2), y=array), test_share=0.3)
    assert class_names == names
    assert {sample.label for sample in splits["train"]} <= set(range(len(names)))


def test_class_names_are_taken_from_their_array(tmp_path: Path) -> None:
    path = save(tmp_path, x=images(9, 2, 2), y=labels(), class_names=np.array(["cat", "dog", "ape", "owl"]))
    class_names, _ = read(path, test_share=0.3)
    assert class_names == ("cat", "dog", "ape", "owl")
    assert [sample.label for sample in in_order(path)] == labels().tolist()
    few = save(tmp_path, x=images(9, 2, 2), y=labels(), class_names=np.array(["cat", "dog"]))
    assert "label '2'; expected 0..1, of its class names" in refusal(few)


@pytest.mark.parametrize(
    ("array", "names", "expected"),
    [
        (labels(), ("1", "3", "7"), [0, 1, 2]),  # indices, of which one is a name too
        (labels() * 2 + 1, ("1", "3", "5"), [0, 1, 2]),
        (labels() + 1, ("1", "2", "3"), [0, 1, 2]),
        ((labels() + 1).astype(str), ("3", "2", "1", "0"), [2, 1, 0]),  # text: names
        (np.eye(3)[labels()], ("2", "1", "0"), [0, 1, 2]),
        (labels(), ("0", "1", "2"), [0, 1, 2]),
    ],
)
def test_all_labels_are_names_or_all_are_indices(
    tmp_path: Path, array: Array, names: tuple[str, ...], expected: list[int]
) -> None:
    path = save(tmp_path, x=images(9, 2, 2), y=array, class_names=np.array(names))
    class_names, _ = read(path, test_share=0.3)
    assert class_names == names
    assert [sample.label for sample in in_order(path)] == expected * 3


def test_a_digit_that_is_no_number_is_a_name_or_refused(tmp_path: Path) -> None:
    path = save(tmp_path, x=images(9, 2, 2), y=np.array(["²", "x", "y"] * 3), class_names=np.array(["x", "y"]))
    assert r"label '\xb2'; expected 0..1, of its class names" in refusal(path)


def test_numbers_that_are_names_and_indices_are_refused(tmp_path: Path) -> None:
    swapped = save(tmp_path, x=images(9, 2, 2), y=labels() % 2, class_names=np.array(["1", "0"]))
    assert "label 0 can be class '0', and the index of class '1'; expected one of them: save the" in refusal(swapped)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (labels() + 0.5, "y[0] is 0.5; expected a class: a whole number"),
        (np.where(labels() == 2, np.nan, labels()), "y[2] is nan; expected a class: a whole number"),
        (np.array(["a", "", "b"])[labels()], "y[1] has no label; expected a class name"),
        (np.array(["a", "A", "b"])[labels()], "the labels 'A' and 'a' differ only in case"),
        (np.tri(9, 3, dtype=int), "y has shape (9, 3), and its row 1 is not one 1 among zeros"),
        (np.zeros((9, 2, 2)), "y has shape (9, 2, 2); expected labels (N,)"),
    ],
)
def test_labels_that_are_no_classes_are_an_error(tmp_path: Path, array: Array, message: str) -> None:
    assert message in refusal(save(tmp_path, x=images(9, 2, 2), y=array))


def test_a_class_without_training_images_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path, x_train=images(2, 2, 2), y_train=labels(2), x_test=images(3, 2, 2), y_test=labels(3))
    with pytest.raises(DataError, match="test has the label '2', which train does not have; expected one of: 0, 1"):
        read(path)


# ---- damaged and hostile files ------------------------------------------------------------------------------------


def npy(shape: tuple[int, ...], content: bytes = b"", descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def zipped(path: Path, members: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    objects = np.array([1, "a", None] * 3, dtype=object)
    message = refusal(save(tmp_path, x=images(9, 2, 2), y=objects))
    assert message.startswith("a.npz: y: cannot be read (it holds Python objects, which can run code; save numbers")
    np.save(tmp_path / "y.npy", objects, allow_pickle=True)
    np.save(tmp_path / "x.npy", images(9, 2, 2))
    assert "it holds Python objects" in refusal(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy((9, 10**9, 10**9, 10**9)), "cannot be read (it has 128 bytes; expected 9,000,000,000"),
        (npy((9, 2, 2), bytes(35)), "cannot be read (it has 163 bytes; expected 164 by its header: is it truncated?)"),
        (npy((9, 2, 2), bytes(37)), "expected 164 by its header"),
        (b"\x93NUMPY\x02\0\xff\xff\xff\x7f{" + bytes(99), "cannot be read ("),
        (b"\x93NUMPY\x03\0\x10\0\0\0{}" + bytes(99), "it has version 3.0"),
        (b"GIF89a" + bytes(200), "it is a GIF image; expected a NumPy array"),
        (npy((9, 2, 2), bytes(9 * 4 * 8), "<M8[s]"), "expected numbers or text"),
        (npy((9, -2, -2), bytes(36)), "cannot be read ("),
        (b"", "it is an empty file"),
    ],
)
def test_an_array_that_does_not_fit_its_header_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = zipped(tmp_path / "a.npz", {"x": content, "y": npy((9,), bytes(9))})
    assert message in refusal(path)
    (tmp_path / "x.npy").write_bytes(content)
    np.save(tmp_path / "y.npy", labels())
    assert message in refusal(tmp_path / "x.npy")


@pytest.mark.parametrize(("first", "is_warning"), [(-1, True), (0, False)])
def test_a_label_of_minus_one_is_a_class_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, first: int, is_warning: bool
) -> None:
    with open_source(save(tmp_path, x=images(9, 2, 2), y=labels() + first), SourceOptions(test_share=0.3)) as source:
        assert source.class_names[0] == str(first)
    assert ("the label -1 is a class of its own" in caplog.text) == is_warning


def test_labels_that_are_no_file_are_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(9, 2, 2))
    (tmp_path / "y.npy").mkdir()
    for name, reason in (("y.npy", "not a regular file"), ("z.npy", "no such file")):
        with pytest.raises(DataError, match=f"{name}: {reason}; expected the labels, as --labels-file"):
            open_source(tmp_path / "x.npy", SourceOptions(labels_file=str(tmp_path / name)))


def test_a_truncated_archive_is_said_to_be_one(tmp_path: Path) -> None:
    path = save(tmp_path, x=images(9, 2, 2), y=labels())
    path.write_bytes(path.read_bytes()[:-30])
    assert "it is truncated: a ZIP archive without its end" in refusal(path)


def test_an_array_is_unpacked_only_into_half_of_the_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, x=images(9, 20, 20, 3), y=labels())
    usage = type("Usage", (), {"free": 20_000})
    monkeypatch.setattr(array_files.shutil, "disk_usage", lambda folder: usage)
    assert "MiB unpacked, over half of the free space in" in refusal(path)


def test_images_have_at_most_64_mib(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", labels(2))
    with (tmp_path / "x.npy").open("wb") as file:
        file.write(npy((2, 2**14, 2**13)))
        file.truncate(file.tell() + 2**28)  # sparse
    assert "x.npy has shape (2, 16384, 8192); expected at most 64 MiB an image" in refusal(tmp_path / "x.npy")


def test_other_compressions_and_damage_are_an_error(tmp_path: Path) -> None:
    members = {"x": npy((9, 2, 2), bytes(36)), "y": npy((9,), bytes(9))}
    path = zipped(tmp_path / "a.npz", members, zipfile.ZIP_LZMA)
    assert "uses a compression that NumPy does not write" in refusal(path)
    content = bytearray(save(tmp_path, x=images(9, 2, 2, 3), y=labels()).read_bytes())
    content[200] ^= 1  # of the values of x
    path.write_bytes(content)
    assert "cannot be read (Bad CRC-32 for file 'x.npy')" in refusal(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    assert refusal(path) == "a.npz: cannot be read (it is a PNG image); expected .npz, .npy or .mat"


def test_the_number_of_arrays_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_files, "MAX_ARRAYS", 1)
    assert "it has 2 arrays; expected at most 1" in refusal(save(tmp_path, x=images(9, 2, 2), y=labels()))


def test_a_file_that_became_shorter_is_no_crash(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(9, 32, 32, 3))
    np.save(tmp_path / "y.npy", labels())
    with open_source(tmp_path / "x.npy", SourceOptions(test_share=0.3)) as source:
        with (tmp_path / "x.npy").open("r+b") as file:
            file.truncate(1_000)
        reasons = [getattr(sample, "reason", "") for sample in source.splits["train"]]
    assert set(reasons) == {"cannot be read: the file became shorter"}


# ---- MATLAB -------------------------------------------------------------------------------------------------------


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(name: bytes, array: Array, *, number: int = 9, kind: int = 2, shape: tuple[int, ...] | None = None) -> bytes:
    """A variable of class `number`, whose values are stored as type `kind`."""
    shape = shape or array.shape
    content = element(6, struct.pack("<II", number, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, content + element(1, name) + element(kind, array.tobytes("F")))


def mat(path: Path, *variables: bytes, is_compressed: bool = False) -> Path:
    if is_compressed:
        packed = [zlib.compress(variable) for variable in variables]
        variables = tuple(struct.pack("<II", 15, len(content)) + content for content in packed)
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + b"".join(variables))
    return path


def svhn(x: npt.NDArray[np.uint8]) -> tuple[bytes, bytes]:
    """X (32, 32, 3, N) and y (N, 1), 1 to 10."""
    y = (np.arange(len(x)) % 10 + 1).astype(np.uint8)[:, None]
    return matrix(b"X", x.transpose(1, 2, 3, 0)), matrix(b"y", y)


@pytest.mark.parametrize("is_compressed", [True, False])
def test_svhns_files_are_read(tmp_path: Path, is_compressed: bool) -> None:
    x, x_test = images(20, 32, 32, 3), images(10, 32, 32, 3)
    path = mat(tmp_path / "train_32x32.mat", *svhn(x), is_compressed=is_compressed)
    assert len(in_order(path)) == 20
    mat(tmp_path / "test_32x32.mat", *svhn(x_test), is_compressed=is_compressed)
    mat(tmp_path / "extra_32x32.mat", *svhn(x_test), is_compressed=is_compressed)
    class_names, splits = read(path)
    assert class_names == tuple("0123456789")
    assert [sample.label for sample in splits["train"]] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    assert np.array_equal([sample.image for sample in splits["train"]], x)
    assert np.array_equal([sample.image for sample in splits["test"]], x_test)
    assert splits["train"][3].origin == "train_32x32.mat:X[3]"


@pytest.mark.parametrize("do_compression", [True, False])
def test_files_that_scipy_writes_are_read(tmp_path: Path, do_compression: bool) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    x = images(9, 5, 4)
    variables = {"images": x.transpose(1, 2, 0), "labels": labels().astype(float), "about": {"year": 2011}}
    scipy_io.savemat(tmp_path / "a.mat", variables, do_compression=do_compression)
    samples = in_order(tmp_path / "a.mat")
    assert np.array_equal([sample.image[..., 0] for sample in samples], x)
    assert [sample.label for sample in samples] == labels().tolist()


def test_what_the_message_about_images_along_the_first_axis_says_helps(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    x, y = images(9, 5, 4, 3), labels()
    scipy_io.savemat(tmp_path / "a.mat", {"x": x, "y": y})
    assert refusal(tmp_path / "a.mat") == (
        "a.mat: x has shape (9, 5, 4, 3), and y has 9 labels; expected the images along the last axis: save it again "
        "with numpy.moveaxis(x, 0, -1), or as .npz"
    )
    scipy_io.savemat(tmp_path / "a.mat", {"x": np.moveaxis(x, 0, -1), "y": y})
    for path in (tmp_path / "a.mat", save(tmp_path, x=x, y=y)):
        assert np.array_equal([sample.image for sample in in_order(path)], x)


def test_values_have_the_type_of_the_variable_not_of_its_storage(tmp_path: Path) -> None:
    ones = np.ones((4, 4, 9), np.uint8)  # MATLAB stores a matrix of double 0 and 1 as bytes
    path = mat(tmp_path / "a.mat", matrix(b"x", ones, number=6), matrix(b"y", labels().astype(np.uint8)[:, None]))
    assert (in_order(path)[0].image == 255).all()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ([matrix(b"x", images(4, 4, 9), number=2)], "x is a struct, which is not read; save numbers"),
        ([matrix(b"x", images(4, 4, 9), number=3)], "x is an object"),
        ([matrix(b"x", images(4, 4, 9), number=16)], "x is a function"),
        (
            [matrix(b"x", images(4, 4, 9), shape=(4, 4, 2**30))],
            "(x has 144 bytes of values, which does not fit its shape",
        ),
        ([matrix(b"x", images(4, 4, 9), shape=(4, 4, -9))], "has values of type 2 and shape (4, 4, -9)"),
        ([matrix(b"x", images(4, 4, 9))[:-50]], "(truncated)"),
        ([element(9, bytes(20))], "it has an element of type 9; expected matrices"),
        ([struct.pack("<II", 15, 8) + bytes(8)], "cannot be read ("),
    ],
)
def test_a_damaged_or_hostile_mat_file_is_an_error(tmp_path: Path, variables: list[bytes], message: str) -> None:
    path = mat(tmp_path / "a.mat", *variables)
    assert message in refusal(path)


def test_a_damaged_compressed_variable_is_an_error(tmp_path: Path) -> None:
    x = matrix(b"x", images(4, 4, 3, 9))
    longer = zlib.compress(x + bytes(10_000))
    y = matrix(b"y", labels().astype(np.uint8)[:, None])
    path = mat(tmp_path / "a.mat", struct.pack("<II", 15, len(longer)) + longer, y)
    assert "x: cannot be read (it is longer than its header says)" in refusal(path)
    damaged = bytearray(zlib.compress(x))
    damaged[-1] ^= 1  # the checksum
    mat(path, struct.pack("<II", 15, len(damaged)) + damaged, y)
    assert "cannot be read (Error -3 while decompressing data: incorrect data check)" in refusal(path)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(600), "it has version 7.3 (HDF5), which is not supported"),
        (b"\0\0\0\0" + bytes(200), "it is not a MATLAB file of version 5; save it in MATLAB with -v7"),
        (b"", "it is not a MATLAB file of version 5"),
    ],
)
def test_other_versions_of_mat_files_are_an_error(tmp_path: Path, head: bytes, message: str) -> None:
    (tmp_path / "a.mat").write_bytes(head)
    assert message in refusal(tmp_path / "a.mat")
