"""Sources: what they read, in which order, and what they refuse."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from torchvision import datasets

from fastcifar.converters import images, open_source
from fastcifar.converters.archives import MAX_FILE_BYTES
from fastcifar.converters.synthetic import CLASS_NAMES, SyntheticSplit
from fastcifar.errors import DataError, FastcifarError, UsageError
from tests.conftest import ImageFolder

Pixels = dict[str, list[tuple[bytes, int]]]


def pixels(spec: Path | str) -> Pixels:
    with open_source(spec) as source:
        return {name: [(image.tobytes(), label) for image, label in split] for name, split in source.splits.items()}


def pack(folder: Path, kind: str, prefix: str = "", skip: str = "") -> Path:
    """The folder as an archive, its files in no helpful order."""
    target = folder.with_suffix(f".{kind}")
    files = sorted((p for p in folder.rglob("*") if p.is_file() and p.name != skip), key=lambda p: p.name, reverse=True)
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            for file in files:
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    else:
        mode = {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz", "tar.bz2": "w:bz2"}[kind]
        with tarfile.open(target, mode) as archive:  # type: ignore[call-overload]
            for file in files:
                archive.add(file, prefix + file.relative_to(folder).as_posix())
    return target


@pytest.mark.parametrize("prefix", ["", "./", "cifar-images/"])
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.bz2", "zip"])
def test_an_archive_gives_what_its_folder_gives(image_folder: ImageFolder, kind: str, prefix: str) -> None:
    folder = image_folder()
    expected = pixels(folder)
    assert [label for _, label in expected["train"]] == [0, 0, 0, 1, 1, 1]
    assert pixels(pack(folder, kind, prefix)) == expected


def test_pixels_and_class_names_are_those_of_the_files(image_folder: ImageFolder) -> None:
    folder = image_folder(classes=("zebra", "ant"))
    with open_source(folder) as source:
        assert source.class_names == ("ant", "zebra")
        image, label = list(source.splits["test"])[4]
    assert label == 1
    np.testing.assert_array_equal(image, np.asarray(PIL.Image.open(folder / "test/zebra/01.png")))


def test_a_class_may_have_no_test_images(image_folder: ImageFolder) -> None:
    folder = image_folder()
    shutil.rmtree(folder / "test/cat")
    assert [label for _, label in pixels(folder)["test"]] == [1, 1, 1]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_modes_become_rgb(image_folder: ImageFolder, mode: str) -> None:
    folder = image_folder()
    name = "train/cat/00.jpg" if mode == "CMYK" else "train/cat/00.png"
    (folder / "train/cat/00.png").unlink()
    PIL.Image.new(mode, (8, 8), 1).convert("RGBA").convert(mode).save(
        folder / name
    ) if mode != "RGBA" else PIL.Image.new("RGBA", (8, 8), (1, 2, 3, 255)).save(folder / name)
    with open_source(folder) as source:
        image, _ = next(iter(source.splits["train"]))
    assert image.shape == (8, 8, 3)


def test_system_files_are_ignored(image_folder: ImageFolder) -> None:
    folder = image_folder()
    expected = pixels(folder)
    for name in ("train/cat/.DS_Store", "train/cat/Thumbs.db", "README.txt", "__MACOSX/train/cat/._00.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    assert pixels(folder) == expected
    assert pixels(pack(folder, "zip")) == expected


def save(path: Path, image: PIL.Image.Image, **settings: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **settings)


def test_images_of_two_sizes_are_refused(image_folder: ImageFolder) -> None:
    folder = image_folder(side=32)
    save(folder / "train/dog/odd.png", PIL.Image.new("RGB", (48, 64)))
    with pytest.raises(DataError) as caught:
        pixels(folder)
    assert str(caught.value) == (
        f"{folder}: train/dog/odd.png is 64x48, train/cat/00.png is 32x32 (height x width); "
        "expected one size for all: resize or remove it"
    )


def test_a_class_only_in_test_is_refused(image_folder: ImageFolder) -> None:
    folder = image_folder()
    save(folder / "test/zebra/0.png", PIL.Image.new("RGB", (8, 8)))
    with pytest.raises(DataError) as caught:
        pixels(folder)
    assert str(caught.value) == f"{folder}: test/zebra is a class that train/ does not have; expected one of: cat, dog"


def half_transparent() -> PIL.Image.Image:
    return PIL.Image.new("RGBA", (8, 8), (1, 2, 3, 128))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (half_transparent(), "has transparent pixels"),
        (PIL.Image.fromarray(np.full((8, 8), 60_000, np.uint16)), "expected 8 bits a channel"),
        (PIL.Image.new("RGB", (1_673, 1)), "is 1x1673; expected at most 1672 pixels a side"),
    ],
)
def test_an_image_that_rgb_cannot_represent_is_refused(
    image_folder: ImageFolder, image: PIL.Image.Image, message: str
) -> None:
    folder = image_folder()
    save(folder / "train/cat/01.png", image)
    with pytest.raises(DataError, match=message):
        pixels(folder)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(50), b"GIF89a" + bytes(50)])
def test_a_file_that_is_not_an_image_is_refused(image_folder: ImageFolder, content: bytes) -> None:
    folder = image_folder()
    (folder / "train/cat/01.png").write_bytes(content)
    with pytest.raises(DataError, match=r"train/cat/01\.png: not a JPEG or PNG image"):
        pixels(folder)


def test_an_image_of_16_bits_a_channel_is_refused(image_folder: ImageFolder) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head, rows = (8).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0]), zlib.compress(bytes(8 * 49))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    folder = image_folder()
    (folder / "train/cat/01.png").write_bytes(png)
    with pytest.raises(DataError, match="expected 8 bits a channel"):
        pixels(folder)


def test_a_truncated_image_is_refused(image_folder: ImageFolder) -> None:
    folder = image_folder()
    for name in ("cut.jpg", "cut.png"):
        path = folder / "train/cat" / name
        PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(DataError, match=f"train/cat/{name}: not a JPEG or PNG image"):
            pixels(folder)
        path.unlink()


def test_a_gigantic_image_is_refused_before_it_is_decoded(image_folder: ImageFolder) -> None:
    folder = image_folder()
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    import zlib

    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (folder / "train/cat/01.png").write_bytes(png)
    with pytest.raises(DataError, match=r"train/cat/01\.png: (is 60000x60000|not a JPEG)"):
        pixels(folder)


def test_empty_and_missing_places_are_refused(tmp_path: Path, image_folder: ImageFolder) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder; expected 'download', 'synthetic'"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images in train/; expected train/<class>/\*"):
        open_source(tmp_path / "empty")
    folder = image_folder()
    shutil.rmtree(folder / "test")
    with pytest.raises(DataError, match=r"no images in test/; expected"):
        open_source(folder)


@pytest.mark.parametrize("name", ["train/stray.png", "train/cat/deep/0.png", "train/cat/notes.txt", "train/cat/0.bmp"])
def test_a_file_outside_the_layout_is_an_error_that_names_it(image_folder: ImageFolder, name: str) -> None:
    folder = image_folder()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    with pytest.raises(DataError, match=f"{name}: expected train/<class>"):
        pixels(folder)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.bz2", "zip"])
def test_a_truncated_archive_is_refused(image_folder: ImageFolder, kind: str) -> None:
    archive = pack(image_folder(), kind)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(DataError, match="truncated or corrupt tar or zip archive"):
        pixels(archive)


@pytest.mark.parametrize("cut", [1, 20, 40, 300, 700, 1_500, 9_000])
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_a_tar_that_lost_its_end_is_refused(image_folder: ImageFolder, kind: str, cut: int) -> None:
    archive = pack(image_folder(), kind)
    content = archive.read_bytes()
    if kind == "tar":
        end = content.rstrip(b"\0")  # a tar ends with empty blocks; without the first of them it is cut
        content = end + bytes(-len(end) % 512)
        cut -= 1
    archive.write_bytes(content[: len(content) - min(cut, len(content) - 30)])
    with pytest.raises(DataError, match="truncated or corrupt tar or zip archive"):
        pixels(archive)


def test_a_damaged_header_in_a_tar_is_not_its_end(image_folder: ImageFolder) -> None:
    archive = pack(image_folder(), "tar")
    content = bytearray(archive.read_bytes())
    with tarfile.open(archive) as opened:
        header = opened.getmembers()[4].offset
    content[header + 10] ^= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match="truncated or corrupt tar or zip archive .bad checksum"):
        pixels(archive)


def test_a_folder_that_cannot_be_read_is_an_error(image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = image_folder()
    real = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("test/dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"test/dog: cannot be read \(Permission denied\)"):
        open_source(folder)


@pytest.mark.parametrize("name", ["\x1b[31mred", "new\nline", "\udcff\udcfe"])
def test_a_class_name_that_is_not_printable_is_refused(image_folder: ImageFolder, name: str) -> None:
    folder = image_folder()
    os.rename(folder / "train/cat", folder / "train" / name)
    shutil.rmtree(folder / "test/cat")
    with pytest.raises(DataError, match="has characters that are not printable; rename it"):
        pixels(folder)


def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"notes\.txt: truncated or corrupt tar or zip archive"):
        open_source(tmp_path / "notes.txt")


def add(archive: tarfile.TarFile, name: str, **fields: object) -> None:
    member = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(bytes(member.size)) if member.isreg() and member.size < 2**20 else None)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("../train/cat/x.png", {}, "points outside"),
        ("train/../../x.png", {}, "points outside"),
        ("/train/cat/x.png", {}, None),
        ("train/cat/x.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "is a link, a device"),
        ("train/cat/x.png", {"type": tarfile.LNKTYPE, "linkname": "train/cat/00.png"}, "is a link, a device"),
        ("train/cat/x.png", {"type": tarfile.CHRTYPE}, "is a link, a device"),
        ("train/cat/00.png", {}, "is a duplicate"),
        ("train/cat/x.png", {"size": MAX_FILE_BYTES + 1}, "expected at most"),
        ("other/train/cat/x.png", {}, "next to another dataset"),
    ],
)
def test_a_hostile_tar_is_refused(
    image_folder: ImageFolder, name: str, fields: dict[str, object], message: str | None
) -> None:
    path = pack(image_folder(), "tar")
    with tarfile.open(path, "a") as archive:
        add(archive, name, **fields)
    before = set(path.parent.rglob("*"))
    with pytest.raises(DataError, match=message):
        pixels(path)
    assert set(path.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["../train/cat/x.png", "train/../x/x.png", "train/cat/..\\..\\x.png"])
def test_a_hostile_zip_is_refused(image_folder: ImageFolder, name: str) -> None:
    path = pack(image_folder(), "zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(DataError, match="points outside|has a backslash in its name"):
        pixels(path)


def test_a_pipe_or_a_loop_in_a_folder_does_not_hang(image_folder: ImageFolder) -> None:
    folder = image_folder()
    expected = pixels(folder)
    os.symlink(folder, folder / "train/cat/loop")
    assert pixels(folder) == expected
    (folder / "train/cat/loop").unlink()
    os.mkfifo(folder / "train/cat/pipe.png")
    with pytest.raises(DataError, match="not a regular file"):
        pixels(folder)


# ---- official archives: torchvision's own checks, over files made here -------------------------------------------


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like CIFAR-10's; torchvision is patched to expect its checksums."""
    folder = tmp_path / "official" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    sums = {}
    for name in names:
        batch = {"data": random.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 9, 5]}
        (folder / name).write_bytes(pickle.dumps(batch))
    labels = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": labels}))
    for name in [*names, "batches.meta"]:
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as out:
        out.add(folder, "cifar-10-batches-py")
    kind = datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [[n, sums[n]] for n in names[:5]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums["batches.meta"]})
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return folder


