"""Temperature scaling: the fitted temperature, and its file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from fastcifar.inference.calibration import MIN_TEMPERATURE, Calibration, calibrate, fit_temperature
from fastcifar.inference.predictions import Predictions
from fastcifar.training import RunFolder


def overconfident(factor: float = 3.0, n: int = 2_000) -> Predictions:
    """Predictions whose labels are drawn from the softmax of their logits / `factor`."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(n, 5)).astype(np.float32) * 2
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    return Predictions(np.arange(n), labels, logits * np.float32(factor), weights_sha256="a" * 64)


def test_the_temperature_minimises_the_cross_entropy() -> None:
    predictions = overconfident()
    best = minimize_scalar(lambda t: predictions.with_temperature(t).loss, bounds=(0.1, 10), method="bounded")
    assert fit_temperature(predictions) == pytest.approx(best.x, rel=1e-3)
    assert fit_temperature(predictions) == pytest.approx(3.0, rel=0.1)


def test_calibration_lowers_loss_and_calibration_error_and_keeps_the_classes() -> None:
    predictions = overconfident()
    fitted = calibrate(predictions)
    assert fitted.calibrated_loss < fitted.loss
    assert fitted.calibrated_ece < fitted.ece / 2
    scaled = predictions.with_temperature(fitted.temperature)
    assert np.array_equal(scaled.predicted, predictions.predicted)
    assert scaled.loss == pytest.approx(fitted.calibrated_loss)


def test_a_network_without_mistakes_gets_the_smallest_temperature() -> None:
    labels = np.arange(20) % 4
    predictions = Predictions(np.arange(20), labels, np.eye(4, dtype=np.float32)[labels])
    assert fit_temperature(predictions) == pytest.approx(MIN_TEMPERATURE)


def test_a_saved_calibration_is_read_back(tmp_path: Path) -> None:
    fitted = calibrate(overconfident())
    fitted.save(RunFolder(tmp_path))
    assert Calibration.load(RunFolder(tmp_path)) == fitted


@pytest.mark.parametrize("change", [{"temperature": 0}, {"temperature": "2"}, {"loss": None}, {"other": 1}])
def test_a_damaged_calibration_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    run = RunFolder(tmp_path)
    calibrate(overconfident()).save(run)
    run.calibration.write_text(json.dumps({**json.loads(run.calibration.read_text()), **change}))
    with pytest.raises((ValueError, TypeError)):
        Calibration.load(run)
