"""`fastcifar.convert` of datasets of Python: what it accepts, and what it says about the rest."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import fastcifar
from fastcifar.converters import Sample, SourceOptions
from fastcifar.converters.open_source import with_test_images
from fastcifar.converters.python_dataset import open_dataset
from fastcifar.converters.sources import Source
from fastcifar.data.image_files import Preprocessing
from fastcifar.errors import DataError, Stopped, UsageError


class Images(Dataset[Any]):
    """Images of value first, first + 1, … with labels 0, 1, 0, …"""

    def __init__(self, num: int = 6, first: int = 0, classes: Any = ("cat", "dog")) -> None:
        self.num, self.first, self.calls = num, first, [0] * num
        if classes is not None:
            self.classes = list(classes)

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.calls[index] += 1
        return self.image(index), self.label(index)

    def image(self, index: int) -> Any:
        return PIL.Image.fromarray(np.full((8, 8, 3), self.first + index, np.uint8))

    def label(self, index: int) -> Any:
        return index % 2


class Plain(Images):
    """Of one image and label each."""

    def __init__(self, image: Any = None, label: Any = None, classes: Any = None) -> None:
        super().__init__(4, classes=classes)
        self._image, self._label = image, label

    def image(self, index: int) -> Any:
        return super().image(index) if self._image is None else self._image

    def label(self, index: int) -> Any:
        return super().label(index) if self._label is None else self._label


def open_it(train: Any, test: Any = None, class_names: Any = None, **options: Any) -> Source:
    chosen = SourceOptions(**options)
    return with_test_images(open_dataset(train, test, class_names, chosen), chosen)


def read(train: Any, test: Any = None, class_names: Any = None, **options: Any) -> dict[str, list[Any]]:
    """(value, label, origin) of each image, or the reason why it is broken."""
    with open_it(train, test, class_names, **options) as source:
        return {
            name: [
                (int(s.image[0, 0, 0]), s.label, s.origin) if isinstance(s, Sample) else (s.origin, s.reason)
                for s in split
            ]
            for name, split in source.splits.items()
        }


def first_pixels(image: Any, **options: Any) -> list[Any]:
    """The image as it is converted."""
    with open_it(Plain(image), Plain(), **options) as source:
        sample = next(iter(source.splits["train"]))
        assert isinstance(sample, Sample), sample
        return sample.image.tolist()


def message(train: Any, test: Any = None, class_names: Any = None, **options: Any) -> str:
    with pytest.raises((DataError, UsageError)) as caught:
        read(train, test, class_names, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def expected(split: str, num: int = 6, first: int = 0) -> list[Any]:
    return [(first + i, i % 2, f"{split}[{i}]") for i in range(num)]


def test_convert_writes_a_dataset_and_reads_each_item_once(tmp_path: Path) -> None:
    train, test = Images(), Images(4, 100)
    manifests = fastcifar.convert(train, tmp_path, test=test)
    assert manifests["train"].class_names == ("cat", "dog")
    assert (manifests["train"].num_samples, manifests["test"].num_samples) == (6, 4)
    assert (tmp_path / "train.beton.origins.txt").read_text().split() == [f"train[{i}]" for i in range(6)]
    assert set(train.calls) == set(test.calls) == {1}
    assert fastcifar.open_beton(tmp_path / "test.beton").labels.tolist() == [0, 1, 0, 1]


def test_test_share_divides_a_dataset_that_is_read_once(tmp_path: Path) -> None:
    train = Images(20)
    manifests = fastcifar.convert(train, tmp_path, test_share=0.2)
    assert (manifests["train"].num_samples, manifests["test"].num_samples) == (16, 4)
    assert set(train.calls) == {1}
    found = read(Images(20), test_share=0.2)
    assert sorted((*found["train"], *found["test"])) == expected("train", 20)


def items(num: int, first: int = 0) -> Iterator[Any]:
    dataset = Images(num, first)
    return (dataset[i] for i in range(num))


class Stream(IterableDataset[Any]):
    def __init__(self, num: int = 6, first: int = 0) -> None:
        self.num, self.first = num, first

    def __iter__(self) -> Iterator[Any]:
        return items(self.num, self.first)


@pytest.mark.parametrize("kind", ["list", "generator", "IterableDataset", "mapping", "without classes"])
def test_datasets_of_each_kind_give_the_same(kind: str) -> None:
    sets: tuple[Any, Any] = {
        "list": (list(items(6)), list(items(4, 100))),
        "generator": (items(6), items(4, 100)),
        "IterableDataset": (Stream(), Stream(4, 100)),
        "mapping": ({"train": Images(), "test": Images(4, 100)}, None),
        "without classes": (Images(classes=None), Images(4, 100, None)),
    }[kind]
    assert read(*sets) == {"train": expected("train"), "test": expected("test", 4, 100)}


def test_a_subset_and_a_concatenation_keep_the_class_names() -> None:
    both = ConcatDataset([Images(3), Images(3, 3)])
    with open_it(Subset(both, [5, 0, 3]), Subset(Images(), [1])) as source:
        assert source.class_names == ("cat", "dog")
        assert [int(s.image[0, 0, 0]) for s in source.splits["train"] if isinstance(s, Sample)] == [5, 0, 3]


def test_datasets_of_other_classes_are_not_mixed() -> None:
    reason = "train has the classes cat, dog; test has the classes dog, fox; expected the same classes"
    assert reason in message(Images(), Images(classes=("dog", "fox")))
    mixed: Any = ConcatDataset([Images(), Images(classes=("dog", "fox"))])
    assert "expected the same classes" in message(mixed, Images())
    assert read(Images(), Images(classes=("dog", "fox")), ["a", "b"])["train"] == expected("train")


def test_a_mapping_uses_validation_only_without_a_test_set(caplog: pytest.LogCaptureFixture) -> None:
    sets = {"train": Images(), "validation": Images(2, 50)}
    assert read(sets)["test"] == expected("test", 2, 50)
    assert "the images of validation are used to test" in caplog.text
    assert read({**sets, "test": Images(4, 100)})["test"] == expected("test", 4, 100)
    assert "has the splits a, test; expected train and test" in message({"a": Images(), "test": Images()})
    assert "test is given twice" in message(sets, Images())


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
RGB = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)


@pytest.mark.parametrize(
    "image",
    [
        RGB,
        RGB.transpose(2, 0, 1),
        RGB[:, ::-1][:, ::-1],
        torch.from_numpy(RGB),
        torch.from_numpy(RGB).permute(2, 0, 1),
        torch.from_numpy(RGB).permute(2, 0, 1).float().div(255),
        torch.from_numpy(RGB).double().div(255).requires_grad_(),
        RGB / 255,
        np.concatenate([RGB, np.full((8, 9, 1), 255, np.uint8)], axis=2),
        PIL.Image.fromarray(RGB),
    ],
)
def test_each_form_of_an_image_gives_the_same_pixels(image: Any) -> None:
    assert first_pixels(image) == RGB.tolist()


@pytest.mark.parametrize("image", [GREY, GREY[None], GREY[..., None], torch.from_numpy(GREY)[None] / 255])
def test_grey_arrays_become_rgb_and_are_counted(image: Any) -> None:
    assert first_pixels(image) == np.repeat(GREY[..., None], 3, axis=2).tolist()
    with open_it(Plain(image), Plain()) as source:
        sample = next(iter(source.splits["train"]))
        assert isinstance(sample, Sample)
        assert sample.changes == ("grey",)


def test_an_image_of_pillow_is_upright(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x112] = 6
    PIL.Image.fromarray(np.repeat(np.arange(8, dtype=np.uint8), 16).reshape(8, 16)).save(tmp_path / "a.png", exif=exif)
    with PIL.Image.open(tmp_path / "a.png") as opened, open_it([(opened, 0), (opened, 1)], [(opened, 0)]) as source:
        sample = next(iter(source.splits["train"]))
    assert isinstance(sample, Sample)
    assert sample.changes == ("grey", "rotated")
    assert sample.image[..., 0].tolist() == [list(range(8))[::-1]] * 16


def test_half_precision_in_its_range_is_rounded() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        image = torch.linspace(0, 1.0005, 64).reshape(1, 8, 8).to(dtype)
        assert first_pixels(image)[-1][-1] == [255, 255, 255]


def test_the_transparent_is_drawn_on_the_background_and_sizes_are_applied() -> None:
    rgba = np.zeros((8, 8, 4), np.uint8)
    rule = Preprocessing(size=(4, 6), background=(1, 2, 3))
    pixels = np.array(first_pixels(rgba, preprocessing=rule))
    assert pixels.shape == (4, 6, 3)
    assert pixels.reshape(-1, 3).tolist() == [[1, 2, 3]] * 24


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (torch.full((3, 8, 8), -1.5), "train[0] is float32 of values -1.5..-1.5; expected 0..1, not normalised"),
        (np.full((8, 8, 3), 255.0), "is float64 of values 255..255; expected 0..1, or uint8 of 0..255"),
        (np.full((8, 8, 3), np.nan), "is float64 of values nan..nan; expected 0..1"),
        (np.full((8, 8, 3), np.inf), "is float64 of values inf..inf; expected 0..1"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "is int64; expected uint8, or float of values 0..1"),
        (np.zeros((8, 8, 3), bool), "is bool; expected uint8"),
        (np.zeros((8, 8, 3), object), "is object; expected uint8"),
        (np.zeros((2, 8, 8), np.uint8), "has shape (2, 8, 8); expected an image of Pillow, or an array"),
        (np.zeros((4, 3, 8, 8), np.uint8), "give the dataset, not a DataLoader"),
        (np.zeros((0, 8, 3), np.uint8), "has shape (0, 8, 3)"),
        (np.zeros(8, np.uint8), "has shape (8,)"),
        (np.zeros((3, 8, 3), np.uint8), "channels first or last; say which with channels='first' or 'last'"),
        ("a.png", "is a str; expected an image of Pillow"),
        (b"\x89PNG", "is a bytes; expected an image of Pillow"),
    ],
)
def test_other_images_are_an_error_that_names_the_index(image: Any, reason: str) -> None:
    assert reason in message(Plain(image), Plain())
    assert reason in message(Plain(image), Plain(), ["a", "b"])


def test_channels_says_what_an_ambiguous_shape_means() -> None:
    image = np.arange(3 * 8 * 3, dtype=np.uint8).reshape(3, 8, 3)
    assert first_pixels(image, channels="last") == image.tolist()
    assert first_pixels(image, channels="first") == image.transpose(1, 2, 0).tolist()


@pytest.mark.parametrize(
    "label",
    [1, np.int64(1), np.uint8(1), torch.tensor(1), np.array([1]), torch.tensor([[1]]), "dog", True, np.str_("dog")],
)
def test_each_form_of_a_label_is_accepted(label: Any) -> None:
    assert {s[1] for s in read(Plain(None, label), Images(), ["cat", "dog"])["train"]} == {1}


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (2, "train[0]: label 2; expected 0..1"),
        (-1, "train[0]: label -1; expected 0..1 (-1 marks images without a label)"),
        (1.0, "train[0]: the label is 1.0; expected an integer or a class name"),
        (torch.tensor(0.5), "the label is tensor(0.5000); expected"),
        (np.array([0, 1]), "the label is ndarray of shape (2,); expected"),
        (b"cat", "the label is b'cat'; expected"),
        ("fox", "train[0]: label 'fox'; expected one of: cat, dog"),
        ({}, "the label is {}; expected"),
    ],
)
def test_other_labels_are_an_error_that_names_the_index(label: Any, reason: str) -> None:
    assert reason in message(Plain(None, label), Images(), ["cat", "dog"])


def test_without_class_names_they_are_the_labels_of_the_training_images() -> None:
    names = list("bacb")
    train = [(Images().image(i), name) for i, name in enumerate(names)]
    with open_it(train, train[:2]) as source:
        assert source.class_names == ("a", "b", "c")
        assert [s.label for s in source.splits["train"] if isinstance(s, Sample)] == [1, 0, 2, 1]
        assert [s.label for s in source.splits["test"] if isinstance(s, Sample)] == [1, 0]
    assert "test[2]: label 'c', which no training image has" in message(train[:2], train[:3])
    assert "expected all integers, or all class names" in message([*train, (train[0][0], 1)], train)


def test_a_label_of_minus_one_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    items = [(Images().image(i), i - 1) for i in range(3)]
    with open_it(items, items) as source:
        assert source.class_names == ("-1", "0", "1")
    assert "dataset: the label -1 is a class of its own" in caplog.text


def test_class_names_are_checked() -> None:
    assert "1 of the 3 class names occur twice, e.g. 'a'" in message(Images(), Images(), ["a", "b", "a"])
    assert "differ only in case" in message(Images(), Images(), ["a", "A"])
    assert "not printable" in message(Images(), Images(), ["a\n", "b"])


class Failing(Images):
    def image(self, index: int) -> Any:
        if index == 3:
            raise KeyError("no such\nimage")
        return super().image(index)


@pytest.mark.parametrize("options", [{}, {"test_share": 0.5}])
def test_an_error_of_getitem_is_a_broken_image_with_the_type_of_the_error(
    options: dict[str, Any], tmp_path: Path
) -> None:
    test = None if options else Images()
    found = read(Failing(), test, **options)
    reasons = [s for split in found.values() for s in split if len(s) == 2]
    assert reasons == [("train[3]", "the dataset raised KeyError: 'no such\\nimage'")]
    with pytest.raises(DataError, match=r"train\[3\]: the dataset raised KeyError"):
        fastcifar.convert(Failing(), tmp_path, test=test, **options)


def test_an_error_of_an_iterable_ends_the_conversion() -> None:
    def failing() -> Iterator[Any]:
        yield from items(3)
        raise OSError(5, "cannot\nread")

    assert "dataset: train[3]: the iterable raised OSError: [Errno 5] cannot read" in message(failing(), Images())


def test_a_signal_in_getitem_is_not_an_error_of_the_dataset() -> None:
    class Interrupted(Images):
        def image(self, index: int) -> Any:
            raise Stopped(15, "done")

    with pytest.raises(Stopped):
        read(Interrupted(), Images())


def test_an_image_that_pillow_cannot_load_is_broken(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:600])
    with PIL.Image.open(tmp_path / "a.png") as image:
        found = read(Plain(image), Images())
    assert "not a readable image" in found["train"][0][1]


@pytest.mark.parametrize("num", [0, 1, 3])
def test_an_item_that_is_no_pair_is_an_error(num: int) -> None:
    dataset = [tuple([GREY] * num)] * 4
    assert f"train[0] is a tuple of {num}; expected (image, label)" in message(dataset, Images())


def test_a_data_loader_is_refused() -> None:
    data = TensorDataset(torch.zeros(4, 3, 8, 8), torch.zeros(4))
    assert "the label is Tensor of shape (2,)" in message(DataLoader(data, batch_size=2), Images())


def test_what_is_no_dataset_is_a_usage_error(tmp_path: Path) -> None:
    assert "train is int; expected a path, a dataset with __len__" in message(3, Images())
    assert "dataset: no images in train" in message([], Images())
    assert "dataset: no images in train" in message(iter(()), Images())
    assert "no test images; give them as `test`, or a test_share" in message(Images())
    assert "test_share is 0.5, but dataset has test images already" in message(Images(), Images(), test_share=0.5)
    with pytest.raises(UsageError, match="test is given, but the source is a path, a name or a Source"):
        fastcifar.convert(tmp_path, tmp_path, test=Images())
    with pytest.raises(UsageError, match="class_names is given"):
        fastcifar.convert("synthetic", tmp_path, class_names=["a", "b"])


def test_the_dataset_is_called_from_one_thread(tmp_path: Path) -> None:
    threads = set()

    class Threads(Images):
        def image(self, index: int) -> Any:
            threads.add(threading.get_ident())
            return super().image(index)

    fastcifar.convert(Threads(200, classes=("a", "b")), tmp_path / "a", test=Threads(6, classes=("a", "b")))
    fastcifar.convert(Threads(200, classes=None), tmp_path / "b", test_share=0.2)
    assert threads == {threading.get_ident()}


def test_an_array_that_is_used_again_is_copied_first() -> None:
    buffer = np.zeros((8, 8, 3), np.uint8)

    def reused() -> Iterator[Any]:
        for value in range(6):
            buffer[:] = value
            yield buffer, value % 2

    assert read(reused(), Images())["train"] == expected("train")


def test_the_temporary_file_is_bounded_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(os.listdir("/proc/self/fd"))
    read(items(6), Images())
    assert len(os.listdir("/proc/self/fd")) <= len(before)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000})())
    assert "the images need more than half of the free space" in message(items(6), Images())


def test_items_that_are_mappings_are_read_by_their_keys() -> None:
    rows = [{"id": i, "img": Images().image(i), "label": i % 2} for i in range(6)]
    assert read(rows, rows)["train"] == expected("train")
    named = [{"a": row["img"], "b": row["label"]} for row in rows]
    assert "has no column of images; name it with --image-column; the columns are: a (Image), b (int)" in message(
        named, named
    )
    assert read(named, named, image_column="a", label_column="b")["train"] == expected("train")
    assert "train[1]: has no 'img'" in message([rows[0], {"label": 1}], rows)


def test_a_dataset_of_hugging_face_is_read_with_its_class_names() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"pic": datasets.Image(), "y": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"pic": [Images().image(i) for i in range(6)], "y": [0, 1] * 3}
    made = datasets.Dataset.from_dict(rows, features=features)
    with open_it(datasets.DatasetDict(train=made, test=made)) as source:
        assert source.class_names == ("cat", "dog")
    assert read(made, made)["train"] == expected("train")
    assert read(made.cast_column("pic", datasets.Image(decode=False)), made)["train"] == expected("train")
    found = read(made.to_iterable_dataset(), test_share=0.5)
    assert sorted((*found["train"], *found["test"])) == expected("train")


def test_more_than_one_percent_of_broken_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"over 1%.*KeyError"):
        fastcifar.convert(Failing(), tmp_path, test=Images(), skip_broken=True)
    manifests = fastcifar.convert(Failing(200), tmp_path, test=Images(), skip_broken=True)
    assert manifests["train"].conversion.skipped == ("train[3]",)


def test_a_broken_image_does_not_change_what_test_share_takes() -> None:
    found = read(Failing(20), test_share=0.2)
    assert sum(len(split) for split in found.values()) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8.0}, "size is 8.0; expected a whole number"),
        ({"size": (8,)}, "size is (8,); expected 2 whole numbers"),
        ({"background": "white"}, "background is 'white'; expected 3 whole numbers"),
        ({"background": None}, "background is None; expected 3 whole numbers"),
        ({"class_names": "ab"}, "class_names is 'ab'; expected names"),
        ({"class_names": [0, 1]}, "class_names is [0, 1]; expected names"),
        ({"data_dir": None}, "data_dir is None; expected a path"),
        ({"preprocessing": Preprocessing()}, "preprocessing is not an option"),
        ({"max_value": 100}, "--max-value is for arrays"),
        ({"images_root": "images"}, "--images-root is for a table"),
    ],
)
def test_arguments_that_do_not_fit_are_a_usage_error(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        fastcifar.convert(Images(), **{"data_dir": tmp_path, "test_share": 0.5, **options})
    assert message in str(caught.value)


def test_a_size_of_numpy_is_one(tmp_path: Path) -> None:
    manifests = fastcifar.convert(Images(), tmp_path, test_share=0.5, size=np.int64(4))
    assert manifests["train"].image_shape == (4, 4, 3)


def test_an_iterable_dataset_with_a_length_is_iterated() -> None:
    class Stream(IterableDataset[Any]):
        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[Any]:
            return (Images()[index] for index in range(4))

    assert [value for value, *_ in read(Stream(), Stream())["train"]] == [0, 1, 2, 3]


def test_options_apply_to_a_source_that_is_open_already(tmp_path: Path) -> None:
    assert fastcifar.convert(open_it(Images(), Images()), tmp_path, size=4)["test"].image_shape == (4, 4, 3)
    with pytest.raises(UsageError, match="class_names is given"):
        fastcifar.convert(open_it(Images(), Images()), tmp_path, class_names=["cat", "dog"])
    with pytest.raises(UsageError, match="test_share is 0.5"):
        fastcifar.convert(open_it(Images(), Images()), tmp_path, test_share=0.5)
