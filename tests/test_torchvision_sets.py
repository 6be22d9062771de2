"""`torchvision:NAME`: local files in the layout of torchvision. Downloads are not tested: tests have no network."""

from __future__ import annotations

import csv
import gzip
import json
import struct
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import PIL.Image
import pytest
import torchvision.datasets
from numpy.typing import NDArray

from fastcifar.converters import Broken, Sample, SourceOptions, convert, open_source
from fastcifar.converters.torchvision_sets import DATASETS
from fastcifar.errors import DataError, UsageError

Array = NDArray[np.uint8]


def save(path: Path, value: int, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = PIL.Image.fromarray(np.full((side, side, 3), value, np.uint8))
    image.save(path, "PPM" if path.suffix == ".ppm" else "PNG")  # exact, whatever the suffix


def write_idx(path: Path, values: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{values.ndim}i", 0, 8, values.ndim, *values.shape) + values.tobytes())


def grey(num: int, first: int) -> Array:
    return np.repeat(np.arange(first, first + num, dtype=np.uint8), 28 * 28).reshape(num, 28, 28)


def mnist(folder: Path, name: str) -> None:
    for split, num, first in (("train", 12, 0), ("t10k", 4, 100)):
        write_idx(folder / name / "raw" / f"{split}-images-idx3-ubyte", grey(num, first))
        write_idx(folder / name / "raw" / f"{split}-labels-idx1-ubyte", (np.arange(num) % 10).astype(np.uint8))


def stl10(folder: Path, name: str) -> None:
    root = folder / "stl10_binary"
    root.mkdir(parents=True)
    for split, num, first in (("train", 12, 0), ("test", 4, 100)):
        np.repeat(np.arange(first, first + num, dtype=np.uint8), 3 * 96 * 96).tofile(root / f"{split}_X.bin")
        (1 + np.arange(num) % 10).astype(np.uint8).tofile(root / f"{split}_y.bin")
    (root / "unlabeled_X.bin").touch()
    (root / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))


def svhn(folder: Path, name: str) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    folder.mkdir(parents=True, exist_ok=True)
    for split, num, first in (("train", 12, 0), ("test", 4, 100)):
        images = np.broadcast_to(np.arange(first, first + num, dtype=np.uint8), (32, 32, 3, num))
        labels = np.where(np.arange(num) % 10, np.arange(num) % 10, 10).astype(np.uint8)  # 10 is the digit 0
        scipy_io.savemat(folder / f"{split}_32x32.mat", {"X": images, "y": labels[:, None]})


def gtsrb(folder: Path, name: str) -> None:
    root = folder / "gtsrb"
    for i in range(12):
        save(root / "GTSRB" / "Training" / f"{i % 10:05d}" / f"{i:05d}.ppm", i)
    with (root / "GT-final_test.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["Filename", "Width", "ClassId"])
        for i in range(4):
            save(root / "GTSRB" / "Final_Test" / "Images" / f"{i:05d}.ppm", 100 + i)
            writer.writerow([f"{i:05d}.ppm", 8, i])


def eurosat(folder: Path, name: str) -> None:
    for i in range(20):
        save(folder / "eurosat" / "2750" / f"class {i % 10}" / f"{i}.jpg", i)


def imagenette(folder: Path, name: str) -> None:
    wnids = sorted(torchvision.datasets.Imagenette._WNID_TO_CLASS)
    for split, num, first in (("train", 12, 0), ("val", 4, 100)):
        for i in range(num):
            save(folder / "imagenette2" / split / wnids[i % 10] / f"{i}.JPEG", first + i)
        for wnid in wnids[4:]:
            save(folder / "imagenette2" / split / wnid / "x.JPEG", 200)


def food101(folder: Path, name: str) -> None:
    for split, num, first in (("train", 12, 0), ("test", 4, 100)):
        names: dict[str, list[str]] = {f"class_{i}": [] for i in range(10)}
        for i in range(num):
            names[f"class_{i % 10}"].append(f"class_{i % 10}/{first + i}")
            save(folder / "food-101" / "images" / f"class_{i % 10}" / f"{first + i}.jpg", first + i)
        (folder / "food-101" / "meta").mkdir(parents=True, exist_ok=True)
        (folder / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(names))


def pet(folder: Path, name: str) -> None:
    root = folder / "oxford-iiit-pet"
    (root / "annotations").mkdir(parents=True)
    for split, num, first in (("trainval", 12, 0), ("test", 12, 100)):
        lines = []
        for i in range(num):
            lines.append(f"big_cat_{chr(97 + i % 10)}_{first + i} {i % 10 + 1} 1 1\n")
            save(root / "images" / f"big_cat_{chr(97 + i % 10)}_{first + i}.jpg", first + i)
        (root / "annotations" / f"{split}.txt").write_text("".join(lines))


def dtd(folder: Path, name: str) -> None:
    root = folder / "dtd" / "dtd"
    (root / "labels").mkdir(parents=True)
    for split, first in (("train", 0), ("test", 100)):
        (root / "labels" / f"{split}1.txt").write_text("".join(f"c{i % 10}/{first + i}.jpg\n" for i in range(12)))
        for i in range(12):
            save(root / "images" / f"c{i % 10}" / f"{first + i}.jpg", first + i)


def aircraft(folder: Path, name: str) -> None:
    root = folder / "fgvc-aircraft-2013b" / "data"
    root.mkdir(parents=True)
    (root / "variants.txt").write_text("".join(f"A-{i}\n" for i in range(10)))
    for split, first in (("trainval", 0), ("test", 100)):
        (root / f"images_variant_{split}.txt").write_text("".join(f"{first + i} A-{i % 10}\n" for i in range(12)))
        for i in range(12):
            save(root / "images" / f"{first + i}.jpg", first + i)


WRITERS = {
    "MNIST": mnist,
    "FashionMNIST": mnist,
    "KMNIST": mnist,
    "STL10": stl10,
    "SVHN": svhn,
    "GTSRB": gtsrb,
    "EuroSAT": eurosat,
    "Imagenette": imagenette,
    "Food101": food101,
    "OxfordIIITPet": pet,
    "DTD": dtd,
    "FGVCAircraft": aircraft,
}
CLASSES = {
    "MNIST": "0 - zero",
    "FashionMNIST": "T-shirt/top",
    "KMNIST": "o",
    "STL10": "class 0",
    "EuroSAT": "class 0",
    "Imagenette": "tench",
    "Food101": "class_0",
    "OxfordIIITPet": "Big Cat A",
    "DTD": "c0",
    "FGVCAircraft": "A-0",
}
ORIGINS = {
    "GTSRB": "gtsrb/GTSRB/Training/00000/00000.ppm",
    "EuroSAT": "eurosat/2750/class 0/0.jpg",
    "Imagenette": "imagenette2/train/n01440764/0.JPEG",
    "Food101": "food-101/images/class_0/0.jpg",
    "OxfordIIITPet": "oxford-iiit-pet/images/big_cat_a_0.jpg",
    "DTD": "dtd/dtd/images/c0/0.jpg",
    "FGVCAircraft": "fgvc-aircraft-2013b/data/images/0.jpg",
}


@pytest.fixture(autouse=True)
def _without_network_and_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of tests are not the official ones."""

    def refuse(*args: Any, **options: Any) -> Any:
        raise URLError("no network in tests")

    for module in ("stl10", "utils"):
        name = f"torchvision.datasets.{module}.check_integrity"
        monkeypatch.setattr(name, lambda path, md5=None: Path(path).is_file())
    monkeypatch.setattr("urllib.request.urlopen", refuse)


def options(folder: Path, **more: Any) -> SourceOptions:
    return SourceOptions(download_dir=str(folder), **more)


@pytest.mark.parametrize("name", [*DATASETS, "SVHN"])
def test_local_files_of_torchvision_are_read_with_their_labels(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path, name)
    share = 0.2 if name == "EuroSAT" else None
    with open_source(f"torchvision:{name}", options(tmp_path, test_share=share)) as source:
        samples = {split: list(images) for split, images in source.splits.items()}
        names = source.class_names
    assert set(samples) == {"train", "test"}
    assert names[0] == CLASSES.get(name, "0")
    for sample in (*samples["train"], *samples["test"]):
        assert isinstance(sample, Sample)
        value = int(sample.image[0, 0, 0])
        assert (sample.image == value).all()
        assert sample.image.shape[2] == 3
        if value < 200:
            assert sample.label == value % 100 % 10, sample.origin
    first = next(s for s in samples["train"] if isinstance(s, Sample))
    if name == "SVHN":
        assert names == tuple("0123456789")
    elif not share:
        assert first.origin == ORIGINS.get(name, "train[0]")
        assert {int(s.image[0, 0, 0]) for s in samples["test"] if isinstance(s, Sample)} >= {100, 101, 102, 103}


def test_names_are_accepted_in_any_case_and_others_get_the_closest(tmp_path: Path) -> None:
    mnist(tmp_path, "FashionMNIST")
    assert open_source("torchvision:fashionmnist", options(tmp_path)).description == "FashionMNIST, torchvision"
    with pytest.raises(
        UsageError, match=r"did you mean torchvision:EuroSAT\? expected one of: CIFAR10, CIFAR100, DTD,"
    ):
        open_source("torchvision:EuroSet", options(tmp_path))
    with pytest.raises(UsageError, match="'torchvision:xyz'; expected one of"):
        open_source("torchvision:xyz", options(tmp_path))
    with pytest.raises(UsageError, match="CelebA"):
        open_source("torchvision:CelebA", options(tmp_path))


def test_cifar_is_the_official_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="CIFAR-100 cannot be downloaded"):
        open_source("torchvision:CIFAR100", options(tmp_path))


@pytest.mark.parametrize("name", [*DATASETS, "SVHN"])
def test_a_missing_network_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError) as caught:
        open_source(f"torchvision:{name}", options(tmp_path / "new", test_share=0.2 if name == "EuroSAT" else None))
    assert str(caught.value).startswith(
        f"torchvision:{name} cannot be downloaded into {tmp_path / 'new'}, or is damaged"
    )
    assert "no network in tests" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_fewer_images_than_the_official_set_has_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gtsrb(tmp_path, "GTSRB")
    open_source("torchvision:GTSRB", options(tmp_path))
    assert "GTSRB: 12 images in train, and 26,640 in the official set; if the download was interrupted" in caplog.text


def test_eurosat_has_no_test_images_of_its_own(tmp_path: Path) -> None:
    eurosat(tmp_path, "EuroSAT")
    with pytest.raises(DataError, match="torchvision:EuroSAT: has no test images.*--test-share 0.2"):
        open_source("torchvision:EuroSAT", options(tmp_path))


def test_grey_images_become_rgb_and_are_counted(tmp_path: Path) -> None:
    mnist(tmp_path, "MNIST")
    manifests = convert("torchvision:MNIST", tmp_path)
    assert manifests["train"].image_shape == (28, 28, 3)
    assert manifests["train"].conversion.changes == {"grey": 12}
    assert manifests["train"].source == "MNIST, torchvision"


def test_archives_that_were_downloaded_before_are_unpacked(tmp_path: Path) -> None:
    mnist(tmp_path, "MNIST")
    raw = tmp_path / "MNIST" / "raw"
    for file in list(raw.iterdir()):
        with gzip.open(f"{file}.gz", "wb") as packed:
            packed.write(file.read_bytes())
        file.unlink()
    with open_source("torchvision:MNIST", options(tmp_path)) as source:
        assert len(source.splits["train"]) == 12


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x03", b"x" * 100, b"\0\0\x08\x03" + b"\xff" * 12])
def test_damaged_files_are_one_line(tmp_path: Path, content: bytes) -> None:
    mnist(tmp_path, "MNIST")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match="or is damaged there"):
        open_source("torchvision:MNIST", options(tmp_path))


def test_numbers_of_images_and_labels_that_differ_are_an_error(tmp_path: Path) -> None:
    mnist(tmp_path, "MNIST")
    write_idx(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte", np.zeros(11, np.uint8))
    with pytest.raises(DataError, match="12 images and 11 labels in train"):
        open_source("torchvision:MNIST", options(tmp_path))
    write_idx(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte", np.full(12, 10, np.uint8))
    with pytest.raises(DataError, match=r"MNIST: train\[0\]: label 10; expected 0..9"):
        open_source("torchvision:MNIST", options(tmp_path))


def test_pickles_of_an_old_torchvision_are_refused(tmp_path: Path) -> None:
    (tmp_path / "MNIST" / "processed").mkdir(parents=True)
    with pytest.raises(DataError, match="files of an old torchvision; remove the folder"):
        open_source("torchvision:MNIST", options(tmp_path))


def test_files_outside_the_folder_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "secret.jpg", 9)
    gtsrb(tmp_path / "data", "GTSRB")
    table = tmp_path / "data" / "gtsrb" / "GT-final_test.csv"
    for name in (str(tmp_path / "secret.jpg"), "../../../../../secret.jpg"):
        table.write_text(f"Filename;ClassId\n{name};1\n")
        with pytest.raises(DataError, match="which is outside that folder"):
            open_source("torchvision:GTSRB", options(tmp_path / "data"))


def test_a_damaged_or_missing_image_is_broken(tmp_path: Path) -> None:
    food101(tmp_path, "Food101")
    images = tmp_path / "food-101" / "images" / "class_1"
    (images / "1.jpg").write_bytes(b"no image")
    (images / "11.jpg").unlink()
    with open_source("torchvision:Food101", options(tmp_path)) as source:
        broken = [s for s in source.splits["train"] if isinstance(s, Broken)]
    assert broken[0].origin == "food-101/images/class_1/1.jpg"
    assert "not a readable image" in broken[0].reason
    assert broken[1] == Broken("food-101/images/class_1/11.jpg", "cannot be read (No such file or directory)")


def test_what_torchvision_prints_is_not_on_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mnist(tmp_path, "MNIST")
    load = torchvision.datasets.MNIST.download

    def download(self: Any) -> None:
        print("Downloading")  # noqa: T201
        load(self)

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    open_source("torchvision:MNIST", options(tmp_path))
    captured = capsys.readouterr()
    assert (captured.out, "Downloading" in captured.err) == ("", True)
