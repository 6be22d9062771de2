"""Class activation maps against the paper's formula, and what `explain` writes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from fastcifar import plotting
from fastcifar.beton import open_beton
from fastcifar.config import ModelConfig, TrainConfig
from fastcifar.errors import CheckpointError, DataError, UsageError
from fastcifar.explain import default_stage, explain_run, grad_cam
from fastcifar.models import make_model
from fastcifar.training import RunFolder, train
from tests.reference import grad_cam_image


@pytest.fixture(scope="module")
def run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    config = TrainConfig(data_dir=str(data_dir), model="small", epochs=2, batch_size=60)
    return train(config, runs_dir=tmp_path_factory.mktemp("runs"))[0]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A ResNet-18 with statistics that some images gave it."""
    torch.manual_seed(0)
    made = make_model(ModelConfig(name="resnet18"), 10)
    with torch.no_grad():
        for _ in range(3):
            made(torch.randn(16, 3, 32, 32))
    return made.eval()


@pytest.mark.parametrize("stage", ["layer1", "layer2", "layer3", "layer4"])
def test_grad_cam_is_the_formula_of_the_paper(model: nn.Module, stage: str) -> None:
    images = torch.randn(4, 3, 32, 32)
    result = grad_cam(model, images, stage)
    for i, image in enumerate(images):
        expected = grad_cam_image(model, image, stage, int(result.logits[i].argmax()))
        np.testing.assert_allclose(result.maps[i].numpy(), expected, atol=1e-4)
    torch.testing.assert_close(result.logits, model(images).detach(), rtol=1e-4, atol=1e-4)


def test_the_target_decides_the_map(model: nn.Module) -> None:
    image = torch.randn(1, 3, 32, 32).repeat(10, 1, 1, 1)
    result = grad_cam(model, image, "layer3", torch.arange(10))
    for target in range(10):
        expected = grad_cam_image(model, image[0], "layer3", target)
        np.testing.assert_allclose(result.maps[target].numpy(), expected, atol=1e-4)


def test_maps_are_between_0_and_1_and_reach_1(model: nn.Module) -> None:
    result = grad_cam(model, torch.randn(8, 3, 32, 32), "layer3")
    assert result.maps.min() >= 0
    assert result.has_evidence.any()
    assert (result.maps.amax(dim=(1, 2))[result.has_evidence] == 1).all()


def test_the_network_is_left_as_it_was(model: nn.Module) -> None:
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.inference_mode(False), torch.no_grad():
        grad_cam(model, torch.randn(2, 3, 32, 32), "layer2")
    assert model.training
    model.eval()
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_gone_after_an_error(model: nn.Module) -> None:
    with pytest.raises(RuntimeError):
        grad_cam(model, torch.randn(2, 5, 32, 32), "layer2")
    assert not any(module._forward_hooks for module in model.modules())


