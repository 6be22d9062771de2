"""Datasets of odd shapes: every command and loader works on what `convert` writes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fastcifar import convert, make_loader, open_beton
from fastcifar.cli import main
from fastcifar.loaders import missing_part

SHAPES = {
    "17x23": (17, 23, 2, 60),
    "8x8": (8, 8, 2, 60),
    "224x224": (224, 224, 3, 60),
    "200 classes": (16, 16, 200, 400),
}


def invoke(*words: object) -> Result:
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module", params=SHAPES)
def any_data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    height, width, num_classes, num_images = SHAPES[request.param]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (num_images, height, width, 3), dtype=np.uint8)
    names = [f"class {label:03d}" for label in range(num_classes)]
    dataset = [(image, names[i % num_classes]) for i, image in enumerate(images)]
    folder = tmp_path_factory.mktemp("any")
    convert(dataset, folder, test_share=0.3)
    return folder


@pytest.mark.parametrize("loader", ["resident", "ffcv", "albumentations"])
def test_every_loader_delivers_the_images(any_data: Path, loader: str) -> None:
    if reason := missing_part(loader):
        pytest.skip(str(reason))
    beton = open_beton(any_data / "train.beton")
    with closing(make_loader(beton, batch_size=8, loader=loader, train=False)) as batches:
        for batch in batches.epoch(0):
            pixels = np.rint(batch.images.float().numpy() * beton.std[:, None, None] + beton.mean[:, None, None])
            expected = beton.images(batch.indices).transpose(0, 3, 1, 2)
            np.testing.assert_allclose(pixels, expected, atol=0.6)


@pytest.mark.slow
def test_every_command_works(any_data: Path, tmp_path: Path) -> None:
    data, runs = ("--data-dir", any_data), ("--runs-dir", tmp_path)
    invoke("inspect", any_data / "train.beton")
    invoke("preview", *data, "--out", tmp_path / "preview.png")
    model = "small" if open_beton(any_data / "test.beton").image_shape[0] >= 9 else "resnet18"
    flags = ("--batch-size", 16, "--model", model, "--amp", "off")
    invoke("lr-find", *data, *runs, *flags, "--steps", 8)
    for loader in ("ffcv", "albumentations", "resident"):
        if missing_part(loader) is None:
            steps = ("--epochs", 1, "--max-steps", 1, "--lr", 0.01)
            invoke("train", *data, *runs, *flags, *steps, "--loader", loader, "--name", loader)
    invoke("eval", tmp_path / "resident")
    invoke("explain", tmp_path / "resident", "--n", 2)
    invoke("report", tmp_path / "resident")
