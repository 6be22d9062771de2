"""Temperature scaling: the fitted temperature, and its file."""

from __future__ import annotations

import importlib
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from fastcifar.inference.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, Calibration, calibrate, fit_temperature
from fastcifar.inference.metrics import compute_metrics
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


def test_a_network_without_mistakes_gets_the_smallest_temperature(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.arange(20) % 4
    predictions = Predictions(np.arange(20), labels, np.eye(4, dtype=np.float32)[labels])
    assert fit_temperature(predictions) == pytest.approx(MIN_TEMPERATURE)
    calibrate(predictions)
    assert "all 20 validation images are classified correctly, so that no temperature fits: with 0.05" in caplog.text
    caplog.clear()
    calibrate(replace(predictions, labels=np.roll(labels, 1)))
    assert caplog.text == ""


@pytest.mark.parametrize("size", [3e4, 1e6, 1e30])
def test_mistakes_of_any_size_get_the_largest_temperature(size: float) -> None:
    predictions = Predictions(np.arange(1), np.ones(1, np.int64), np.array([[size, 0]], np.float32))
    assert fit_temperature(predictions) == pytest.approx(MAX_TEMPERATURE)


def test_small_logits_get_the_best_temperature_and_not_the_bound() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 200)
    logits = (random.normal(size=(200, 10)) + 3 * np.eye(10)[labels]).astype(np.float32) * np.float32(0.3)
    predictions = Predictions(np.arange(200), labels, logits)
    losses = {t: predictions.with_temperature(t).loss for t in np.linspace(MIN_TEMPERATURE, 1, 1_000)}
    assert fit_temperature(predictions) == pytest.approx(min(losses, key=losses.__getitem__), abs=2e-3)


def test_a_saved_calibration_is_read_back(tmp_path: Path) -> None:
    fitted = calibrate(overconfident())
    fitted.save(RunFolder(tmp_path))
    assert Calibration.load(RunFolder(tmp_path)) == fitted


@pytest.mark.parametrize("change", [{"temperature": 0}, {"temperature": "2"}, {"loss": None}, {"other": 1}])
def test_a_damaged_calibration_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    run = RunFolder(tmp_path)
    calibrate(overconfident()).save(run)
    run.calibration.write_text(json.dumps({**json.loads(run.calibration.read_text()), **change}))
    with pytest.raises(ValueError, match="its temperature|its values|its keys are not"):
        Calibration.load(run)


@pytest.mark.slow
def test_temperature_and_calibration_error_are_those_of_netcal() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        netcal = pytest.importorskip("netcal.scaling")
        predictions = overconfident()
        probabilities = torch.from_numpy(predictions.logits).double().softmax(dim=1).numpy()
        theirs = netcal.TemperatureScaling()
        theirs.fit(probabilities, predictions.labels)
        error = importlib.import_module("netcal.metrics").ECE(15).measure(probabilities, predictions.labels)
    assert fit_temperature(predictions) == pytest.approx(1 / float(theirs.temperature[0]), rel=1e-3)
    assert compute_metrics(predictions).ece == pytest.approx(float(error), abs=1e-9)


def test_scaled_logits_stay_finite() -> None:
    predictions = Predictions(np.arange(1), np.zeros(1, np.int64), np.array([[1e38, -1e38]], np.float32))
    scaled = predictions.with_temperature(MIN_TEMPERATURE)
    assert np.isfinite(scaled.logits).all()
    assert (scaled.loss, scaled.confidence[0]) == (0, 1)


def test_a_class_that_is_impossible_for_the_network_does_not_disturb_the_temperature() -> None:
    predictions = overconfident()
    logits = np.concatenate([predictions.logits, np.full((len(predictions), 1), -np.inf, np.float32)], axis=1)
    assert fit_temperature(replace(predictions, logits=logits)) == pytest.approx(fit_temperature(predictions))