def test_the_official_archive_and_its_folder(official: Path) -> None:
    archive = official.parents[1] / "cifar-10-python.tar.gz"
    expected = pixels(official)
    assert len(expected["train"]) == 20
    assert [label for _, label in expected["test"]] == [0, 1, 9, 5]
    assert pixels(official.parent) == pixels(archive) == expected
    with open_source(archive) as source:
        assert source.class_names[9] == "truck"
        assert source.description == "CIFAR-10, official archive"
    raw = pickle.loads((official / "test_batch").read_bytes())["data"][2].reshape(3, 32, 32).transpose(1, 2, 0)
    assert expected["test"][2][0] == raw.tobytes()


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_official_files_may_be_larger_than_an_image(official: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """As the 155 MB of CIFAR-100."""
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 100)
    assert len(pixels(pack(official.parent, kind))["train"]) == 20
    assert MAX_FILE_BYTES > 160_000_000


def test_a_truncated_official_archive_is_refused(official: Path) -> None:
    archive = official.parents[1] / "cifar-10-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(DataError, match="truncated or corrupt tar or zip archive"):
        open_source(archive)


@pytest.mark.parametrize("how", ["tar", "tar.xz", "zip", "flat zip", "dotted tar"])
def test_the_official_files_packed_another_way_are_read(official: Path, tmp_path: Path, how: str) -> None:
    """E.g. by a browser that unpacks the .gz, or a website with archives of its own."""
    expected = pixels(official)
    path = tmp_path / f"again.{how.split()[-1]}"
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for file in official.iterdir():
                zipped.write(file, file.name if how == "flat zip" else f"cifar-10-batches-py/{file.name}")
    else:
        with tarfile.open(path, "w:xz" if how == "tar.xz" else "w") as archive:
            archive.add(
                official.parent if how == "dotted tar" else official, "." if how == "dotted tar" else official.name
            )
    assert pixels(path) == expected
    (official / "data_batch_3").write_bytes(b"changed")
    again = pack(official.parent, "tar")
    with pytest.raises(DataError, match="not the official CIFAR-10 files .data_batch_3 has the MD5 .*; expected"):
        open_source(again)
    (official / "data_batch_3").unlink()
    for place in (pack(official.parent, "zip"), official):
        with pytest.raises(DataError, match="not the official CIFAR-10 files .data_batch_3 is missing"):
            open_source(place)


