"""Label errors: which images are disputed, their order, and predictions that were made elsewhere."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastcifar import open_beton
from fastcifar.audit.given_predictions import read_probabilities
from fastcifar.audit.labels import METHODS, doubt_scores, estimate_num_errors, label_issues, require_cleanlab
from fastcifar.data.beton import Beton
from fastcifar.errors import DataError, MissingExtraError

NAMES = ("cat", "dog", "owl")


def noisy(num: int, num_classes: int, share: float = 0.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of a good network, labels of which a share is wrong, and which."""
    random = np.random.default_rng(0)
    true = np.arange(num) % num_classes
    logits = random.normal(size=(num, num_classes))
    logits[np.arange(num), true] += 4
    odds = np.exp(logits)
    wrong = random.random(num) < share
    labels = np.where(wrong, (true + 1) % num_classes, true)
    return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32), labels, wrong


def test_issues_are_the_doubtful_images_the_most_doubtful_first() -> None:
    rows = [[0.9, 0.05, 0.05], [0.3, 0.6, 0.1], [0.01, 0.98, 0.01], [0.1, 0.3, 0.6], [0.1, 0.1, 0.8]]
    issues = label_issues(np.array(rows, np.float32), np.array([0, 0, 0, 2, 2]), NAMES, "test")
    assert [(issue.image.split, issue.image.index, issue.label, issue.suggested) for issue in issues] == [
        ("test", 2, "cat", "dog"),
        ("test", 1, "cat", "dog"),
        ("test", 3, "owl", "dog"),  # classified as labelled, but less probable than on the average of the owls
    ]
    assert [issue.score for issue in issues] == pytest.approx([0.99, 0.7, 0.4], abs=1e-6)
    assert {(issue.kind, issue.action, issue.other) for issue in issues} == {("label", "", None)}


def test_labels_of_equal_probability_are_not_doubtful() -> None:
    labels = np.arange(1_000) % 3
    probabilities = np.eye(3, dtype=np.float32)[labels] * np.float32(0.7) + np.float32(0.1)
    assert label_issues(probabilities, labels, NAMES, "train") == []


@pytest.mark.parametrize("num_classes", [2, 100])
@pytest.mark.parametrize("method", METHODS)
def test_wrong_labels_are_ranked_before_right_ones(num_classes: int, method: str) -> None:
    probabilities, labels, wrong = noisy(4_000, num_classes)
    doubts = doubt_scores(probabilities, labels, method)
    assert doubts.min() >= 0
    assert doubts.max() <= 1
    assert wrong[np.argsort(-doubts)[: wrong.sum()]].mean() > 0.8


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_the_number_of_errors_is_estimated(share: float) -> None:
    probabilities, labels, wrong = noisy(4_000, 10, share)
    assert 0.5 * wrong.sum() < estimate_num_errors(probabilities, labels) < 1.2 * wrong.sum()  # it is cautious


def test_classes_without_images_and_with_three_are_no_error() -> None:
    probabilities, labels, _ = noisy(300, 5, 0.0)
    labels[labels == 4] = 3
    labels[:3] = 2
    assert estimate_num_errors(probabilities, labels) > 0
    assert {issue.suggested for issue in label_issues(probabilities, labels, tuple("abcde"), "train")} >= {"e"}


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    probabilities, labels, _ = noisy(500, 3)
    label_issues(probabilities, labels, NAMES, "train")
    estimate_num_errors(probabilities, labels)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_without_cleanlab_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "cleanlab"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastcifar\[audit\]'"):
        require_cleanlab()


# ---- predictions that were made elsewhere ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def splits(tiny_data: Path) -> dict[str, Beton]:
    return {name: open_beton(tiny_data / f"{name}.beton") for name in ("train", "test")}


def logits_of(beton: Beton) -> np.ndarray:
    logits = np.random.default_rng(1).normal(size=(len(beton), len(beton.class_names))).astype(np.float32)
    logits[np.arange(len(beton)), beton.labels] += 2
    return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True)


def test_files_of_each_form_are_read(splits: dict[str, Beton], tmp_path: Path) -> None:
    logits = {name: logits_of(beton) for name, beton in splits.items()}
    probabilities = {name: softmax(each) for name, each in logits.items()}
    order = np.random.default_rng(0).permutation(40)
    names = list(splits["train"].class_names)
    columns = np.random.default_rng(0).permutation(10)
    np.savez(tmp_path / "both.npz", **probabilities)
    np.savez(tmp_path / "one.npz", pred_probs=probabilities["train"])
    np.savez(tmp_path / "run.npz", logits=logits["test"][order], indices=order, labels=splits["test"].labels[order])
    np.save(tmp_path / "train.npy", logits["train"])
    np.save(tmp_path / "rounded.npy", probabilities["train"] - 1e-8)
    header = ",".join(names[column] for column in columns)
    np.savetxt(tmp_path / "named.csv", probabilities["test"][:, columns], delimiter=",", header=header, comments="")
    np.savetxt(tmp_path / "plain.csv", probabilities["test"], delimiter=",")
    for name, expected in (
        ("both.npz", ["train", "test"]),
        ("one.npz", ["train"]),
        ("run.npz", ["test"]),
        ("train.npy", ["train"]),
        ("rounded.npy", ["train"]),
        ("named.csv", ["test"]),
        ("plain.csv", ["test"]),
    ):
        read = read_probabilities(tmp_path / name, splits)
        assert sorted(read) == sorted(expected), name
        for split in expected:
            assert read[split].dtype == np.float32
            assert np.allclose(read[split], probabilities[split], atol=1e-6), name


