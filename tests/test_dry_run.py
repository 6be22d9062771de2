"""`train --dry-run`: the settings as a recipe, what is expected of the run, and nothing written."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcifar import recipes
from fastcifar.config import TrainConfig
from fastcifar.errors import CheckpointError, UsageError
from fastcifar.system.memory import peak_memory
from fastcifar.training import train
from fastcifar.training.dry_run import RunPlan, dry_run
from fastcifar.training.progress import stages_of
from fastcifar.training.step import TrainStep
from tests.test_cli import refused, run
from tests.tiny import NETWORK, tiny


@pytest.fixture(autouse=True)
def _empty_folder_and_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastcifar.training.pace.MEASURED_STEPS", 3)


def test_a_plan_has_the_counts_of_the_run(tiny_data: Path) -> None:
    plan = dry_run(tiny(tiny_data, progressive=((16, 0.5),), tta="flip", device="cpu"))
    assert (plan.num_train_images, plan.num_val_images, plan.num_test_images) == (70, 10, 40)
    assert (plan.steps_per_epoch, plan.num_steps, plan.num_parameters) == (1, 2, 5_170)
    assert [(stage.image_size, stage.num_steps) for stage in plan.stages] == [((16, 16), 1), ((32, 32), 1)]
    assert [stage.num_measured for stage in plan.stages] == [3, 3]
    assert plan.num_measured == 6
    assert (plan.loader, plan.device, plan.config.optimizer.lr) == ("resident", "cpu", 0.05)
    assert plan.memory_bytes > 2**26
    assert plan.validation_s > 0 < plan.test_s
    training_s = sum(stage.step_s * stage.num_steps for stage in plan.stages)
    assert plan.seconds == pytest.approx(training_s + 2 * plan.validation_s + plan.test_s)
    assert json.loads(json.dumps(plan.to_dict()))["settings"] == json.loads(json.dumps(plan.config.to_settings()))


def test_nothing_is_written_and_the_network_is_discarded(tiny_data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_data.iterdir()}
    dry_run(tiny(tiny_data))
    assert list(Path().iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in tiny_data.iterdir()} == before


def test_a_dry_run_refuses_what_the_run_would_refuse(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"batch_size is 500; expected at most 70"):
        dry_run(tiny(tiny_data, batch_size=500))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="a dry run measures one process; start it without torchrun"):
        dry_run(tiny(tiny_data))


def test_the_weights_that_the_run_starts_from_are_read(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny(tiny_data, device="cpu", freeze_until="head")
    first, _ = train(config.with_settings(freeze_until=None, max_steps=1), runs_dir=tmp_path / "others", name="first")
    plan = dry_run(config.with_settings(init="first"), runs_dir=tmp_path / "others")
    assert plan.num_parameters == 250  # the last layer
    assert plan.config.init == "first"
    first.best.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"best.safetensors: damaged, or not weights"):
        dry_run(config.with_settings(init="first"), runs_dir=tmp_path / "others")
    with pytest.raises(UsageError, match="freeze_until is 'body'"):
        dry_run(config.with_settings(freeze_until="body"))


def test_a_dry_run_mixes_images(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[tuple[Any, ...]] = []
    call = TrainStep.__call__
    monkeypatch.setattr(TrainStep, "__call__", lambda self, *batch: losses.append(batch) or call(self, *batch))
    dry_run(tiny(tiny_data, mixup=0.2, class_weights="balanced"))
    assert all(mix is not None for _, _, mix in losses)


def test_a_group_of_seeds_takes_the_time_of_its_runs(tiny_data: Path) -> None:
    line = ["train", "--dry-run", "--data-dir", tiny_data, "--model", NETWORK, "--batch-size", 36, "--max-steps", 2]
    assert re.search("# all runs +3, about ", run(*line, "--seeds", 3).stdout)
    found = json.loads(run(*line, "--seeds", 3, "--json").stdout)
    assert found["num_runs"] == 3
    assert found["next"].endswith("--seeds 3")
    assert "# all runs" not in run(*line).stdout
    assert "--seeds cannot be combined with --seed" in refused(2, *line, "--seeds", 3, "--seed", 1)


def test_a_dry_run_of_a_sweep_has_the_time_of_each_combination(tiny_data: Path) -> None:
    line = ["sweep", "--dry-run", "--data-dir", tiny_data, "--model", NETWORK, "--max-steps", 9, "--seeds", 2]
    line += ["--set", "batch-size=18,36", "--set", "progressive=16:0.5;8:0.3,16:0.6"]
    text = run(*line).stdout
    assert re.search("batch_size=18, progressive=8:0.3, 16:0.6 +2 +9 +about ", text)
    assert re.search("all runs +8, about ", text)
    found = json.loads(run(*line, "--json").stdout)
    assert found["seconds"] == pytest.approx(sum(2 * each["seconds"] for each in found["combinations"]))
    assert [each["settings"]["batch_size"] for each in found["combinations"]] == [18, 18, 36, 36]
    words = shlex.split(found["next"])
    assert words[:2] == ["fastcifar", "sweep"]
    assert set(map(str, line)) - {"--dry-run"} <= set(words)
    assert "--dry-run" not in words
    assert refused(2, *line, "--set", "batch-size=18").startswith("--set batch_size is given twice")
    assert "batch_size" in refused(2, *line[:-4], "--set", "batch-size=18,5000")
    assert not Path("runs").exists()


def test_a_rate_of_a_range_test_is_left_to_the_run(tiny_data: Path) -> None:
    plan = dry_run(tiny(tiny_data, lr="auto", sched="cosine", min_lr=3.0))
    assert plan.config.optimizer.lr == "auto"
    assert plan.config.schedule.min_lr == 3.0


def test_stages_are_those_of_the_steps() -> None:
    config = TrainConfig.from_settings(progressive=((16, 0.3), (24, 0.3), (28, 0.55)))
    assert stages_of(config, 10) == [(16, 0, 3), (28, 3, 6), (None, 6, 10)]
    assert stages_of(config, 1) == [(16, 0, 1)]
    assert stages_of(TrainConfig(), 7) == [(None, 0, 7)]


def test_peak_memory_grows_with_what_is_used(tmp_path: Path) -> None:
    before = peak_memory()
    held = torch.ones(2**26)  # 256 MiB
    assert peak_memory() >= max(before, held.nbytes)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("VmHWM:\t    2048 kB\n")
    assert peak_memory(tmp_path) == 2 * 2**20


@pytest.mark.parametrize(
    "flags",
    [
        "--model small --batch-size 100 --epochs 3 --progressive 16:0.3,24:0.5 --no-flip --wd 1e-5",
        "--recipe fast --bs 200 --epochs 2 --sched multistep --milestones 1,2",
        "--model small --batch-size 300 --max-steps 1 --lr auto --optimizer adam --sched cosine --min-lr 2",
    ],
)
def test_the_output_is_a_recipe_that_gives_the_same_settings(data_dir: Path, flags: str) -> None:
    args = ["train", "--data-dir", data_dir, "--device", "cpu", "--dry-run", *shlex.split(flags)]
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    Path("mine.yaml").write_text(result.stdout)
    loaded = recipes.load("mine.yaml").config.to_settings()
    expected = json.loads(run(*args, "--json").stdout)["settings"]
    for name in recipes.NOT_IN_RECIPES:
        del loaded[name], expected[name]
    assert loaded == expected
    assert loaded["batch_size"] < 512
    assert not Path("runs").exists()


def test_what_no_recipe_holds_is_in_the_next_command(data_dir: Path) -> None:
    flags = ["--data-dir", data_dir, "--model", NETWORK, "--batch-size", 100, "--max-steps", 3]
    lines = run("train", *flags, "--dry-run").stdout.splitlines()
    comments = {line[2:].split("  ")[0]: line for line in lines if line.startswith("# ")}
    assert f"--model {NETWORK} --data-dir {data_dir}" in comments["not in a recipe"]
    assert comments["steps"].endswith("5 per epoch, 3 in all")
    assert "540 training, 60 validation, 200 test" in comments["images"]
    assert "resident (" in comments["loader"]
    assert "measured over" in comments["time"]
    assert "the peak of this process, with torch and the images" in comments["memory"]
    assert lines[-1].startswith("# next: fastcifar train ")
    next_words = shlex.split(lines[-1].removeprefix("# next: fastcifar "))
    assert {str(flag) for flag in flags} <= set(next_words)
    assert "--dry-run" not in next_words
    Path("mine.yaml").write_text("\n".join(lines))
    assert "model" not in recipes.load("mine.yaml").settings


def test_a_dry_run_is_not_for_resume() -> None:
    message = "--dry-run is for new runs; it cannot be combined with --resume (see 'fastcifar train --help')"
    assert refused(2, "train", "--resume", "--dry-run") == message
    assert refused(4, "train", "--dry-run").startswith("data/train.beton: no such file")


def test_the_expected_time_counts_every_validation(tiny_data: Path) -> None:
    plan: RunPlan = dry_run(tiny(tiny_data, batch_size=20, epochs=7, max_steps=8))
    training_s = sum(stage.step_s * stage.num_steps for stage in plan.stages)
    assert (plan.steps_per_epoch, plan.num_steps) == (3, 8)
    assert plan.seconds == pytest.approx(training_s + 3 * plan.validation_s + plan.test_s)
