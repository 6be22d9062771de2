"""`eval`: calibration, file names, and other test sets: betons, arrays, folders, CIFAR-10-C."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from fastcifar import open_beton
from fastcifar.cli import main
from fastcifar.converters import convert
from fastcifar.data.beton import Beton
from fastcifar.data.origins import short_names
from fastcifar.errors import DataError, UsageError
from fastcifar.inference.calibration import Calibration
from fastcifar.inference.corruption_scores import CorruptionEvaluation
from fastcifar.inference.evaluation import Evaluation, evaluate_run
from fastcifar.inference.metrics import compute_metrics
from fastcifar.inference.other_sets import evaluate_on
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.report import write_report
from fastcifar.report.other_sets import other_sets
from fastcifar.report.run_files import RunFiles
from fastcifar.training import RunFolder, train, weights
from tests.tiny import NETWORK, tiny


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(tiny(tiny_data, val_size=30), runs_dir=tmp_path_factory.mktemp("runs"))[0]


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy that a test may change."""
    return RunFolder(Path(shutil.copytree(trained.path, tmp_path / "runs" / "a")))


@pytest.fixture(scope="module")
def beton(tiny_data: Path) -> Beton:
    return open_beton(tiny_data / "test.beton")


@pytest.fixture(autouse=True)
def _few_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.plotting.figures.write_png", lambda path, figure: path.write_bytes(b"png"))


def evaluated(run: RunFolder, **settings: Any) -> Evaluation:
    return evaluate_run(run, trusted=NETWORK, **settings)


def evaluated_on(run: RunFolder, path: Path, **settings: Any) -> Any:
    return evaluate_on(run, path, trusted=NETWORK, **settings)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


# ---- calibration --------------------------------------------------------------------------------------------------


def test_a_run_without_a_calibration_gets_one_by_its_evaluation(run: RunFolder) -> None:
    expected = Calibration.load(run)
    run.calibration.unlink()
    evaluation = evaluated(run)
    assert Calibration.load(run).temperature == pytest.approx(expected.temperature, rel=1e-4)
    assert evaluation.calibration == Calibration.load(run)


def test_the_calibration_of_other_weights_is_replaced(run: RunFolder) -> None:
    expected = Calibration.load(run)
    stale = json.loads(run.calibration.read_text()) | {"weights_sha256": "0" * 64, "temperature": 9.0}
    run.calibration.write_text(json.dumps(stale))
    assert TrainedRun(run, trusted=NETWORK).calibration is None
    found = evaluated(run).calibration
    assert found is not None
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-4)


def test_without_the_training_images_the_evaluation_says_why_nothing_is_calibrated(
    run: RunFolder, tiny_data: Path, tmp_path: Path
) -> None:
    run.calibration.unlink()
    (tmp_path / "data").mkdir()
    for file in tiny_data.glob("test.beton*"):
        (tmp_path / "data" / file.name).symlink_to(file)
    evaluation = evaluated(run, data_dir=tmp_path / "data")
    assert (evaluation.calibration, evaluation.calibrated) == (None, None)
    assert evaluation.not_calibrated.startswith("the validation images cannot be used: ")
    assert "train.beton" in evaluation.not_calibrated
    assert not run.calibration.exists()
    assert "calibrated_confidence" not in rows_of(run.path / "eval" / "test" / "predictions.csv")[0]


def test_a_run_without_validation_images_is_not_calibrated(tiny_data: Path, tmp_path: Path) -> None:
    run = train(tiny(tiny_data, val_size=0, max_steps=1), runs_dir=tmp_path)[0]
    evaluation = evaluated(run)
    reason = "no image was held out; train with --val-size 10"  # 8 are a tenth; each of 10 classes needs one
    assert (evaluation.calibration, evaluation.not_calibrated) == (None, reason)
    assert evaluation.to_dict()["not_calibrated"] == reason
    assert f"Not calibrated: {reason}." in write_report(run).read_text(encoding="utf-8")
    run.metrics.unlink()
    assert evaluated(run).not_calibrated.endswith("train with --val-size N, a tenth of the training images")


def test_a_run_of_one_image_of_each_class_is_not_to_be_calibrated_by_eval(image_folder: Any, tmp_path: Path) -> None:
    convert(image_folder(each=1), tmp_path / "data")
    run = train(tiny(tmp_path / "data", batch_size=2, max_steps=1), runs_dir=tmp_path / "runs")[0]
    reason = "no image was held out, which takes two training images of a class"
    assert evaluated(run).not_calibrated == TrainedRun(run, trusted=NETWORK).not_calibrated == reason


