"""Training: the files of a run, exact resuming, stopping, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import signal
import threading
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from fastcifar.cli import main
from fastcifar.config import AugmentConfig, TrainConfig
from fastcifar.converters import convert
from fastcifar.converters.synthetic import source as synthetic_source
from fastcifar.data.manifest import manifest_path
from fastcifar.errors import CheckpointError, DataError, DivergedError, Stopped, UsageError
from fastcifar.inference.calibration import calibrate
from fastcifar.inference.metrics import compute_metrics
from fastcifar.inference.predict import predict_batch
from fastcifar.inference.predictions import Predictions
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.io.locks import lock_folder
from fastcifar.loaders import make_loader
from fastcifar.training import RunFolder, find_run, train, trainer, weights
from fastcifar.training import checkpoint as checkpoints
from fastcifar.training.data import Loaders
from fastcifar.training.distributed import Distributed
from fastcifar.training.progress import SilentReporter, duration
from fastcifar.training.run_folder import create_run
from fastcifar.training.step import TrainStep
from fastcifar.training.stop import StopRequest
from fastcifar.training.trainer import Trainer
from tests.tiny import Interrupts
from tests.tiny import tiny as tiny_network

pytestmark = pytest.mark.usefixtures("ordinary_algorithms")


def results_of(run: RunFolder) -> list[dict[str, str]]:
    return list(csv.DictReader(run.results.read_text().splitlines()))


def tiny(data_dir: Path, **settings: Any) -> TrainConfig:
    return TrainConfig.from_settings(
        **{"data_dir": str(data_dir), "model": "small", "epochs": 2, "batch_size": 100, **settings}
    )


def test_a_run_writes_all_its_files(data_dir: Path, tmp_path: Path) -> None:
    run, metrics = train(tiny(data_dir, epochs=3), runs_dir=tmp_path)
    assert run.path == tmp_path / "small"
    files = sorted(p.relative_to(run.path).as_posix() for p in run.path.rglob("*") if p.is_file())
    assert files == [
        "calibration.json",
        "config.yaml",
        "curves.png",
        "env.json",
        "log.txt",
        "metrics.json",
        "predictions.npz",
        "results.csv",
        "weights/best.safetensors",
        "weights/last.pt",
        "weights/previous.pt",
    ]
    assert json.loads(run.metrics.read_text()) == metrics
    assert metrics["loader"] == "resident"
    assert metrics["num_val_images"] == 60
    assert metrics["num_test_images"] == 200
    assert metrics["data_sha256"] == json.loads(manifest_path(data_dir / "train.beton").read_text())["sha256"]
    assert metrics["num_parameters"] <= 2_000_000
    assert metrics["test_loss"] >= 0
    rows = results_of(run)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert run.read_config() == tiny(data_dir, epochs=3, lr=0.02)
    env = json.loads((run.path / "env.json").read_text())
    assert env["torch"] == str(torch.__version__)
    log = run.log.read_text()
    assert "epoch 3/3" in log
    assert "540 training images, 60 validation images" in log


def test_predictions_are_those_of_the_best_weights(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "_is_best", lambda self, row, complete: row["epoch"] == 1)  # not the last weights
    run, metrics = train(tiny(data_dir), runs_dir=tmp_path)
    assert metrics["best"]["epoch"] == 1
    tested = Predictions.load(run.predictions)
    assert tested.indices.tolist() == list(range(200))
    assert tested.weights_sha256 == weights.file_sha256(run.best)
    assert (tested.accuracy, tested.loss) == (metrics["test_accuracy"], metrics["test_loss"])
    run.predictions.unlink()
    assert TrainedRun(run).predictions("test").logits == pytest.approx(tested.logits, abs=1e-4)


def weights_of(run: RunFolder) -> dict[str, torch.Tensor]:
    return torch.load(run.last, weights_only=True)["model"]


def same_weights(one: RunFolder, other: RunFolder) -> None:
    expected, got = weights_of(one), weights_of(other)
    assert all(torch.equal(expected[key], got[key]) for key in expected)


@pytest.mark.parametrize(
    ("sched", "at_step"), [("plateau", 3), ("plateau", 5), ("cosine", 7), ("cosine", 10), ("none", 1)]
)
def test_resume_gives_the_same_weights(data_dir: Path, tmp_path: Path, at_step: int, sched: str) -> None:
    config = tiny(data_dir, deterministic=True, sched=sched)
    whole, metrics = train(config, runs_dir=tmp_path, name="whole")
    assert ("plateau_monitor" in metrics) == (sched == "plateau")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped) as caught:
        train(config, runs_dir=tmp_path, name="cut", reporter=Interrupts(at_step, signal.SIGINT))
    assert caught.value.exit_code == 130
    assert f"resume with: fastcifar train --resume {tmp_path}/cut" in str(caught.value)
    assert caught.value._render_traceback_() == [
        f"stopped by SIGINT: saved at step {at_step}; resume with: fastcifar.train(resume={str(tmp_path / 'cut')!r})"
    ]
    assert signal.getsignal(signal.SIGINT) is handler
    cut = RunFolder(tmp_path / "cut")
    train(config, runs_dir=tmp_path, resume=cut)
    same_weights(whole, cut)

    def without_times(run: RunFolder) -> list[dict[str, str]]:
        rows = results_of(run)
        return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in rows]

    assert without_times(cut) == without_times(whole)
    assert len(without_times(cut)) == 2


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_reaches_the_previous_handler(signum: signal.Signals) -> None:
    """So that it ends the program while a step hangs."""

    def end(*args: object) -> None:
        raise InterruptedError

    before = signal.signal(signum, end)
    try:
        with StopRequest() as request:
            os.kill(os.getpid(), signum)
            assert request.signum == signum
            with pytest.raises(InterruptedError):
                os.kill(os.getpid(), signum)
        assert signal.getsignal(signum) is end
    finally:
        signal.signal(signum, before)


def test_a_signal_during_an_all_reduce_stops_the_run_at_the_next_step(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree, calls = Distributed.all_reduce_max, []

    def interrupted(self: Distributed, *numbers: int) -> list[int]:
        agreed = agree(self, *numbers)
        calls.append(numbers)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return agreed

    monkeypatch.setattr(Distributed, "all_reduce_max", interrupted)
    with pytest.raises(Stopped, match="saved at step 4"):
        train(tiny(data_dir), runs_dir=tmp_path)


def test_an_error_is_raised_even_if_a_signal_follows_it(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torchrun` sends one to the other processes as soon as one has died."""

    class Fails(SilentReporter):
        def step(self, step: int, loss: float, remaining_s: float) -> None:
            raise DataError("the disk is gone")

    end = Loaders.close

    def interrupted(self: Loaders) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        end(self)

    def stop(signum: int, frame: Any) -> None:
        raise Stopped(signum, "at once")

    monkeypatch.setattr(Loaders, "close", interrupted)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(DataError, match="the disk is gone"):
            train(tiny(data_dir), runs_dir=tmp_path, reporter=Fails())
    finally:
        signal.signal(signal.SIGTERM, before)


