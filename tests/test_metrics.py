"""Metrics and predictions against their definitions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcifar.inference.metrics import NUM_BINS, Metrics, compute_metrics, wilson_interval
from fastcifar.inference.predictions import Predictions
from fastcifar.io import reading


def metrics_of(logits: np.ndarray, labels: np.ndarray) -> Metrics:
    return compute_metrics(Predictions(np.arange(len(labels)), labels, logits))


@pytest.fixture
def logits_and_labels() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 500)
    logits = random.normal(size=(500, 5)).astype(np.float32)
    logits[np.arange(500), labels] += 1
    return logits, labels


def test_of_very_many_classes_there_is_no_matrix() -> None:
    num_classes = 60_000
    logits = np.zeros((5, num_classes), np.float32)
    logits[range(5), [7, 7, 7, 59_999, 0]] = 1
    found = metrics_of(logits, np.array([7, 9, 9, 0, 59_999]))
    assert found.most_confused() == [(9, 7, 2), (0, 59_999, 1), (59_999, 0, 1)]
    written = found.to_dict([str(i) for i in range(num_classes)])
    assert "confusion" not in written
    assert written["most_confused"][0] == {"true": "9", "predicted": "7", "num_images": 2}


def test_metrics_match_their_definitions(logits_and_labels: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = logits_and_labels
    found = metrics_of(logits, labels)
    double = logits.astype(np.float64)
    shares = np.exp(double) / np.exp(double).sum(axis=1, keepdims=True)
    guesses = logits.argmax(axis=1)
    assert found.accuracy == pytest.approx((guesses == labels).mean())
    assert found.loss == pytest.approx(-np.log(shares[np.arange(500), labels]).mean(), rel=1e-6)
    for c in range(5):
        assert found.confusion[c].tolist() == [int(((labels == c) & (guesses == g)).sum()) for g in range(5)]
        assert found.precision[c] == pytest.approx(((guesses == c) & (labels == c)).sum() / (guesses == c).sum())
        if c < 4:
            assert found.recall[c] == pytest.approx(((guesses == c) & (labels == c)).sum() / (labels == c).sum())
    assert np.isnan(found.recall[4])  # no image is of it
    confidence, right = shares.max(axis=1), guesses == labels
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = [
        abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean()
        for b in range(NUM_BINS)
        if (bins == b).any()
    ]
    assert found.ece == pytest.approx(sum(gaps), abs=1e-6)
    bin_confidence, bin_accuracy, bin_count = found.bins
    assert bin_count.sum() == 500
    for b in np.flatnonzero(bin_count):
        assert bin_accuracy[b] == pytest.approx(right[bins == b].mean())
        assert bin_confidence[b] == pytest.approx(confidence[bins == b].mean())


def test_the_most_confused_pairs_come_first(logits_and_labels: tuple[np.ndarray, np.ndarray]) -> None:
    found = metrics_of(*logits_and_labels)
    pairs = found.most_confused(30)
    counts = [count for _, _, count in pairs]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == found.confusion.sum() - np.trace(found.confusion)
    assert all(true != guess and found.confusion[true, guess] == count for true, guess, count in pairs)


def test_metrics_as_json_have_no_recall_for_a_class_without_images(
    logits_and_labels: tuple[np.ndarray, np.ndarray],
) -> None:
    found = json.loads(json.dumps(metrics_of(*logits_and_labels).to_dict(("a", "b", "c", "d", "<e>")), allow_nan=False))
    assert found["classes"]["<e>"] == {
        "precision": 0.0,
        "recall": None,
        "f1": 0.0,  # some image is predicted as it
        "num_images": 0,
    }
    assert found["num_images"] == 500


def test_a_confidence_of_one_belongs_to_the_last_calibration_bin() -> None:
    """torchmetrics gives 7.6%, as if there were sixteen bins."""
    labels = np.concatenate([np.arange(200) < 10, np.zeros(100)]).astype(np.int64)[:200]
    logits = np.zeros((200, 2), np.float32)
    logits[:100, 0], logits[100:, 0] = 40, 3
    labels[100:] = 0
    found = metrics_of(logits, labels)
    confidence = np.concatenate([np.ones(100), np.full(100, 1 / (1 + np.exp(-3)))])
    expected = abs(confidence.mean() - 0.95)  # all are in the last bin
    assert found.ece == pytest.approx(expected, abs=1e-9)
    bin_confidence, bin_accuracy, bin_count = found.bins
    assert found.ece == pytest.approx(float(np.abs(bin_confidence - bin_accuracy) @ bin_count) / 200, abs=1e-12)


def test_the_calibration_error_matches_torchmetrics_below_a_confidence_of_one() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    random = np.random.default_rng(3)
    logits, labels = random.normal(size=(1_000, 5)).astype(np.float32) * 2, random.integers(0, 5, 1_000)
    probabilities = torch.from_numpy(logits).double().softmax(dim=1)
    theirs = multiclass_calibration_error(probabilities, torch.from_numpy(labels), 5, n_bins=15)
    assert metrics_of(logits, labels).ece == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("num_classes", [2, 100])
def test_a_certain_and_correct_network_has_loss_zero(num_classes: int) -> None:
    labels = np.arange(200) % num_classes
    logits = np.where(np.eye(num_classes, dtype=bool)[labels], 1e4, -1e4).astype(np.float32)
    found = metrics_of(logits, labels)
    assert (found.accuracy, found.loss, found.ece) == (1.0, 0.0, 0.0)
    assert str(found.loss) == "0.0"  # not -0.0
    assert found.most_confused() == []
    assert np.array_equal(found.confusion, np.diag(np.bincount(labels)))


def test_predictions_of_unlabelled_images_have_no_loss() -> None:
    logits = np.array([[2, 0], [0, 1], [3, 0]], np.float32)
    predictions = Predictions(np.full(3, -1), np.array([0, 0, -1]), logits)
    assert predictions.predicted.tolist() == [0, 1, 0]
    assert predictions.is_correct.tolist() == [True, False, False]
    expected = -np.log(np.exp([2, 0]) / (np.exp([2, 0]) + np.exp([0, 1])))
    np.testing.assert_allclose(predictions.losses, [*expected, np.nan])
    assert predictions.loss == pytest.approx(expected.mean())
    one = predictions.select(np.array([1]))
    assert (len(one), one.predicted.tolist(), one.losses[0]) == (1, [1], predictions.losses[1])


def test_a_loss_of_logits_that_are_not_finite_is_nan() -> None:
    assert np.isnan(Predictions(np.arange(1), np.arange(1), np.array([[np.nan, 0]], np.float32)).loss)


def test_predictions_are_loaded_as_they_were_saved(tmp_path: Path, logits_and_labels: tuple[np.ndarray, ...]) -> None:
    logits, labels = logits_and_labels
    Predictions(np.arange(500), labels, logits, "a", "b").save(tmp_path / "predictions.npz")
    found = Predictions.load(tmp_path / "predictions.npz")
    assert (found.weights_sha256, found.data_sha256) == ("a", "b")
    assert np.array_equal(found.logits, logits)
    assert np.array_equal(found.labels, labels)
    assert np.array_equal(found.indices, np.arange(500))


def test_predictions_of_any_size_that_memory_holds_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, logits = tmp_path / "predictions.npz", np.zeros((1, 2**27 + 1), np.float32)
    Predictions(np.arange(1), np.zeros(1, np.int64), logits).save(path)
    assert path.stat().st_size < 2**20  # compressed
    assert Predictions.load(path).logits.shape == logits.shape
    monkeypatch.setattr(reading, "free_memory", lambda: 2**30)
    with pytest.raises(ValueError, match="its arrays have 512.0 MiB; expected at most 512"):
        Predictions.load(path)


def test_scores_match_scikit_learn(logits_and_labels: tuple[np.ndarray, np.ndarray]) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    logits, labels = logits_and_labels
    wide = np.concatenate(
        [logits, logits[:, ::-1] - 0.5, np.full((500, 1), -9, np.float32)], axis=1
    )  # one class without
    for found, guess in ((metrics_of(each, labels), each.argmax(axis=1)) for each in (logits, wide)):
        assert found.macro_f1 == pytest.approx(sklearn.f1_score(labels, guess, average="macro"))
        with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
            assert found.balanced_accuracy == pytest.approx(sklearn.balanced_accuracy_score(labels, guess))
        per_class = sklearn.f1_score(labels, guess, average=None, labels=range(len(found.f1)), zero_division=np.nan)
        np.testing.assert_allclose(found.f1, per_class)
    expected = sklearn.top_k_accuracy_score(labels, wide, k=5, labels=range(11))
    assert metrics_of(wide, labels).top5_accuracy == pytest.approx(expected)
    assert metrics_of(logits, labels).top5_accuracy is None
    assert np.isnan(metrics_of(wide, labels).f1[10])


def test_scores_match_torchmetrics() -> None:
    from torchmetrics.functional import classification as theirs

    random = np.random.default_rng(1)
    logits, labels = random.normal(size=(400, 8)).astype(np.float32), random.integers(0, 8, 400)
    found, tensors = metrics_of(logits, labels), (torch.from_numpy(logits), torch.from_numpy(labels), 8)
    assert found.macro_f1 == pytest.approx(float(theirs.multiclass_f1_score(*tensors, average="macro")))
    assert found.balanced_accuracy == pytest.approx(float(theirs.multiclass_accuracy(*tensors, average="macro")))
    top5 = theirs.multiclass_accuracy(*tensors, average="micro", top_k=5)
    assert found.top5_accuracy == pytest.approx(float(top5))


def test_of_equal_logits_the_first_classes_are_the_top_five() -> None:
    found = metrics_of(np.zeros((4, 8), np.float32), np.array([0, 1, 4, 5]))
    assert found.top5_accuracy == 3 / 4
    assert found.accuracy == 1 / 4


def test_the_interval_is_that_of_the_accuracy() -> None:
    labels = np.zeros(200, np.int64)
    logits = np.where(np.arange(200)[:, None] < 150, [[1, 0]], [[0, 1]]).astype(np.float32)
    low, high = metrics_of(logits, labels).interval
    assert (low, high) == wilson_interval(150, 200)
    assert (low, high) == (pytest.approx(0.6857, abs=1e-4), pytest.approx(0.8049, abs=1e-4))


def test_scores_do_not_need_a_confusion_matrix_of_many_classes() -> None:
    """Of 65,536 classes it has 32 GiB."""
    found = metrics_of(np.zeros((2, 65_536), np.float32), np.array([0, 65_535]))
    assert found.scores()["accuracy"] == 0.5
    assert found.macro_f1 == pytest.approx((2 / 3) / 2)
