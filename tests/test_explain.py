"""What `explain`, `eval` and `preview` write."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from fastcifar import make_loader, open_beton
from fastcifar.config import CAM_METHODS, AugmentConfig, ExplainConfig, TrainConfig
from fastcifar.converters import Sample, Source, convert
from fastcifar.errors import CheckpointError, DataError, FastcifarError, UsageError
from fastcifar.explain import explain_run, preview
from fastcifar.explain.preview import augmented_versions, images_of_each_class, in_words
from fastcifar.inference.evaluation import evaluate_run
from fastcifar.inference.predictions import Predictions
from fastcifar.training import RunFolder, find_run, train, weights
from tests.reference import cam_image, enlarge
from tests.test_writer import random_split


@pytest.fixture(scope="module")
def run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    config = TrainConfig.from_settings(data_dir=str(data_dir), model="small", epochs=2, batch_size=60, lr=0.1)
    return train(config, runs_dir=tmp_path_factory.mktemp("runs"))[0]


class Expected:
    """What follows from predictions.npz, in plain NumPy."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as found:
            logits, self.label = found["logits"].astype(np.float64), found["labels"]
        shifted = logits - logits.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        self.loss, self.guess = -logs[np.arange(len(logs)), self.label], logits.argmax(axis=1)
        self.confidence = np.exp(logs.max(axis=1))
        self.wrong = np.flatnonzero(self.guess != self.label)
        self.right = np.flatnonzero(self.guess == self.label)


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_explain_shows_the_misclassified_images_of_largest_loss(run: RunFolder, data_dir: Path) -> None:
    explanation = explain_run(run, ExplainConfig())
    folder, found = run.explain, Expected(run.predictions)
    expected = found.wrong[np.argsort(-found.loss[found.wrong], kind="stable")][:25]
    sheets = tuple(folder / "sheets" / f"{i:05d}.png" for i in expected)
    assert explanation.files == (folder / "grid.png", folder / "index.csv", folder / "maps.npz", *sheets)
    assert (explanation.num_images, explanation.num_wrong, explanation.num_shown) == (200, len(found.wrong), 25)
    rows = table(folder / "index.csv")
    assert list(rows[0]) == ["index", "true", "predicted", "confidence", "loss", "file", "origin"]
    names = open_beton(data_dir / "test.beton").class_names
    for row, i, sheet in zip(rows, expected, sheets, strict=True):
        assert (int(row["index"]), folder / row["file"]) == (i, sheet)
        assert (row["true"], row["predicted"]) == (names[found.label[i]], names[found.guess[i]])
        assert float(row["confidence"]) == pytest.approx(found.confidence[i], abs=1e-5)
        assert float(row["loss"]) == pytest.approx(found.loss[i], abs=1e-5)
    for file in (folder / "grid.png", *sheets):
        with PIL.Image.open(file) as image:
            assert min(image.size) > 500
    assert {path.name for path in folder.iterdir()} == {"grid.png", "index.csv", "maps.npz", "sheets"}
    assert {path.name for path in (folder / "sheets").iterdir()} == {sheet.name for sheet in sheets}