def test_names_of_classes_in_a_table_may_be_numbers(splits: dict[str, Beton], tmp_path: Path) -> None:
    numbered = {name: replace(beton, class_names=tuple("0123456789")) for name, beton in splits.items()}
    logits, path = logits_of(splits["test"])[:, ::-1], tmp_path / "a.csv"
    np.savetxt(path, logits, delimiter=",", header="9,8,7,6,5,4,3,2,1,0", comments="")
    assert np.allclose(read_probabilities(path, numbered)["test"], softmax(logits[:, ::-1]), atol=1e-6)
    logits[0] = np.arange(10)[::-1]  # not names: there is a line for each image
    np.savetxt(path, logits, delimiter=",", fmt="%g")
    assert len(read_probabilities(path, numbered)["test"]) == 40


def write(path: Path, content: Any) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif isinstance(content, str):
        path.write_text(content)
    else:
        np.save(path, content)
    return path


ROW = np.full((80, 10), 0.1)
BAD = {
    "other number": (
        "a.npy",
        np.full((60, 10), 0.1),
        r"60 rows; expected one for each image: 80 \(train\), 40 \(test\)",
    ),
    "other classes": ("a.npy", np.full((80, 9), 1 / 9), r"\(80, 9\); expected numbers with 10 columns"),
    "one dimension": ("a.npy", np.zeros(80), "expected numbers with 10 columns"),
    "not finite": ("a.npy", np.where(np.arange(10) == 3, np.nan, ROW), "a value is not finite"),
    "no sum of 1": ("a.npy", ROW * 0.5, "the sum of a row is not 1"),
    "objects": ("a.npy", np.array([[None] * 10] * 80, dtype=object), "pickle|object"),
    "no array of such a name": ("a.npz", {"mine": ROW}, "its arrays are mine; none of train, test"),
    "swapped splits": ("a.npz", {"test": ROW}, "80 rows"),
    "indices twice": ("a.npz", {"logits": ROW, "indices": np.zeros(80, int)}, "its indices are not 0, 1"),
    "other names": ("a.csv", "x," * 9 + "y\n" + ("0.1," * 9 + "0.1\n") * 80, "its columns are x, x"),
    "ragged": ("a.csv", "0.5,0.5\n0.5\n", "different numbers of columns"),
    "text": ("a.csv", ("0.1," * 9 + "0.1\n") * 79 + "a," * 9 + "b\n", "a value is not a number"),
    "empty": ("a.csv", "", "expected numbers with 10 columns"),
    "other file": ("a.txt", "hello", r"neither \.npz, \.npy nor \.csv"),
    "damaged": ("a.npz", b"PK\x03\x04nothing", r"neither"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_file_that_does_not_fit_is_one_line_with_exit_code_4(
    case: str, splits: dict[str, Beton], tmp_path: Path
) -> None:
    name, content, message = BAD[case]
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        read_probabilities(path, splits)
    assert str(caught.value).startswith(f"{path}: not predictions of these images (")
    assert "\n" not in str(caught.value)


def test_predictions_of_other_data_are_refused_and_those_of_these_data_need_no_name(
    splits: dict[str, Beton], tmp_path: Path
) -> None:
    same_size = {"train": splits["test"], "test": replace(splits["test"], sha256="1" * 64)}
    logits = logits_of(splits["test"])

    def of(sha256: str) -> Path:
        np.savez(tmp_path / "predictions.npz", logits=logits, indices=np.arange(40), data_sha256=np.array(sha256))
        return tmp_path / "predictions.npz"

    assert list(read_probabilities(of("1" * 64), same_size)) == ["test"]
    with pytest.raises(DataError, match="it is of other data, of SHA-256 2222222222222222…"):
        read_probabilities(of("2" * 64), same_size)


def test_a_missing_file_is_named(splits: dict[str, Beton], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz: not predictions of these images \(no such file\)"):
        read_probabilities(tmp_path / "none.npz", splits)


def test_predictions_no_better_than_chance_are_a_warning(
    splits: dict[str, Beton], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logits = logits_of(splits["train"])
    shuffled = [np.random.default_rng(seed).permutation(logits) for seed in range(5)]  # some better than 1 in 10
    for number, content in enumerate([logits, np.roll(logits, 1, axis=1), *shuffled]):
        path = write(tmp_path / f"{number}.npy", content)
        with caplog.at_level(logging.WARNING, "fastcifar"):
            read_probabilities(path, splits)
        assert ("is it of these images, in this order?" in caplog.text) == bool(number)
        caplog.clear()
