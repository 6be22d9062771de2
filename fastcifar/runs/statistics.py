"""Is a difference more than luck? Intervals of a mean, Welch's t-test, and McNemar's exact test; computed by scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVEL = 0.05
POWER = 0.8
MAX_SEEDS = 10_000


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of a score over runs."""

    mean: float
    std: float | None
    """Sample standard deviation; None of a single run."""
    interval: tuple[float, float] | None
    """The 95% interval of the mean, by Student's t distribution; None of a single run."""
    num_runs: int

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval: mean ± half_width."""
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of at least one value, with its interval."""
    mean, num = float(np.mean(values)), len(values)
    if num < 2:
        return Mean(mean=mean, std=None, interval=None, num_runs=num)
    from scipy import stats

    std = math.sqrt(_variance(values))
    half = float(stats.t.ppf(1 - LEVEL / 2, num - 1)) * std / math.sqrt(num)
    return Mean(mean=mean, std=std, interval=(mean - half, mean + half), num_runs=num)


@dataclass(frozen=True, kw_only=True)
class Welch:
    """Welch's t-test (Welch 1947) of the means of two groups of runs, which may differ in variance and size."""

    difference: float
    """Mean of the second group minus that of the first."""
    interval: tuple[float, float]
    """The 95% interval of the difference."""
    p_value: float
    """Probability of a difference at least as large, either way, if both groups had the same mean."""
    num_seeds_needed: int | None
    """Runs in each group with which a test at level 0.05 detects a difference of this size in 80% of the cases, at the
    spread of these groups; None if that is over MAX_SEEDS."""

    @property
    def is_significant(self) -> bool:
        """At level 0.05."""
        return self.p_value < LEVEL


def welch(first: Sequence[float], second: Sequence[float]) -> Welch:
    """Compare the scores of two groups, of at least two runs each."""
    from scipy import stats

    difference = float(np.mean(second) - np.mean(first))
    variances = _variance(first), _variance(second)
    if sum(variances) == 0:  # the t statistic is 0 / 0 or infinite
        return Welch(
            difference=difference,
            interval=(difference, difference),
            p_value=1.0 if difference == 0 else 0.0,
            num_seeds_needed=2 if difference else None,
        )
    test = stats.ttest_ind(second, first, equal_var=False)
    interval = test.confidence_interval(1 - LEVEL)
    return Welch(
        difference=difference,
        interval=(float(interval.low), float(interval.high)),
        p_value=float(test.pvalue),
        num_seeds_needed=num_seeds_needed(difference, math.sqrt(sum(variances) / 2)),
    )


def _variance(values: Sequence[float]) -> float:
    """Of a sample; exactly 0 for equal values, whose mean may be rounded."""
    return float(np.var(values, ddof=1)) if np.ptp(values) else 0.0


def num_seeds_needed(difference: float, std: float) -> int | None:
    """The smallest number of runs in each of two groups with which the two-sided t-test at level 0.05 detects this
    difference of means, at this standard deviation within a group, with probability 0.8; None if over MAX_SEEDS."""
    if difference == 0 or _power(difference, std, MAX_SEEDS) < POWER:
        return None
    low, high = 1, MAX_SEEDS  # enough is in (low, high]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(difference, std, middle) >= POWER else (middle, high)
    return high


def _power(difference: float, std: float, num: int) -> float:
    """Of the two-sided t-test of two groups of `num` runs each (Cohen 1988)."""
    from scipy import stats

    if std == 0:
        return 1.0
    freedom, shift = 2 * num - 2, abs(difference) / std * math.sqrt(num / 2)
    critical = stats.t.ppf(1 - LEVEL / 2, freedom)
    with np.errstate(invalid="ignore"):  # scipy's distribution is undefined far from the centre, where the power is 1
        power = float(stats.nct.sf(critical, freedom, shift))
    return 1.0 if math.isnan(power) else power


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """McNemar's exact test (McNemar 1947) of two networks on the same images."""

    only_first: int
    """Images that only the first classifies correctly."""
    only_second: int
    p_value: float
    """Probability of a split at least as uneven, if both were equally accurate on such images."""

    @property
    def is_significant(self) -> bool:
        """At level 0.05."""
        return self.p_value < LEVEL


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> McNemar:
    """Compare which images are correctly classified, (N,) bool each."""
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    p_value = 1.0
    if only_first + only_second:
        from scipy import stats

        p_value = float(stats.binomtest(only_first, only_first + only_second).pvalue)
    return McNemar(only_first=only_first, only_second=only_second, p_value=p_value)