def test_predictions_with_test_time_augmentation_are_not_calibrated(run: RunFolder) -> None:
    evaluation = evaluated(run, tta="flip")
    assert evaluation.calibrated is None
    assert "without test-time augmentation" in evaluation.not_calibrated


def test_the_results_have_both_probabilities(run: RunFolder) -> None:
    evaluation = evaluated(run)
    calibration = Calibration.load(run)
    scaled = evaluation.metrics.predictions.with_temperature(calibration.temperature)
    stored = json.loads((run.path / "eval" / "test" / "metrics.json").read_text())
    assert stored["temperature"] == calibration.temperature
    assert stored["calibrated_loss"] == compute_metrics(scaled).loss != stored["loss"]
    assert stored["calibrated_ece"] == compute_metrics(scaled).ece
    assert stored["accuracy_interval"] == list(evaluation.metrics.interval)
    confidences = [float(row["calibrated_confidence"]) for row in rows_of(run.path / "eval/test/predictions.csv")]
    np.testing.assert_allclose(confidences, scaled.confidence, atol=1e-6)


# ---- names --------------------------------------------------------------------------------------------------------


def test_an_image_is_called_by_the_name_of_its_file_or_by_its_index() -> None:
    assert short_names(["test/cat/0001.png", "row 3", ""], ["0", "1", "2"]) == ["0001.png", "1", "2"]


