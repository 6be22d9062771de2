"""Settings: declared once; flags, recipes, checks and docs/settings.md follow from the declaration."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastcifar import recipes
from fastcifar.cli import main
from fastcifar.cli.settings import train_config
from fastcifar.config import (
    SETTINGS,
    AugmentConfig,
    ExplainConfig,
    LrRangeTestConfig,
    OptimizerConfig,
    TrainConfig,
    without_effect,
)
from fastcifar.config.setting import settings_of
from fastcifar.errors import UsageError

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("settings", "without"),
    [
        ({}, {"milestones", "step_size", "pct_start", "aux_lr", "ns_steps", "rotate_p", "colour_p"}),
        ({"sched": "step", "flip": False}, {"patience", "monitor", "min_lr", "milestones", "flip_mode"}),
        ({"sched": "none", "cutout_size": 0}, {"factor", "cutout_p", "cutout_holes", "cutout_min_size"}),
        ({"optimizer": "adam", "contrast": 0.1, "rotate_degrees": 5}, {"nesterov", "bias_lr"}),
    ],
)
def test_settings_without_effect(settings: dict[str, Any], without: set[str]) -> None:
    config = TrainConfig.from_settings(**settings)
    assert without <= without_effect(config).keys()
    others = {"lr", "factor", "nesterov", "flip_mode", "cutout_p", "momentum", "epochs", *settings} - without
    assert others.isdisjoint(without_effect(config))


def test_every_setting_is_a_flag_of_train_with_its_description_and_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTCIFAR_DATA_DIR", raising=False)
    command = main.commands["train"]  # type: ignore[attr-defined]
    flags: dict[str, Any] = {param.name: param for param in command.params}
    for name, (_, _, declared) in SETTINGS.items():
        assert name == "recipe" or flags[name].help.startswith(declared.description), name
    context = command.make_context("train", [])
    values = {name: context.params[name] for name in SETTINGS}
    assert train_config(context, values) == TrainConfig()


def test_settings_by_name_are_those_of_the_groups() -> None:
    config = TrainConfig.from_settings(model="small", optimizer="adamw", sched="cosine", lr=0.1, flip=False, epochs=2)
    assert (config.model.name, config.optimizer.name, config.schedule.name) == ("small", "adamw", "cosine")
    assert (config.optimizer.lr, config.augment.flip, config.epochs) == (0.1, False, 2)
    assert TrainConfig.from_settings(**config.to_settings()) == config
    changed = config.with_settings(lr=0.2, epochs=3)
    assert (changed.optimizer.lr, changed.epochs, changed.optimizer.name) == (0.2, 3, "adamw")
    assert TrainConfig(optimizer=OptimizerConfig(lr=0.3), augment=AugmentConfig(flip=False)).peak_lr == 0.3


def test_the_name_of_a_recipe_alone_is_refused() -> None:
    """Its settings would silently be the defaults."""
    for make in (TrainConfig.from_settings, TrainConfig().with_settings):
        with pytest.raises(UsageError, match=r"recipe is 'fast'.* recipes\.load\('fast'\)\.config\.with_settings"):
            make(recipe="fast", epochs=4)
    recipe = recipes.load("fast").config.with_settings(epochs=4)
    assert (recipe.recipe, recipe.epochs) == ("fast", 4)
    assert recipe.with_settings(recipe="fast", epochs=4) == recipe == TrainConfig.from_settings(**recipe.to_settings())
    assert TrainConfig.from_stored(recipe="fast", epochs=4) == TrainConfig(recipe="fast", epochs=4)


def test_an_array_of_indices_is_a_list() -> None:
    assert ExplainConfig(select=np.array([3, 1])).select == (3, 1)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown setting 'batchsize'; did you mean 'batch_size'"):
        TrainConfig.from_settings(batchsize=3)


def test_names_are_unique_over_all_groups() -> None:
    declared = [
        name for config in (type(getattr(TrainConfig(), g)) for g in groups()) for name, _, _ in settings_of(config)
    ]
    declared += [name for name, _, _ in settings_of(TrainConfig)]
    assert sorted(declared) == sorted(SETTINGS)


def groups() -> list[str]:
    return sorted({group for group, _, _ in SETTINGS.values() if group})


def test_numbers_of_numpy_become_those_of_python() -> None:
    config = TrainConfig.from_settings(epochs=np.int64(3), lr=np.float32(0.5))
    assert type(config.epochs) is int
    assert type(config.optimizer.lr) is float


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExplainConfig(n=0), "n is 0; expected 1 or more"),
        (lambda: ExplainConfig(select=(1, 1)), "select is '1,1'; expected at least one, each once"),
        (lambda: ExplainConfig(select=(1,), correct=True), "select names images; expected that or correct, not both"),
        (lambda: ExplainConfig(methods=("cam",)), "methods is 'cam'; expected one of: gradcam, gradcampp, hirescam"),
        (
            lambda: ExplainConfig(select=3),
            "select is 3; expected one of: loss, confidence, random; or a list of indices",
        ),
        (lambda: ExplainConfig(layers="stage4"), "layers is 'stage4'; expected a list of names"),
        (lambda: ExplainConfig(layers=[3]), "layers has 3; expected names"),
        (lambda: ExplainConfig(methods="gradcam"), "methods is 'gradcam'; expected a list of names"),
        (lambda: ExplainConfig(layers=()), "layers is ''; expected at least one, each once"),
        (lambda: LrRangeTestConfig(num_steps=1), "steps is 1; expected 2 or more"),
        (
            lambda: LrRangeTestConfig(start_lr=2.0, end_lr=1.0),
            "start_lr is 2 and end_lr 1; expected end_lr to be",
        ),
        (lambda: TrainConfig.from_settings(seed=None), "seed is None; expected a whole number"),
        (lambda: TrainConfig.from_settings(factor=1.0), "factor is 1.0; expected a number above 0 and below 1"),
        (lambda: TrainConfig.from_settings(lr=np.ones((1, 2))), "lr is array([[1., 1.]]); expected a number above 0"),
        (lambda: TrainConfig.from_settings(amp=np.array(["off"])), "amp is ('off',); expected one of"),
        (lambda: ExplainConfig(select=np.array([True, False])), "select is True; expected a whole number"),
        (lambda: ExplainConfig(select=(1,), n=3), "n is 3, and select names images; expected one of them"),
        (lambda: ExplainConfig(seed=3), "seed is 3, and select not 'random'; expected a seed for select 'random'"),
        (lambda: ExplainConfig(method="x"), "ExplainConfig: unknown setting 'method'; did you mean 'methods'?"),
        (
            lambda: TrainConfig(lr=0.1),
            "TrainConfig: unknown setting 'lr'; TrainConfig.from_settings takes all settings by name",
        ),
        (lambda: TrainConfig(model="small"), "model is 'small'; expected ModelConfig(…); TrainConfig.from_settings"),
        (lambda: TrainConfig(augment=None), "augment is None; expected AugmentConfig(…); TrainConfig.from_settings"),
        (lambda: TrainConfig.from_settings(device=5), "device is 5; expected text"),
        (lambda: TrainConfig.from_settings(recipe=[1]), "recipe is (1,); expected text"),
        (lambda: TrainConfig.from_settings(data_dir=3), "data_dir is 3; expected a path"),
        (
            lambda: TrainConfig.from_settings(rotate_p="0.5"),
            "rotate_p is '0.5', which is text; expected a number, 0..1",
        ),
        (lambda: TrainConfig.from_settings(rotate_p=1.5), "rotate_p is 1.5; expected a number, 0..1"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_the_page_of_settings_is_written_from_the_declarations() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "settings_page.py"))
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"]()