OTHER_VERSIONS = {
    "binary version of CIFAR-10": ("cifar-10-batches-bin", "data_batch_1.bin"),
    "matlab version of CIFAR-10": ("cifar-10-batches-mat", "batches.meta.mat"),
    "binary version of CIFAR-100": ("cifar-100-binary", "train.bin"),
    "matlab version of CIFAR-100": ("cifar-100-matlab", "train.mat"),
}


@pytest.mark.parametrize("version", list(OTHER_VERSIONS))
def test_other_versions_of_cifar_are_refused_by_name(tmp_path: Path, version: str) -> None:
    folder, name = OTHER_VERSIONS[version]
    root = tmp_path / "data"
    (root / folder).mkdir(parents=True)
    (root / folder / name).write_bytes(b"x")
    python = "cifar-100-python" if "100" in version else "cifar-10-python"
    for place in (root, pack(root, "tar.gz"), pack(root, "zip")):
        with pytest.raises(DataError, match=rf"the {version}, which is not supported; expected .* {python}\.tar\.gz"):
            open_source(place)


def test_a_single_file_of_cifar_is_refused(official: Path) -> None:
    with pytest.raises(DataError, match="one file of CIFAR-10; expected the whole folder"):
        open_source(official / "data_batch_1")
    (official / "batches.meta").unlink()
    with pytest.raises(DataError, match=r"not the official CIFAR-10 files \(batches\.meta is missing\)"):
        open_source(official)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><title>404</title>", "an HTML page"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(50), "a 7-Zip archive"),
        (b"Rar!\x1a\x07\0" + bytes(50), "a RAR archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"", "an empty file"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"truncated or corrupt tar or zip archive .it is {kind}"):
        open_source(path)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)

    target = ""


