"""The range test: what it suggests, when it ends, and that everything is restored."""

from __future__ import annotations

import copy
import json
import random
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastcifar import plotting
from fastcifar.cli import main
from fastcifar.config import LrRangeTestConfig, TrainConfig
from fastcifar.errors import UsageError
from fastcifar.loaders import make_loader
from fastcifar.training import lr_finder
from fastcifar.training.lr_curve import LrCurve, median_rates
from fastcifar.training.lr_finder import find_lr, range_rates, run_lr_range_test
from fastcifar.training.optimizer import make_optimizer, scale_lrs
from fastcifar.training.progress import SilentReporter


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Dropout(0.1)
    return torch.nn.Sequential(*layers, torch.nn.Linear(16, 3))


def batches(num: int = 7) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num, 32, 8, generator=generator)
    return [(x, x[:, :3].argmax(1)) for x in images]


def test_it_finds_a_rate_between_too_small_and_too_large() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    curve = find_lr(model, optimizer, batches(), test=LrRangeTestConfig(start_lr=1e-5, end_lr=100.0))
    assert curve.failure_reason is None
    assert set(curve.suggestions) == {"valley", "steepest", "minimum"}
    assert 1e-3 < curve.suggestions["valley"] < 3
    assert len(curve.rates) == len(curve.losses) == len(curve.smoothed)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("stepped", [False, True])
def test_everything_is_restored(name: str, stepped: bool) -> None:
    model = network()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1)
    images, labels = batches()[0]
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    if stepped:
        optimizer.step()
    model[1].eval()
    gradients = [param.grad for param in model.parameters()]

    def everything() -> list[Any]:
        state = optimizer.state_dict()
        inner = [value for entry in state["state"].values() for value in entry.values()]
        tensors = [*model.state_dict().values(), torch.get_rng_state(), *(param.grad for param in model.parameters())]
        facts = [repr(state["param_groups"]), [module.training for module in model.modules()], len(state["state"])]
        copies = [torch.as_tensor(value).clone() for value in (*tensors, *inner) if value is not None]
        return [*copies, *facts]

    before = everything()
    find_lr(model, optimizer, batches(), test=LrRangeTestConfig(num_steps=20, end_lr=100))
    after = everything()
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert all(a is param.grad for a, param in zip(gradients, model.parameters(), strict=True))


