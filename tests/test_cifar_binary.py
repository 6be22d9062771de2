"""The binary version of CIFAR: found by its files, read in records, checked by its structure."""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastcifar.converters import convert, open_source
from fastcifar.data.beton import open_beton
from fastcifar.errors import DataError
from tests.test_sources import Pixels, pack, pixels

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FINE = [f"class {i}" for i in range(100)]


def records(seed: int, num: int, *highest: int) -> np.ndarray:
    """(N, labels and 3072) uint8."""
    random = np.random.default_rng(seed)
    labels = [random.integers(0, high + 1, (num, 1), np.uint8) for high in highest]
    return np.hstack([*labels, random.integers(0, 256, (num, 3_072), np.uint8)])


def expected_of(parts: list[np.ndarray], num_labels: int) -> list[tuple[bytes, int]]:
    """Pixel by pixel, as the page of CIFAR describes it: 1,024 red, green, then blue values, row after row."""
    out = []
    for record in np.concatenate(parts):
        planes = record[num_labels:].reshape(3, 1_024)
        image = np.stack([planes[:, i] for i in range(1_024)])
        out.append((image.tobytes(), int(record[num_labels - 1])))
    return out


def cifar10(root: Path, each: tuple[int, ...] = (4, 4, 2, 1, 3)) -> Pixels:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    parts = [records(seed, num, 9) for seed, num in enumerate(each)]
    for number, part in enumerate(parts, 1):
        (folder / f"data_batch_{number}.bin").write_bytes(part.tobytes())
    test = records(9, 3, 9)
    (folder / "test_batch.bin").write_bytes(test.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    (folder / "readme.html").write_text("<html>")
    return {"train": expected_of(parts, 1), "test": expected_of([test], 1)}


def cifar100(root: Path) -> Pixels:
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    train, test = records(0, 7, 19, 99), records(1, 5, 19, 99)
    (folder / "train.bin").write_bytes(train.tobytes())
    (folder / "test.bin").write_bytes(test.tobytes())
    (folder / "fine_label_names.txt").write_text("\r\n".join(FINE))
    (folder / "coarse_label_names.txt").write_text("\n".join(FINE[:20]))
    return {"train": expected_of([train], 2), "test": expected_of([test], 2)}


@pytest.mark.parametrize("kind", ["folder", "parent", "tar.gz", "tar", "zip"])
@pytest.mark.parametrize(("make", "names"), [(cifar10, NAMES), (cifar100, FINE)])
def test_pixels_labels_and_class_names(
    make: Callable[[Path], Pixels], names: list[str], kind: str, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    expected = make(root)
    path = next(root.iterdir()) if kind == "folder" else root if kind == "parent" else pack(root, kind)
    assert pixels(path) == expected
    with open_source(path) as source:
        assert source.class_names == tuple(names)
        assert "binary version" in source.description


def test_origins_name_file_and_record(tmp_path: Path) -> None:
    cifar10(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out")
    origins = open_beton(tmp_path / "out/train.beton").origins()
    assert origins[3:6] == ["data_batch_1.bin[3]", "data_batch_2.bin[0]", "data_batch_2.bin[1]"]
    assert open_beton(tmp_path / "out/train.beton").class_names == tuple(NAMES)


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
@pytest.mark.parametrize("make", [cifar10, cifar100])
def test_another_top_folder_and_files_of_systems_are_accepted(
    make: Callable[[Path], Pixels], kind: str, tmp_path: Path
) -> None:
    root = tmp_path / "mine"
    expected = make(root)
    inner = next(root.iterdir())
    for name in ("._test_batch.bin", ".DS_Store", "._train.bin", "notes.txt", "more.png"):
        (inner / name).write_bytes(b"x")
    os.rename(inner, root / "my files")
    (root / "__MACOSX/my files").mkdir(parents=True)
    (root / "__MACOSX/my files/._test.bin").write_bytes(b"x")
    assert pixels(root if kind == "folder" else pack(root, kind)) == expected


def first(root: Path, name: str) -> Path:
    return next(root.rglob(name))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (
        lambda root: os.truncate(first(root, "data_batch_2.bin"), 3 * 3_073 - 1),
        r"data_batch_2\.bin has 9,218 bytes; expected a multiple of 3,073",
    ),
    "empty": (lambda root: os.truncate(first(root, "test_batch.bin"), 0), r"test_batch\.bin has 0 bytes; expected a"),
    "label": (
        lambda root: first(root, "data_batch_1.bin").write_bytes(bytes(3_073) + b"\x0a" + bytes(3_072)),
        r"data_batch_1\.bin\[1\] has label 10; expected 0\.\.9: the file is damaged",
    ),
    "missing": (lambda root: first(root, "data_batch_4.bin").unlink(), r"data_batch_4\.bin is missing; expected all"),
    "no names": (lambda root: first(root, "batches.meta.txt").unlink(), r"batches\.meta\.txt is missing"),
    "few names": (
        lambda root: first(root, "batches.meta.txt").write_text("\n".join(NAMES[:9])),
        r"batches\.meta\.txt has 9 class names; expected 10",
    ),
    "one name twice": (
        lambda root: first(root, "batches.meta.txt").write_text("\n".join([*NAMES[:9], "cat"])),
        r"batches\.meta\.txt has 9 class names; expected 10",
    ),
    "odd name": (
        lambda root: first(root, "batches.meta.txt").write_text("\n".join([*NAMES[:9], "\x1b[31m"])),
        r"has the class name '\\\\x1b\[31m'; expected a short text",
    ),
    "not UTF-8": (
        lambda root: first(root, "batches.meta.txt").write_bytes("\n".join([*NAMES[:9], "é"]).encode("latin-1")),
        "has the class name .*; expected a short text",
    ),
    "long names": (
        lambda root: first(root, "batches.meta.txt").write_text("x" * 70_000),
        r"batches\.meta\.txt: cannot be read \(it has ",
    ),
}


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
@pytest.mark.parametrize("name", list(DAMAGE))
def test_damaged_files_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    cifar10(root)
    damage, message = DAMAGE[name]
    damage(root)
    with pytest.raises(DataError, match=message):
        open_source(root if kind == "folder" else pack(root, kind))


def test_a_superclass_that_cifar_100_does_not_have_is_damage(tmp_path: Path) -> None:
    cifar100(tmp_path)
    first(tmp_path, "test.bin").write_bytes(b"\x14" + bytes(3_073))
    with pytest.raises(DataError, match=r"test\.bin\[0\] has label 20; expected 0\.\.19"):
        open_source(tmp_path)


def test_a_file_of_the_other_dataset_is_refused(tmp_path: Path) -> None:
    cifar10(tmp_path)
    cifar100(tmp_path / "other")
    shutil.copy(first(tmp_path, "train.bin"), tmp_path / "cifar-10-batches-bin/data_batch_1.bin")
    with pytest.raises(DataError, match=r"data_batch_1\.bin has 21,518 bytes; expected a multiple of 3,073"):
        open_source(tmp_path / "cifar-10-batches-bin")


def test_one_file_alone_is_refused(tmp_path: Path) -> None:
    cifar10(tmp_path)
    with pytest.raises(DataError, match="one file of CIFAR-10; expected the whole folder"):
        open_source(tmp_path / "cifar-10-batches-bin/data_batch_1.bin")


def test_gigantic_files_are_not_read(tmp_path: Path) -> None:
    cifar10(tmp_path)
    os.truncate(first(tmp_path, "data_batch_3.bin"), 2**40)
    with pytest.raises(DataError, match=r"data_batch_3\.bin: cannot be read \(it has .* MiB; expected at most"):
        open_source(tmp_path)


def test_a_damaged_zip_is_found_while_it_is_read(tmp_path: Path) -> None:
    root = tmp_path / "data"
    cifar10(root)
    path = pack(root, "zip")
    with zipfile.ZipFile(path) as archive:
        position = archive.getinfo("cifar-10-batches-bin/test_batch.bin").header_offset
    content = bytearray(path.read_bytes())
    content[position + 500] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"test_batch\.bin: cannot be read \(Bad CRC-32"):
        open_source(path)


def test_a_tar_with_a_folder_and_no_files_is_not_cifar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("cifar-10-batches-bin")
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
    with pytest.raises(DataError, match="no images; expected train/<class>"):
        open_source(tmp_path / "a.tar")
