"""The official CIFAR archives: torchvision's own checks, over files made here."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from fastcifar.converters import SourceOptions, images, open_source
from fastcifar.converters.archives import MAX_FILE_BYTES
from fastcifar.errors import DataError, FastcifarError, UsageError
from tests.test_sources import pack, pixels


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
    "matlab version of CIFAR-10": ("cifar-10-batches-mat", "batches.meta.mat"),
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


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "zip"])
def test_the_official_files_among_others_in_another_folder(official: Path, kind: str) -> None:
    """As people pack them again on a Mac."""
    expected, root = pixels(official), official.parents[1] / "downloads"
    root.mkdir()
    shutil.copytree(official, root / "my cifar")
    for name in ("my cifar/._data_batch_1", "my cifar/readme.html", "my cifar/.DS_Store", "notes.txt", "__MACOSX/x"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    place = root if kind == "folder" else pack(root, kind)
    assert pixels(place) == expected
    (root / "my cifar/test_batch").write_bytes(b"changed")
    with pytest.raises(DataError, match="not the official CIFAR-10 files .test_batch has the MD5"):
        pixels(root if kind == "folder" else pack(root, kind))


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_cifar_100_is_found_by_its_three_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    root, kind100, sums = tmp_path / "down", datasets.CIFAR100, {}
    (root / "c100").mkdir(parents=True)
    contents = {name: {"data": np.zeros((3, 3_072), np.uint8), "fine_labels": [0, 1, 99]} for name in ("train", "test")}
    contents["meta"] = {"fine_label_names": [f"c{i}" for i in range(100)]}
    for name, content in contents.items():
        (root / "c100" / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((root / "c100" / name).read_bytes()).hexdigest()
    for name in ("train", "test"):
        monkeypatch.setattr(kind100, f"{name}_list", [[name, sums[name]]])
    monkeypatch.setattr(kind100, "meta", {**kind100.meta, "md5": sums["meta"]})
    with open_source(root if kind == "folder" else pack(root, kind)) as source:
        assert source.class_names[99] == "c99"
        assert [sample.label for sample in source.splits["train"]] == [0, 1, 99]
        assert next(iter(source.splits["test"])).origin == "test[0]"


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
        open_source("download", SourceOptions(download_dir=str(tmp_path)))
    with pytest.raises(UsageError, match="dataset is 'mnist'; expected one of: cifar10, cifar100"):
        open_source("download", SourceOptions(dataset="mnist", download_dir=str(tmp_path)))
