"""Means, Welch's t-test, the number of seeds, McNemar's exact test: against formulas, tables and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastcifar.runs.scores import SCORES, shown
from fastcifar.runs.statistics import mcnemar, mean_of, num_seeds_needed, welch


def test_the_interval_of_a_mean_is_that_of_student() -> None:
    mean = mean_of([0.92, 0.93, 0.94, 0.95, 0.96])
    half = 2.776445 * math.sqrt(2.5e-4) / math.sqrt(5)  # t of 4 degrees of freedom
    assert mean.mean == pytest.approx(0.94)
    assert mean.std == pytest.approx(math.sqrt(2.5e-4))
    assert mean.interval == pytest.approx((0.94 - half, 0.94 + half), abs=1e-7)
    assert mean.half_width == pytest.approx(half, abs=1e-7)


def test_a_single_run_has_no_interval() -> None:
    mean = mean_of([0.5])
    assert (mean.std, mean.interval, mean.half_width, mean.num_runs) == (None, None, None, 1)


def test_welch_gives_the_difference_its_interval_and_p() -> None:
    first, second = [1.0, 2.0, 3.0, 4.0], [3.0, 5.0, 7.0, 9.0, 11.0]
    result = welch(first, second)
    error = math.sqrt(np.var(first, ddof=1) / 4 + np.var(second, ddof=1) / 5)
    assert result.difference == pytest.approx(4.5)
    assert sum(result.interval) / 2 == pytest.approx(4.5)
    # t of Welch and Satterthwaite's degrees of freedom, 5.52
    assert (result.interval[1] - 4.5) / error == pytest.approx(2.4986, abs=2e-3)
    assert result.is_significant
    assert result.p_value == welch(second, first).p_value


@pytest.mark.parametrize(("second", "p_value"), [([0.5, 0.5], 1.0), ([0.6, 0.6], 0.0)])
def test_groups_without_spread_can_be_compared(second: list[float], p_value: float) -> None:
    result = welch([0.5, 0.5], second)
    assert result.p_value == p_value
    assert result.interval == (result.difference, result.difference)


@pytest.mark.parametrize(("effect", "expected"), [(0.5, 64), (0.8, 26), (1.0, 17), (1.5, 9)])
def test_the_number_of_seeds_is_that_of_the_tables(effect: float, expected: int) -> None:
    assert num_seeds_needed(effect, 1.0) == expected  # Cohen 1988, table 2.4.1


def test_no_number_of_seeds_shows_a_difference_of_nothing() -> None:
    assert num_seeds_needed(0.0, 1.0) is None
    assert num_seeds_needed(1e-6, 1.0) is None
    assert num_seeds_needed(1.0, 0.0) == 2
    assert num_seeds_needed(1.0, 1e-9) == 2


def test_mcnemar_counts_the_images_on_which_two_networks_differ() -> None:
    first = np.array([True] * 9 + [False] * 1 + [True] * 5 + [False] * 5)
    second = np.array([False] * 9 + [True] * 1 + [True] * 5 + [False] * 5)
    result = mcnemar(first, second)
    assert (result.only_first, result.only_second) == (9, 1)
    assert result.p_value == pytest.approx(2 * (1 + 10) / 2**10)  # the two tails of a fair coin
    assert mcnemar(first, first).p_value == 1.0


def test_welch_raises_a_false_alarm_in_one_comparison_of_twenty() -> None:
    random = np.random.default_rng(0)
    alarms = [welch(a, b).is_significant for a, b in random.normal(size=(1_000, 2, 5))]
    assert 0.03 < np.mean(alarms) < 0.07


def test_equal_scores_have_no_spread_however_their_mean_is_rounded() -> None:
    assert np.var([0.1] * 3, ddof=1) > 0
    assert mean_of([0.1] * 3).interval == (pytest.approx(0.1), pytest.approx(0.1))
    assert mean_of([0.1] * 3).std == 0
    assert welch([0.1] * 3, [0.2] * 3).p_value == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"), [((10.0, 11.0, 12.0), "11 s ± 2.5 s"), ((200.0, 260.0, 320.0), "4 min 20 s ± 2 min 29 s")]
)
def test_a_time_and_its_interval_have_the_same_units(seconds: tuple[float, ...], text: str) -> None:
    score = next(score for score in SCORES if score.key == "train_seconds")
    assert shown(score, mean_of(seconds)) == text