def test_a_frozen_network_gives_maps_too(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    try:
        assert grad_cam(model, torch.randn(2, 3, 32, 32), "layer2").maps.shape == (2, 16, 16)
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(True)


def test_a_dead_stage_has_no_evidence() -> None:
    dead = make_model(ModelConfig(name="resnet18"), 10).eval()
    with torch.no_grad():
        dead.head.weight.zero_()  # type: ignore[union-attr]
    result = grad_cam(dead, torch.randn(3, 3, 32, 32), "layer4")
    assert not result.has_evidence.any()
    assert (result.maps == 0).all()


def test_an_unknown_stage_is_refused(model: nn.Module) -> None:
    with pytest.raises(UsageError, match="stage is 'layer9'; expected one of: layer1, layer2, layer3, layer4"):
        grad_cam(model, torch.randn(1, 3, 32, 32), "layer9")


def test_the_default_stage_is_the_deepest_with_maps_of_5x5() -> None:
    resnet = make_model(ModelConfig(name="resnet18"), 10)
    assert default_stage(resnet, (32, 32, 3)) == ("layer3", (8, 8))
    assert default_stage(resnet, (40, 40, 3)) == ("layer4", (5, 5))
    assert default_stage(resnet, (3, 4, 3))[0] == "layer1"
    _stage, (height, width) = default_stage(make_model(ModelConfig(name="small"), 10), (32, 32, 3))
    assert min(height, width) >= 5


def test_explain_shows_the_misclassified_images_of_largest_loss(run: RunFolder, data_dir: Path) -> None:
    made = explain_run(run, n=25)
    assert made.files == (run.explain / "grid.png", run.explain / "index.csv")
    rows = list(csv.DictReader(made.files[1].read_text().splitlines()))
    assert len(rows) == made.num_shown == 25
    with np.load(run.predictions) as found:
        logits, labels = found["logits"].astype(np.float64), found["label"]
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss, guess = -logs[np.arange(200), labels], logits.argmax(axis=1)
    wrong = np.flatnonzero(guess != labels)
    assert made.num_wrong == len(wrong)
    expected = wrong[np.argsort(-loss[wrong], kind="stable")][:25]
    assert [int(row["index"]) for row in rows] == expected.tolist()
    names = open_beton(data_dir / "test.beton").class_names
    for row, i in zip(rows, expected, strict=True):
        assert (row["true"], row["predicted"]) == (names[labels[i]], names[guess[i]])
        assert float(row["confidence"]) == pytest.approx(np.exp(logs[i].max()), abs=1e-5)
        assert float(row["loss"]) == pytest.approx(loss[i], abs=1e-5)
    with PIL.Image.open(made.files[0]) as picture:
        assert min(picture.size) > 500


def test_known_predictions_are_used_and_foreign_ones_are_not(run: RunFolder) -> None:
    good = run.predictions.read_bytes()
    before = run.predictions.stat().st_mtime_ns
    explain_run(run, n=1)
    assert run.predictions.stat().st_mtime_ns == before
    rows = (run.explain / "index.csv").read_text()
    for broken in (b"", good[: len(good) // 2], b"PK" + bytes(100)):
        run.predictions.write_bytes(broken)
        explain_run(run, n=1)
        # made anew, in float32 where the run may have used bf16: the same image, almost the same loss
        assert (run.explain / "index.csv").read_text().splitlines()[0] == rows.splitlines()[0]
        with np.load(run.predictions) as found:
            assert len(found["index"]) == 200


def test_fewer_than_asked_for_are_all_shown(run: RunFolder) -> None:
    made = explain_run(run, n=1_000)
    assert made.num_shown == made.num_wrong < 1_000


@pytest.mark.parametrize("n", [1, 25, 100])
def test_titles_do_not_overlap(n: int) -> None:
    random = np.random.default_rng(n)
    images = random.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    heats = random.random((n, 192, 192), dtype=np.float32)
    titles = [("true: automobile", "automobile 100%")] * n
    figure = plotting.cam_grid(images, heats, titles, "small: 1,234 of 10,000 test images misclassified\nGrad-CAM of …")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [axis.title for axis in figure.axes if axis.get_title()] + [figure._suptitle]  # type: ignore[attr-defined]
    boxes = [text.get_window_extent(renderer) for text in texts]
    assert len(boxes) == 2 * n + 1
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)
    overlaps = [(i, j) for i in range(len(boxes)) for j in range(i) if boxes[i].overlaps(boxes[j])]
    assert not overlaps


def test_the_overlay_is_the_grey_image_where_there_is_no_heat() -> None:
    image = np.full((2, 2, 3), 51, np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[0, 0] = 1
    laid = plotting.overlay(image, heat)
    assert laid.shape == (8, 8, 3)
    np.testing.assert_allclose(laid[1:], 0.2, atol=1e-6)
    assert laid[0, 0].sum() > 1.5


def test_names_with_dollar_signs_are_text() -> None:
    figure = plotting.cam_grid(
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((1, 24, 24), np.float32),
        [("$\\frac{$", "<script>")],
        "a $\\frac{$ b",
    )
    FigureCanvasAgg(figure).draw()


def test_data_of_another_kind_is_refused(run: RunFolder, tmp_path: Path) -> None:
    from fastcifar.converters import Source, convert
    from tests.test_writer import random_split

    convert(
        Source(description="", class_names=("a", "b"), splits={"train": random_split(2), "test": random_split(2)}),
        tmp_path,
    )
    with pytest.raises(DataError, match=r"2 classes, images \(8, 8, 3\); the network was trained on 10 classes"):
        explain_run(run, data_dir=str(tmp_path))
    with pytest.raises(DataError, match=r"test\.beton: no such file"):
        explain_run(run, data_dir=str(tmp_path / "nowhere"))


def test_a_run_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best\.safetensors: not the weights of a known network"):
        explain_run(RunFolder(tmp_path))
    with pytest.raises(UsageError, match="n is 0; expected 1 or more"):
        explain_run(RunFolder(tmp_path), n=0)
