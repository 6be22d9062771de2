"""Schedules: each rate by its formula; a restored schedule continues exactly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastcifar.config import TrainConfig
from fastcifar.errors import UsageError
from fastcifar.training.optimizer import make_optimizer
from fastcifar.training.schedule import Schedule

STEPS, EPOCHS = 4, 6  # in an epoch; in all


def make(config: TrainConfig) -> tuple[torch.optim.Optimizer, Schedule]:
    optimizer = make_optimizer(torch.nn.Linear(1, 1), config)
    return optimizer, Schedule(optimizer, config, STEPS * EPOCHS, STEPS)


def rates_of(config: TrainConfig, losses: list[float] | None = None, cut: int | None = None) -> list[float]:
    """The rate of each step; after step `cut`, optimizer and schedule are created again from their states."""
    optimizer, schedule = make(config)
    rates = []
    for step in range(STEPS * EPOCHS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.after_step()
        if (step + 1) % STEPS == 0:
            loss = 1.0 if losses is None else losses[step // STEPS]
            schedule.after_epoch(
                {"val_loss": loss, "train_loss": None, "val_accuracy": 1 / loss, "train_accuracy": None}
            )
        if step == cut:
            states = optimizer.state_dict(), schedule.state_dict()
            optimizer, schedule = make(config)
            optimizer.load_state_dict(states[0])
            schedule.load_state_dict(states[1])
    return rates


def each_epoch(*rates: float) -> list[float]:
    return [rate for rate in rates for _ in range(STEPS)]


def test_none_leaves_the_rate() -> None:
    assert rates_of(TrainConfig.from_settings(sched="none", lr=0.3)) == [0.3] * STEPS * EPOCHS


def test_cosine_falls_to_min_lr() -> None:
    rates = rates_of(TrainConfig.from_settings(sched="cosine", lr=1.0, min_lr=0.1))
    total = STEPS * EPOCHS
    assert rates == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * n / total)) / 2 for n in range(total)])


def test_step_falls_every_step_size_epochs() -> None:
    rates = rates_of(TrainConfig.from_settings(sched="step", lr=1.0, step_size=2, factor=0.5))
    assert rates == pytest.approx(each_epoch(1, 1, 0.5, 0.5, 0.25, 0.25))


def test_multistep_falls_after_its_milestones() -> None:
    rates = rates_of(TrainConfig.from_settings(sched="multistep", lr=1.0, milestones=(1, 4), factor=0.1))
    assert rates == pytest.approx(each_epoch(1, 0.1, 0.1, 0.1, 0.01, 0.01))


def test_onecycle_rises_and_falls() -> None:
    config = TrainConfig.from_settings(
        sched="onecycle", lr=1.0, pct_start=0.25, div_factor=10, final_div_factor=100, anneal_strategy="linear"
    )
    rates = rates_of(config)
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0, abs=0.05)
    assert rates.index(max(rates)) in (5, 6)
    assert rates[-1] < 0.06
    optimizer, schedule = make(config)
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.95)  # against the rate
    for _ in range(5):
        optimizer.step()
        schedule.after_step()
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.85, abs=0.01)


LOSSES = [2.0, 1.0, 1.0, 1.1, 1.2, 0.5]


def test_plateau_waits_for_its_patience() -> None:
    rates = rates_of(TrainConfig.from_settings(sched="plateau", lr=1.0, patience=1), LOSSES)
    assert rates == pytest.approx(each_epoch(1, 1, 1, 1, 0.2, 0.2))
    assert rates_of(TrainConfig.from_settings(sched="plateau", lr=1.0, patience=1, monitor="accuracy"), LOSSES) == rates
    floor = TrainConfig.from_settings(sched="plateau", lr=1.0, patience=0, min_lr=0.15)
    assert rates_of(floor, LOSSES) == pytest.approx(each_epoch(1, 1, 1, 0.2, 0.15, 0.15))


def test_plateau_watches_training_without_validation() -> None:
    optimizer, schedule = make(TrainConfig.from_settings(sched="plateau", lr=1.0, patience=0))
    for loss in (1.0, 2.0):
        schedule.after_epoch({"val_loss": None, "train_loss": loss})
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


@pytest.mark.parametrize("sched", ["plateau", "cosine", "step", "none"])
def test_warmup_is_linear_and_then_the_schedule_starts(sched: str) -> None:
    rates = rates_of(TrainConfig.from_settings(sched=sched, lr=1.0, warmup_epochs=1.5, step_size=3, min_lr=0.0))
    assert rates[:6] == pytest.approx([0.01 + 0.99 * n / 6 for n in range(6)])
    assert rates[6] == pytest.approx(1.0)
    if sched == "cosine":
        assert rates[6:] == pytest.approx([(1 + math.cos(math.pi * n / 18)) / 2 for n in range(18)])


def test_cosine_falls_to_min_lr_after_a_warmup() -> None:
    rates = rates_of(TrainConfig.from_settings(sched="cosine", lr=1.0, warmup_epochs=1.5, min_lr=0.1))
    assert rates[6:] == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * n / 18)) / 2 for n in range(18)])


@pytest.mark.parametrize("cut", [None, 3, 7])
def test_plateau_ignores_epochs_of_the_warmup(cut: int | None) -> None:
    """Nor all epochs after a resume."""
    config = TrainConfig.from_settings(sched="plateau", lr=1.0, patience=1, warmup_epochs=3.0)
    rates = rates_of(config, [1.0, 2.0, 2.0, 2.0, 2.0, 2.0], cut)
    assert rates[3 * STEPS : 5 * STEPS] == pytest.approx([1.0] * 2 * STEPS)
    assert rates_of(config, [1.0] * 6, cut)[5 * STEPS :] == pytest.approx([0.2] * STEPS)


def test_warmup_can_be_longer_than_the_run() -> None:
    for sched in ("cosine", "none"):
        rates = rates_of(TrainConfig.from_settings(sched=sched, lr=1.0, warmup_epochs=100.0))
        assert rates == sorted(rates)
        assert rates[-1] <= 1.0


ALL: list[dict[str, Any]] = [
    {"sched": "plateau", "patience": 0},
    {"sched": "plateau", "warmup_epochs": 1.0},
    {"sched": "onecycle"},
    {"sched": "cosine"},
    {"sched": "cosine", "warmup_epochs": 2.0},
    {"sched": "step", "step_size": 2, "warmup_epochs": 0.5},
    {"sched": "multistep", "milestones": (2, 3)},
    {"sched": "none"},
]


@pytest.mark.parametrize("settings", ALL)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("cut", [0, 3, 7, 13])
def test_a_restored_schedule_continues(settings: dict[str, Any], optimizer: str, cut: int) -> None:
    config = TrainConfig.from_settings(lr=0.5, optimizer=optimizer, **settings)
    assert rates_of(config, LOSSES, cut) == rates_of(config, LOSSES)


def test_the_state_of_another_schedule_is_refused() -> None:
    _, schedule = make(TrainConfig.from_settings(sched="cosine"))
    with pytest.raises(KeyError):
        make(TrainConfig.from_settings(sched="step"))[1].load_state_dict(schedule.state_dict())


@pytest.mark.parametrize("num_steps", [1, 2, 3, 9, 99, 100])
@pytest.mark.parametrize("pct_start", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_onecycle_has_a_rate_for_any_number_of_steps(num_steps: int, pct_start: float) -> None:
    config = TrainConfig.from_settings(sched="onecycle", lr=1.0, pct_start=pct_start, anneal_strategy="linear")
    optimizer = make_optimizer(torch.nn.Linear(1, 1), config)
    schedule = Schedule(optimizer, config, num_steps, 4)
    for _ in range(num_steps):
        assert 0 < optimizer.param_groups[0]["lr"] <= 1
        optimizer.step()
        schedule.after_step()


@pytest.mark.parametrize(("momentum", "span"), [(0.9, (0.85, 0.95)), (0.3, (0.25, 0.35)), (0.02, (0.0, 0.07))])
def test_onecycle_varies_momentum_around_the_setting(momentum: float, span: tuple[float, float]) -> None:
    optimizer, schedule = make(TrainConfig.from_settings(sched="onecycle", momentum=momentum, pct_start=0.5))
    seen = []
    for _ in range(STEPS * EPOCHS):
        seen.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        schedule.after_step()
    assert (min(seen), max(seen)) == (pytest.approx(span[0], abs=0.01), pytest.approx(span[1], abs=0.01))


def test_a_truncated_warmup_has_the_rates_of_a_longer_run(caplog: pytest.LogCaptureFixture) -> None:
    config = TrainConfig.from_settings(sched="none", lr=1.0, warmup_epochs=3)
    rates = []
    for num_epochs in (1, 6):
        optimizer = make_optimizer(torch.nn.Linear(1, 1), config)
        schedule = Schedule(optimizer, config, STEPS * num_epochs, STEPS)
        for _ in range(STEPS):
            optimizer.step()
            schedule.after_step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1] < 0.5
    assert "the warm-up of 12 steps does not end before the run, of 4" in caplog.text


def test_min_lr_above_the_auxiliary_rate_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"min_lr is 0\.05, above the rate of the auxiliary optimizer, 0\.01; expected at most 0\.01"
    ):
        TrainConfig.from_settings(optimizer="muon", lr=0.1, min_lr=0.05, sched="cosine")
