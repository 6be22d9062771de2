"""The default learning rate, and the advice for a run that does not learn."""

from __future__ import annotations

import logging
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from fastcifar import recipes
from fastcifar.cli import main
from fastcifar.config import DEFAULT_LR, OPTIMIZERS, TrainConfig
from fastcifar.errors import UsageError
from fastcifar.training import RunFolder, train
from fastcifar.training.lr_finder import warn_if_not_learning
from fastcifar.training.optimizer import make_optimizer


def linear(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, num_classes))


def tiny(data_dir: Path, **settings: Any) -> TrainConfig:
    basic = {"data_dir": str(data_dir), "model": f"{__name__}:linear", "batch_size": 100, "epochs": 2, "sched": "none"}
    return TrainConfig.from_settings(**{**basic, **settings})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("settings", "row"),
    [
        ({}, "resnet18"),
        ({"norm": "layer"}, "resnet18 with layer or group norm"),
        ({"norm": "group"}, "resnet18 with layer or group norm"),
        ({"model": "small"}, "small"),
        ({"model": "vgg11"}, "others"),
        ({"model": "mine:net"}, "others"),
    ],
)
def test_the_default_rate_depends_on_network_and_optimizer(settings: dict[str, Any], row: str, optimizer: str) -> None:
    config = TrainConfig.from_settings(optimizer=optimizer, **settings)
    assert config.optimizer.lr is None
    assert config.peak_lr == DEFAULT_LR[row][optimizer]
    assert make_optimizer(linear(3), config).param_groups[0]["lr"] in (config.peak_lr, config.optimizer.aux_lr)
    assert TrainConfig.from_settings(lr=0.7, optimizer=optimizer, **settings).peak_lr == 0.7


def test_every_recipe_sets_lr() -> None:
    assert all(recipes.load(name).config.optimizer.lr is not None for name in recipes.names())


def test_min_lr_is_compared_with_the_default() -> None:
    with pytest.raises(UsageError, match=r"min_lr is 0.05, above lr, 0.02; expected at most 0.02"):
        TrainConfig.from_settings(model="small", min_lr=0.05)


def test_the_help_shows_the_default_rates() -> None:
    shown = " ".join(CliRunner().invoke(main, ["train", "--help"]).stdout.split())
    assert "[default: resnet18: 0.1 sgd, 0.001 adam and adamw" in shown
    assert "small: 0.02 sgd" in shown


def test_the_default_rate_is_logged_and_stored(
    data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fastcifar"):
        run, metrics = train(tiny(data_dir), runs_dir=tmp_path)
    assert f"learning rate 0.01, the default for {__name__}:linear with sgd" in caplog.text
    assert f"the default for {__name__}:linear" in run.log.read_text()
    assert run.read_config().optimizer.lr == metrics["lr"] == 0.01
    best = load_file(run.best)["2.weight"]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="fastcifar"):
        train(run.read_config().with_settings(epochs=3), runs_dir=tmp_path, resume=RunFolder(run.path))
        given, _ = train(tiny(data_dir, lr=0.01), runs_dir=tmp_path, name="given")
    assert "the default for" not in caplog.text
    assert load_file(given.best)["2.weight"].equal(best)


def test_a_loss_above_guessing_is_warned_of_once(
    data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, _ = train(tiny(data_dir, lr=50.0, label_smoothing=0.1, batch_size=20), runs_dir=tmp_path)
    warnings = [record.getMessage() for record in caplog.records if record.name == "fastcifar.training.lr_finder"]
    warnings = [message for message in warnings if "uniform guess" in message]
    assert len(warnings) == 1
    assert "above that of a uniform guess, 2.303 (the logarithm of 10 classes)" in warnings[0]
    assert "try a smaller --lr, e.g. 10, or find one: " in warnings[0]
    assert warnings[0] in run.log.read_text()
    words = shlex.split(warnings[0].partition("find one: ")[2])
    assert words[:2] == ["fastcifar", "lr-find"]
    result = CliRunner().invoke(main, [*words[1:], "--runs-dir", str(tmp_path), "--steps", "20"])
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("num_classes", [2, 100])
def test_a_loss_of_guessing_does_not_warn(num_classes: int) -> None:
    row = {"epoch": 1, "train_loss": math.log(num_classes)}
    assert not warn_if_not_learning(TrainConfig(), row, num_classes)
    assert warn_if_not_learning(TrainConfig(), {**row, "train_loss": math.log(num_classes) + 1e-3}, num_classes)
    smoothed = nn.functional.cross_entropy(torch.zeros(1, num_classes), torch.tensor([1]), label_smoothing=0.2)
    assert smoothed.item() == pytest.approx(math.log(num_classes))  # so it does not change the threshold


def test_after_a_range_test_no_other_is_suggested(caplog: pytest.LogCaptureFixture) -> None:
    assert warn_if_not_learning(TrainConfig.from_settings(lr=0.1), {"epoch": 1, "train_loss": 9.0}, 10, tested=True)
    assert "lr-find" not in caplog.text