def test_everything_is_restored_after_an_error() -> None:
    model = network()
    weight = model[0].weight.detach().clone()

    def broken(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        model[0].weight.data.zero_()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        find_lr(model, torch.optim.SGD(model.parameters(), lr=0.1), batches(), step=broken)
    assert torch.equal(model[0].weight, weight)


def test_each_rate_is_used_and_groups_keep_their_ratio() -> None:
    model = network()
    groups = [{"params": model[0].parameters()}, {"params": model[4].parameters(), "lr": 0.01}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    seen: list[tuple[float, float]] = []

    def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"]))
        return torch.tensor(1.0)

    find_lr(
        model,
        optimizer,
        batches(2),
        test=LrRangeTestConfig(num_steps=5, start_lr=0.1, end_lr=0.5, mode="linear"),
        step=step,
    )
    assert np.allclose(seen, [(r, r / 10) for r in (0.1, 0.2, 0.3, 0.4, 0.5)])


def test_auxiliary_rates_of_muon_keep_their_ratio() -> None:
    config = TrainConfig.from_settings(optimizer="muon", lr=0.1, aux_lr=0.003, bias_lr=0.5)
    optimizer = make_optimizer(network(), scale_lrs(config, 0.02))
    assert np.allclose([group["lr"] for group in optimizer.param_groups], [0.02, 0.0006, 0.1])
    assert scale_lrs(TrainConfig.from_settings(lr=0.1), 0.02) == TrainConfig.from_settings(lr=0.02)


def test_where_muon_updates_nothing_the_rates_are_still_its_own(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with --freeze-until head: the only rate is that of the auxiliary optimizer, a fifth."""
    seen: list[float] = []
    monkeypatch.setattr("torch.optim.AdamW.step", lambda self, _: seen.append(self.param_groups[0]["lr"]))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    config = TrainConfig.from_settings(optimizer="muon", lr=0.1, aux_lr=0.02)
    loader, test = make_loader(tiny_data / "train.beton", batch_size=20), LrRangeTestConfig(num_steps=10)
    curve = run_lr_range_test(config, model, loader, test, SilentReporter())
    assert np.allclose(seen, curve.rates / 5)


def test_replaced_buffers_and_generators_are_restored() -> None:
    model = network()
    model.register_buffer("average", torch.zeros(3))
    before = model.average

    def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        model.average = torch.ones(3)
        random.random()
        np.random.rand()
        return torch.tensor(1.0)

    states = random.getstate(), np.random.get_state()[1].copy()
    find_lr(
        model, torch.optim.SGD(model.parameters(), lr=0.0), batches(), test=LrRangeTestConfig(num_steps=2), step=step
    )
    assert model.average is before
    assert torch.equal(before, torch.zeros(3))
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])


def losses_of(values: list[float]) -> LrCurve:
    rest = iter(values)
    model = network()
    return find_lr(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        batches(),
        test=LrRangeTestConfig(num_steps=len(values)),
        step=lambda images, labels: torch.tensor(next(rest)),
    )


@pytest.mark.parametrize("hook", ["spectral_norm", "weight_norm"])
@pytest.mark.filterwarnings("ignore:.*_norm:FutureWarning")
def test_a_network_with_hooks_can_be_copied_after_it(hook: str) -> None:
    model = network()
    getattr(torch.nn.utils, hook)(model[0])
    find_lr(model, torch.optim.SGD(model.parameters(), lr=0.1), batches(), test=LrRangeTestConfig(num_steps=2))
    copy.deepcopy(model)  # as for the averaged weights


def test_what_was_computed_from_weights_before_it_stays() -> None:
    model = network()
    model.tied = tied = model[0].weight.t()
    find_lr(model, torch.optim.SGD(model.parameters(), lr=0.1), batches(), test=LrRangeTestConfig(num_steps=2))
    assert model.tied is tied
    assert tied.requires_grad


def test_it_ends_where_the_loss_diverges() -> None:
    curve = losses_of([2.0] * 20 + [1.0] * 10 + [3.0, 9.0, 27.0, 81.0] + [99.0] * 66)
    assert curve.stop_reason == "the loss diverged"
    assert len(curve.losses) == 32  # the mean of 1, 3 and 9 is above 4
    assert curve.failure_reason is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_it_ends_where_the_loss_is_not_finite(bad: float) -> None:
    curve = losses_of([2.0] * 20 + [1.0] * 10 + [bad] * 70)
    assert curve.stop_reason == "the loss was not finite"
    assert np.isfinite(curve.losses).all()
    assert len(curve.losses) == 30


def test_a_flat_curve_gives_no_suggestion_and_says_why() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 100)
    for values in ([2.3] * 100, [0.0] * 100, list(2.3 + noise), list(np.linspace(2.3, 5.0, 100))):
        curve = losses_of(values)
        assert curve.suggestions == {}
        assert curve.failure_reason is not None
        assert curve.failure_reason.startswith("the curve is flat")


def test_a_divergence_does_not_lift_the_curve_before_it() -> None:
    rates = np.geomspace(1e-4, 10, 30)
    calm = LrCurve(rates=rates, losses=np.linspace(2.3, 2.0, 30), stop_reason="")
    blown = LrCurve(
        rates=rates, losses=np.concatenate([np.linspace(2.3, 2.0, 30)[:20], np.full(10, 500.0)]), stop_reason=""
    )
    assert np.array_equal(calm.smoothed[:20], blown.smoothed[:20])
    assert blown.suggestions["minimum"] < rates[20]


@pytest.mark.parametrize("num_steps", [20, 30, 100])
@pytest.mark.parametrize("fall", [0.05, 1.0])
def test_few_steps_are_enough_where_the_loss_falls(num_steps: int, fall: float) -> None:
    rates = np.geomspace(1e-4, 10, num_steps)
    shape = np.interp(np.log10(rates), [-4, -3, -1.5, -0.5, 1], [2.3, 2.3, 2.3 - fall, 20, 400])
    noise = np.random.default_rng(0).normal(0, 0.1 * fall, num_steps)
    curve = LrCurve(rates=rates, losses=shape + noise, stop_reason="the loss diverged")
    assert -2.5 < np.log10(curve.suggestions["minimum"]) < -1.4
    assert -3.2 < np.log10(curve.suggestions["valley"]) < -1.9
    assert curve.suggestions["valley"] <= curve.suggestions["minimum"]


def test_a_small_fall_counts_if_the_loss_rises_after_it() -> None:
    rates, noise = np.geomspace(1e-4, 10, 100), np.random.default_rng(0).normal(0, 0.04, 100)
    fell = 2.3 - np.interp(np.arange(100), [20, 30, 40], [0, 0.06, 0]) + noise
    assert not LrCurve(rates=rates, losses=fell, stop_reason="").suggestions
    rose = fell + np.interp(np.arange(100), [50, 99], [0, 9])
    assert rates[20] < LrCurve(rates=rates, losses=rose, stop_reason="").suggestions["minimum"] < rates[36]


@pytest.mark.parametrize("window", [3.0, 10.0, 50.0])
def test_median_rates_halve_the_weights_of_an_average(window: float) -> None:
    rates = np.geomspace(1e-4, 10, 80)
    medians = median_rates(rates, window)
    assert (np.diff(medians) > 0).sum() > 70
    for i in (10, 40, 79):
        weights = (1 - 1 / window) ** np.arange(i, -1, -1)
        below = weights[rates[: i + 1] <= medians[i]].sum() / weights.sum()
        assert abs(below - 0.5) <= weights.max() / weights.sum()  # half, but for one step


def test_noise_alone_gives_no_suggestion() -> None:
    generator = np.random.default_rng(0)
    for num_steps in (30, 100, 300):
        rates = np.geomspace(1e-4, 10, num_steps)
        for losses in generator.normal(2.3, 0.05, (20, num_steps)):
            assert not LrCurve(rates=rates, losses=losses, stop_reason="").suggestions


def test_a_failed_test_says_what_to_change() -> None:
    whole, cut = (
        LrCurve(rates=np.geomspace(1e-4, 10, 30), losses=np.full(30, 2.3), stop_reason=stop_reason)
        for stop_reason in ("end_lr reached", "the loss diverged")
    )
    assert str(whole.failure_reason).endswith("try a higher --end-lr, more --steps or a larger --batch-size")
    assert str(cut.failure_reason).endswith("try more --steps or a larger --batch-size")


def test_the_default_range_is_that_of_the_optimizer() -> None:
    assert LrRangeTestConfig.for_optimizer("adamw").end_lr == 1
    assert LrRangeTestConfig.for_optimizer("sgd", start_lr=None, end_lr=3.0) == LrRangeTestConfig(
        start_lr=1e-4, end_lr=3.0
    )


def test_the_suggested_rate_is_labelled_in_the_figure() -> None:
    rates = np.geomspace(1e-4, 1, 30)
    curve = LrCurve(rates=rates, losses=np.interp(np.log10(rates), [-4, -1, 0], [2.3, 1.0, 9.0]), stop_reason="")
    labels = [text.get_text() for text in plotting.lr_curve(curve, "valley").axes[0].texts]
    assert labels == [f"chosen: {curve.suggestions['valley']:.3g}"]


def test_too_few_steps_give_no_suggestion() -> None:
    curve = losses_of([2.0, 1.0, 0.5, float("nan"), 1.0])
    assert str(curve.failure_reason).startswith(
        "the loss was not finite after 3 steps; start at a smaller rate (--start-lr)"
    )
    at_once = losses_of([float("nan"), 1.0])
    assert str(at_once.failure_reason).startswith(
        "the loss was not finite at the first step, whatever the rate; check the"
    )


def test_the_valley_is_the_middle_of_the_fall() -> None:
    test = LrRangeTestConfig(num_steps=100, start_lr=1e-4, end_lr=1.0)
    losses = np.interp(np.log10(range_rates(test)), [-4, -3, -1, 0], [2.0, 2.0, 1.0, 3.0])
    curve = LrCurve(rates=range_rates(test), losses=losses, stop_reason="end_lr reached")
    assert np.log10(curve.suggestions["valley"]) == pytest.approx(-2, abs=0.15)
    assert np.log10(curve.suggestions["minimum"]) == pytest.approx(-1.15, abs=0.2)  # or a little before
    assert -3 < np.log10(curve.suggestions["steepest"]) < -1


def test_a_fall_after_a_divergence_does_not_count() -> None:
    test = LrRangeTestConfig(num_steps=100, start_lr=1e-4, end_lr=1.0)
    ways = [2.4, 2.4, 2.2, 7.0, 2.1], [2.4, 2.4, 2.4, 7.0, 2.1]
    learned, destroyed = (np.interp(np.log10(range_rates(test)), [-4, -3, -2, -1, 0], way) for way in ways)
    curve = LrCurve(rates=range_rates(test), losses=learned, stop_reason="end_lr reached")
    assert np.log10(curve.suggestions["minimum"]) == pytest.approx(-2.2, abs=0.2)
    flat = LrCurve(rates=range_rates(test), losses=destroyed, stop_reason="end_lr reached")
    assert str(flat.failure_reason).startswith("the curve is flat")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 1}, "steps is 1; expected 2 or more"),
        ({"start_lr": 0.0}, "start_lr is 0.0; expected a number above 0"),
        ({"end_lr": float("nan")}, "end_lr is nan; expected a number above 0"),
        ({"start_lr": 1.0, "end_lr": 0.1}, "start_lr is 1 and end_lr 0.1; expected end_lr to be larger"),
        ({"mode": "cubic"}, "mode is 'cubic'; expected one of: exponential, linear"),
    ],
)
def test_an_impossible_test_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        LrRangeTestConfig(**settings)
    assert str(caught.value) == message


def test_no_batches_are_refused() -> None:
    model = network()
    with pytest.raises(UsageError, match="the range test ran out of batches"):
        find_lr(model, torch.optim.SGD(model.parameters(), lr=0.1), [])


@pytest.mark.parametrize(
    ("optimizer", "suggestion"), [("sgd", "minimum"), pytest.param("adamw", "valley", marks=pytest.mark.slow)]
)
def test_the_command_writes_the_curve_and_the_next_command(
    data_dir: Path, tmp_path: Path, optimizer: str, suggestion: str
) -> None:
    common = ["--data-dir", str(data_dir), "--runs-dir", str(tmp_path), "--model", "small", "--batch-size", "50"]
    common += ["--optimizer", optimizer]
    arguments = ["lr-find", *common, "--no-flip", "--steps", "40", "--start-lr", "1e-4", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    output = json.loads(result.stdout)
    assert output["failure_reason"] is None
    table, picture = (Path(file) for file in output["files"])
    assert table.parent == tmp_path / "lr-find-small"
    assert table.read_text().splitlines()[0] == "lr,loss,smoothed_loss"
    assert len(table.read_text().splitlines()) == output["steps"] + 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    rate = f"{output['suggestions'][suggestion]:.3g}"
    flags = f"--batch-size 50 --model small --data-dir {data_dir} --no-flip --optimizer {optimizer}"
    assert output["next"] == f"fastcifar train {flags} --runs-dir {tmp_path} --lr {rate}"
    again = CliRunner().invoke(main, arguments[:-1])
    assert "next: fastcifar train" in again.stdout
    assert str(tmp_path / "lr-find-small-2") in again.stdout


def test_a_failed_test_suggests_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curve = LrCurve(rates=np.geomspace(1e-4, 1, 100), losses=np.ones(100), stop_reason="end_lr reached")
    monkeypatch.setattr(lr_finder, "run_lr_find", lambda *arguments: (curve, ()))
    result = CliRunner().invoke(main, ["lr-find", "--model", "small", "--runs-dir", str(tmp_path)])
    assert result.stdout == f"no suggestion: {curve.failure_reason}\n"


def test_train_can_find_its_rate_first(data_dir: Path, tmp_path: Path) -> None:
    arguments = ["train", "--data-dir", str(data_dir), "--runs-dir", str(tmp_path), "--model", "small", "--lr", "auto"]
    result = CliRunner().invoke(main, [*arguments, "--batch-size", "50", "--max-steps", "2", "--json"])
    assert result.exit_code == 0, result.stderr
    output = json.loads(result.stdout)
    run = Path(output["run"])
    points = np.loadtxt(run / "lr_find" / "lr_find.csv", delimiter=",", skiprows=1)
    curve = LrCurve(rates=points[:, 0], losses=points[:, 1], stop_reason="")
    assert output["lr"] == pytest.approx(curve.suggestions["minimum"])  # for SGD
    assert (run / "lr_find" / "lr_find.png").exists()
    assert f"lr: {output['lr']}" in (run / "config.yaml").read_text()


@pytest.mark.slow
@pytest.mark.full_size
def test_the_next_command_names_a_recipes_file_and_all_rates_of_muon(data_dir: Path, tmp_path: Path) -> None:
    mine = tmp_path / "fast.yaml"
    mine.write_text("settings: {model: small, optimizer: muon, lr: 2, aux_lr: 0.2, bias_lr: 100, batch_size: 60}")
    arguments = ["lr-find", "--recipe", mine, "--data-dir", data_dir, "--runs-dir", tmp_path, "--steps", 40, "--json"]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    facts = json.loads(result.stdout)
    words = shlex.split(facts["next"])
    assert words[:4] == ["fastcifar", "train", "--recipe", str(mine)]
    lr, rest, bias = (float(words[words.index(flag) + 1]) for flag in ("--lr", "--aux-lr", "--bias-lr"))
    assert lr == pytest.approx(facts["suggestions"]["valley"], rel=0.01)
    assert (rest, bias) == (pytest.approx(lr / 10, rel=0.01), pytest.approx(50 * lr, rel=0.01))
    assert (tmp_path / "lr-find-fast.yaml" / "lr_find.csv").exists()  # not our own recipe fast
    again = CliRunner().invoke(main, [*words[1:], "--max-steps", "1", "--json"])
    assert again.exit_code == 0, again.stderr


def test_min_lr_above_the_rate_of_the_range_test_is_refused(data_dir: Path, tmp_path: Path) -> None:
    arguments = ["train", "--data-dir", data_dir, "--runs-dir", tmp_path, "--model", "small", "--batch-size", "50"]
    result = CliRunner().invoke(main, [*map(str, arguments), "--lr", "auto", "--min-lr", "50"])
    assert result.exit_code == 2
    assert "min_lr is 50, above the rate of the range test, " in result.stderr


def test_auto_is_not_for_muon() -> None:
    with pytest.raises(UsageError, match="lr is 'auto' with optimizer 'muon'; expected a number: 'fastcifar lr-find'"):
        TrainConfig.from_settings(optimizer="muon", lr="auto")


def test_an_unusable_runs_folder_is_noticed_before_the_steps(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_dir = tmp_path / "runs"
    runs_dir.touch()
    monkeypatch.setattr("fastcifar.training.lr_finder.run_lr_range_test", None)
    arguments = ["lr-find", "--data-dir", str(data_dir), "--model", "small", "--runs-dir", str(runs_dir)]
    assert f"{runs_dir}: a file, not a folder" in CliRunner().invoke(main, arguments).stderr