class InterruptEvaluation(SilentReporter):
    def __init__(self, name: str) -> None:
        self.name, self.current = name, ""

    def begin(self, name: str, total: int) -> None:
        self.current = name

    def advance(self, count: int) -> None:
        if self.current == self.name:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", ["validation", "test"])
def test_stopped_while_evaluating_it_resumes_to_the_same_result(data_dir: Path, tmp_path: Path, name: str) -> None:
    config = tiny(data_dir, deterministic=True)
    _, expected = train(config, runs_dir=tmp_path, name="whole")
    with pytest.raises(Stopped):
        train(config, runs_dir=tmp_path, name="cut", reporter=InterruptEvaluation(name))
    _, got = train(config, runs_dir=tmp_path, resume=RunFolder(tmp_path / "cut"))
    for key in ("test_loss", "test_accuracy", "epochs", "steps", "best"):
        assert got[key] == expected[key]


def test_every_loader_trains_to_the_same_weights(data_dir: Path, tmp_path: Path) -> None:
    from fastcifar.loaders import missing_part

    names = [name for name in ("resident", "ffcv", "albumentations") if missing_part(name) is None]
    config = tiny(data_dir, deterministic=True, dropout=0.3, epochs=1)
    runs = [train(config.with_settings(loader=name), runs_dir=tmp_path, name=name)[0] for name in names]
    for run in runs[1:]:
        same_weights(runs[0], run)


