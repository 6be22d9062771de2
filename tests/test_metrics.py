"""Scores against their definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fastcifar.inference.metrics import NUM_BINS, score


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 500)
    logits = random.normal(size=(500, 5)).astype(np.float32)
    logits[np.arange(500), labels] += 1
    return logits, labels


def test_scores_are_those_of_their_definitions(answers: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = answers
    found = score(logits, labels, 5)
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
    assert found.bin_count.sum() == 500
    for b in np.flatnonzero(found.bin_count):
        assert found.bin_accuracy[b] == pytest.approx(right[bins == b].mean())
        assert found.bin_confidence[b] == pytest.approx(confidence[bins == b].mean())


def test_the_most_confused_pairs_come_first(answers: tuple[np.ndarray, np.ndarray]) -> None:
    found = score(*answers, 5)
    pairs = found.most_confused(30)
    counts = [count for _, _, count in pairs]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == found.confusion.sum() - np.trace(found.confusion)
    assert all(true != guess and found.confusion[true, guess] == count for true, guess, count in pairs)


def test_the_facts_are_json_and_a_class_without_images_has_none(answers: tuple[np.ndarray, np.ndarray]) -> None:
    facts = json.loads(json.dumps(score(*answers, 5).facts(("a", "b", "c", "d", "<e>")), allow_nan=False))
    assert facts["classes"]["<e>"] == {
        "precision": 0.0,
        "recall": None,
        "num_images": 0,
    }
    assert facts["num_images"] == 500


def test_the_calibration_error_is_that_of_the_bins_also_for_those_who_are_quite_sure() -> None:
    """torchmetrics gives 7.6%, as if there were sixteen bins."""
    labels = np.concatenate([np.arange(200) < 10, np.zeros(100)]).astype(np.int64)[:200]
    logits = np.zeros((200, 2), np.float32)
    logits[:100, 0], logits[100:, 0] = 40, 3
    labels[100:] = 0
    found = score(logits, labels, 2)
    confidence = np.concatenate([np.ones(100), np.full(100, 1 / (1 + np.exp(-3)))])
    expected = abs(confidence.mean() - 0.95)  # all are in the last bin
    assert found.ece == pytest.approx(expected, abs=1e-9)
    assert found.ece == pytest.approx(
        float(np.abs(found.bin_confidence - found.bin_accuracy) @ found.bin_count) / 200, abs=1e-12
    )


def test_the_calibration_error_is_torchmetrics_where_nobody_is_quite_sure() -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    random = np.random.default_rng(3)
    logits, labels = random.normal(size=(1_000, 5)).astype(np.float32) * 2, random.integers(0, 5, 1_000)
    probabilities = torch.from_numpy(logits).double().softmax(dim=1)
    theirs = multiclass_calibration_error(probabilities, torch.from_numpy(labels), 5, n_bins=15)
    assert score(logits, labels, 5).ece == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("num_classes", [2, 100])
def test_a_sure_and_right_network_has_no_loss(num_classes: int) -> None:
    labels = np.arange(200) % num_classes
    logits = np.where(np.eye(num_classes, dtype=bool)[labels], 1e4, -1e4).astype(np.float32)
    found = score(logits, labels, num_classes)
    assert (found.accuracy, found.loss, found.ece) == (1.0, 0.0, 0.0)
    assert str(found.loss) == "0.0"  # not -0.0
    assert found.most_confused() == []
    assert np.array_equal(found.confusion, np.diag(np.bincount(labels)))
