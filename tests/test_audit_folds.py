"""Out-of-fold probabilities: who is held out, what is trained, what a kill leaves."""

from __future__ import annotations

import logging
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import softmax

from fastcifar import open_beton, recipes
from fastcifar.audit import folds as folds_module
from fastcifar.audit.assign_folds import assign_folds, require_folds, single_fold_classes, train_indices
from fastcifar.audit.folds import TEST, OutOfFold, fold_config, out_of_fold
from fastcifar.audit.issues import Image, Pair
from fastcifar.data.beton import Beton
from fastcifar.errors import DataError, FastcifarError, Stopped, UsageError
from fastcifar.inference.calibration import fit_temperature
from fastcifar.inference.predictions import Predictions
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.io.locks import lock_folder
from fastcifar.training import train
from tests.kills import changes_in
from tests.tiny import NETWORK, Interrupts, tiny

Splits = dict[str, Beton]


def pair(first: int, second: int, exact: bool = False, split: str = "train") -> Pair:
    return Pair(
        first=Image(split="train", index=first), second=Image(split=split, index=second), score=0.9, exact=exact
    )


def counts(labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    table = np.zeros((labels.max() + 1, folds.max() + 1), int)
    np.add.at(table, (labels, folds), 1)
    return table


# ---- which fold --------------------------------------------------------------------------------------------------


def test_a_fold_without_an_image_is_refused() -> None:
    copies = [pair(first, second, exact=True) for first in range(3) for second in range(first + 3, 60, 3)]
    labels = np.arange(60) // 3 % 2
    assert np.bincount(assign_folds(labels, copies, 3, 0)).tolist() == [20, 20, 20]
    with pytest.raises(UsageError, match="folds is 4; expected at most 3: the training images without duplicates"):
        assign_folds(labels, copies, 4, 0)


def test_folds_have_the_same_share_of_each_class() -> None:
    labels = np.random.default_rng(0).choice(5, 1_003, p=[0.5, 0.3, 0.1, 0.07, 0.03])
    folds = assign_folds(labels, [], 4, 0)
    table = counts(labels, folds)
    assert (table.max(axis=1) - table.min(axis=1)).max() <= 1
    assert np.ptp(table.sum(axis=0)) <= 5
    assert not np.array_equal(folds, assign_folds(labels, [], 4, 1))
    assert np.array_equal(folds, assign_folds(labels, [], 4, 0))
    assert np.corrcoef(np.arange(1_003), folds)[0, 1] < 0.1  # not in the order of the file


def test_duplicates_are_in_one_fold_also_over_several_pairs_and_two_classes() -> None:
    labels = np.arange(400) % 4
    pairs = [pair(0, 1), pair(1, 17), pair(40, 44), *(pair(100, other, exact=True) for other in range(101, 180))]
    folds = assign_folds(labels, [*pairs, pair(2, 3, split="test")], 4, 0)
    assert folds[0] == folds[1] == folds[17]
    assert folds[40] == folds[44]
    assert len(set(folds[100:180])) == 1  # exact: however many
    assert np.bincount(folds).tolist() == [100] * 4


def test_pairs_that_are_only_alike_do_not_join_everything() -> None:
    labels = np.arange(400) % 4
    chain = [pair(first, first + 1) for first in range(399)]
    assert np.ptp(np.bincount(assign_folds(labels, chain, 4, 0))) <= 10


def test_a_class_with_fewer_images_than_folds_is_in_each_training() -> None:
    labels = np.array([0] * 40 + [1] * 3 + [2] * 2)
    folds = assign_folds(labels, [pair(43, 44)], 4, 0)
    assert len(set(folds[40:43])) == 3
    assert single_fold_classes(labels, folds).tolist() == [False, False, True]
    for fold in range(4):
        trained = train_indices(labels, folds, fold)
        assert set(labels[trained]) == {0, 1, 2}
        assert {43, 44} <= set(trained.tolist())  # nothing else says what class 2 is
        assert not set(trained.tolist()) & set(np.flatnonzero((folds == fold) & (labels < 2)).tolist())


@pytest.mark.parametrize(
    ("num", "folds", "message"),
    [
        (100, 1, r"folds is 1; expected 2\.\.20"),
        (100, 21, r"folds is 21; expected 2\.\.20"),
        (10, 6, "expected at most 5 for 10 training images"),
    ],
)
def test_numbers_of_folds_that_do_not_work(num: int, folds: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        require_folds(num, folds)


# ---- settings ----------------------------------------------------------------------------------------------------


def test_few_images_have_more_epochs_and_large_ones_smaller_batches(tiny_data: Path) -> None:
    beton = open_beton(tiny_data / "train.beton")

    def settings(num: int, side: int, recipe: str | None = None) -> tuple[int, int, tuple[tuple[int, float], ...]]:
        like = replace(beton, offsets=np.zeros(num, np.int64), image_shape=(side, side, 3))
        config = fold_config(like, recipe, folds=4, seed=0, device="cpu", data_dir="data")
        assert config.data.val_size == 0
        return config.batch_size, config.epochs, config.progressive

    assert settings(50_000, 32) == (1_000, folds_module.EPOCHS, ((24, 0.5),))
    assert settings(80, 32) == (7, 25, ((24, 0.5),))
    batch, epochs, progressive = settings(5_000, 224)
    assert batch < 50
    assert epochs == folds_module.EPOCHS
    assert progressive == ((168, 0.5),)
    assert settings(50_000, 32, "step-l2")[1] == recipes.load("step-l2").config.epochs != folds_module.EPOCHS


# ---- trainings ---------------------------------------------------------------------------------------------------


@pytest.fixture
def splits(tiny_data: Path) -> Splits:
    return {name: open_beton(tiny_data / f"{name}.beton", in_memory=True) for name in ("train", "test")}


def audit(splits: Splits, data: Path, out: Path, folds: int = 2, **more: object) -> OutOfFold:
    config = tiny(data, batch_size=20, epochs=1, val_size=0, device="cpu")
    reporter = more.pop("reporter", None)
    return out_of_fold(splits, [pair(0, 1)], config.with_settings(**more), folds=folds, out=out, reporter=reporter)  # type: ignore[arg-type]


def test_each_image_is_predicted_by_the_network_that_did_not_see_it(
    splits: Splits, tiny_data: Path, tmp_path: Path
) -> None:
    result = audit(splits, tiny_data, tmp_path, tta="flip")
    assert result.train.shape == (80, 10)
    assert result.train.dtype == np.float32
    assert result.test is not None
    assert result.test.shape == (40, 10)
    assert np.abs(result.train.sum(axis=1) - 1).max() < 1e-5
    assert result.folds[0] == result.folds[1]
    of_test = []
    for fold, run in enumerate(result.runs):
        held_out = np.flatnonzero(result.folds == fold)
        again = TrainedRun(run, data_dir=tiny_data, device="cpu", trusted=NETWORK).predict_beton(
            splits["train"], held_out, tta="flip"
        )
        logits = again.logits / fit_temperature(again)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        assert np.allclose(result.train[held_out], odds / odds.sum(axis=1, keepdims=True), atol=1e-5)
        of_test.append(softmax(Predictions.load(run.path / TEST).logits / fit_temperature(again), axis=1))
        assert f"{80 - len(held_out)} training images, 0 validation images" in run.log.read_text()
        assert not run.has_checkpoint
    assert np.allclose(result.test, np.mean(of_test, axis=0), atol=1e-5)
    assert not (tmp_path / "folds" / "fold-3").exists()


def test_the_held_out_images_have_no_effect_on_their_network(splits: Splits, tiny_data: Path, tmp_path: Path) -> None:
    first = audit(splits, tiny_data, tmp_path / "a", deterministic=True)
    labels = splits["train"].labels.copy()
    held_out = np.flatnonzero(first.folds == 0)
    same_class = held_out[labels[held_out] == labels[held_out[0]]]
    other_class = held_out[labels[held_out] != labels[held_out[0]]]
    labels[[same_class[0], other_class[0]]] = labels[[other_class[0], same_class[0]]]
    changed = {**splits, "train": replace(splits["train"], labels=labels)}
    config = tiny(tiny_data, batch_size=20, epochs=1, val_size=0, device="cpu", deterministic=True)
    runs = [
        train(config, runs_dir=tmp_path, name=name, betons=[each["train"], each["test"]], test=False,
              indices=train_indices(splits["train"].labels, first.folds, 0))[0]
        for name, each in (("b", splits), ("c", changed))
    ]  # fmt: skip
    weights = [load_file(run.best) for run in (first.runs[0], *runs)]
    for other in weights[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in weights[0].items())


def test_without_a_test_split_there_are_no_test_probabilities(splits: Splits, tiny_data: Path, tmp_path: Path) -> None:
    assert audit({"train": splits["train"]}, tiny_data, tmp_path).test is None


def test_the_log_says_how_long_the_other_folds_take_and_advises_no_other_rate(
    splits: Splits, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fastcifar")
    audit(splits, tiny_data, tmp_path, epochs=11, lr=50.0, label_smoothing=0.1)
    assert re.search(r"fold 1 of 2: done in \d+ s; about \d+ s for the other 1\n", caplog.text)
    assert re.search(r"fold 2 of 2: done in \d+ s\n", caplog.text)
    assert "epoch 11/11" in caplog.text
    assert "uniform guess" not in caplog.text


def test_a_signal_stops_and_the_same_call_continues_with_the_same_result(
    splits: Splits, tiny_data: Path, tmp_path: Path
) -> None:
    more = {"deterministic": True, "epochs": 2}
    whole = audit(splits, tiny_data, tmp_path / "whole", **more)
    with pytest.raises(Stopped, match=r"saved in .*fold-2; the same command continues there"):
        audit(splits, tiny_data, tmp_path / "cut", **more, reporter=_InFold(2, 3, signal.SIGINT))
    first, second = (tmp_path / "cut" / "folds" / name for name in ("fold-1", "fold-2"))
    at = first.joinpath("weights/best.safetensors").stat().st_mtime_ns
    steps = _Steps()
    resumed = audit(splits, tiny_data, tmp_path / "cut", **more, reporter=steps)
    assert np.array_equal(whole.train, resumed.train)
    assert whole.test is not None
    assert np.array_equal(whole.test, resumed.test)
    assert first.joinpath("weights/best.safetensors").stat().st_mtime_ns == at
    assert steps.steps == [4]  # of the fold that was begun, the last
    assert "resumed" in (second / "log.txt").read_text()


class _Steps(Interrupts):
    """Counts steps."""

    def __init__(self) -> None:
        super().__init__(-1, signal.SIGINT)
        self.steps: list[int] = []

    def step(self, step: int, loss: float, remaining_s: float) -> None:
        self.steps.append(step)


class _InFold(Interrupts):
    """Sends a signal at one step of one fold."""

    def __init__(self, fold: int, at_step: int, signum: int) -> None:
        super().__init__(at_step, signum)
        self.fold, self.active = fold, False

    def begin(self, name: str, total: int) -> None:
        self.active = name.startswith(f"fold {self.fold}/")

    def step(self, step: int, loss: float, remaining_s: float) -> None:
        if self.active:
            super().step(step, loss, remaining_s)


def test_finished_folds_are_read_and_those_of_other_data_or_settings_replaced(
    splits: Splits, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result, steps = audit(splits, tiny_data, tmp_path), _Steps()
    again = audit(splits, tiny_data, tmp_path, reporter=steps)
    assert not steps.steps
    assert np.array_equal(result.train, again.train)
    (tmp_path / "folds" / "fold-1" / "held_out.npz").write_bytes(b"x")
    repaired = audit(splits, tiny_data, tmp_path, reporter=steps)  # from the weights
    assert not steps.steps
    assert np.array_equal(result.train, repaired.train)
    with caplog.at_level(logging.WARNING, "fastcifar"):
        audit(splits, tiny_data, tmp_path, seed=1, reporter=steps)
    assert "2 trainings of other data, folds or settings are replaced" in caplog.text
    assert len(steps.steps) > 2


def test_trainings_on_other_labels_of_the_same_beton_are_others(splits: Splits, tiny_data: Path) -> None:
    changed = {**splits, "train": replace(splits["train"], labels=splits["train"].labels[::-1].copy())}
    keys = [folds_module._key(each, np.arange(80) % 2, tiny(tiny_data)) for each in (splits, splits, changed)]
    assert keys[0] == keys[1] != keys[2]


def test_train_does_not_resume_the_run_of_a_fold(splits: Splits, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        audit(splits, tiny_data, tmp_path, reporter=_InFold(1, 1, signal.SIGINT))
    from fastcifar.training import RunFolder

    run = RunFolder(tmp_path / "folds" / "fold-1")
    with pytest.raises(DataError, match=r"was trained on other images of train\.beton than these; resume it with the"):
        train(run.read_config(), resume=run)


def test_indices_with_a_validation_set_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="val_size is None with indices; expected 0"):
        train(tiny(tiny_data), runs_dir=tmp_path, indices=np.arange(50))


def test_a_second_audit_of_the_same_folder_waits_for_no_one(splits: Splits, tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "folds").mkdir()
    with lock_folder(tmp_path / "folds"), pytest.raises(FastcifarError, match="another process is auditing"):
        audit(splits, tiny_data, tmp_path)


def test_the_only_image_of_a_class_is_not_judged(
    splits: Splits, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = splits["train"].labels.copy()
    labels[labels == 3] = 4
    labels[5] = 3
    with caplog.at_level(logging.WARNING, "fastcifar"):
        result = audit({**splits, "train": replace(splits["train"], labels=labels)}, tiny_data, tmp_path)
    name = splits["train"].class_names[3]
    assert f"not judged, as there is one image of the class, or duplicates of one: {name}" in caplog.text
    assert result.train[5].tolist() == np.eye(10)[3].tolist()


@pytest.mark.slow
def test_an_audit_killed_at_any_change_of_its_folder_ends_with_the_same_probabilities(
    splits: Splits, tiny_data: Path, tmp_path: Path
) -> None:
    more = {"deterministic": True}
    with changes_in(tmp_path / "whole") as changes:
        whole = audit(splits, tiny_data, tmp_path / "whole", **more)
    assert len(changes.seen) > 30
    for fatal in range(0, len(changes.seen), 3):
        out = tmp_path / f"killed-{fatal}"
        with changes_in(out, fatal) as killed:
            audit(splits, tiny_data, out, **more)
        assert killed.died
        resumed = audit(splits, tiny_data, out, **more)
        assert np.array_equal(whole.train, resumed.train), changes.seen[fatal]
        assert whole.test is not None
        assert np.array_equal(whole.test, resumed.test), changes.seen[fatal]