@pytest.mark.slow
def test_resume_gives_the_same_dropout_on_the_albumentations_loader(data_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("albumentations")
    config = tiny(data_dir, deterministic=True, dropout=0.3, loader="albumentations")
    whole, _ = train(config, runs_dir=tmp_path, name="whole")
    with pytest.raises(Stopped):
        train(config, runs_dir=tmp_path, name="cut", reporter=Interrupts(6, signal.SIGINT))
    cut, _ = train(config, runs_dir=tmp_path, resume=RunFolder(tmp_path / "cut"))
    same_weights(whole, cut)


def test_a_run_resumes_with_more_epochs(data_dir: Path, tmp_path: Path) -> None:
    run, _ = train(tiny(data_dir, epochs=1), runs_dir=tmp_path)
    _, metrics = train(tiny(data_dir, epochs=3), runs_dir=tmp_path, resume=run)
    assert metrics["epochs"] == 3
    assert [row["epoch"] for row in results_of(run)] == ["1", "2", "3"]


def test_a_finished_run_that_is_trained_further_has_no_scores_until_that_has_ended(
    data_dir: Path, tmp_path: Path
) -> None:
    run, _ = train(tiny(data_dir, epochs=1), runs_dir=tmp_path)
    with pytest.raises(Stopped):
        train(tiny(data_dir, epochs=3), runs_dir=tmp_path, resume=run, reporter=Interrupts(8, signal.SIGINT))
    assert run.is_unfinished
    assert train(tiny(data_dir, epochs=3), runs_dir=tmp_path, resume=run)[1]["epochs"] == 3
    assert not run.is_unfinished


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number of processes", "resumed with number of processes 1, started with other: the results may differ"),
        ("processor", "started with other: the results may differ in the last bits"),
        ("autocast", "started with other: the results may differ"),
    ],
)
def test_a_run_resumed_elsewhere_says_what_may_differ(
    name: str, message: str, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, _ = train(tiny_network(tiny_data, epochs=1), runs_dir=tmp_path)
    state = checkpoints.load_checkpoint(run)
    state["environment"][name] = "other"
    checkpoints.save_checkpoint(run, state)
    train(tiny_network(tiny_data, epochs=1), resume=run)
    assert next(line for line in caplog.messages if "started with other" in line).endswith(message)


@pytest.mark.parametrize("sched", ["cosine", "onecycle"])
def test_a_schedule_of_fixed_length_refuses_more_epochs(sched: str, data_dir: Path, tmp_path: Path) -> None:
    run, _ = train(tiny(data_dir, epochs=1, sched=sched), runs_dir=tmp_path)
    with pytest.raises(UsageError, match=f"the {sched} schedule .* for 5 steps and cannot be extended to 10"):
        train(tiny(data_dir, epochs=2, sched=sched), runs_dir=tmp_path, resume=run)


def test_a_custom_network_runs_only_if_the_user_names_it(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "import pathlib, torch\n"
        "def net(num_classes):\n"
        f"    pathlib.Path({str(tmp_path / 'called')!r}).touch()\n"
        "    layers = torch.nn.Conv2d(3, 4, 3, 2), torch.nn.ReLU(), torch.nn.Flatten()\n"
        "    return torch.nn.Sequential(*layers, torch.nn.Linear(900, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run, _ = train(tiny(data_dir, model="mine:net", max_steps=6), runs_dir=tmp_path / "runs")
    assert run.path.name == "net"
    (tmp_path / "called").unlink()
    common = ["--runs-dir", str(tmp_path / "runs")]
    for command in (["train", "--resume", "net", "--max-steps", "7"], ["explain", "net", "--n", "1"]):
        refused = CliRunner().invoke(main, [*command, *common])
        assert refused.exit_code in (2, 6)
        assert "if you trust it, add --model mine:net" in refused.stderr
        assert not (tmp_path / "called").exists()
        accepted = CliRunner().invoke(main, [*command, *common, "--model", "mine:net"])
        assert accepted.exit_code == 0, accepted.stderr
        (tmp_path / "called").unlink()


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "lr": 0.001, "sched": "onecycle", "clip_norm": 1.0},
        {"optimizer": "adam", "lr": 0.001, "sched": "onecycle"},
        {"optimizer": "muon", "lr": 0.02, "unit_filters": True, "ema": 0.9, "sched": "onecycle"},
        {"ema": 0.9, "dropout": 0.3, "l1": 1e-5, "label_smoothing": 0.1, "warmup_epochs": 1.0, "sched": "cosine"},
        {"sched": "step", "step_size": 1, "progressive": ((16, 0.4), (24, 0.8))},
        {"mixup": 0.2, "cutmix": 1.0, "class_weights": "balanced", "sampler": "balanced", "val_size": 77},
    ],
)
@pytest.mark.parametrize("at_step", [3, 5])
def test_every_kind_of_state_is_resumed(settings: dict[str, Any], at_step: int, data_dir: Path, tmp_path: Path) -> None:
    config = tiny(data_dir, deterministic=True, **settings)
    whole, expected = train(config, runs_dir=tmp_path, name="whole")
    with pytest.raises(Stopped):
        train(config, runs_dir=tmp_path, name="cut", reporter=Interrupts(at_step, signal.SIGTERM))
    cut, got = train(config, runs_dir=tmp_path, resume=RunFolder(tmp_path / "cut"))
    states = weights_of(whole), weights_of(cut)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    for key in ("test_loss", "test_accuracy", "best"):
        assert got[key] == expected[key]


def test_training_draws_balanced_classes(tiny_data: Path) -> None:
    config = tiny_network(tiny_data, sampler="balanced", val_size=11)
    with closing(Loaders(config, torch.device("cpu"), Distributed())) as loaders:
        plan, labels = loaders.train.plan(0), loaders.train.beton.labels
        assert plan.images is not None
        counts = np.bincount(labels[plan.images[loaders.train.dataset.indices]])
        assert counts.max() - counts.min() <= 1


