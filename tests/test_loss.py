"""The training loss: class weights, label smoothing and mixed labels, against plain arithmetic and torch."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastcifar import make_loader, open_beton
from fastcifar.config import LrRangeTestConfig, TrainConfig
from fastcifar.loaders import Mix
from fastcifar.training import train
from fastcifar.training.distributed import Distributed
from fastcifar.training.loss import balanced_class_weights, class_weights_of, cross_entropy, sum_of_weights
from fastcifar.training.lr_finder import find_lr, run_lr_range_test
from fastcifar.training.optimizer import make_optimizer
from fastcifar.training.progress import SilentReporter
from fastcifar.training.split import hold_out
from fastcifar.training.step import TrainStep
from tests import tiny

Losses = list[tuple[Mix | None, torch.Tensor | None]]
WEIGHTS = torch.tensor([0.5, 2.0, 1.25, 0.0])


def batch(num: int = 12) -> tuple[torch.Tensor, torch.Tensor, Mix]:
    generator = torch.Generator().manual_seed(0)
    labels, partners = torch.randint(0, 3, (2, num), generator=generator)
    own = torch.rand(num, generator=generator)
    return torch.randn(num, 4, generator=generator), labels, Mix(partners, torch.stack([own, 1 - own], dim=1))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_mixed_image_counts_as_two(weights: torch.Tensor | None, smoothing: float) -> None:
    """By the formulas of torch's documentation, number by number."""
    logits, labels, mix = batch()
    total = divisor = 0.0
    for row, own, partner, shares in zip(logits.tolist(), labels, mix.partner_labels, mix.weights, strict=True):
        log_sum = math.log(sum(map(math.exp, row)))
        for label, share in ((int(own), float(shares[0])), (int(partner), float(shares[1]))):
            of_class = [1.0] * 4 if weights is None else weights.tolist()
            nll = [of_class[c] * (log_sum - row[c]) for c in range(4)]
            total += share * ((1 - smoothing) * nll[label] + smoothing * sum(nll) / 4)
            divisor += share * of_class[label]
    got = cross_entropy(logits, labels, mix, class_weights=weights, label_smoothing=smoothing)
    assert float(got) == pytest.approx(total / divisor, rel=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_a_partner_it_is_torchs(weights: torch.Tensor | None, smoothing: float) -> None:
    logits, labels, mix = batch()
    expected = F.cross_entropy(logits, labels, weights, label_smoothing=smoothing)
    assert cross_entropy(logits, labels, class_weights=weights, label_smoothing=smoothing) == expected
    alone = mix._replace(weights=torch.tensor([[1.0, 0.0]]).expand(12, 2))
    got = cross_entropy(logits, labels, alone, class_weights=weights, label_smoothing=smoothing)
    assert torch.allclose(got, expected)
    if weights is None:
        soft = sum(F.one_hot(each, 4) * share[:, None] for each, share in zip((labels, mix[0]), mix[1].T, strict=True))
        expected = F.cross_entropy(logits, soft, label_smoothing=smoothing)
        assert torch.allclose(cross_entropy(logits, labels, mix, label_smoothing=smoothing), expected)


@pytest.mark.parametrize("mixes", [False, True])
def test_processes_divide_by_the_class_weights_of_the_whole_batch(mixes: bool) -> None:
    images, labels, mix = batch()
    config = TrainConfig.from_settings(lr=1.0, momentum=0.0, nesterov=False, weight_decay=0.0, label_smoothing=0.1)
    initial = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))

    def step(part: slice, distributed: Distributed | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss and the new weights."""
        network = torch.nn.Linear(4, 4, bias=False)
        network.weight.data.copy_(initial)
        train_step = TrainStep(network, network, make_optimizer(network, config), config, "off", WEIGHTS, distributed)
        loss, _ = train_step(images[part], labels[part], Mix(*(each[part] for each in mix)) if mixes else None)
        return loss, network.weight.detach()

    parts = slice(0, 6), slice(6, 12)
    sums = [
        sum_of_weights(labels[part], Mix(*(each[part] for each in mix)) if mixes else None, WEIGHTS) for part in parts
    ]
    assert sums[0] != sums[1]

    class Two(Distributed):
        def mean(self, value: torch.Tensor) -> torch.Tensor:
            assert value in sums
            return sum(sums, torch.tensor(0.0)) / 2

    for of_whole, *of_parts in zip(step(slice(None)), *(step(part, Two(0, 2)) for part in parts), strict=True):
        torch.testing.assert_close(torch.stack(of_parts).mean(0), of_whole)


def test_class_weights_are_those_of_scikit_learn() -> None:
    labels = [0] * 6 + [1] * 3 + [3]
    assert balanced_class_weights(labels, 5) == pytest.approx([10 / 18, 10 / 9, 0, 10 / 3, 0])
    utils = pytest.importorskip("sklearn.utils")
    expected = utils.compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=np.array(labels))
    assert balanced_class_weights(labels, 5)[[0, 1, 3]] == pytest.approx(expected)


def test_class_weights_count_the_images_trained_on(data_dir: Path) -> None:
    with_all = make_loader(data_dir / "train.beton", batch_size=16)
    labels = with_all.beton.labels
    indices = np.flatnonzero((labels != 4) & (np.arange(600) % 2 > 0) | (labels == 2))
    loader = make_loader(data_dir / "train.beton", batch_size=16, indices=indices)
    weights = class_weights_of("balanced", loader)
    assert weights is not None
    assert weights.numpy() == pytest.approx(balanced_class_weights(labels[indices], 10))
    assert weights[4] == 0
    assert class_weights_of("none", loader) is None
    for each in (loader, with_all):
        each.close()


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Losses:
    """The partners and class weights of each training loss that is computed."""
    calls: Losses = []

    def spy(logits: torch.Tensor, labels: torch.Tensor, mix: Mix | None = None, **more: Any) -> torch.Tensor:
        calls.append((mix, more.get("class_weights")))
        return cross_entropy(logits, labels, mix, **more)

    for module in ("step", "lr_finder"):
        monkeypatch.setattr(f"fastcifar.training.{module}.cross_entropy", spy)
    return calls


def test_training_uses_mixed_labels_and_class_weights(tiny_data: Path, tmp_path: Path, losses: Losses) -> None:
    config = tiny.tiny(tiny_data, mixup=0.4, class_weights="balanced", val_size=11, max_steps=2)
    train(config, runs_dir=tmp_path)
    labels = open_beton(tiny_data / "train.beton").labels
    expected = balanced_class_weights(labels[hold_out(labels, 10, 11, 0)[0]], 10)
    for mix, weights in losses:
        assert mix is not None
        assert weights is not None
        assert weights.numpy() == pytest.approx(expected)
    assert len(losses) == 2
    losses.clear()
    train(tiny.tiny(tiny_data, max_steps=1), runs_dir=tmp_path)
    assert losses == [(None, None)]


def test_the_range_test_uses_mixed_labels_and_class_weights(tiny_data: Path, losses: Losses) -> None:
    config, network = tiny.tiny(tiny_data, mixup=0.4, class_weights="balanced"), tiny.network(10)
    test = LrRangeTestConfig(num_steps=2, end_lr=1.0)
    with closing(make_loader(tiny_data / "train.beton", config.augment, batch_size=40)) as loader:
        run_lr_range_test(config, network, loader, test, SilentReporter())
        find_lr(network, torch.optim.SGD(network.parameters(), lr=0.1), loader, test=test)
    assert [(mix is None, weights is None) for mix, weights in losses] == [(False, False)] * 2 + [(False, True)] * 2