def test_the_stored_maps_match_the_reference(run: RunFolder) -> None:
    maps = explain_run(run, ExplainConfig(n=3, methods=CAM_METHODS, target="both")).maps
    model, info, _ = weights.load_weights(run.best)
    beton = open_beton(Path(run.read_config().data.data_dir) / "test.beton")
    with np.load(run.explain / "maps.npz") as found:
        kept: dict[str, Any] = {key: found[key] for key in found}
    reference = Expected(run.predictions)
    assert str(kept["weights_sha256"]) == weights.file_sha256(run.best)
    assert kept["targets"].tolist() == ["pred", "true"]
    assert kept["methods"].tolist() == list(CAM_METHODS)
    assert kept["layers"].tolist() == ["layer1", "layer2", "layer3"]
    assert kept["sizes"].tolist() == [[15, 15], [7, 7], [3, 3]]
    assert kept["maps"].shape == (2, 3, 3, 3, 32, 32)
    assert kept["classes"].tolist() == [
        reference.guess[kept["indices"]].tolist(),
        reference.label[kept["indices"]].tolist(),
    ]
    assert np.array_equal(kept["images"], beton.images(kept["indices"]))
    for name in ("maps", "sizes", "classes", "has_evidence"):
        assert np.array_equal(kept[name], getattr(maps, name))
    inputs = (beton.images(kept["indices"]) - np.array(info.mean)) / np.array(info.std)
    for position in np.ndindex(2, 3, 3, 3):
        target, method, image, layer = position
        raw = cam_image(
            model,
            torch.from_numpy(inputs[image]).permute(2, 0, 1),
            str(kept["layers"][layer]),
            int(kept["classes"][target, image]),
            CAM_METHODS[method],
        )
        expected = enlarge(raw / raw.max(), (32, 32)) if raw.max() > 0 else np.zeros((32, 32))
        np.testing.assert_allclose(kept["maps"][position], expected, atol=2e-3)
        assert bool(kept["has_evidence"][position]) == bool(raw.max() > 0)


def test_images_are_selected_as_requested(run: RunFolder) -> None:
    def shown(**settings: Any) -> list[int]:
        explain_run(run, ExplainConfig(layers=("layer3",), methods=("gradcam",), **settings))
        return [int(row["index"]) for row in table(run.explain / "index.csv")]

    explain_run(run, ExplainConfig(n=1))
    found = Expected(run.predictions)
    by_confidence = found.wrong[np.argsort(-found.confidence[found.wrong], kind="stable")]
    assert shown(n=4, select="confidence") == by_confidence[:4].tolist()
    least_sure = found.right[np.argsort(-found.loss[found.right], kind="stable")]
    assert shown(n=4, correct=True) == least_sure[:4].tolist()
    assert shown(select=(7, 0, 199)) == [7, 0, 199]
    drawn = shown(n=5, select="random", seed=1)
    assert set(drawn) <= set(found.wrong.tolist())
    assert shown(n=5, select="random", seed=1) == drawn
    assert shown(n=5, select="random", seed=2) != drawn
    with pytest.raises(UsageError, match=r"select names image 200; expected 0\.\.199"):
        shown(select=(3, 200))


@pytest.mark.slow
def test_all_images_are_shown_if_fewer_than_requested(run: RunFolder) -> None:
    explanation = explain_run(run, ExplainConfig(n=1_000, layers=("layer3",), methods=("gradcam",)))
    assert explanation.num_shown == explanation.num_wrong < 1_000
    assert len(explanation.files) == 3 + explanation.num_shown


def test_a_named_class_is_mapped_for_every_image(run: RunFolder) -> None:
    name = weights.load_weights(run.best)[1].class_names[3]
    explain_run(run, ExplainConfig(n=2, target=name))
    with np.load(run.explain / "maps.npz") as found:
        assert found["targets"].tolist() == [name]
        assert found["classes"].tolist() == [[3, 3]]
    with pytest.raises(UsageError, match="target is 'unicorn'; expected one of: pred, true, both"):
        explain_run(run, ExplainConfig(target="unicorn"))


def test_an_explanation_that_cannot_be_written_keeps_the_earlier_one(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.explain.rglob("*") if path.is_file()}

    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:  # the table is there, the maps are not
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    explain_run(run, ExplainConfig(n=2))
    before = contents()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FastcifarError, match=r"\(No space left on device: it takes .* MiB, .* are free\)"):
            explain_run(run, ExplainConfig(n=3))
    assert contents() == before
    broken = OSError(errno.EIO, os.strerror(errno.EIO))
    for last in range(1, 9):  # 4 files are moved out of the way, 4 to their place
        for error, raised in ((broken, FastcifarError), (KeyboardInterrupt(), KeyboardInterrupt)):
            with monkeypatch.context() as patch:
                patch.setattr(Path, "rename", failing(last, error))
                with pytest.raises(raised):
                    explain_run(run, ExplainConfig(n=1))
            assert contents() == before


