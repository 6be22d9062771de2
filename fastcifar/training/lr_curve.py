"""The loss curve of a learning-rate range test, and the rates that it suggests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastcifar import plotting
from fastcifar.io.atomic import write_csv

Floats = npt.NDArray[np.float64]
WINDOW, MIN_WINDOW = 0.1, 3.0
"""Smoothing: an exponential average over this share of the steps, but at least MIN_WINDOW of them."""
MIN_POINTS = 8
MIN_DECREASE = 0.003
"""Share of the first losses: a curve that falls by less is flat."""
MIN_SIGMAS, MIN_SIGMAS_IF_RISING = 6, 3
"""A fall must also exceed this many standard deviations of the smoothed noise; fewer if the loss rises after it."""
VALLEY_START = 0.1
"""The valley starts where this share of the fall is done."""
MAX_RISE = 1.5
"""Times the first loss: the curve counts up to there. A network destroyed by a large rate can fall back to the loss of
constant logits, which is not learning."""


@dataclass(frozen=True, kw_only=True)
class LrCurve:
    """The result of a range test, and the learning rates that follow from it."""

    rates: Floats
    """(N,): the rate of each step."""
    losses: Floats
    """(N,): the loss before that step, nats."""
    stop_reason: str
    """Why the test ended: 'end_lr reached', 'the loss diverged' or 'the loss was not finite'."""

    @cached_property
    def smoothed(self) -> Floats:
        """(N,): the average of each loss and those before it, so that a divergence changes nothing to its left."""
        return smooth(self.losses, self._window)

    @cached_property
    def smoothed_rates(self) -> Floats:
        """(N,): the median rate of each of those averages, where the smoothed loss is plotted."""
        return median_rates(self.rates, self._window)

    @property
    def _window(self) -> float:
        return max(MIN_WINDOW, WINDOW * len(self.losses))

    @cached_property
    def failure_reason(self) -> str | None:
        """Why there is no suggestion, and what to change; None if there is one."""
        num = len(self.losses)
        if num == 0:
            return f"{self.stop_reason} at the first step, whatever the rate; check the images, the network and --amp"
        if num < MIN_POINTS:
            reason = f"{self.stop_reason} after {num} steps"
            return f"{reason}; start at a smaller rate (--start-lr) or use more steps (--steps)"
        lowest, high, low = self._decrease()
        differences = np.abs(np.diff(self.losses[: max(5, num // 3)]))  # of steps whose rates are too small to learn
        noise = float(np.median(differences)) / 0.954 / math.sqrt(2 * self._window - 1)  # sigma of a smoothed loss
        rising = self.smoothed[lowest:].max() > MAX_RISE * abs(high)
        min_decrease = max(MIN_DECREASE * abs(high), (MIN_SIGMAS_IF_RISING if rising else MIN_SIGMAS) * noise)
        if high - low <= min_decrease:
            wider = "a higher --end-lr, " if self.stop_reason == "end_lr reached" else ""
            return (
                f"the curve is flat: the smoothed loss fell from {high:.4g} by {max(0.0, high - low):.2g}, and "
                f"{min_decrease:.2g} would be more than noise; try {wider}more --steps or a larger --batch-size"
            )
        return None

    def _decrease(self) -> tuple[int, float, float]:
        """The step of the lowest smoothed loss, the initial loss, and the lowest."""
        first = max(3, len(self.losses) // 4)  # in these steps an average has few losses
        high = float(self.losses[:first].mean())
        risen = np.flatnonzero(self.smoothed[first:] > MAX_RISE * abs(high))
        end = first + int(risen[0]) if len(risen) else len(self.smoothed)
        lowest = first - 1 + int(self.smoothed[first - 1 : end].argmin())
        return lowest, high, float(self.smoothed[lowest])

    @cached_property
    def suggestions(self) -> dict[str, float]:
        """Learning rates, by the name of the rule; empty if there is no suggestion."""
        if self.failure_reason:
            return {}
        smoothed, rates = self.smoothed, self.smoothed_rates
        lowest, high, low = self._decrease()
        above = np.flatnonzero(smoothed[: lowest + 1] >= high - VALLEY_START * (high - low))
        start = int(above[-1]) if len(above) else 0
        slope = np.gradient(smoothed[: lowest + 1], np.log(rates[: lowest + 1])) if lowest else np.zeros(1)
        return {
            "steepest": float(rates[start + int(slope[start:].argmin())]),
            "valley": float(np.sqrt(rates[start] * rates[lowest])),  # the middle of the fall
            "minimum": float(rates[lowest]),
        }

    def write(self, folder: Path, suggestion: str) -> tuple[Path, ...]:
        """Write lr_find.csv and lr_find.png, which labels the rate of `suggestion`, to the existing `folder`; return
        the paths of the files that could be written."""
        table = folder / "lr_find.csv"
        values = zip(self.rates.tolist(), self.losses.tolist(), self.smoothed.tolist(), strict=True)
        write_csv(table, ("lr", "loss", "smoothed_loss"), values)
        with plotting.figure_writer(folder, f"the curve is in {table}") as write:
            figure = write("lr_find.png", lambda: plotting.lr_curve(self, suggestion))
        return (table, figure) if figure else (table,)


def smooth(values: Floats, window: float) -> Floats:
    """(N,) -> (N,): the exponential average of each value and those before it, over about `window` of them, with
    weights that sum to 1 (as fastai and torch-lr-finder)."""
    smoothed, decay, average, weight = np.empty(len(values)), 1 - 1 / window, 0.0, 0.0
    for i, value in enumerate(values):
        average, weight = value + decay * average, 1 + decay * weight
        smoothed[i] = average / weight
    return smoothed


def median_rates(rates: Floats, window: float) -> Floats:
    """(N,) -> (N,): the rate below which half of the weight of each average of `smooth` lies."""
    index, decay = np.arange(len(rates)), 1 - 1 / window
    lag = np.log((1 + decay ** (index + 1)) / 2) / math.log(decay)
    return np.exp(np.interp(index - lag, index, np.log(rates))) if len(rates) else rates
