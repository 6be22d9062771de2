"""Recipes: each loads and trains, flags and environment beat them, and wrong ones are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from benchmarks import recipes as recipes_benchmark
from fastcifar import recipes
from fastcifar.cli import main
from fastcifar.errors import UsageError
from fastcifar.training import RunFolder

ORIGINS = ("cutout-plateau", "onecycle-l1", "crop-cutout", "step-l2", "lrfind-plateau", "layernorm")


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_the_nine_recipes_are_there_and_tell_their_history() -> None:
    assert recipes.names() == (*ORIGINS, "fast", "resnet18", "shapes")
    for name in recipes.names():
        recipe = recipes.load(name)
        assert recipe.config.recipe == name
        assert recipe.about["title"]
        if name in ORIGINS:
            assert "% of the test images" in recipe.about["reported"]
            assert recipe.about["assumptions"]


def test_they_are_listed_and_shown() -> None:
    listed = run("recipes").stdout
    assert all(name in listed for name in recipes.names())
    shown = run("recipes", "layernorm").stdout
    assert "norm: layer" in shown
    assert "82.59%" in shown
    listed_recipes = json.loads(run("recipes", "--json").stdout)
    assert [recipe["name"] for recipe in listed_recipes] == list(recipes.names())
    assert listed_recipes[5]["settings"]["last_stride"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes.names())
def test_each_recipe_runs(name: str, data_dir: Path, tmp_path: Path) -> None:
    result = run(
        "train", "--recipe", name, "--data-dir", data_dir, "--runs-dir", tmp_path,
        "--batch-size", 4, "--max-steps", 2, "--lr", 0.001, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["recipe"] == name
    config = RunFolder(tmp_path / name).read_config()
    assert config.recipe == name
    assert config.augment == recipes.load(name).config.augment
    assert (config.batch_size, config.optimizer.lr) == (4, 0.001)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_flag_beats_the_environment_which_beats_the_recipe(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(tmp_path / "mine.yaml", "settings:\n  model: small\n  epochs: 3\n  batch_size: 50\n  flip: false\n")
    monkeypatch.setenv("FASTCIFAR_DATA_DIR", str(data_dir))
    result = run("train", "--recipe", recipe, "--runs-dir", tmp_path, "--epochs", 1, "--json")
    assert result.exit_code == 0, result.stderr
    config = RunFolder(tmp_path / "mine").read_config()
    assert (config.recipe, config.epochs, config.batch_size, config.augment.flip) == ("mine", 1, 50, False)
    assert config.data.data_dir == str(data_dir)


def test_a_recipe_gives_the_range_test_what_it_uses(data_dir: Path, tmp_path: Path) -> None:
    result = run(
        "lr-find", "--recipe", "onecycle-l1", "--model", "small", "--steps", 2,
        "--data-dir", data_dir, "--runs-dir", tmp_path, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "lr-find-onecycle-l1" / "lr_find.csv").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("settings:\n  epoch: 3\n", "unknown setting 'epoch'; did you mean 'epochs'?"),
        ("settings:\n  zzz: 3\n", "unknown setting 'zzz'"),
        ("settings:\n  data_dir: /tmp\n", "data_dir cannot be set in a recipe; give it with --data-dir"),
        ("settings:\n  epochs: many\n", "epochs is 'many'; expected a whole number, 1 or more"),
        ("settings:\n  lr: .nan\n", "lr is nan; expected a number above 0"),
        ("settings:\n  model: os:system\n", "model is 'os:system'; a recipe cannot name code"),
        (
            "setting:\n  epochs: 3\n",
            "unknown keys setting; expected settings, under 'settings:', and, optionally, title",
        ),
        ("settings: 3\n", "no settings; expected settings"),
        ("title: a\n", "no settings; expected settings"),
        ("- 1\n", "not a recipe (it holds no settings)"),
        ("a: &a [1]\nb: *a\n", "not a recipe (it has aliases"),
        ("settings: !!python/object/apply:os.system ['true']\n", "not a recipe (could not determine a constructor"),
        ("settings: {", "not a recipe ("),
        ("settings:\n  lr: 1e-3\n", "lr is '1e-3', which is text; expected a number above 0, written as 0.001 or"),
        ("settings:\n  lr: '0.1'\n", "lr is '0.1', which is text; expected a number above 0"),
        (f"settings:\n  lr: 1{'0' * 400}\n", "lr is 1000"),
        ("settings:\n  lr: 0.1\n  lr: 0.5\n", "not a recipe (it has the key 'lr' twice)"),
        ('{"settings": {"lr": 0.1, "lr": 0.5}}', "not a recipe (it has the key 'lr' twice)"),
    ],
)
def test_a_wrong_recipe_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "wrong.yaml", text)
    result = run("train", "--recipe", path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {path}: {message}")
    assert result.stderr.count("\n") == 1


def test_a_shortened_recipe_takes_the_same_way() -> None:
    short = recipes_benchmark.shortened(recipes.load("step-l2").config, 5)
    assert (short.epochs, short.schedule.step_size) == (5, 2)
    short = recipes_benchmark.shortened(recipes.load("cutout-plateau").config, 50)
    assert (short.epochs, short.schedule.patience) == (1, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layernrom", "recipe is 'layernrom'; expected one of: cutout-plateau, "),
        ("layernrom", "did you mean 'layernorm'?"),
        ("../fast", "recipe is '../fast'; expected one of"),
        ("missing.yaml", "missing.yaml: not a recipe (no such file)"),
    ],
)
def test_an_unknown_recipe_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipes.load(name)
    assert message in str(caught.value)


def test_every_setting_of_a_recipe_has_a_flag() -> None:
    flags: dict[str, Any] = {param.name: param for param in main.commands["train"].params}  # type: ignore[attr-defined]
    for name in recipes.names():
        assert recipes.load(name).settings.keys() <= flags.keys()


def test_a_flag_turns_off_what_a_recipe_sets(data_dir: Path, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", "settings: {model: small, deterministic: true, cutout_min_size: 4}")
    flags = ["--no-deterministic", "--cutout-size", 0, "--batch-size", 60, "--max-steps", 1]
    result = run("train", "--recipe", mine, "--data-dir", data_dir, "--runs-dir", tmp_path, *flags)
    assert result.exit_code == 0, result.stderr
    config = RunFolder(tmp_path / "mine").read_config()
    assert (config.runtime.deterministic, config.augment.cutout_size) == (False, 0)


def test_a_file_named_as_a_recipe_of_ours_is_not_ours(tmp_path: Path) -> None:
    mine = write(tmp_path / "fast.yaml", "settings: {model: small}")
    assert recipes.load(str(mine)).name == "fast.yaml"
    assert recipes.load("fast").name == "fast"