def test_balancing_twice_is_a_warning(tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastcifar"):
        config = tiny_network(tiny_data, epochs=1, val_size=0, sampler="balanced", class_weights="balanced")
        train(config, runs_dir=tmp_path)
        assert "sampler and class_weights are both balanced, so small classes count twice" in caplog.text
        caplog.clear()
        train(config.with_settings(sampler="none"), runs_dir=tmp_path)
    assert "count twice" not in caplog.text


def test_the_accuracy_of_mixed_images_counts_the_label_of_larger_weight(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network predicts the main labels."""
    expected: list[torch.Tensor] = []

    def step(
        self: TrainStep, images: torch.Tensor, labels: torch.Tensor, mix: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        main = torch.where(mix.weights[:, 0] >= 0.5, labels, mix.partner_labels)
        expected.append(main != labels)
        return torch.tensor(1.0), torch.nn.functional.one_hot(main, 10).float()

    monkeypatch.setattr(TrainStep, "__call__", step)
    run, _ = train(tiny_network(tiny_data, epochs=1, mixup=1.0), runs_dir=tmp_path)
    assert results_of(run)[0]["train_accuracy"] == "1.0"
    assert torch.cat(expected).any()


def test_test_time_augmentation_is_reported_next_to_the_plain_test(data_dir: Path, tmp_path: Path) -> None:
    run, metrics = train(tiny(data_dir, max_steps=3, tta="flip-shift"), runs_dir=tmp_path)
    assert metrics["tta"] == "flip-shift"
    assert metrics["tta_loss"] != metrics["test_loss"]
    again = TrainedRun(run).predictions("test", tta="flip-shift")
    assert (again.accuracy, again.loss) == (metrics["tta_accuracy"], metrics["tta_loss"])


@pytest.mark.parametrize("tta", ["flip", "flip-shift"])
def test_tta_is_the_mean_over_its_views(tta: str) -> None:
    seen: list[torch.Tensor] = []

    class Spy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x.flatten(1)[:, :5]

    images = torch.randn(2, 3, 6, 6)
    got = predict_batch(Spy(), images, tta)
    weights = [0.5, 0.5] if tta == "flip" else [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    assert len(seen) == len(weights)
    torch.testing.assert_close(got, sum(w * x.flatten(1)[:, :5] for w, x in zip(weights, seen, strict=True)))
    assert torch.equal(seen[1], images.flip(-1))
    if tta == "flip-shift":
        assert torch.equal(seen[2][:, :, 1:, 1:], images[:, :, :-1, :-1])  # moved down and right by one
        assert torch.equal(seen[4][:, :, :-1, :-1], images[:, :, 1:, 1:])


def test_without_validation_the_last_weights_are_tested(
    data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny(data_dir, val_size=0, deterministic=True)  # 6 steps an epoch
    run, metrics = train(config.with_settings(max_steps=8), runs_dir=tmp_path)
    assert (metrics["weights"], metrics["best"]["epoch"]) == ("of the last epoch", 2)
    expected, scored = weights_of(run), load_file(run.best)
    assert all(torch.equal(expected[key], scored[key]) for key in expected)
    train(config.with_settings(max_steps=9), runs_dir=tmp_path, resume=run)
    same_weights(train(config.with_settings(max_steps=9), runs_dir=tmp_path)[0], run)
    warnings = [record.name for record in caplog.records if record.levelno >= logging.WARNING]
    assert set(warnings) <= {"fastcifar.training.lr_finder"}  # too few steps to learn


def test_max_steps_ends_with_an_evaluation(data_dir: Path, tmp_path: Path) -> None:
    _, metrics = train(tiny(data_dir, max_steps=3), runs_dir=tmp_path)
    assert metrics["steps"] == 3
    assert 0 <= metrics["test_accuracy"] <= 1


def test_val_size_0_trains_on_all_images(data_dir: Path, tmp_path: Path) -> None:
    run, metrics = train(tiny(data_dir, val_size=0), runs_dir=tmp_path)
    assert metrics["num_val_images"] == 0
    assert metrics["plateau_monitor"] == "training loss"
    assert metrics["weights"] == "of the last epoch"
    assert metrics["best"]["epoch"] == 2
    assert {row["val_loss"] for row in results_of(run)} == {""}
    assert metrics["not_calibrated"] == "no image was held out; train with --val-size 60"
    assert not {"temperature", "test_calibrated_loss", "test_calibrated_ece"} & metrics.keys()
    assert not run.calibration.exists()
    assert "not calibrated: no image was held out; train with --val-size 60" in run.log.read_text()


def test_the_best_weights_are_calibrated_on_the_validation_images(data_dir: Path, tmp_path: Path) -> None:
    run, metrics = train(tiny(data_dir, lr=0.5, amp="off"), runs_dir=tmp_path)
    trained = TrainedRun(run)
    expected = calibrate(trained.predictions("val"))
    assert trained.calibration is not None
    assert trained.calibration.weights_sha256 == weights.file_sha256(run.best)
    assert trained.calibration.num_images == 60
    assert trained.calibration.temperature == pytest.approx(expected.temperature, rel=1e-4)
    assert metrics["temperature"] == trained.calibration.temperature
    plain, scaled = (
        Predictions.load(run.predictions),
        trained.predictions("test").with_temperature(metrics["temperature"]),
    )
    assert metrics["test_ece"] == compute_metrics(plain).ece
    assert metrics["test_calibrated_ece"] == compute_metrics(scaled).ece
    assert metrics["test_calibrated_loss"] == scaled.loss != metrics["test_loss"]
    assert "calibrated on 60 validation images" in run.log.read_text()


def test_metrics_json_has_the_scores_of_the_test_images(data_dir: Path, tmp_path: Path) -> None:
    run, metrics = train(tiny(data_dir), runs_dir=tmp_path)
    expected = compute_metrics(Predictions.load(run.predictions)).scores()
    assert {name: metrics[f"test_{name}"] for name in expected} == expected
    assert {"accuracy_interval", "top5_accuracy", "balanced_accuracy", "macro_f1"} <= expected.keys()


def test_a_resumed_run_has_the_same_calibration(data_dir: Path, tmp_path: Path) -> None:
    config = tiny(data_dir, deterministic=True)
    whole, _ = train(config, runs_dir=tmp_path, name="whole")
    with pytest.raises(Stopped):
        train(config, runs_dir=tmp_path, name="cut", reporter=Interrupts(3, signal.SIGINT))
    cut = RunFolder(tmp_path / "cut")
    assert not cut.calibration.exists()
    train(config, runs_dir=tmp_path, resume=cut)
    values = [json.loads(run.calibration.read_text()) for run in (cut, whole)]
    for run, each in zip((cut, whole), values, strict=True):
        assert each.pop("weights_sha256") == weights.file_sha256(run.best)  # the order of its header is random
    assert values[0] == values[1]


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_loss_that_is_not_finite_stops_the_run(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DivergedError, match=r"the loss is (nan|inf) at step \d+, learning rate 1e\+30; try a smaller --lr"
    ):
        train(tiny(data_dir, lr=1e30, sched="none", epochs=20), runs_dir=tmp_path)


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_result_that_is_not_finite_stops_the_run_too(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real, evaluated = trainer.concatenate, []

    def broken(*args: Any, **settings: Any) -> Any:
        evaluated.append(("validation", "test")[len(evaluated)])
        predictions = real(*args, **settings)
        return replace(predictions, logits=predictions.logits * np.nan) if evaluated[-1] == name else predictions

    monkeypatch.setattr(trainer, "concatenate", broken)
    with pytest.raises(DivergedError, match=f"the {name} loss is nan"):
        train(tiny(data_dir, max_steps=1), runs_dir=tmp_path)
    assert not (tmp_path / "small" / "metrics.json").exists()


def test_a_run_stopped_after_its_last_step_makes_no_other(data_dir: Path, tmp_path: Path) -> None:
    config = tiny(data_dir, deterministic=True, sched="cosine", max_steps=3)
    whole, _ = train(config, runs_dir=tmp_path, name="whole")
    with pytest.raises(Stopped):
        train(config, runs_dir=tmp_path, name="cut", reporter=InterruptEvaluation("validation"))
    cut, metrics = train(config, runs_dir=tmp_path, resume=RunFolder(tmp_path / "cut"))
    assert metrics["steps"] == 3
    expected, got = weights_of(whole), weights_of(cut)
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_threads_and_determinism_are_those_of_one_training(tiny_data: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    train(tiny_network(tiny_data, max_steps=1, threads=before + 1, deterministic=True), runs_dir=tmp_path)
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_seed_decides_the_run(data_dir: Path, tmp_path: Path) -> None:
    losses = [
        train(tiny(data_dir, seed=s, epochs=1, deterministic=True), runs_dir=tmp_path)[1]["test_loss"]
        for s in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_it_learns(data_dir: Path, tmp_path: Path) -> None:
    config = tiny(data_dir, epochs=12, batch_size=45, lr=0.05, sched="cosine", cutout_size=0)
    _, metrics = train(config, runs_dir=tmp_path)
    assert metrics["test_accuracy"] > 0.3


# ---- the run folder ----------------------------------------------------------------------------------------------


def test_runs_of_one_name_never_share_a_folder(tmp_path: Path) -> None:
    runs: list[RunFolder] = []
    threads = [threading.Thread(target=lambda: runs.append(create_run(tmp_path, "a"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {run.path.name for run in runs} == {"a", *(f"a-{i}" for i in range(2, 21))}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp/x", "a\nb"])
def test_an_invalid_run_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="expected the name of a folder"):
        create_run(tmp_path, name)


def test_missing_data_makes_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.beton: no such file; make it with: fastcifar convert --data-dir"):
        train(tiny(tmp_path), runs_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_latest_run_of_a_sweep_is_that_of_its_best_settings(data_dir: Path, tmp_path: Path) -> None:
    for name, tests in (("best", True), ("last", False)):
        train(tiny(data_dir, max_steps=1), runs_dir=tmp_path / "sweep", name=name, test=tests)
    assert find_run(None, tmp_path, trained=True).path.name == "best"
    assert find_run(None, tmp_path).path.name == "last"  # to be resumed


def test_epochs_that_max_steps_leaves_out_are_refused(data_dir: Path, tmp_path: Path) -> None:
    run, _ = train(tiny(data_dir, max_steps=1), runs_dir=tmp_path, name="a")
    stored = run.read_config()
    with pytest.raises(UsageError, match=r"epochs is 9, but max_steps ends .* after 1 steps; expected also --max-st"):
        train(stored.with_settings(epochs=9), resume=run)
    train(stored.with_settings(epochs=2, max_steps=7), resume=run)
    assert len(run.results.read_text().splitlines()) == 1 + 2


def test_enlarged_images_are_a_warning(data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(tiny(data_dir, max_steps=2, progressive=((24, 0.5),)), runs_dir=tmp_path)
    assert "it enlarges" not in caplog.text
    train(tiny(data_dir, max_steps=2, progressive=((40, 0.5),)), runs_dir=tmp_path)
    assert "progressive is 40: it enlarges images of 32x32" in caplog.text


def test_the_latest_run_is_the_one_saved_last(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run with a checkpoint; create one with 'fastcifar train'"):
        find_run(None, tmp_path)
    first, _ = train(tiny(data_dir, max_steps=1), runs_dir=tmp_path, name="b")
    second, _ = train(tiny(data_dir, max_steps=1), runs_dir=tmp_path, name="a")
    assert find_run(None, tmp_path) == second
    os.utime(first.last)
    assert find_run(None, tmp_path) == first
    assert find_run("a", tmp_path) == find_run(str(second.path), "elsewhere") == second
    with pytest.raises(DataError, match="c: no such run in .*; expected a folder or one of: a, b"):
        find_run("c", tmp_path)
    create_run(tmp_path, "new")
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        find_run("new", tmp_path)
    with pytest.raises(DataError, match="not a run, nor in one; expected the folder of a run, or a file in it"):
        find_run(data_dir, tmp_path)
    with pytest.raises(Stopped):
        train(tiny(data_dir), runs_dir=tmp_path, name="early", reporter=Interrupts(1, signal.SIGINT))
    assert find_run(None, tmp_path).path.name == "early"
    assert find_run(None, tmp_path, trained=True) == first
    with pytest.raises(
        CheckpointError, match="stopped in its first epoch, or the file was removed; resume with: .* --resume .*/early"
    ):
        find_run("early", tmp_path, trained=True)
    with lock_folder(tmp_path / "early"), pytest.raises(CheckpointError, match="early: is being trained, and has no"):
        find_run("early", tmp_path, trained=True)


# ---- checkpoints -------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(data_dir: Path, tmp_path: Path) -> RunFolder:
    return train(tiny(data_dir, epochs=2, max_steps=6), runs_dir=tmp_path / "runs")[0]


def test_a_checkpoint_that_would_run_code_is_refused(finished: RunFolder, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    file = io.BytesIO()
    torch.save({"format": checkpoints.FORMAT, "model": Payload()}, file)
    checkpoints.add_checksum(file)
    for path in (finished.last, finished.previous):
        path.write_bytes(file.getvalue())
    with pytest.raises(CheckpointError, match="damaged, or not a checkpoint .*Weights only load failed"):
        checkpoints.load_checkpoint(finished)
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_another_network_or_data_is_refused(
    finished: RunFolder, data_dir: Path, own_data_dir: Path
) -> None:
    with pytest.raises(CheckpointError, match="model is resnet18, and was small when the checkpoint was written"):
        train(tiny(data_dir, model="resnet18", max_steps=6), resume=finished)
    state = checkpoints.load_checkpoint(finished)
    del state["model"]["head.weight"]
    checkpoints.save_checkpoint(finished, state)
    with pytest.raises(CheckpointError, match="does not fit the network and settings"):
        train(finished.read_config(), resume=finished)
    with pytest.raises(DataError, match=r"was trained with a train\.beton of SHA-256"):
        train(tiny(own_data_dir, batch_size=5, max_steps=6), resume=finished)


# ---- settings and splits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected 1 or more"),
        ({"lr": -1.0}, "lr is -1.0; expected a number above 0"),
        ({"lr": float("nan")}, "lr is nan; expected a number above 0"),
        ({"lr": 0}, "lr is 0; expected a number above 0"),
        ({"batch_size": 1}, "batch_size is 1; expected 2 or more"),
        ({"momentum": 1.0}, "momentum is 1.0; expected a number of at least 0 and below 1"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001; expected a number of at least 0"),
        ({"sched": "steps"}, "sched is 'steps'; expected one of: plateau, onecycle, cosine, step, multistep, none"),
        (
            {"model": "v g"},
            (
                "model is 'v g'; expected one of: resnet18, small, a name of torchvision.models, "
                "timm:NAME, or package.module:function"
            ),
        ),
        ({"amp": "fp8"}, "amp is 'fp8'; expected one of: auto, bf16, fp16, off"),
        ({"lr": "fast"}, "lr is 'fast'; expected a number above 0"),
        ({"norm": "none"}, "norm is 'none'; expected one of: batch, layer, group"),
        ({"dropout": 1.0}, "dropout is 1.0; expected a number of at least 0 and below 1"),
        ({"last_stride": 3}, "last_stride is 3; expected 1..2"),
        ({"ema": 1}, "ema is 1; expected a number of at least 0 and below 1"),
        ({"factor": 1}, "factor is 1; expected a number above 0 and below 1"),
        ({"sched": "multistep"}, "sched is 'multistep' without milestones; expected epochs, e.g. 15,25"),
        ({"milestones": [3, 2]}, "milestones is [3, 2]; expected each number once, in rising order"),
        ({"milestones": 3}, "milestones is 3; expected a list"),
        (
            {"sched": "onecycle", "warmup_epochs": 1.0},
            "warmup_epochs is 1 with sched 'onecycle'; expected 0: onecycle warms up by itself, see pct_start",
        ),
        ({"warmup_epochs": 1e308}, "warmup_epochs is 1e+308; expected a number, 0..1e+06"),
        ({"min_lr": 1.0}, "min_lr is 1, above lr, 0.1; expected at most 0.1"),
        ({"progressive": [[24]]}, "progressive is ((24,),); expected pairs of side and share, e.g. 24:0.5"),
        ({"progressive": [[24, 0.5], [28, 0.2]]}, "the share in progressive is 0.2; expected a number, 0.5..1"),
        ({"nesterov": 1}, "nesterov is 1; expected True or False"),
        ({"seed": -1}, "seed is -1; expected 0..9223372036854775807"),
        ({"max_steps": 0}, "max_steps is 0; expected 1 or more"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainConfig.from_settings(**settings)
    assert str(caught.value) == message


def test_a_batch_larger_than_the_data_is_refused(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch_size is 541; expected at most 540") as caught:
        train(tiny(data_dir, batch_size=541), runs_dir=tmp_path)
    assert str(caught.value).endswith("; give --batch-size 64 (in Python batch_size=64)")


@pytest.mark.parametrize(("num_images", "mixup", "suggested"), [(244, 0, 16), (20, 0, 2), (20, 1, 16), (1, 0, 0)])
def test_the_batch_size_that_is_suggested_can_be_used(
    data_dir: Path, num_images: int, mixup: float, suggested: int
) -> None:
    make = partial(make_loader, data_dir / "train.beton", AugmentConfig(mixup=mixup), indices=np.arange(num_images))
    with pytest.raises(UsageError, match=rf"expected at most {num_images}\b") as caught:
        make(batch_size=512)
    assert re.findall(r"--batch-size (\d+)", str(caught.value)) == ([str(suggested)] if suggested else [])
    if suggested:
        with closing(make(batch_size=suggested)) as loader:
            assert len(loader) > 0


def test_an_unknown_device_is_refused(data_dir: Path, tmp_path: Path) -> None:
    for device in ("cuda:99", "toaster", "meta"):
        with pytest.raises(UsageError, match=f"device is '{device}'"):
            train(tiny(data_dir, device=device), runs_dir=tmp_path)


def test_the_schedule_lowers_the_rate(data_dir: Path, tmp_path: Path) -> None:
    run, _ = train(tiny(data_dir, sched="cosine", epochs=2), runs_dir=tmp_path)
    rates = [float(row["lr"]) for row in results_of(run)]
    assert rates == pytest.approx([0.01, 0.0], abs=1e-9)


def test_durations_have_two_units() -> None:
    texts = [duration(s) for s in (0.4, 59, 61, 3599, 3600, 90_061)]
    assert texts == ["0 s", "59 s", "1 min 01 s", "59 min 59 s", "1 h 00 min", "25 h 01 min"]


def test_config_yaml_round_trip(tmp_path: Path) -> None:
    settings = {"seed": 2**62, "max_steps": 7, "flip": False, "padding_mode": "reflect", "progressive": ((24, 0.5),)}
    config = TrainConfig.from_settings(data_dir=str(tmp_path), **settings)
    run = create_run(tmp_path, "a")
    run.write_config(config)
    assert run.read_config() == config
    run.config.write_text("epochs: 3\nunknown: 1\n")
    with pytest.raises(DataError, match="not the settings of a run"):
        run.read_config()


def test_more_steps_resume_within_the_epoch(data_dir: Path, tmp_path: Path) -> None:
    config = tiny(data_dir, deterministic=True, epochs=3)  # five steps each
    whole, _ = train(config, runs_dir=tmp_path, name="whole")
    cut, metrics = train(config.with_settings(max_steps=7), runs_dir=tmp_path, name="cut")
    assert metrics["steps"] == 7
    assert [row["epoch"] for row in results_of(cut)] == ["1", "2"]
    with pytest.raises(UsageError, match="max_steps is 4; .* has done 7: expected 7 or more"):
        train(config.with_settings(max_steps=4), runs_dir=tmp_path, resume=cut)
    train(config.with_settings(max_steps=12), runs_dir=tmp_path, resume=cut)
    train(config, runs_dir=tmp_path, resume=cut)
    expected, got = weights_of(whole), weights_of(cut)
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert [row["val_loss"] for row in results_of(cut)] == [row["val_loss"] for row in results_of(whole)]
    expected, got = (load_file(run.best) for run in (whole, cut))
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_an_incomplete_epoch_is_best_only_if_none_was_completed(data_dir: Path, tmp_path: Path) -> None:
    for steps, best in ((3, 1), (5, 1), (7, 1)):
        _, metrics = train(tiny(data_dir, max_steps=steps), runs_dir=tmp_path)
        assert metrics["best"]["epoch"] == best


def test_the_logged_loss_is_that_of_its_batches_after_a_resume_too(data_dir: Path, tmp_path: Path) -> None:
    config = tiny(data_dir, deterministic=True, epochs=1, log_every=4, batch_size=60)

    def logged(run: RunFolder) -> list[str]:
        return re.findall(r"batch \d+: loss [\d.]+", run.log.read_text())

    whole, _ = train(config, runs_dir=tmp_path, name="whole")
    with pytest.raises(Stopped):
        train(config, runs_dir=tmp_path, name="cut", reporter=Interrupts(7, signal.SIGINT))
    cut = RunFolder(tmp_path / "cut")
    train(config, runs_dir=tmp_path, resume=cut)
    assert logged(whole) == logged(cut)
    assert len(logged(whole)) == 2


def test_resuming_requires_the_same_test_images(own_data_dir: Path, tmp_path: Path) -> None:
    config = tiny(own_data_dir, batch_size=10, epochs=1)
    run, _ = train(config, runs_dir=tmp_path)
    with synthetic_source(30, 20, seed=9) as source:
        convert(source, tmp_path / "other")
    for name in ("test.beton", "test.beton.json"):
        (tmp_path / "other" / name).replace(own_data_dir / name)
    with pytest.raises(DataError, match=r"was trained with a test\.beton of SHA-256"):
        train(config.with_settings(epochs=2), runs_dir=tmp_path, resume=run)


def test_settings_changed_in_config_yaml_are_refused(data_dir: Path, tmp_path: Path) -> None:
    config = tiny(data_dir, epochs=1)
    run, _ = train(config, runs_dir=tmp_path)
    for changed in ({"seed": 1}, {"val_size": 0}, {"flip": False}):
        (key,) = changed
        with pytest.raises(CheckpointError, match=rf"config\.yaml: {key} is .*, and was .* when the checkpoint was"):
            train(config.with_settings(**changed), runs_dir=tmp_path, resume=run)
    train(config.with_settings(epochs=2), runs_dir=tmp_path, resume=run)
    with pytest.raises(UsageError, match=r"epochs is 1; .* has begun 2: expected 2 or more"):
        train(config, runs_dir=tmp_path, resume=run)
    begun, _ = train(config.with_settings(epochs=2, max_steps=7), runs_dir=tmp_path)
    with pytest.raises(UsageError, match=r"epochs is 1; .* has begun 2: expected 2 or more"):
        train(config.with_settings(max_steps=7), runs_dir=tmp_path, resume=begun)


def test_progressive_sizes_are_those_of_each_step(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides, real = [], TrainStep.__call__

    def step(self: TrainStep, images: torch.Tensor, *labels: Any) -> tuple[torch.Tensor, torch.Tensor]:
        sides.append(tuple(images.shape[-2:]))
        return real(self, images, *labels)

    monkeypatch.setattr(TrainStep, "__call__", step)
    config = tiny_network(tiny_data, val_size=0, progressive=((16, 0.25), (24, 0.75)))
    assert train(config, runs_dir=tmp_path)[1]["steps"] == 4
    assert sides == [(16, 16), (24, 24), (24, 24), (32, 32)]


def test_progressive_resizing_cannot_be_extended_and_must_fit_the_network(data_dir: Path, tmp_path: Path) -> None:
    config = tiny(data_dir, sched="none", progressive=((16, 0.5),), epochs=1)
    run, _ = train(config, runs_dir=tmp_path)
    with pytest.raises(
        UsageError, match="the progressive resizing of .* was made for 5 steps and cannot be extended to 10"
    ):
        train(config.with_settings(epochs=2), runs_dir=tmp_path, resume=run)
    with pytest.raises(UsageError, match="progressive is 8; small does not take images of 8x8"):
        train(tiny(data_dir, progressive=((8, 0.5),)), runs_dir=tmp_path)


def test_env_json_keeps_the_environment_of_the_start_and_of_each_resume(data_dir: Path, tmp_path: Path) -> None:
    run, _ = train(tiny(data_dir, max_steps=1), runs_dir=tmp_path)
    began = json.loads((run.path / "env.json").read_text())
    for count in (1, 2):
        train(tiny(data_dir, max_steps=1 + count), runs_dir=tmp_path, resume=run)
        env = json.loads((run.path / "env.json").read_text())
        assert {key: env[key] for key in began} == began
        assert len(env["resumed"]) == count
    assert torch.load(run.last, weights_only=True)["environment"]["processor"] == env["processor"]


@pytest.mark.parametrize(
    ("best", "accuracy", "complete", "is_best"),
    [
        (None, 0.1, True, True),
        (None, 0.1, False, True),
        (0.5, 0.6, True, True),
        (0.5, 0.6, False, False),
        (0.5, 0.5, True, False),
        (0.5, None, True, True),
    ],
)
def test_of_equal_epochs_the_first_is_the_best(
    best: float | None, accuracy: float | None, complete: bool, is_best: bool
) -> None:
    progress = SimpleNamespace(best=None if best is None else {"val_accuracy": best})
    trainer: Any = SimpleNamespace(progress=progress)
    assert Trainer._is_best(trainer, {"val_accuracy": accuracy}, complete) == is_best


def test_early_stop_ends_a_training_that_no_longer_improves(data_dir: Path, tmp_path: Path) -> None:
    config = tiny(data_dir, lr=1e-9, epochs=9, early_stop=2)
    run, metrics = train(config, runs_dir=tmp_path)
    assert (metrics["epochs"], metrics["best"]["epoch"]) == (3, 1)
    resumed, again = train(config, runs_dir=tmp_path, resume=run)
    assert (resumed, again["epochs"]) == (run, 3)
    assert train(config.with_settings(early_stop=4), runs_dir=tmp_path, resume=run)[1]["epochs"] == 5


def test_early_stop_needs_validation_images(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="early_stop is 3, and no image is held out"):
        train(tiny(data_dir, early_stop=3, val_size=0), runs_dir=tmp_path)
