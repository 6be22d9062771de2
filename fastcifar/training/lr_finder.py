"""The learning-rate range test (L. Smith, "Cyclical Learning Rates for Training Neural Networks", 2017).

Train for some steps while the rate rises from very small to very large, and look at the loss.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fastcifar.config import LrRangeTestConfig
from fastcifar.errors import UsageError
from fastcifar.models.state import buffers_kept, modes_kept

log = logging.getLogger(__name__)
WINDOW, MIN_WINDOW = 0.1, 3.0
"""Smoothing: an exponential average over about so many of the test's steps, but no fewer than MIN_WINDOW."""
RECENT = 3
DIVERGED = 4.0
"""The test ends when the mean of the last RECENT losses is so many times its lowest (as fastai's)."""
MIN_POINTS = 8
MIN_FALL = 0.003
"""Of the first losses: what falls by less is flat."""
NOISES, NOISES_IF_IT_ROSE = 6, 3
"""And so many standard deviations of the smoothed noise; fewer are enough where the loss rises after the fall."""
EDGE = 0.1
"""The valley begins where so much of the fall is done."""
RISEN = 1.5
"""Times the first loss: from there on nothing is looked at. A network that was destroyed there may fall back to the
loss of one constant answer, which is no learning."""

Images = tuple[torch.Tensor, torch.Tensor]
TrainStep = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class LrCurve:
    """What a range test saw, and what follows from it."""

    rates: npt.NDArray[np.float64]
    """(N,) float64: the rate of each step that was made."""
    losses: npt.NDArray[np.float64]
    """(N,) float64: the loss before that step, nats."""
    ended: str
    """Why the test ended: 'end_lr reached', 'the loss diverged' or 'the loss was not finite'."""
    smoothed: npt.NDArray[np.float64] = field(init=False)
    """(N,) float64: of each step the average of the losses up to it, so that no divergence lifts what lies before."""
    smoothed_rates: npt.NDArray[np.float64] = field(init=False)
    """(N,) float64: the median rates of those averages: where the smoothed losses belong."""
    suggestions: dict[str, float] = field(init=False)
    """Rates, by the name of the rule; empty if there is no suggestion."""
    why_not: str | None = field(init=False)
    """Why there is no suggestion, and what to change; None if there is one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "smoothed", smooth(self.losses, self._window))
        object.__setattr__(self, "smoothed_rates", median_rates(self.rates, self._window))
        why_not = self._why_not()
        object.__setattr__(self, "why_not", why_not)
        object.__setattr__(self, "suggestions", {} if why_not else self._suggest())

    @property
    def _window(self) -> float:
        return max(MIN_WINDOW, WINDOW * len(self.losses))

    def _why_not(self) -> str | None:
        num = len(self.losses)
        if num == 0:
            return f"{self.ended} at the first step, whatever the rate; check the images, the network and --amp"
        if num < MIN_POINTS:
            return f"{self.ended} after {num} steps; begin at a smaller rate (--start-lr) or take more steps (--steps)"
        lowest, high, low = self._fall()
        calm = np.abs(np.diff(self.losses[: max(5, num // 3)]))  # before anything can have been learned
        noise = float(np.median(calm)) / 0.954 / math.sqrt(2 * self._window - 1)  # of a smoothed value, if it is normal
        rose = self.smoothed[lowest:].max() > RISEN * abs(high)
        least = max(MIN_FALL * abs(high), (NOISES_IF_IT_ROSE if rose else NOISES) * noise)
        if high - low <= least:
            further = "a higher --end-lr, " if self.ended == "end_lr reached" else ""
            return (
                f"the curve is flat: the smoothed loss fell from {high:.4g} by {max(0.0, high - low):.2g}, and "
                f"{least:.2g} would be more than noise; try {further}more --steps or a larger --batch-size"
            )
        return None

    def _fall(self) -> tuple[int, float, float]:
        """The step of the lowest smoothed loss; what the loss was at first, and the lowest."""
        first = max(3, len(self.losses) // 4)  # in these an average is still one of a few noisy losses
        high = float(self.losses[:first].mean())
        risen = np.flatnonzero(self.smoothed[first:] > RISEN * abs(high))
        end = first + int(risen[0]) if len(risen) else len(self.smoothed)
        lowest = first - 1 + int(self.smoothed[first - 1 : end].argmin())
        return lowest, high, float(self.smoothed[lowest])

    def _suggest(self) -> dict[str, float]:
        smoothed, rates = self.smoothed, self.smoothed_rates
        lowest, high, low = self._fall()
        edge = high - EDGE * (high - low)
        above = np.flatnonzero(smoothed[: lowest + 1] >= edge)
        begin = int(above[-1]) if len(above) else 0  # from there on it falls
        slope = np.gradient(smoothed[: lowest + 1], np.log(rates[: lowest + 1])) if lowest else np.zeros(1)
        return {
            "steepest": float(rates[begin + int(slope[begin:].argmin())]),
            "valley": float(np.sqrt(rates[begin] * rates[lowest])),  # the middle of the way down
            "minimum": float(rates[lowest]),
        }


def rates_of(test: LrRangeTestConfig) -> npt.NDArray[np.float64]:
    """(num_steps,) float64, rising."""
    space = np.geomspace if test.mode == "exponential" else np.linspace
    return space(test.start_lr, test.end_lr, test.num_steps)


def smooth(values: npt.NDArray[np.float64], window: float) -> npt.NDArray[np.float64]:
    """(N,) -> (N,) float64: the exponential average of each value and those before it, over about `window` of them,
    its weights divided by their sum (as fastai and torch-lr-finder)."""
    smoothed, kept, average, weight = np.empty(len(values)), 1 - 1 / window, 0.0, 0.0
    for i, value in enumerate(values):
        average, weight = value + kept * average, 1 + kept * weight
        smoothed[i] = average / weight
    return smoothed


def median_rates(rates: npt.NDArray[np.float64], window: float) -> npt.NDArray[np.float64]:
    """(N,) -> (N,) float64: the rate below which half of the weight of each average of `smooth` lies."""
    index, kept = np.arange(len(rates)), 1 - 1 / window
    lag = np.log((1 + kept ** (index + 1)) / 2) / math.log(kept)
    return np.exp(np.interp(index - lag, index, np.log(rates))) if len(rates) else rates


def lr_find(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Images],
    *,
    test: LrRangeTestConfig | None = None,
    step: TrainStep | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> LrCurve:
    """Run the range test; `model`, `optimizer` and the generators of torch, NumPy and Python are left as they were,
    gradients too.

    batches: (images, labels) each, on the model's device; taken from the start again where they end.
    step: one step of training, images and labels -> the loss before it; a plain one with cross-entropy if not given.
    The rates of parameter groups keep their ratios to that of the first.
    Raises UsageError if there are no batches.
    """
    test = test or LrRangeTestConfig()
    step = step or _plain_step(model, optimizer)
    losses: list[float] = []
    ended, rates = "end_lr reached", rates_of(test)
    with _left_as_it_was(model, optimizer):
        model.train()
        groups = optimizer.param_groups
        first = groups[0]["lr"]
        ratios = [group["lr"] / first if first else 1.0 for group in groups]
        source, lowest = _endless(batches), math.inf
        for rate in rates:
            for group, ratio in zip(groups, ratios, strict=True):
                group["lr"] = float(rate) * ratio
            images, labels = next(source)[:2]
            loss = float(step(images, labels))
            advance(1)
            if not math.isfinite(loss):
                ended = "the loss was not finite"
                break
            losses.append(loss)
            recent = float(np.mean(losses[-RECENT:]))
            lowest = min(lowest, recent)
            if len(losses) > RECENT and recent > DIVERGED * max(lowest, 1e-12):
                ended = "the loss diverged"
                break
    return LrCurve(rates=rates[: len(losses)], losses=np.array(losses), ended=ended)


def _plain_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainStep:
    def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


def _endless(batches: Iterable[Images]) -> Iterator[Images]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise UsageError(
                "there are no batches for the range test, or no more of them; expected one for each step, or a loader"
            )


@contextmanager
def _left_as_it_was(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """After the block weights, buffers, gradients, modes, the optimiser and the generators are what they were."""
    tensors = list(model.parameters())
    others = random.getstate(), np.random.get_state()
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [param.grad for param in model.parameters()]
    state = deepcopy(optimizer.state_dict())
    for param in model.parameters():
        param.grad = None  # those kept above are not added to
    cuda = sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})
    try:
        with modes_kept(model), buffers_kept(model), torch.random.fork_rng(devices=cuda):
            yield
    finally:
        random.setstate(others[0])
        np.random.set_state(others[1])
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for param, gradient in zip(model.parameters(), gradients, strict=True):
            param.grad = gradient
        optimizer.load_state_dict(state)