def failing(last: int, error: BaseException) -> Any:
    """`Path.rename`, which fails once, the `last` time; a Ctrl-C comes when it is done."""
    real, calls = Path.rename, 0

    def rename(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == last and isinstance(error, Exception):
            raise error
        moved = real(path, target)
        if calls == last:
            raise error
        return moved

    return rename


def test_an_unknown_layer_is_refused_with_the_known_ones(run: RunFolder) -> None:
    with pytest.raises(UsageError, match="layer is 'layer9'; expected one of: layer1, layer2, layer3; or another"):
        explain_run(run, ExplainConfig(layers=("layer1", "layer9")))


@pytest.mark.parametrize("setting", [{"n": 3}, {"select": "random"}, {"select": (1,)}, {"correct": True}])
def test_settings_that_select_test_images_are_refused_with_own_images(run: RunFolder, setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(setting))} selects test images; expected it without"):
        explain_run(run, ExplainConfig(**setting), images=["a.png"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n is 0; expected 1 or more"),
        ({"select": "best"}, "select is 'best'; expected one of: loss, confidence, random"),
        ({"select": (1, -2)}, "select is -2; expected 0 or more"),
        ({"select": (1, 1)}, "select is '1,1'; expected at least one, each once"),
        ({"select": (1,), "correct": True}, "select names images; expected that or correct, not both"),
        ({"methods": ("gradcam", "cam")}, "methods is 'cam'; expected one of: gradcam, gradcampp, hirescam"),
        ({"methods": ()}, "methods is ''; expected at least one, each once"),
        ({"layers": ("layer1", "layer1")}, "layers is 'layer1,layer1'; expected at least one, each once"),
    ],
)
def test_wrong_settings_of_explain_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        ExplainConfig(**wrong)
    assert str(refusal.value) == message


