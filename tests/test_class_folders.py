"""Class folders with a validation set in place of a test set, and without either: `--test-share`."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from fastcifar.cli import main
from fastcifar.converters import Broken, Source, SourceOptions, convert, open_source
from fastcifar.converters.open_source import hold_out_test
from fastcifar.data import statistics
from fastcifar.data.beton import open_beton
from fastcifar.errors import DataError, UsageError
from tests.conftest import ImageFolder
from tests.test_layout import refusal
from tests.test_sources import pack, pixels

SHARE = SourceOptions(test_share=0.2)


def class_folders(root: Path, **counts: int) -> Path:
    """Folders of so many images each, whose pixels are all different."""
    random = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            image = PIL.Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            image.save(root / name / f"{number:03d}.png")
    return root


def origins(source: Source) -> dict[str, list[tuple[str, int]]]:
    found = {}
    for name, split in source.splits.items():
        samples = list(split)
        assert not any(isinstance(sample, Broken) for sample in samples)
        found[name] = [(sample.origin, sample.label) for sample in samples]
    return found


def opened(path: Path, options: SourceOptions = SHARE) -> dict[str, list[tuple[str, int]]]:
    with open_source(path, options) as source:
        return origins(source)


def test_the_train_command_after_convert_and_inspect_has_a_batch_size_that_fits(tmp_path: Path) -> None:
    source, data = class_folders(tmp_path / "photos", cats=21, dogs=14), tmp_path / "data"
    result = CliRunner().invoke(
        main, ["convert", "--source", str(source), "--test-share", "0.2", "--data-dir", str(data)]
    )
    following = f"next: fastcifar train --data-dir {data} --batch-size 2"  # 17 + 12 images, 2 of them held out
    assert result.stdout.splitlines()[-1] == following
    result = CliRunner().invoke(main, ["inspect", str(data / "train.beton")])
    assert result.stdout.splitlines()[-1] == following


# ---- validation sets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "val"), ("Training", "Validation"), ("TRAIN", "Valid"), ("training", "testing"), ("Train", "TEST")],
)
@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_other_names_of_the_two_sets(
    image_folder: ImageFolder, train: str, test: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = image_folder()
    expected = pixels(folder)
    os.rename(folder / "train", folder / "t")
    os.rename(folder / "t", folder / train)
    os.rename(folder / "test", folder / test)
    assert pixels(folder if kind == "folder" else pack(folder, kind)) == expected
    said = f"no test images; the images of {test}/ are used to test" in caplog.text
    assert said == test.lower().startswith("val")


def test_a_validation_set_is_not_used_next_to_a_test_set(
    image_folder: ImageFolder, caplog: pytest.LogCaptureFixture
) -> None:
    folder = image_folder()
    expected = pixels(folder)
    shutil.copytree(folder / "train", folder / "val")
    assert pixels(folder) == expected
    assert "val/ is not used: there is a test set of its own" in caplog.text


def test_test_share_and_test_images_are_a_contradiction(image_folder: ImageFolder) -> None:
    with pytest.raises(UsageError, match=r"test_share is 0\.2, but .*images has test images already"):
        open_source(image_folder(), SHARE)


# ---- a share of the images to test -------------------------------------------------------------------------------


def test_without_test_images_the_error_names_the_flag(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "in", cat=10, dog=10)
    done = CliRunner().invoke(main, ["convert", "--source", str(folder), "--data-dir", str(tmp_path / "out")])
    assert done.exit_code == 4
    assert done.stderr.splitlines()[-1] == (
        f"Error: {folder}: has no test images; make every fifth image of each class one with --test-share 0.2"
    )
    again = CliRunner().invoke(
        main, ["convert", "--source", str(folder), "--data-dir", str(tmp_path / "out"), "--test-share", "0.2"]
    )
    assert again.exit_code == 0, again.output
    assert "train.beton: 16 images of 4x4, 2 classes" in again.output
    assert "test.beton: 4 images of 4x4, 2 classes" in again.output


@pytest.mark.parametrize("kind", ["folder", "tar.gz", "zip"])
@pytest.mark.parametrize("around", ["", "archive/", "a/b/"])
def test_each_class_gives_its_share_and_each_image_is_in_one_split(tmp_path: Path, kind: str, around: str) -> None:
    folder = class_folders(tmp_path / "in", cat=20, dog=11, owl=2, ant=1)
    expected = opened(folder)
    every = expected["train"] + expected["test"]
    assert Counter(label for _, label in expected["test"]) == {1: 4, 2: 2, 3: 1}
    assert Counter(label for _, label in expected["train"]) == {0: 1, 1: 16, 2: 9, 3: 1}
    assert len({origin for origin, _ in every}) == len(every) == 34
    assert all(origin.split("/")[0] == ("ant", "cat", "dog", "owl")[label] for origin, label in every)
    assert [label for _, label in expected["train"]] == sorted(label for _, label in expected["train"])
    if kind != "folder":
        found = opened(pack(folder, kind, around))
        assert {n: [(o.removeprefix(around), label) for o, label in s] for n, s in found.items()} == expected
    elif around:
        target = tmp_path / "other" / around.rstrip("/")
        target.parent.mkdir(parents=True)
        os.rename(folder, target)
        (tmp_path / "other/README.md").touch()
        assert {
            n: [(o.removeprefix(around), label) for o, label in s] for n, s in opened(tmp_path / "other").items()
        } == expected


def test_a_train_folder_alone_is_shared_too(image_folder: ImageFolder) -> None:
    folder = image_folder(each=5)
    shutil.rmtree(folder / "test")
    found = opened(folder)
    assert {name: len(split) for name, split in found.items()} == {"train": 8, "test": 2}


def test_the_seed_decides_which_and_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "in", cat=30, dog=30)
    sums = []
    for number, seed in enumerate((0, 0, 1)):
        convert(folder, tmp_path / str(number), test_share=0.3, seed=seed)
        sums.append([(tmp_path / str(number) / f"{split}.beton").read_bytes() for split in ("train", "test")])
    assert sums[0] == sums[1] != sums[2]
    names = open_beton(tmp_path / "0/test.beton").origins()
    assert tuple(names[:3]) == GOLDEN


GOLDEN = ("cat/002.png", "cat/003.png", "cat/009.png")


@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.999])
def test_a_class_with_two_images_keeps_one_for_each_split(share: float) -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), random.integers(0, 12, 40))
    random.shuffle(labels)
    is_test = hold_out_test(labels, 40, share, 3)
    counts, num_test = np.bincount(labels, minlength=40), np.bincount(labels[is_test], minlength=40)
    assert (num_test[counts >= 2] >= 1).all()
    assert (num_test[counts >= 2] < counts[counts >= 2]).all()
    assert not num_test[counts < 2].any()
    middle = (counts * share >= 1) & (counts - counts * share >= 1)
    assert (np.abs(num_test - counts * share)[middle] <= 0.5).all()


def test_one_image_for_each_class_leaves_none_to_test(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class has two images; expected one to test on"):
        open_source(class_folders(tmp_path / "in", cat=1, dog=1), SHARE)


@pytest.mark.parametrize("share", ["0", "1", "1.5", "-0.1", "nan", "a"])
def test_a_share_outside_0_to_1_is_wrong_use(tmp_path: Path, share: str) -> None:
    done = CliRunner().invoke(main, ["convert", "--source", str(tmp_path), "--test-share", share])
    assert done.exit_code == 2, done.output
    if share != "a":
        with pytest.raises(UsageError, match="test_share"):
            SourceOptions(test_share=float(share))


# ---- which folders are classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
@pytest.mark.parametrize("name", ["train", "test", "val", "Training"])
def test_a_class_may_be_called_train_or_test(tmp_path: Path, name: str, kind: str) -> None:
    folder = class_folders(tmp_path / "in", car=5, bus=5, **{name: 5})
    with open_source(folder if kind == "folder" else pack(folder, kind), SHARE) as source:
        assert source.class_names == tuple(sorted(("car", "bus", name)))
        assert {key: len(split) for key, split in source.splits.items()} == {"train": 12, "test": 3}


def test_classes_may_be_called_train_and_test_within_the_two_sets(tmp_path: Path) -> None:
    for split in ("train", "test"):
        class_folders(tmp_path / "in" / split, train=2, test=2, car=2)
    with open_source(tmp_path / "in") as source:
        assert source.class_names == ("car", "test", "train")
        assert [origin for origin, _ in origins(source)["test"]][2:4] == ["test/test/000.png", "test/test/001.png"]


def test_images_in_train_and_test_without_classes_are_refused(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "in", train=3, test=3, sample=2, extra=2)
    with pytest.raises(DataError, match=r"test/000\.png: expected train/<class>/\*"):
        open_source(folder, SHARE)
    (folder / "labels.csv").touch()
    with pytest.raises(DataError, match="give the table of labels as the source, and this folder as --images-root"):
        open_source(folder, SHARE)


def test_system_files_are_skipped_and_counted(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "in", cat=5, dog=5)
    names = (
        "cat/Thumbs.db",
        "cat/desktop.ini",
        "dog/.DS_Store",
        "dog/._000.png",
        "cat/@eaDir/000.png",
        ".hidden/1.png",
    )
    for name in (*names, "__MACOSX/cat/._000.png"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"x")
    for number, path in enumerate((folder, pack(folder, "tar"), pack(folder, "zip"))):
        done = CliRunner().invoke(
            main, ["convert", "--source", str(path), "--test-share", "0.2", "--data-dir", str(tmp_path / str(number))]
        )
        assert done.exit_code == 0, done.output
        assert "7 files or folders of operating systems ignored" in done.output


def test_an_empty_class_folder_without_a_split_is_an_error_too(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "images", ant=5, cat=5)
    (root / "bee").mkdir()
    with pytest.raises(DataError, match="class folders without images: bee; add images"):
        open_source(root, SHARE)
    with open_source(root, SourceOptions(test_share=0.2, skip_empty_classes=True)) as source:
        assert source.class_names == ("ant", "cat")


# ---- archives within archives, counts ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize("name", ["images.zip", "train.tar.gz", "train/cat/more.ZIP", "a/b.7z"])
def test_an_archive_within_an_archive_is_refused(image_folder: ImageFolder, name: str, kind: str) -> None:
    folder = image_folder()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"PK")
    path = pack(folder, kind)
    assert refusal(path) == (
        f"{path}: holds another archive, {name}; unpack {path.name}, and give that archive or the folder as the source"
    )


def test_a_folder_may_keep_the_archive_that_it_came_from(image_folder: ImageFolder, tmp_path: Path) -> None:
    folder = image_folder()
    expected = pixels(folder)
    (folder / "archive.zip").write_bytes(b"PK")
    assert pixels(folder) == expected
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/archive.zip").write_bytes(b"PK")
    assert refusal(tmp_path / "alone").endswith("found archive.zip; unpack archive.zip first")


def test_more_classes_than_a_beton_may_have_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = class_folders(tmp_path / "in", a=2, b=2, c=2)
    monkeypatch.setattr(statistics, "MAX_CLASSES", 2)
    with pytest.raises(DataError, match="has 3 classes; expected at most 2: are they labels"):
        convert(folder, tmp_path / "out", test_share=0.5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_without_images_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        tarfile.open(path, "w").close()
    else:
        zipfile.ZipFile(path, "w").close()
    assert refusal(path).endswith("found nothing")


# ---- broken images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_broken_images_are_an_error_or_skipped_and_listed(tmp_path: Path, kind: str) -> None:
    folder = class_folders(tmp_path / "in", cat=130, dog=130)
    whole = opened(folder)
    broken = [whole["train"][0][0], whole["train"][150][0]]
    for name in broken:
        (folder / name).write_bytes((folder / name).read_bytes()[:40])
    path = folder if kind == "folder" else pack(folder, kind)
    arguments = ["convert", "--source", str(path), "--test-share", "0.2", "--data-dir", str(tmp_path / "out")]
    failed = CliRunner().invoke(main, arguments)
    assert failed.exit_code == 4
    assert f"Error: {path}: {broken[0]}: not a readable image (it begins as a PNG image and is" in failed.stderr
    assert failed.stderr.endswith("replace or remove it, or use --skip-broken\n")
    assert not list((tmp_path / "out").glob("*.beton*"))
    done = CliRunner().invoke(main, [*arguments, "--skip-broken"])
    assert done.exit_code == 0, done.output
    assert f"train: 2 broken images skipped: {broken[0]}, {broken[1]}" in done.output
    beton = open_beton(tmp_path / "out/train.beton")
    assert beton.manifest is not None
    assert beton.manifest.conversion.skipped == tuple(broken)
    assert beton.origins() == [name for name, _ in whole["train"] if name not in broken]
    assert len(beton) == 206


def test_over_one_percent_broken_is_always_an_error(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "in", cat=130, dog=130)
    for name, _ in opened(folder)["train"][5:8]:
        (folder / name).write_bytes(b"")
    with pytest.raises(DataError, match="over 1% of the images in train are broken, e.g. .*it is an empty file"):
        convert(folder, tmp_path / "out", test_share=0.2, skip_broken=True)
    assert not list((tmp_path / "out").glob("*.beton*"))


def test_the_message_about_a_broken_image_is_one_short_line(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "in", cat=130, dog=130)
    (folder / "cat/000.png").unlink()
    (folder / "cat/000.png").symlink_to("nothing.png")
    with pytest.raises(DataError, match=r"cat/000.png: cannot be read \(No such file or directory\)"):
        convert(folder, tmp_path / "out", test_share=0.2)
    file = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(file, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png"):
            archive.writestr(name, file.getvalue())
        archive.writestr(f"train/a/{'x' * 60_000}.png", b"")
    for skip_broken in (False, True):
        with pytest.raises(DataError) as caught:
            convert(tmp_path / "a.zip", tmp_path / "out", skip_broken=skip_broken)
        assert len(str(caught.value)) < 1_000


def test_the_name_of_a_skipped_image_is_one_short_line(tmp_path: Path) -> None:
    file = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(file, "PNG")
    long = "x" * 60_000
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(120):
            archive.writestr(f"train/{'ab'[number % 2]}/{number}.png", file.getvalue())
        archive.writestr("test/a/1.png", file.getvalue())
        archive.writestr(f"train/a/{long}.png", b"")
    manifests = convert(tmp_path / "a.zip", tmp_path / "out", skip_broken=True)
    assert [len(name) for name in manifests["train"].conversion.skipped] == [4_095]
