"""`max_minutes`: the number of steps is fixed once, from the measured pace, and nothing else of the run changes."""

from __future__ import annotations

import json
import logging
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from fastcifar.config import TrainConfig
from fastcifar.errors import Stopped, UsageError
from fastcifar.runs.group import Group, create_group, load_group, seed_members
from fastcifar.runs.sweep import sweep_members
from fastcifar.runs.train_group import train_group
from fastcifar.training import RunFolder, pace, train
from fastcifar.training.distributed import Distributed
from fastcifar.training.dry_run import dry_run
from fastcifar.training.pace import Pace, fit_steps
from tests.test_cli import refused, run
from tests.tiny import NETWORK, Interrupts, network, tiny

HOURS = 60.0
"""Steps of the tests take hours, next to which what passes in a test is nothing."""


def with_pace(config: TrainConfig) -> Pace:
    seconds = {None: (4.0, 2.0), 16: (1.0,)}
    return Pace(config=config, steps_per_epoch=10, step_seconds=seconds, validation_s=5.0, test_s=7.0)


@pytest.fixture
def hour_steps(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """A step takes an hour, two with the optimizer muon; returns what is measured."""
    measured: list[TrainConfig] = []

    def measure(step: object, config: TrainConfig, loaders: Any, *more: object) -> Pace:
        measured.append(config)
        step_s = 7200.0 if config.optimizer.name == "muon" else 3600.0
        sides = {None: (step_s,), 16: (step_s / 2,)}
        return Pace(config=config, steps_per_epoch=len(loaders.train), step_seconds=sides, validation_s=60, test_s=60)

    monkeypatch.setattr(pace, "measure_pace", measure)
    monkeypatch.setattr("fastcifar.training.dry_run.measure_pace", measure)
    return measured


def dropping(num_classes: int) -> nn.Module:
    """A network that draws from the generator of torch in each step, and from NumPy's when it is made."""
    model = network(num_classes)
    with torch.no_grad():
        model[-1].bias += torch.from_numpy(np.random.rand(num_classes))
    return nn.Sequential(*list(model)[:-1], nn.Dropout(0.5), model[-1])


def same_weights(one: RunFolder, other: RunFolder) -> bool:
    first, second = load_file(one.best), load_file(other.best)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_time_of_a_run_counts_steps_of_each_size_validations_and_the_test() -> None:
    expected = with_pace(TrainConfig.from_settings(progressive=((16, 0.5),), epochs=3))
    assert expected.num_steps == 30
    assert expected.training_s(30) == 15 * 1 + 15 * 3
    assert expected.run_s(25) == 13 * 1 + 12 * 3 + 3 * 5 + 7


def test_a_last_batch_of_few_images_is_not_the_pace_of_an_evaluation(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch takes a second, and 0.1 for each image."""
    clock = 0.0

    def batches(*_: object, **__: object) -> Iterator[tuple[torch.Tensor]]:
        nonlocal clock
        for count in (30, 1):
            clock += 1 + 0.1 * count
            yield (torch.zeros(count),)

    monkeypatch.setattr(pace, "predict", batches)
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock)
    planned = dry_run(tiny(tiny_data, val_size=31))
    assert planned.validation_s == pytest.approx(31 * 4 / 30)


@pytest.mark.parametrize("settings", [{}, {"progressive": ((16, 0.5),)}, {"max_steps": 7}, {"epochs": 10**400}])
@pytest.mark.parametrize("seconds", [-3.0, 0.0, 10.9, 15.0, 60.0, 99.5, 10_000.0])
def test_the_steps_that_fit_are_the_most(settings: dict[str, Any], seconds: float) -> None:
    expected = with_pace(TrainConfig.from_settings(**{"epochs": 3, **settings}))
    num_steps = expected.steps_within(seconds)
    assert 0 <= num_steps <= expected.num_steps
    assert num_steps == 0 or expected.run_s(num_steps) <= seconds
    assert num_steps == expected.num_steps or expected.run_s(num_steps + 1) > seconds


def test_the_slowest_process_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = Distributed(0, 2)
    monkeypatch.setattr(distributed, "all_reduce_max", lambda number: [max(number, -4)])  # the other: 4 steps
    expected = with_pace(TrainConfig.from_settings(max_minutes=1.0))
    assert fit_steps(with_pace(expected.config), Distributed())[0] > 4
    assert fit_steps(with_pace(expected.config), distributed)[0] == 4


@pytest.mark.usefixtures("ordinary_algorithms", "hour_steps")
@pytest.mark.parametrize("sched", ["onecycle", "cosine"])
def test_the_weights_are_those_of_a_run_with_this_number_of_steps(tiny_data: Path, tmp_path: Path, sched: str) -> None:
    settings = {"model": "tests.test_pace:dropping", "sched": sched, "progressive": ((16, 0.5),), "epochs": 50}
    config = tiny(tiny_data, deterministic=True, **settings)
    np.random.seed(3)
    first, metrics = train(config.with_settings(max_steps=5), runs_dir=tmp_path)
    np.random.seed(3)
    random.seed(4)
    before = random.getstate()
    timed, of_timed = train(config.with_settings(max_minutes=4 * HOURS + 10), runs_dir=tmp_path)
    assert random.getstate() == before
    assert timed.read_config() == first.read_config()
    assert (of_timed["steps"], of_timed["test_loss"]) == (metrics["steps"], metrics["test_loss"])
    assert same_weights(first, timed)


def test_the_measured_steps_do_not_change_the_run(tiny_data: Path, tmp_path: Path) -> None:
    config = tiny(tiny_data, model="tests.test_pace:dropping", progressive=((16, 0.5),))
    np.random.seed(3)
    first = train(config, runs_dir=tmp_path)[0]
    np.random.seed(3)
    timed = train(config.with_settings(max_minutes=1_000.0), runs_dir=tmp_path)[0]
    assert timed.read_config() == first.read_config().with_settings(max_steps=2)
    assert same_weights(first, timed)


def test_the_number_is_logged_and_stored(tiny_data: Path, tmp_path: Path, hour_steps: list[TrainConfig]) -> None:
    timed, metrics = train(tiny(tiny_data, batch_size=20, epochs=9, max_minutes=5 * HOURS + 5), runs_dir=tmp_path)
    assert metrics["steps"] == 5
    settings = yaml.safe_load(timed.config.read_text())
    assert (settings["max_steps"], settings["max_minutes"], settings["epochs"]) == (5, None, 9)
    assert "max_minutes 305: 5 steps (1.7 epochs) at 3,600 s a step" in timed.log.read_text()
    assert len(hour_steps) == 1


def test_a_resumed_run_keeps_its_number(tiny_data: Path, tmp_path: Path, hour_steps: list[TrainConfig]) -> None:
    config = tiny(tiny_data, epochs=9, sched="onecycle", max_minutes=4 * HOURS + 10)
    with pytest.raises(Stopped) as caught:
        train(config, runs_dir=tmp_path, name="stopped", reporter=Interrupts(2, signal.SIGINT))
    assert "fastcifar.train(config, resume=" in caught.value._render_traceback_()[0]  # its network is code
    stopped = RunFolder(tmp_path / "stopped")
    # by Python also with the settings that it was started with
    assert train(config, runs_dir=tmp_path, resume=stopped)[1]["steps"] == 4
    assert train(stopped.read_config(), runs_dir=tmp_path, resume=stopped)[1]["steps"] == 4
    assert len(hour_steps) == 1
    message = refused(2, "train", "--resume", stopped.path, "--max-minutes", 5)
    assert message.startswith("--max-minutes cannot be changed when a run is resumed; only --epochs")


def test_the_log_line_shows_milliseconds() -> None:
    config = TrainConfig.from_settings(max_minutes=10.0)
    usual = Pace(config=config, validation_s=20.0, test_s=34.0, step_seconds={None: (0.41,)}, steps_per_epoch=398)
    assert fit_steps(usual, Distributed())[1][0][1] == "max_minutes 10: 1,194 steps (3.0 epochs) at 410 ms a step"
    faster = Pace(config=config, validation_s=0.0, test_s=0.0, step_seconds={None: (0.00123,)}, steps_per_epoch=398)
    assert fit_steps(faster, Distributed())[1][0][1].endswith("steps (50.0 epochs) at 1.23 ms a step")


@pytest.mark.parametrize(("max_steps", "level"), [(None, "WARNING"), (2, "INFO")])
def test_less_than_an_epoch_is_a_warning(max_steps: int | None, level: str) -> None:
    config = TrainConfig.from_settings(max_minutes=1.0, max_steps=max_steps)
    pace = Pace(config=config, validation_s=0.0, test_s=0.0, step_seconds={None: (8.0,)}, steps_per_epoch=10)
    ((number, message),) = fit_steps(pace, Distributed())[1]
    assert logging.getLevelName(number) == level
    expected = "max_minutes 1: 7 steps (0.7 epochs) at 8,000 ms a step: not all images; allow more minutes"
    assert (message == expected) == (level == "WARNING")


@pytest.mark.usefixtures("hour_steps")
def test_other_limits_stay_and_one_step_is_the_least(
    tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(tiny(tiny_data, max_steps=1, max_minutes=9 * HOURS), runs_dir=tmp_path)[1]["steps"] == 1
    assert "max_minutes 540: 1 steps (1.0 epochs) at 3,600 s a step" in caplog.messages
    assert train(tiny(tiny_data, max_minutes=0.5), runs_dir=tmp_path)[1]["steps"] == 1
    message = "max_minutes 0.5: a run of 1 step takes about 1 h 02 min, more than this; training 1 step"
    assert [(each.levelname, each.getMessage()) for each in caplog.records if "0.5" in each.getMessage()] == [
        ("WARNING", message)
    ]


@pytest.mark.parametrize("value", [0, -1, float("nan"), "ten", 10**400, 600_000])
def test_minutes_that_are_no_time_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="max_minutes is .*; expected a number above 0 and at most"):
        TrainConfig.from_settings(max_minutes=value)


def test_the_runs_of_a_group_have_one_number(tiny_data: Path, tmp_path: Path, hour_steps: list[TrainConfig]) -> None:
    config = tiny(tiny_data, epochs=9, max_minutes=3 * HOURS + 10)
    group = create_group(tmp_path, "few", "seeds", config, seed_members([3, 5]))
    train_group(load_group(group.path))
    assert len(hour_steps) == 1
    assert [steps_of(group, number) for number in range(2)] == [3, 3]
    assert load_group(group.path).config.max_minutes is None


def steps_of(group: Group, number: int) -> Any:
    return json.loads(group.run(group.members[number]).metrics.read_text())["steps"]


def test_the_number_of_a_sweep_is_that_of_its_slowest_combination(
    tiny_data: Path, tmp_path: Path, hour_steps: list[TrainConfig], caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny(tiny_data, epochs=99, max_minutes=7 * HOURS)
    members = sweep_members({"optimizer": ["sgd", "muon"]}, [0, 1])
    assert create_group(tmp_path, "sweep", "sweep", config, members).config.max_steps == 3
    assert [each.optimizer.name for each in hour_steps] == ["sgd", "muon"]
    few = create_group(tmp_path, "few", "sweep", config.with_settings(epochs=2), members)
    assert (few.config.max_steps, few.config.max_minutes) == (None, None)
    for name in ("max_steps", "max_minutes"):
        with pytest.raises(UsageError, match=f"{name} cannot be swept"):
            create_group(tmp_path, "no", "sweep", config, sweep_members({name: [3, 4]}, [0]))
    assert not (tmp_path / "no").exists()


def test_a_dry_run_plans_the_number(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hour_steps: list[TrainConfig]
) -> None:
    plan = dry_run(tiny(tiny_data, epochs=9, progressive=((16, 0.5),), max_minutes=3 * HOURS))
    assert [(stage.image_size, stage.num_steps) for stage in plan.stages] == [((16, 16), 2), ((32, 32), 1)]
    assert (plan.num_steps, plan.config.max_minutes, plan.config.max_steps) == (3, 180.0, None)
    monkeypatch.chdir(tmp_path)
    flags = ["--model", NETWORK, "--batch-size", 36, "--max-minutes", 305, "--dry-run"]
    result = run("train", "--data-dir", tiny_data, *flags)
    assert "4 in all, with max_minutes 305" in result.stdout
    assert "max_minutes: 305" in result.stdout
    assert len(hour_steps) == 2