def test_cached_predictions_are_used_and_damaged_or_foreign_ones_are_not(run: RunFolder) -> None:
    good = run.predictions.read_bytes()
    before = run.predictions.stat().st_mtime_ns
    explain_run(run, ExplainConfig(n=1))
    assert run.predictions.stat().st_mtime_ns == before
    rows = (run.explain / "index.csv").read_text()
    with np.load(run.predictions) as found:
        arrays = dict(found)
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    contents = [b"", good[: len(good) // 2], b"PK" + bytes(100), bytes(flipped)]
    for other in (
        {"labels": arrays["labels"] + 99},
        {"logits": -arrays["logits"], "weights_sha256": np.array("of other weights")},
        {"logits": -arrays["logits"], "data_sha256": np.array("of another beton")},
    ):
        file = io.BytesIO()
        np.savez(file, **{**arrays, **other})
        contents.append(file.getvalue())
    for broken in contents:
        run.predictions.write_bytes(broken)
        explain_run(run, ExplainConfig(n=1))
        assert (run.explain / "index.csv").read_text() == rows
        with np.load(run.predictions) as found:
            assert len(found["indices"]) == 200


def test_own_images_of_any_size_are_explained(run: RunFolder, tmp_path: Path) -> None:
    explain_run(run, ExplainConfig(n=1))
    before = (run.explain / "index.csv").read_text()
    random = np.random.default_rng(0)
    paths = [tmp_path / "wide.jpg", tmp_path / "tiny.png", tmp_path / "glass.png", tmp_path / "grey.webp"]
    for path, shape in zip(paths, [(90, 200, 3), (5, 7, 3), (64, 64, 4), (40, 40)], strict=True):
        PIL.Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(path)
    explanation = explain_run(run, ExplainConfig(), images=paths)
    folder = run.explain / "images"
    assert explanation.num_wrong is None
    assert explanation.files[0] == folder / "grid.png"
    rows = table(folder / "index.csv")
    assert [row["index"] for row in rows] == [str(path) for path in paths]
    assert all(row["true"] == "" and row["loss"] == "" and 0 < float(row["confidence"]) <= 1 for row in rows)
    assert all((folder / row["file"]).is_file() for row in rows)
    with np.load(folder / "maps.npz") as found:
        assert found["targets"].tolist() == ["pred"]
    assert (run.explain / "index.csv").read_text() == before
    with pytest.raises(UsageError, match="target is 'both', but the true class of your images is unknown"):
        explain_run(run, ExplainConfig(target="both"), images=paths)


def test_an_own_image_with_an_odd_name_is_explained(run: RunFolder, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.png"))
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    explain_run(run, ExplainConfig(layers=("layer3",), methods=("gradcam",)), images=[path])
    assert table(run.explain / "images" / "index.csv")[0]["index"].endswith("/\ufffd\ufffd.png")


def test_eval_of_other_data_keeps_the_predictions_of_the_run(run: RunFolder, tmp_path: Path) -> None:
    from fastcifar.converters.synthetic import source

    explain_run(run, ExplainConfig(n=1))
    before = run.predictions.read_bytes()
    with source(20, 30, seed=7) as other:
        convert(other, tmp_path)
    assert evaluate_run(run, data_dir=str(tmp_path)).metrics.confusion.sum() == 30
    assert run.predictions.read_bytes() == before


def test_explain_of_other_data_warns_and_stores_which_it_is_of(
    run: RunFolder, data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from fastcifar.converters.synthetic import source

    copy = RunFolder(Path(shutil.copytree(run.path, tmp_path / "copy")))
    with source(20, 30, seed=7) as other:
        convert(other, tmp_path / "other")
    for folder in (data_dir, tmp_path / "other"):
        explain_run(copy, ExplainConfig(n=2, methods=("hirescam",)), data_dir=folder)
        beton = open_beton(folder / "test.beton")
        with np.load(copy.explain / "maps.npz") as stored:
            assert str(stored["data_sha256"]) == beton.sha256
        assert (f"{beton.path}: not the test images that metrics.json of" in caplog.text) == (folder != data_dir)


def test_galleries_show_true_and_predicted_class_and_confidence(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastcifar import plotting

    drawn: list[tuple[Any, str]] = []

    def gallery(images: np.ndarray, names: Any, heading: str) -> Any:
        drawn.append((names, heading))
        return real(images, names, heading)

    real = plotting.gallery
    monkeypatch.setattr(plotting, "gallery", gallery)
    evaluate_run(run)
    found, names = Expected(run.predictions), weights.load_weights(run.best)[1].class_names
    (wrong, heading), (right, _) = drawn
    assert "misclassified, largest loss first" in heading
    for caption in (*wrong, *right):
        index = int(caption.name)
        assert (caption.true, caption.predicted) == (names[found.label[index]], names[found.guess[index]])
        assert caption.confidence == pytest.approx(found.confidence[index])
        assert caption.is_correct == (found.label[index] == found.guess[index])
    assert {caption.is_correct for caption in wrong} == {False}
    assert {caption.is_correct for caption in right} == {True}


@pytest.mark.parametrize(
    ("settings", "heading"),
    [
        ({"n": 3}, "3 of {wrong} misclassified among 200 test images, largest loss first"),
        ({"n": 2, "select": "confidence"}, "2 of {wrong} misclassified among 200 test images, most confident first"),
        (
            {"n": 2, "select": "random", "correct": True},
            "2 of {right} correctly classified among 200 test images, at random",
        ),
        ({"select": (4, 2)}, "2 of 200 test images"),
    ],
)
def test_the_heading_describes_the_selection(run: RunFolder, settings: dict[str, Any], heading: str) -> None:
    explain_run(run, ExplainConfig(layers=("layer3",), methods=("gradcam",), **settings))
    found = Expected(run.predictions)
    with np.load(run.explain / "maps.npz") as kept:
        assert str(kept["selection"]) == heading.format(wrong=len(found.wrong), right=len(found.right))


def test_a_layer_requested_twice_is_explained_once(run: RunFolder) -> None:
    explanation = explain_run(run, ExplainConfig(n=1, layers=("layer2", "all"), methods=("gradcam",)))
    assert list(explanation.layers) == ["layer2", "layer1", "layer3"]


def test_a_network_without_maps_is_refused(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.explain.run.stages_of", lambda model: ())
    with pytest.raises(UsageError, match="small has no stage that gives maps; name a layer that does"):
        explain_run(run, ExplainConfig(n=1))
    assert explain_run(run, ExplainConfig(n=1, layers=("layer3",))).layers == {"layer3": (3, 3)}


def test_no_loss_is_negative(run: RunFolder) -> None:
    certain = Predictions(np.arange(2), np.array([0, 1]), np.array([[90, -90], [-90, 90]], np.float32))
    assert [str(loss) for loss in (*certain.losses.tolist(), certain.loss)] == ["0.0", "0.0", "0.0"]


def test_a_run_with_only_its_best_weights_is_explained(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "runs" / "a")
    for name in ("last.pt", "previous.pt"):
        (tmp_path / "runs" / "a" / "weights" / name).unlink()
    for name in ("a", None):
        assert find_run(name, tmp_path / "runs", trained=True).path.name == "a"
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        find_run("a", tmp_path / "runs")


def test_files_that_are_not_images_are_named_and_the_others_explained(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, half = tmp_path / "a.png", tmp_path / "b.png"
    text.write_bytes(b"not an image")
    PIL.Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(half)
    half.write_bytes(half.read_bytes()[:60])
    deep = tmp_path / "c.tiff"
    PIL.Image.fromarray(np.full((40, 40), 60_000, np.int32)).save(deep)
    postscript = tmp_path / "d.eps"
    postscript.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n")
    good = tmp_path / "e.png"
    PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(good)
    missing = tmp_path / "nothing.png"
    explanation = explain_run(run, ExplainConfig(), images=[text, half, deep, good, postscript, missing])
    assert explanation.own is not None
    assert explanation.own.files == (str(good),)
    assert explanation.num_shown == 1
    reasons = dict(explanation.own.errors)
    assert list(reasons) == list(map(str, (text, half, deep, postscript, missing)))
    assert "has mode 'I'; expected 8 or 16 bits" in reasons.pop(str(deep))
    assert reasons.pop(str(missing)) == "no such image"
    assert all(reason.startswith("not a readable image (it ") for reason in reasons.values())
    monkeypatch.setattr("fastcifar.explain.run.MAX_EXPLAINED", 1)
    with pytest.raises(UsageError, match="2 images; expected at most 1 at a time"):
        explain_run(run, ExplainConfig(), images=[good, good])


def test_data_of_another_shape_is_refused(run: RunFolder, tmp_path: Path) -> None:
    convert(
        Source(description="", class_names=("a", "b"), splits={"train": random_split(2), "test": random_split(2)}),
        tmp_path,
    )
    with pytest.raises(DataError, match=r"2 classes, images \(8, 8, 3\); the network was trained on 10 classes"):
        explain_run(run, ExplainConfig(), data_dir=str(tmp_path))
    with pytest.raises(DataError, match=r"test\.beton: no such file"):
        explain_run(run, ExplainConfig(), data_dir=str(tmp_path / "nowhere"))


def test_a_run_without_weights_is_refused(tmp_path: Path) -> None:
    for ask in (lambda: explain_run(RunFolder(tmp_path), ExplainConfig()), lambda: evaluate_run(RunFolder(tmp_path))):
        with pytest.raises(CheckpointError, match=r"best\.safetensors: damaged, or not weights written by fastcifar"):
            ask()


def test_a_network_that_predicts_nan_is_refused(run: RunFolder, tmp_path: Path) -> None:
    broken = RunFolder(tmp_path)
    broken.best.parent.mkdir()
    model, info, _ = weights.load_weights(run.best)
    model.head.weight.data.fill_(float("nan"))
    weights.save_weights(broken.best, model, run.read_config().model, info)
    broken.write_config(run.read_config())
    for ask in (lambda: explain_run(broken, ExplainConfig()), lambda: evaluate_run(broken)):
        with pytest.raises(CheckpointError, match="its logits are not finite; train again with a smaller --lr"):
            ask()


def test_eval_gives_the_metrics_of_the_run(run: RunFolder) -> None:
    evaluation = evaluate_run(run)
    metrics = json.loads(run.metrics.read_text())
    assert evaluation.metrics.accuracy == metrics["test_accuracy"]
    assert evaluation.metrics.loss == pytest.approx(metrics["test_loss"], rel=1e-6)
    found = Expected(run.predictions)
    assert evaluation.metrics.confusion.sum() == 200
    assert np.trace(evaluation.metrics.confusion) == len(found.right)
    folder = run.path / "eval" / "test"
    figures = [f"{name}.png" for name in ("confusion", "reliability", "wrong", "correct")]
    names = ["metrics.json", *figures, "predictions.csv", "predictions.npz"]
    assert evaluation.files == tuple(folder / name for name in names)
    stored = json.loads((folder / "metrics.json").read_text())
    assert stored["accuracy"] == metrics["test_accuracy"]
    worst = found.wrong[np.argsort(-found.loss[found.wrong], kind="stable")][:10]
    assert [image["index"] for image in stored["worst"]] == worst.tolist()
    for name in names[1:5]:
        with PIL.Image.open(folder / name) as image:
            assert min(image.size) > 400


def test_eval_of_the_validation_split_uses_the_held_out_images(run: RunFolder, data_dir: Path) -> None:
    evaluation = evaluate_run(run, split="val")
    last = table(run.results)
    best = json.loads(run.metrics.read_text())["best"]
    assert evaluation.metrics.accuracy == pytest.approx(best["val_accuracy"])
    assert evaluation.metrics.loss == pytest.approx(float(last[best["epoch"] - 1]["val_loss"]), rel=1e-3)
    with np.load(run.path / "eval" / "val" / "predictions.npz") as found:
        rows = found["indices"]
        assert len(rows) == 60
        assert np.array_equal(found["labels"], open_beton(data_dir / "train.beton").labels[rows])


def test_eval_with_test_time_augmentation_keeps_the_plain_predictions(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastcifar.inference.trained_run.choose_amp", lambda device, amp: "off")
    before = run.predictions.read_bytes()
    plain, flipped = evaluate_run(run), evaluate_run(run, tta="flip")
    assert run.predictions.read_bytes() == before
    assert flipped.metrics.loss != plain.metrics.loss
    with np.load(run.path / "eval" / "test-flip" / "predictions.npz") as found:
        logits = found["logits"]
    model, info, _ = weights.load_weights(run.best)
    loader = make_loader(
        Path(run.read_config().data.data_dir) / "test.beton", train=False, batch_size=200, mean=info.mean, std=info.std
    )
    images = next(iter(loader)).images
    with torch.no_grad():
        expected = (model(images) + model(images.flip(-1))) / 2
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4, rtol=1e-4)


def test_eval_of_the_validation_split_needs_the_beton_of_the_training(run: RunFolder, tmp_path: Path) -> None:
    from fastcifar.converters.synthetic import source

    with source(600, 200, seed=5) as other:
        convert(other, tmp_path)
    with pytest.raises(DataError, match=r"train\.beton: not the file that .* was trained on"):
        evaluate_run(run, split="val", data_dir=str(tmp_path))


def test_eval_of_the_validation_split_is_refused_if_none_was_held_out(data_dir: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_settings(data_dir=str(data_dir), model="small", max_steps=1, batch_size=60, val_size=0)
    folder = train(config, runs_dir=tmp_path)[0]
    with pytest.raises(UsageError, match="no image was held out from training; expected --split test"):
        evaluate_run(folder, split="val")


@pytest.mark.parametrize("num_classes", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_datasets_with_few_and_with_many_classes(num_classes: int, tmp_path: Path) -> None:
    names = ("<script>alert(1)</script>", *(f"$class_{i}$" for i in range(1, num_classes)))

    class Split:
        def __init__(self, each: int) -> None:
            self._each = each

        def __len__(self) -> int:
            return self._each * num_classes

        def __iter__(self) -> Any:
            random = np.random.default_rng(0)
            for i in range(len(self)):
                yield Sample(random.integers(0, 256, (32, 32, 3), dtype=np.uint8), i % num_classes)

    convert(Source(description="", class_names=names, splits={"train": Split(3), "test": Split(2)}), tmp_path / "data")
    config = TrainConfig.from_settings(data_dir=str(tmp_path / "data"), model="small", max_steps=1, batch_size=4)
    run = train(config, runs_dir=tmp_path / "runs")[0]
    evaluation = evaluate_run(run)
    assert evaluation.metrics.confusion.shape == (num_classes, num_classes)
    assert explain_run(run, ExplainConfig(n=2, correct=evaluation.metrics.accuracy == 1)).num_shown
    rows = preview(config, tmp_path / "preview.png", n=1)
    assert rows == num_classes


def test_preview_shows_what_training_sees(data_dir: Path, tmp_path: Path) -> None:
    augment = {"crop_padding": 4, "cutout_size": 8, "rotate_degrees": 10, "hue_shift": 20, "colour_p": 0.5}
    augment |= {"brightness": 40, "contrast": 0.5}
    config = TrainConfig.from_settings(data_dir=str(data_dir), seed=3, **augment)
    beton = open_beton(data_dir / "train.beton")
    indices = images_of_each_class(beton, 2, 3, np.arange(100, 500))
    assert ((indices >= 100) & (indices < 500)).all()
    assert beton.labels[indices].tolist() == [c for c in range(10) for _ in range(2)]
    versions = augmented_versions(beton, indices, config, 3)
    loader = make_loader(beton, augment=config.augment, batch_size=600, seed=3, dtype=torch.uint8)
    for epoch in range(3):
        (batch,) = loader.epoch(epoch)
        images = batch.images[torch.argsort(batch.indices)].permute(0, 2, 3, 1).numpy()
        assert np.array_equal(versions[:, epoch], images[indices])
    assert preview(config, tmp_path / "a.png", n=3, each=2) == 20
    with PIL.Image.open(tmp_path / "a.png") as image:
        assert image.height > 20 * 96


def test_preview_mixes_with_other_training_images(data_dir: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_settings(data_dir=str(data_dir), seed=3, mixup=0.4, cutmix=1.0)
    plain = config.with_settings(mixup=0.0, cutmix=0.0)
    beton = open_beton(data_dir / "train.beton")
    indices = images_of_each_class(beton, 1, 3, np.arange(600))
    mixed = augmented_versions(beton, indices, config, 4, np.arange(600))
    unmixed = augmented_versions(beton, indices, plain, 4, np.arange(600))
    changed = (mixed != unmixed).any(axis=(2, 3, 4))
    assert changed.mean() > 0.7
    assert ((mixed == unmixed).mean(axis=(2, 3, 4)) > 0.3).sum() > 8, "no version has pixels of the image itself"
    assert preview(config, tmp_path / "a.png", n=2) == 10


@pytest.mark.slow
@pytest.mark.parametrize("module", ["inference.evaluation", "inference.predict", "training", "explain", "report"])
def test_each_module_can_be_imported_first(module: str) -> None:
    subprocess.run([sys.executable, "-c", f"import fastcifar.{module}"], check=True)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "crop padding 4, flip, cutout 8"),
        ({"crop_padding": 0, "flip": False, "cutout_size": 0}, "none"),
        ({"crop_padding": 0, "flip": False, "cutout_size": 0, "brightness": 20}, "colour"),
        (
            {"cutout_size": 0, "rotate_degrees": 15.0, "hue_shift": 5, "cutmix": 1.0},
            "crop padding 4, flip, rotation up to 15°, colour, CutMix",
        ),
    ],
)
def test_the_heading_of_a_preview_names_the_augmentations(settings: dict[str, Any], text: str) -> None:
    assert in_words(AugmentConfig(**settings)) == text
