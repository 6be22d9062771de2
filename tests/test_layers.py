"""Frozen layers: what is before a layer keeps its weights and statistics, and costs no backward pass."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastcifar.config import ModelConfig
from fastcifar.errors import Stopped, UsageError
from fastcifar.models import count_parameters, make_model
from fastcifar.models.layers import freeze_until, frozen_part, last_layer, train_mode
from fastcifar.training import RunFolder, train
from tests.tiny import Interrupts, tiny

pytestmark = pytest.mark.usefixtures("ordinary_algorithms")
UNTIL = "6"  # the third of three convolutions
FROZEN = ("0.", "1.", "3.", "4.")


def weights_of(run: RunFolder, part: str = "model") -> dict[str, torch.Tensor]:
    state = torch.load(run.last, weights_only=True)
    return {
        key.removeprefix("module."): value for key, value in (state["step"] if part == "ema" else state)[part].items()
    }


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> dict[str, bool]:
    return {key: torch.equal(first[key], second[key]) for key in first if key != "n_averaged"}


@pytest.fixture(scope="module")
def first(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of an epoch. Not to be written to."""
    return train(tiny(tiny_data, epochs=1), runs_dir=tmp_path_factory.mktemp("runs"))[0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "adamw", "l1": 1e-3, "clip_norm": 1.0},
        {"optimizer": "muon", "unit_filters": True},
        {"ema": 0.5},
        {"deterministic": True, "lr": "auto"},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_frozen_layers_keep_weights_and_statistics(
    first: RunFolder, tiny_data: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    run, metrics = train(tiny(tiny_data, init=first.path, freeze_until=UNTIL, **settings), runs_dir=tmp_path)
    for part in ("model", *(["ema"] if "ema" in settings else [])):
        same = equal(weights_of(first), weights_of(run, part))
        assert all(same[key] for key in same if key.startswith(FROZEN)), same
        assert not any(same[key] for key in ("6.weight", "7.running_mean", "11.weight"))
    assert metrics["num_parameters"] == 5_170
    assert metrics["num_trained_parameters"] == 5_170 - 3 * 8 * 9 - 16 - 8 * 16 * 9 - 32
    assert "training 3,754 of 5,170 parameters: from 6 on" in run.log.read_text()


def test_they_stay_frozen_when_the_run_is_resumed(tiny_data: Path, tmp_path: Path) -> None:
    first, _ = train(tiny(tiny_data, epochs=1), runs_dir=tmp_path, name="first")
    config = tiny(tiny_data, init="first", freeze_until=UNTIL, epochs=3, deterministic=True)
    whole, _ = train(config, runs_dir=tmp_path, name="whole")
    with pytest.raises(Stopped):
        train(config, runs_dir=tmp_path, name="cut", reporter=Interrupts(3, signal.SIGINT))
    cut = RunFolder(tmp_path / "cut")
    first.best.unlink()  # not read again
    train(cut.read_config(), resume=cut)
    assert all(equal(weights_of(whole), weights_of(cut)).values())
    assert all(same for key, same in equal(weights_of(first), weights_of(cut)).items() if key.startswith(FROZEN))


def test_without_initial_weights_a_warning_says_that_they_are_random(tiny_data: Path, tmp_path: Path) -> None:
    run, _ = train(tiny(tiny_data, freeze_until="11"), runs_dir=tmp_path)
    assert "WARNING --freeze-until without --init: the frozen layers keep random weights" in run.log.read_text()


def test_backward_stops_at_the_first_layer_that_is_trained() -> None:
    model = make_model(ModelConfig(name="resnet18"), 10)
    freeze_until(model, "layer4", "resnet18")
    outputs: dict[str, torch.Tensor] = {}
    for name in ("layer3", "layer4"):
        model.get_submodule(name).register_forward_hook(lambda module, x, y, name=name: outputs.update({name: y}))
    train_mode(model)
    model(torch.zeros(2, 3, 8, 8))
    assert not outputs["layer3"].requires_grad
    assert outputs["layer4"].requires_grad


class Branched(nn.Module):
    """Parameters of its own, dropout in the first part, two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1))
        self.body = nn.ModuleDict(
            {
                "a": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()),
                "b": nn.Linear(4, 4),
                "c": nn.Linear(4, 4),
            }
        )
        self.fc = nn.Linear(4, 2)
        self.body["c"].weight = self.body["a"][0].weight  # type: ignore[index]


def test_what_is_before_a_layer_is_frozen_but_neither_its_parents_nor_what_it_shares() -> None:
    model = Branched()
    part = freeze_until(model, "body.b", "mine")
    trained = [name for name, param in model.named_parameters() if param.requires_grad]
    assert trained == ["body.a.0.weight", "body.b.weight", "body.b.bias", "body.c.bias", "fc.weight", "fc.bias"]
    assert part.modules == ("body.a.0", "body.a.1")
    train_mode(model)
    assert [name for name, module in model.named_modules() if not module.training] == list(part.modules)
    assert model.body["a"][2].training  # type: ignore[index]


def test_head_is_the_last_layer_whatever_its_name() -> None:
    model = make_model(ModelConfig(name="mobilenet_v3_small"), 5)
    assert last_layer(model) == "classifier.3"
    assert freeze_until(model, "head", "mobilenet_v3_small").layer == "classifier.3"
    assert count_parameters(model) == 1_024 * 5 + 5
    own = make_model(ModelConfig(name="small"), 5)
    assert freeze_until(own, "head", "small").layer == "head"
    assert frozen_part(make_model(ModelConfig(name="small"), 5)) is None


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            "layr3",
            r"freeze_until is 'layr3'; expected a layer of small: layer1, layer2, layer3, head, or one in them; did ",
        ),
        ("", "freeze_until is ''; expected a layer of small"),
        ("stem", "freeze_until is 'stem', and small has no parameters before it; expected a later layer"),
        ("layer1", "has no parameters before it"),
    ],
)
def test_a_layer_that_cannot_be_the_first_is_an_error(layer: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        freeze_until(make_model(ModelConfig(name="small"), 10), layer, "small")


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(UsageError, match="freeze_until is '1', and mine has nothing to train from there on"):
        freeze_until(nn.Sequential(nn.Linear(2, 2), nn.Flatten()), "1", "mine")