def test_galleries_show_the_file_names_of_the_manifest(
    image_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    convert(image_folder(each=5), data)
    run = train(tiny(data, batch_size=4, max_steps=1, val_size=0), runs_dir=tmp_path / "runs")[0]
    shown: list[str] = []

    def gallery(images: Any, captions: Any, heading: str) -> Any:
        shown.extend(caption.name for caption in captions)

    monkeypatch.setattr("fastcifar.plotting.gallery", gallery, raising=False)
    evaluated(run)
    assert sorted(shown) == sorted(f"{number:02d}.png" for number in range(5) for _ in range(2))


# ---- other sets ---------------------------------------------------------------------------------------------------


def test_the_runs_own_test_images_have_the_same_predictions_when_they_are_named(
    run: RunFolder, tiny_data: Path, tmp_path: Path
) -> None:
    evaluated(run)
    found = evaluated_on(run, tiny_data / "test.beton")
    folder = run.path / "eval" / f"{tiny_data.name}-test"
    assert found.files[0] == folder / "metrics.json"
    expected = np.load(run.path / "eval" / "test" / "predictions.npz")
    with np.load(folder / "predictions.npz") as stored:
        assert all(np.array_equal(stored[key], expected[key]) for key in expected)
    assert evaluated_on(run, tiny_data).metrics.loss == found.metrics.loss  # the folder stands for its test images


def test_images_in_an_array_have_the_predictions_of_the_beton(run: RunFolder, beton: Beton, tmp_path: Path) -> None:
    expected = evaluated(run).metrics
    for version in ("v4", "v6"):  # CIFAR-10.1's names
        np.save(tmp_path / f"cifar10.1_{version}_data.npy", beton.images(np.arange(len(beton))))
        np.save(tmp_path / f"cifar10.1_{version}_labels.npy", beton.labels.astype(np.int32))
    found = evaluated_on(run, tmp_path / "cifar10.1_v6_data.npy")
    assert np.array_equal(found.metrics.predictions.logits, expected.predictions.logits)
    assert np.array_equal(found.metrics.confusion, expected.confusion)
    assert found.files[0] == run.path / "eval" / "cifar10.1_v6_data" / "metrics.json"
    stored = json.loads(found.files[0].read_text())
    assert stored["on"] == str(tmp_path / "cifar10.1_v6_data.npy")
    assert len(stored["data_sha256"]) == 64
    assert found.worst[0]["origin"].startswith("cifar10.1_v6_data.npy[")


def test_the_gallery_of_another_set_shows_its_images(
    run: RunFolder, beton: Beton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", images := beton.images(np.arange(40)))
    np.save(tmp_path / "y.npy", beton.labels)
    shown: list[tuple[Any, Any]] = []
    monkeypatch.setattr(
        "fastcifar.plotting.gallery", lambda images, captions, heading: shown.append((images, captions)), raising=False
    )
    predictions = evaluated_on(run, tmp_path / "x.npy").metrics.predictions
    assert sum(len(pixels) for pixels, _ in shown) == 40
    for pixels, captions in shown:
        for image, caption in zip(pixels, captions, strict=True):
            index = int(caption.name.partition("[")[2].removesuffix("]"))
            assert np.array_equal(image, images[index])
            assert caption.confidence == predictions.confidence[index]


def test_a_path_that_is_not_utf8_is_shown_with_escapes(run: RunFolder, beton: Beton, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    for name, content in (("data", beton.images(np.arange(9))), ("labels", beton.labels[:9])):
        np.save(folder / os.fsdecode(f"\xfe_{name}.npy".encode("latin-1")), content)
    result = invoke("eval", run.path, "--on", folder / os.fsdecode(b"\xfe_data.npy"), "--model", NETWORK)
    assert result.exit_code == 0, result.stderr
    assert r"\udcff/\udcfe_data.npy)" in result.stdout
    assert (run.path / "eval" / r"\udcfe_data" / "predictions.csv").is_file()
    write_report(run)


def test_classes_of_a_folder_are_matched_by_name_and_images_resized_as_the_data_were(
    run: RunFolder, beton: Beton, tmp_path: Path
) -> None:
    positions = [int(np.flatnonzero(beton.labels == label)[0]) for label in (7, 2)]
    for position in positions:
        folder = tmp_path / "photos" / beton.class_names[beton.labels[position]]
        folder.mkdir(parents=True)
        image = PIL.Image.fromarray(beton.images([position])[0])
        image.resize((64, 64), PIL.Image.Resampling.BOX).save(folder / "a.png")
    found = evaluated_on(run, tmp_path / "photos")
    assert sorted(found.metrics.predictions.labels.tolist()) == [2, 7]
    logits = TrainedRun(run, trusted=NETWORK).predictions("test").logits[positions]
    by_label = found.metrics.predictions.logits[np.argsort(-found.metrics.predictions.labels)]
    np.testing.assert_allclose(by_label, logits, atol=0.5)
    assert found.metrics.num_images.sum() == 2
    assert found.metrics.balanced_accuracy in (0, 0.5, 1)  # of the two classes that have images


def test_the_images_of_a_folder_are_padded_if_those_of_the_data_were(
    image_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(image_folder(each=3), tmp_path / "data", size=(8, 8), fit="pad", background=(1, 2, 3))
    run = train(tiny(tmp_path / "data", batch_size=4, max_steps=1, val_size=0), runs_dir=tmp_path / "runs")[0]
    for name in ("cat", "dog"):
        (tmp_path / "wide" / name).mkdir(parents=True)
        PIL.Image.new("RGB", (16, 8), (200, 0, 0)).save(tmp_path / "wide" / name / "a.png")
    seen: list[Any] = []
    predict = TrainedRun.logits
    monkeypatch.setattr(TrainedRun, "logits", lambda self, x, **more: seen.append(x) or predict(self, x, **more))
    evaluated_on(run, tmp_path / "wide")
    assert seen[0][0, 0, 0].tolist() == [1, 2, 3]
    assert seen[0][0, 4, 4].tolist() == [200, 0, 0]
    shutil.rmtree(tmp_path / "data")  # the weights know how
    evaluated_on(run, tmp_path / "wide")
    assert np.array_equal(seen[1], seen[0])


def test_a_set_with_the_name_of_a_split_has_a_folder_of_its_own(run: RunFolder, image_folder: Any) -> None:
    evaluated(run)
    before = (run.path / "eval" / "test" / "metrics.json").read_bytes()
    folder = image_folder("test", ("ring", "disc"))
    shutil.rmtree(folder / "train")
    found = evaluated_on(run, folder / "test")
    assert found.files[0] == run.path / "eval" / "on-test-test" / "metrics.json"
    other = shutil.copytree(folder / "test", folder.parent / "hospital" / "test")
    assert evaluated_on(run, other).files[0] == run.path / "eval" / "hospital-test" / "metrics.json"
    assert (run.path / "eval" / "test" / "metrics.json").read_bytes() == before


def test_sets_of_one_name_have_folders_of_their_own(
    run: RunFolder, image_folder: Any, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = image_folder("source", ("ring", "disc"))
    first, second = (shutil.copytree(source / "test", tmp_path / name / "photos") for name in ("p1", "p2"))

    def folder_of(path: Path, **settings: Any) -> str:
        return str(evaluated_on(run, path, **settings).files[0].parent.name)

    assert [folder_of(path) for path in (first, second, first, second)] == ["photos", "photos-2"] * 2
    assert folder_of(second, tta="flip") == "photos-2-flip"
    monkeypatch.chdir(second.parent)
    assert folder_of(Path("photos")) == "photos-2"
    monkeypatch.chdir(tmp_path)
    assert folder_of(second) == "photos-2"
    assert folder_of(tiny_data) == folder_of(tiny_data / "test.beton") == f"{tiny_data.name}-test"
    (run.path / "eval" / "photos" / "metrics.json").write_text("{")  # damaged: made again
    assert folder_of(first) == "photos"


def test_other_test_images_than_those_of_the_training_are_named(
    run: RunFolder, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [(np.full((32, 32, 3), i, np.uint8), "ring" if i % 2 else "disc") for i in range(30)]
    names = open_beton(tiny_data / "test.beton").class_names
    convert({"train": images, "test": images}, tmp_path / "other", class_names=names)
    evaluated(run)
    assert "not the test images" not in caplog.text
    evaluated(run, data_dir=tmp_path / "other")
    assert f"not the test images that metrics.json of {run.path} is of" in caplog.text


def test_a_folder_called_like_a_source_is_that_folder(
    run: RunFolder, image_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder("synthetic", ("ring", "disc"))
    monkeypatch.chdir(tmp_path)
    assert len(evaluated_on(run, Path("synthetic")).metrics.predictions) == 6


def test_of_a_set_with_splits_the_named_one_or_the_test_images_are_used(
    run: RunFolder, beton: Beton, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split, count in (("train", 30), ("test", 10)):
        np.save(tmp_path / f"x_{split}.npy", beton.images(np.arange(count)))
        np.save(tmp_path / f"y_{split}.npy", np.arange(count) % 10)
    with caplog.at_level(logging.INFO, "fastcifar"):
        assert len(evaluated_on(run, tmp_path / "x_train.npy").metrics.predictions) == 30
        assert "the images of its split 'train' are evaluated" in caplog.text
    assert len(evaluated_on(run, tmp_path / "x_test.npy").metrics.predictions) == 10


def test_one_file_of_corrupted_images_names_the_folder(run: RunFolder, corrupted: Path) -> None:
    file = next(path for path in corrupted.glob("*.npy") if path.name != "labels.npy")
    with pytest.raises(
        DataError, match=f"belongs to a folder of corrupted images; expected {re.escape(str(corrupted))}"
    ):
        evaluated_on(run, file)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 28, 28), np.uint8), [0, 1, 2, 3], r"has images of 28x28; the network takes 32x32: resize them"),
        (
            np.zeros((4, 32, 32, 3), np.uint8),
            [0, 1, 2, 10],
            r"classes that the network does not know: 10; expected some",
        ),
        (
            np.zeros((4, 32, 32, 3), np.uint8),
            [0, -1, 2, 3],
            r"classes that the network does not know: -1; expected some",
        ),
        (
            np.zeros((4, 32, 32, 3), np.uint8),
            [0, 1],
            r"data\.npy has shape .* 2 labels; expected one label for each",
        ),
        (np.full((4, 32, 32, 3), -0.5), [0, 1, 2, 3], r"value -0.5; expected values from 0 \(black\) to white"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    images: Any, labels: list[int], message: str, run: RunFolder, tmp_path: Path
) -> None:
    np.save(tmp_path / "data.npy", images)
    np.save(tmp_path / "labels.npy", np.array(labels))
    with pytest.raises(DataError, match=message):
        evaluated_on(run, tmp_path / "data.npy")


def test_labels_of_a_beton_without_a_manifest_are_numbers_of_classes(image_folder: Any, tmp_path: Path) -> None:
    names = tuple(map(str, range(12)))  # in the order of text, 10 is the third class
    data = tmp_path / "data"
    convert(image_folder(classes=names), data)
    run = train(tiny(data, batch_size=12, epochs=1), runs_dir=tmp_path / "runs")[0]
    alone = tmp_path / "alone.beton"
    shutil.copy(data / "test.beton", alone)
    own, other = (each.metrics.predictions for each in (evaluated(run), evaluated_on(run, alone)))
    assert own.labels.tolist() == other.labels.tolist()
    assert own.accuracy == other.accuracy


def test_what_is_not_a_test_set_is_refused(run: RunFolder, image_folder: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not know: bird, cat; expected some of: disc, ring, "):
        evaluated_on(run, image_folder("animals", ("cat", "bird", "disc")))
    with pytest.raises(DataError, match="nothing: no such file or folder; expected a beton, an .npy file"):
        evaluated_on(run, tmp_path / "nothing")
    np.save(tmp_path / "data.npy", np.zeros((4, 32, 32, 3), np.uint8))
    with pytest.raises(DataError, match="no labels next to it.*an option of 'fastcifar convert': convert it"):
        evaluated_on(run, tmp_path / "data.npy")
    with pytest.raises(UsageError, match="tta is 'twice'"):
        evaluated_on(run, tmp_path / "data.npy", tta="twice")
    folder = image_folder("broken", ("ring", "disc"))
    (folder / "test" / "disc" / "01.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"test/disc/01\.png: not a readable image .*; remove the image"):
        evaluated_on(run, folder)


def test_a_beton_of_other_classes_or_sizes_is_refused(run: RunFolder, image_folder: Any, tmp_path: Path) -> None:
    convert(image_folder("animals"), tmp_path / "small")
    with pytest.raises(DataError, match=r"test\.beton: has images of 8x8; the network takes 32x32"):
        evaluated_on(run, tmp_path / "small")
    convert(tmp_path / "animals", tmp_path / "large", size=32)
    with pytest.raises(DataError, match=r"test\.beton: has classes that the network does not know: cat, dog"):
        evaluated_on(run, tmp_path / "large")
    convert(image_folder("shapes", ("ring", "disc")), tmp_path / "fewer", size=32)
    labels = evaluated_on(run, tmp_path / "fewer" / "test.beton").metrics.predictions.labels
    names = TrainedRun(run, trusted=NETWORK).info.class_names
    assert {names[label] for label in labels} == {"ring", "disc"}


# ---- corrupted images ---------------------------------------------------------------------------------------------


@pytest.fixture
def corrupted(beton: Beton, tmp_path: Path) -> Path:
    """As CIFAR-10-C: 20 images, of which severity s has lost s sixths; `brightness` has lost nothing."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    images = beton.images(np.arange(20))
    np.save(folder / "labels.npy", np.tile(beton.labels[:20], 5).astype(np.uint8))
    np.save(folder / "brightness.npy", np.tile(images, (5, 1, 1, 1)))
    for name in ("fog", "spatter"):
        levels = [(images * (1 - severity / 6)).astype(np.uint8) for severity in range(1, 6)]
        np.save(folder / f"{name}.npy", np.concatenate(levels))
    (folder / "._fog.npy").write_bytes(b"of an archive made on macOS")
    return folder


def test_corrupted_images_are_scored_by_corruption_and_severity(run: RunFolder, corrupted: Path, beton: Beton) -> None:
    found = evaluated_on(run, corrupted)
    assert isinstance(found, CorruptionEvaluation)
    assert found.corruptions == ("brightness", "fog", "spatter")
    own = TrainedRun(run, trusted=NETWORK).predictions("test").select(np.arange(20))
    assert found.accuracy[0].tolist() == [own.accuracy] * 5
    np.testing.assert_allclose(found.loss[0], own.loss, rtol=1e-6)
    levels, labels = np.load(corrupted / "fog.npy"), beton.labels[:20]
    for severity in range(5):
        logits = TrainedRun(run, trusted=NETWORK).logits(levels[20 * severity : 20 * (severity + 1)])
        assert found.accuracy[1, severity] == (logits.argmax(axis=1) == labels).mean()
    assert found.mean_accuracy == pytest.approx(found.accuracy[:2].mean())  # spatter is not part of the benchmark
    assert found.mean_corruption_error == pytest.approx(1 - found.mean_accuracy)
    temperature = Calibration.load(run).temperature
    assert found.calibrated_loss is not None
    np.testing.assert_allclose(found.calibrated_loss[0], own.with_temperature(temperature).loss, rtol=1e-6)


def test_the_results_of_corrupted_images_are_files_and_part_of_the_report(run: RunFolder, corrupted: Path) -> None:
    found = evaluated_on(run, corrupted)
    folder = run.path / "eval" / "CIFAR-10-C"
    assert found.files == tuple(folder / f"{name}" for name in ("metrics.json", "corruptions.csv", "corruptions.png"))
    rows = rows_of(found.files[1])
    assert [(row["corruption"], row["severity"]) for row in rows[5:7]] == [("fog", "1"), ("fog", "2")]
    assert float(rows[5]["accuracy"]) == found.accuracy[1, 0]
    stored = json.loads(found.files[0].read_text())
    assert stored["corruptions"]["spatter"]["counted"] is False
    assert stored["mean_corruption_error"] == found.mean_corruption_error
    page = write_report(run).read_text(encoding="utf-8")
    assert "Other test sets" in page
    assert f"<dd><bdi>{found.mean_corruption_error:.2%}</bdi></dd>" in page
    assert "<bdi>spatter</bdi>*" in page
    assert f"Accuracy by severity of 3 corruptions; the mean is {found.mean_accuracy:.2%}" in page


def test_a_folder_of_the_corruptions_for_validation_alone_has_a_mean_too(run: RunFolder, corrupted: Path) -> None:
    for name in ("brightness", "fog"):
        (corrupted / f"{name}.npy").unlink()
    found = evaluated_on(run, corrupted)
    assert found.mean_accuracy == pytest.approx(found.accuracy.mean())


def test_the_labels_of_corrupted_images_are_numbers_of_the_networks_classes(run: RunFolder, corrupted: Path) -> None:
    names = np.array(TrainedRun(run, trusted=NETWORK).info.class_names)
    expected = evaluated_on(run, corrupted).accuracy
    np.save(corrupted / "labels.npy", names[np.load(corrupted / "labels.npy")])  # or their names
    assert evaluated_on(run, corrupted).accuracy.tolist() == expected.tolist()


IMAGES = np.zeros((100, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("fog", IMAGES[:99], r"fog\.npy: has 99 images, and labels\.npy 100 labels; .*5 blocks of equal size"),
        ("fog", IMAGES[:, :28], r"fog\.npy: has images of 28x32; the network takes 32x32"),
        ("fog", IMAGES.astype(np.float32), r"fog\.npy: has float32 of shape .*; expected uint8 \(N, H, W, 3\)"),
        ("fog", np.asfortranarray(IMAGES), r"fog\.npy: .* in column-major order; expected uint8"),
        ("fog", np.array([print] * 100), r"fog\.npy: cannot be read \(it holds Python objects, which can run code"),
        ("labels", np.arange(100), r"labels\.npy: has classes that the network does not know: 10, 11, "),
        ("labels", np.arange(100) % 7, r"labels\.npy: its 100 labels are not the same 5 times"),
        ("labels", np.arange(98) % 2, r"labels\.npy: its 98 labels are not the same 5 times"),
        ("labels", np.full(100, 0.5), r"labels\.npy\[0\] is 0.5; expected a class"),
    ],
)
def test_corrupted_images_of_another_form_are_refused_before_any_is_evaluated(
    name: str, content: Any, message: str, run: RunFolder, corrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainedRun, "logits", None)
    np.save(corrupted / f"{name}.npy", content)
    with pytest.raises(DataError, match=message):
        evaluated_on(run, corrupted)


def test_a_file_that_becomes_shorter_is_an_error_of_one_line(
    run: RunFolder, corrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastcifar.inference.corruptions.EVAL_BATCH_SIZE", 20)
    predict = TrainedRun.logits

    def and_truncate(self: TrainedRun, images: Any, **more: Any) -> Any:
        os.truncate(corrupted / "brightness.npy", 1_000)
        return predict(self, images, **more)

    monkeypatch.setattr(TrainedRun, "logits", and_truncate)
    with pytest.raises(DataError, match=r"brightness\.npy: cannot be read: the file became shorter"):
        evaluated_on(run, corrupted)


def test_only_some_images_are_in_memory(run: RunFolder, corrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.inference.corruptions.EVAL_BATCH_SIZE", 15)
    sizes: list[int] = []
    predict = TrainedRun.logits
    monkeypatch.setattr(TrainedRun, "logits", lambda self, x, **more: sizes.append(len(x)) or predict(self, x, **more))
    evaluated_on(run, corrupted)
    assert max(sizes) == 15
    assert sum(sizes) == 300


# ---- the command --------------------------------------------------------------------------------------------------


def invoke(*words: object) -> Any:
    return CliRunner().invoke(main, list(map(str, words)))


def test_the_command_prints_the_scores_of_another_set(run: RunFolder, corrupted: Path, tiny_data: Path) -> None:
    result = invoke("eval", run.path, "--on", tiny_data, "--model", NETWORK)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[1].split(maxsplit=1) == ["images", f"40 ({tiny_data})"]
    assert "95% interval" in lines[2]
    assert lines[-1] == f"next: fastcifar report {run.path}"
    result = invoke("eval", run.path, "--on", corrupted, "--model", NETWORK)
    assert result.exit_code == 0, result.stderr
    assert "(not normalised by AlexNet's)" in result.stdout
    table = [line.split() for line in result.stdout.splitlines()]
    assert ["accuracy", "by", "severity", "1", "2", "3", "4", "5", "mean"] in table
    assert {"brightness", "fog", "spatter*", "mean"} <= {words[0] for words in table if len(words) == 7}
    facts = json.loads(invoke("eval", run.path, "--on", corrupted, "--model", NETWORK, "--json").stdout)
    assert facts["on"] == str(corrupted)
    assert facts["files"][0] == str(run.path / "eval" / "CIFAR-10-C" / "metrics.json")


def test_a_split_and_another_set_cannot_be_combined(run: RunFolder, tiny_data: Path) -> None:
    result = invoke("eval", run.path, "--on", tiny_data, "--split", "val", "--model", NETWORK)
    assert result.exit_code == 2
    assert "--split val cannot be combined with --on" in result.stderr


# ---- the report ---------------------------------------------------------------------------------------------------


def test_the_report_shows_both_calibration_errors_and_the_other_sets(run: RunFolder, tiny_data: Path) -> None:
    found = evaluated_on(run, tiny_data)
    page = write_report(run).read_text(encoding="utf-8")
    calibration = Calibration.load(run)
    assert found.calibrated is not None
    assert f"Temperature {calibration.temperature:.3f}, fitted on 30 validation images" in page
    assert f"after calibration; expected calibration error {found.calibrated.ece:.2%}" in page
    assert f"<bdi>{tiny_data.name}-test</bdi>" in page
    low, high = found.metrics.interval
    assert page.count(f"{low:.2%} to {high:.2%}") == 3  # headline, test, other sets


def test_the_report_uses_no_calibration_of_other_weights(run: RunFolder) -> None:
    stale = json.loads(run.calibration.read_text()) | {"weights_sha256": "0" * 64}
    run.calibration.write_text(json.dumps(stale))
    page = write_report(run).read_text(encoding="utf-8")
    assert "Temperature" not in page
    assert "Not calibrated: &#39;fastcifar eval&#39; calibrates on the validation images." in page


def test_damaged_results_are_named_in_the_report(run: RunFolder) -> None:
    run.calibration.write_text("{}")
    made_with = f'"on": "a", "weights_sha256": "{weights.file_sha256(run.best)}"'
    contents = {
        "a": f"{{{made_with}}}",
        "b": f'{{{made_with}, "accuracy_interval": [0, "<b>"]}}',
        "c": f'{{{made_with}, "accuracy_interval": [0, 1]}}',
        "d": "[",
        "e\x1b": f'{{{made_with}, "corruptions": {{}}}}',
    }
    for name, content in contents.items():
        (run.path / "eval" / name).mkdir(parents=True, exist_ok=True)
        (run.path / "eval" / name / "metrics.json").write_text(content)
    (run.path / "eval" / "e\x1b" / "corruptions.csv").write_text("accuracy\n")
    files = RunFiles(run.path)
    assert files.attempt(other_sets) is None
    assert [note.split(" is ")[0] for note in files.notes] == [
        "eval/a/metrics.json: damaged: accuracy_interval",
        "eval/b/metrics.json: damaged: accuracy_interval",
        "eval/c/metrics.json: damaged: num_images",
        files.notes[3],
        "eval/e\ufffd/corruptions.csv: damaged: its first line",
    ]
    assert files.notes[3].startswith("eval/d/metrics.json: damaged: ")
    assert "calibration.json: damaged: its keys are not those" in write_report(run).read_text(encoding="utf-8")


def test_a_damaged_table_of_corruptions_is_named_in_the_report(run: RunFolder, corrupted: Path) -> None:
    table = evaluated_on(run, corrupted).files[1]
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    page = write_report(run).read_text(encoding="utf-8")
    assert "corruptions.csv: damaged: expected 5 severities of at most 100 corruptions" in page
