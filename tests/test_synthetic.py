"""On the synthetic images a convolutional network makes a few mistakes, and a linear model many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastcifar import recipes
from fastcifar.converters import convert
from fastcifar.converters.synthetic import SyntheticSplit
from fastcifar.converters.synthetic import source as synthetic_source
from fastcifar.training import train

pytestmark = [pytest.mark.slow, pytest.mark.full_size]


def test_the_demo_classifies_most_images_correctly_but_not_all(tmp_path: Path) -> None:
    with synthetic_source() as source:
        convert(source, tmp_path / "data")
    config = recipes.load("shapes").config.with_settings(data_dir=str(tmp_path / "data"))
    _, metrics = train(config, runs_dir=tmp_path / "runs")
    assert 0.9 < metrics["test_accuracy"] < 0.98


def test_a_linear_model_stays_under_60_percent() -> None:
    def load(num: int, stream: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels, *_ = zip(*SyntheticSplit(num, 0, stream), strict=True)
        return torch.from_numpy(np.stack(images)).flatten(1).float() / 127.5 - 1, torch.tensor(labels)

    (images, labels), (test_images, test_labels) = load(20_000, 0), load(4_000, 1)
    torch.manual_seed(0)
    best = 0.0
    for decay in (1e-4, 1e-2):
        model = torch.nn.Linear(3_072, 10)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=decay)
        for _ in range(10):
            for rows in torch.randperm(len(images)).split(200):
                loss = F.cross_entropy(model(images[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            accuracy = (model(test_images).argmax(1) == test_labels).float().mean().item()
            best = max(best, accuracy)
    assert 0.1 < best < 0.6