def test_a_full_disk_is_not_reported_as_a_wrong_checksum(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        FastcifarError, match=r"too full to unpack .*cifar-10-python\.tar\.gz \(No space left on device\)"
    ):
        open_source(official.parents[1] / "cifar-10-python.tar.gz")


def test_a_changed_batch_is_never_unpickled(official: Path, tmp_path: Path) -> None:
    Payload.target = str(tmp_path / "executed")
    for name in ("data_batch_1", "batches.meta"):
        kept = (official / name).read_bytes()
        (official / name).write_bytes(pickle.dumps(Payload()))
        with pytest.raises(DataError, match="not the official CIFAR-10 files"):
            open_source(official)
        (official / name).write_bytes(kept)
    assert not (tmp_path / "executed").exists()


def test_no_network_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.error
    import urllib.request

    def offline(*args: object, **settings: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(DataError, match=r"CIFAR-10 cannot be downloaded .* give the archive .* --source synthetic"):
        open_source("download", download_dir=tmp_path)
    with pytest.raises(UsageError, match="dataset is 'mnist'; expected one of: cifar10, cifar100"):
        open_source("download", dataset="mnist", download_dir=tmp_path)


# ---- synthetic --------------------------------------------------------------------------------------------------


def test_synthetic_images_are_the_same_everywhere() -> None:
    images = np.stack([image for image, _ in SyntheticSplit(100, 0, 0)])
    assert hashlib.sha256(images.tobytes()).hexdigest() == GOLDEN_SYNTHETIC


def test_synthetic_classes_are_balanced_and_splits_differ() -> None:
    with open_source("synthetic") as source:
        assert source.class_names == CLASS_NAMES
        assert {name: len(split) for name, split in source.splits.items()} == {"train": 20_000, "test": 4_000}
        first = [next(iter(split))[0] for split in source.splits.values()]
    assert not np.array_equal(first[0], first[1])
    labels = np.array([label for _, label in SyntheticSplit(4_004, 0, 1)])
    assert np.count_nonzero(labels != np.arange(4_004) % 1_000 % 10) == 12  # wrong labels
    assert 395 <= np.bincount(labels).min() <= np.bincount(labels).max() <= 405


GOLDEN_SYNTHETIC = "925e84851d085060886d7b8430b4a6f13a20038603e7d2a480973ce06b9ac6b2"
