"""The learning-rate range test (L. Smith, "Cyclical Learning Rates for Training Neural Networks", 2017), and advice.

Train for some steps while the rate rises from very small to very large, and watch the loss.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fastcifar.config import AUTO_SUGGESTIONS, LrRangeTestConfig, TrainConfig
from fastcifar.errors import DivergedError, UsageError
from fastcifar.io.paths import command_line
from fastcifar.loaders import Loader, Mix
from fastcifar.models import builder, make_model, require_side
from fastcifar.models.layers import train_mode
from fastcifar.models.probe import place
from fastcifar.models.state import buffers_kept, generators_kept, modes_kept
from fastcifar.training.data import Loaders
from fastcifar.training.device import choose_amp, prepare_device, standard_torch_defaults
from fastcifar.training.distributed import Distributed
from fastcifar.training.initial_weights import log_notes, prepare_network, read_initial_weights
from fastcifar.training.loss import class_weights_of, cross_entropy
from fastcifar.training.lr_curve import LrCurve
from fastcifar.training.optimizer import make_optimizer, scale_lrs
from fastcifar.training.progress import Reporter
from fastcifar.training.run_folder import RunFolder, create_run
from fastcifar.training.step import TrainStep
from fastcifar.training.weights import DatasetInfo

log = logging.getLogger(__name__)
NUM_RECENT = 3
DIVERGED = 4.0
"""The test ends when the mean of the last NUM_RECENT losses is this many times its lowest (as in fastai)."""

Batch = tuple[torch.Tensor, ...]
Step = Callable[..., torch.Tensor]


def find_lr(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    *,
    test: LrRangeTestConfig | None = None,
    step: Step | None = None,
    advance: Callable[[int], None] = lambda count: None,
    base_lr: float | None = None,
) -> LrCurve:
    """Run the range test; `model`, its gradients, `optimizer` and the generators of torch, NumPy and Python are
    restored.

    Parameter groups keep the ratios of their rates to `base_lr`.

    batches: (images, labels) on the device of the model; repeated from the start if they end early.
    test: from which rate to which, in how many steps.
    step: one training step, (images, labels) -> the loss before it; by default with cross-entropy alone. For a
    `MixedBatch`, (images, labels, mix).
    advance: called with 1 after each step.
    base_lr: the rate of the optimizer that the curve is about; by default that of its first group.
    Raises UsageError if there are no batches.

    Examples:
        >>> model = Run("fast").model()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> test = LrRangeTestConfig(num_steps=20)
        >>> curve = find_lr(model, optimizer, make_loader("data/train.beton", batch_size=32), test=test)
        >>> len(curve.rates) == len(curve.losses)
        True
    """
    test = test or LrRangeTestConfig()
    step = step or _plain_step(model, optimizer)
    losses: list[float] = []
    stop_reason, rates = "end_lr reached", range_rates(test)
    with _restored(model, optimizer):
        train_mode(model)
        groups = optimizer.param_groups
        base = groups[0]["lr"] if base_lr is None else base_lr
        ratios = [group["lr"] / base if base else 1.0 for group in groups]
        endless, lowest = _repeat(batches), math.inf
        for rate in rates:
            for group, ratio in zip(groups, ratios, strict=True):
                group["lr"] = float(rate) * ratio
            batch = next(endless)
            mix = getattr(batch, "mix", None)
            loss = float(step(batch[0], batch[1]) if mix is None else step(batch[0], batch[1], mix))
            advance(1)
            if not math.isfinite(loss):
                stop_reason = "the loss was not finite"
                break
            losses.append(loss)
            recent = float(np.mean(losses[-NUM_RECENT:]))
            lowest = min(lowest, recent)
            if len(losses) > NUM_RECENT and recent > DIVERGED * max(lowest, 1e-12):
                stop_reason = "the loss diverged"
                break
    return LrCurve(rates=rates[: len(losses)], losses=np.array(losses), stop_reason=stop_reason)


def range_rates(test: LrRangeTestConfig) -> npt.NDArray[np.float64]:
    """(num_steps,), rising."""
    space = np.geomspace if test.mode == "exponential" else np.linspace
    return space(test.start_lr, test.end_lr, test.num_steps)


def run_lr_range_test(
    config: TrainConfig, network: nn.Module, loader: Loader, test: LrRangeTestConfig, reporter: Reporter
) -> LrCurve:
    """The range test with the settings of a run, on its network, which is restored. All rates rise: those of Muon's
    auxiliary optimizer keep their ratio to `lr`."""
    config = scale_lrs(config.with_settings(min_lr=0.0, ema=0.0), test.start_lr)
    optimizer = make_optimizer(network, config)
    amp = choose_amp(loader.config.device, config.runtime.amp)
    weights = class_weights_of(config.optimizer.class_weights, loader)
    step = TrainStep(network, network, optimizer, config, amp, weights)

    def loss_of_step(images: torch.Tensor, labels: torch.Tensor, mix: Mix | None = None) -> torch.Tensor:
        return step(images, labels, mix)[0]

    reporter.begin("range test", test.num_steps)
    # Muon may have no group, as with --freeze-until head: the first one is then of its auxiliary optimizer
    base_lr = test.start_lr
    return find_lr(network, optimizer, loader, test=test, step=loss_of_step, advance=reporter.advance, base_lr=base_lr)


@standard_torch_defaults()
def run_lr_find(
    config: TrainConfig,
    test: LrRangeTestConfig,
    suggestion: str,
    runs_dir: str | os.PathLike[str],
    reporter: Reporter,
) -> tuple[LrCurve, tuple[Path, ...]]:
    """`fastcifar lr-find`: the range test of a new network on the images of `config`; return the curve and the paths
    of its files, in a new folder in `runs_dir`."""
    distributed = Distributed()
    device = prepare_device(config.runtime, distributed)
    builder(config.model)  # an unknown name fails before the data is read
    initial = None if config.init is None else read_initial_weights(config.init, runs_dir)
    with closing(Loaders(config, device, distributed)) as loaders:
        network = make_initial_network(config, loaders.info, device)
        log_notes(prepare_network(network, config, loaders.info, initial))
        run = create_run(runs_dir, f"lr-find-{config.recipe or config.model.label}")  # may fail: before the steps
        curve = run_lr_range_test(config, network, loaders.train, test, reporter)
    return curve, curve.write(run.path, suggestion)


def resolve_lr(
    config: TrainConfig, network: nn.Module, loaders: Loaders, distributed: Distributed, reporter: Reporter
) -> tuple[TrainConfig, LrCurve | None]:
    """The settings with `lr` as a number: as given, the default, or for 'auto' that of a range test on rank 0, whose
    curve is returned too."""
    if config.optimizer.lr != "auto":
        return config.with_settings(lr=config.peak_lr), None
    name, curve = config.optimizer.name, None
    if distributed.is_main:
        with closing(loaders.make_train_loader()) as loader:
            curve = run_lr_range_test(config, network, loader, LrRangeTestConfig.for_optimizer(name), reporter)
    curve = distributed.broadcast(curve)
    assert curve is not None
    if curve.failure_reason is not None:
        raise DivergedError(
            f"the range test found no learning rate: {curve.failure_reason}; with {lr_find_command(config)}; or set "
            "--lr to a number"
        )
    lr = curve.suggestions[AUTO_SUGGESTIONS[name]]
    if config.schedule.min_lr > lr:
        raise UsageError(
            f"min_lr is {config.schedule.min_lr:g}, above the rate of the range test, {lr:.3g}; expected "
            f"at most {lr:.3g}, or --lr as a number"
        )
    return config.with_settings(lr=lr), curve


def report_lr(config: TrainConfig, curve: LrCurve | None, run: RunFolder, *, is_default: bool) -> None:
    """Log the learning rate of a run and where it comes from; write the curve of its range test to its folder."""
    if curve is not None:
        curve.write(run.make_subfolder(run.lr_find), AUTO_SUGGESTIONS[config.optimizer.name])
        log.info("learning rate %.4g, from the range test (%s)", config.peak_lr, run.lr_find)
    elif is_default:
        model, optimizer = config.model.name, config.optimizer.name
        log.info("learning rate %g, the default for %s with %s", config.peak_lr, model, optimizer)


def make_initial_network(
    config: TrainConfig, data: DatasetInfo, device: torch.device, *, pretrained: bool = True
) -> nn.Module:
    """The network at the start of a run, with weights determined by the seed; those of the Hugging Face hub if it is
    from there, and `pretrained`. Raises UsageError."""
    torch.manual_seed(config.seed)
    network = make_model(config.model, len(data.class_names), data.image_shape, pretrained=pretrained)
    network = place(network, device)
    for side, _ in config.progressive:
        require_side(network, side, config.model.name)
        if side > min(data.image_shape[:2]):
            log.warning("progressive is %d: it enlarges images of %dx%d", side, *data.image_shape[:2])
    return network


def _plain_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    def step(images: torch.Tensor, labels: torch.Tensor, mix: Mix | None = None) -> torch.Tensor:
        loss = cross_entropy(model(images), labels, mix)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


def _repeat(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise UsageError(
                "the range test ran out of batches; expected one for each step: pass a DataLoader, not an iterator"
            )


@contextmanager
def _restored(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """After the block, weights, buffers, gradients, modes, optimizer and random generators are restored."""
    params = list(model.parameters())
    values = [param.detach().clone() for param in params]
    gradients = [param.grad for param in params]
    state, results = deepcopy(optimizer.state_dict()), _results(model)
    for param in params:
        param.grad = None  # the saved gradients must not be added to
    try:
        with modes_kept(model), buffers_kept(model), generators_kept(param.device for param in params):
            yield
    finally:
        for (module, name), value in _results(model).items():  # left by hooks such as spectral_norm: not to be copied
            if value is not results.get((module, name)):
                vars(module)[name] = value.detach()
        with torch.no_grad():
            for param, value, gradient in zip(params, values, gradients, strict=True):
                param.copy_(value)
                param.grad = gradient
        optimizer.load_state_dict(state)


def _results(model: nn.Module) -> dict[tuple[nn.Module, str], torch.Tensor]:
    """Attributes of its modules that were computed from parameters."""
    return {
        (module, name): value
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }


def warn_if_not_learning(config: TrainConfig, row: dict[str, Any], num_classes: int, *, tested: bool = False) -> bool:
    """Warn, and return True, if the training loss of an epoch (a row of results.csv) is above that of uniform
    probabilities, log(num_classes), which label smoothing does not change.

    tested: the rate is that of a range test, so another one is not suggested.
    """
    uniform = math.log(num_classes)
    if row["train_loss"] <= uniform:
        return False
    log.warning(
        "the training loss of epoch %d, %.4g, is above that of a uniform guess, %.4g (the logarithm of %d classes): "
        "the network has not learned yet; if this persists, try a smaller --lr, e.g. %.2g%s",
        row["epoch"],
        row["train_loss"],
        uniform,
        num_classes,
        config.peak_lr / 5,
        "" if tested else f", or find one: {lr_find_command(config)}",
    )
    return True


def lr_find_command(config: TrainConfig) -> str:
    """The command that runs the range test with these settings."""
    arguments: list[str | os.PathLike[str]] = ["fastcifar", "lr-find", "--data-dir", Path(config.data.data_dir)]
    settings = config.to_settings()
    for name in ("model", "norm", "init", "freeze_until", "optimizer", "batch_size"):
        if (value := settings[name]) is not None:
            arguments += [f"--{name.replace('_', '-')}", Path(value) if name == "init" else str(value)]
    return command_line(*arguments)
