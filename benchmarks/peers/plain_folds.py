"""Out-of-fold probabilities as a tutorial of cleanlab would make them: torchvision's ResNet-18 (see `plain_training`),
Albumentations in a torch DataLoader, SGD with one cycle, for as many steps as fit into a given time.

Run as a program: plain_folds ARRAYS.npz SECONDS DEVICE OUT.npy: arrays images (N, H, W, 3) uint8, labels, folds (N,),
mean, std; trains one network for each fold, SECONDS each, and writes the probabilities (N, C) float32. A fold that was
finished is kept next to OUT.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from benchmarks.peers.plain_training import network_of, pipeline_of
from benchmarks.peers.torchvision_transforms import Images
from fastcifar.config import AugmentConfig, TrainConfig
from fastcifar.training.device import autocast, choose_amp, keep_freed_memory

BATCH_SIZE, LR = 128, 0.1
WARM_UP, TIMED = 3, 8
"""Steps that measure the pace; those before them are not timed."""


def forever(batches: Any) -> Iterator[Any]:
    while True:
        yield from batches


def train_fold(arrays: Any, fold: int, seconds: float, device: torch.device) -> np.ndarray:
    """The probabilities of the images of `fold` by a network that is trained on the others."""
    from torch.optim import lr_scheduler

    torch.manual_seed(fold)
    images, labels, folds = arrays["images"], arrays["labels"], arrays["folds"]
    side, mean, std = images.shape[1], arrays["mean"], arrays["std"]
    changed = pipeline_of(AugmentConfig(), side, mean, std)
    trained = Subset(Images(images, labels, changed), np.flatnonzero(folds != fold))
    workers = torch.get_num_threads()
    batch_size = min(BATCH_SIZE, len(trained))
    batches = DataLoader(
        trained, batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True
    )
    amp = choose_amp(device, "auto")

    def start(steps: int) -> Any:
        network = network_of(TrainConfig(), int(labels.max()) + 1).to(device=device, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
        return network.train(), optimizer, lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)

    def run(steps: int, timed: int, network: nn.Module, optimizer: Any, scheduler: Any) -> float:
        """Train; the seconds of all steps but the first `timed`."""
        began = time.perf_counter()
        for step, (x, y) in enumerate(forever(batches)):
            if step == timed:
                began = time.perf_counter()
            if step == steps:
                break
            with autocast(device, amp):
                logits = network(x.to(device, memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(logits.float(), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        return time.perf_counter() - began

    pace = run(WARM_UP + TIMED, WARM_UP, *start(WARM_UP + TIMED + 1)) / TIMED
    steps = max(round(seconds / pace), 10)
    network, optimizer, scheduler = start(steps)
    took = run(steps, 0, network, optimizer, scheduler)
    print(f"fold {fold + 1}: {steps} steps of {batch_size}, {took:.0f} s", file=sys.stderr, flush=True)
    network.eval()
    plain = Images(images, labels, pipeline_of(None, side, mean, std))
    parts = []
    with torch.inference_mode():
        for x, _ in DataLoader(Subset(plain, np.flatnonzero(folds == fold)), 500):
            with autocast(device, amp):
                logits = network(x.to(device, memory_format=torch.channels_last))
            parts.append(logits.float().softmax(1).cpu().numpy())
    return np.concatenate(parts)


def main(path: str, seconds: str, device: str, out: str) -> None:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    if device == "cpu":
        keep_freed_memory()
    with np.load(path) as file:
        arrays = dict(file)
    folds = arrays["folds"]
    probabilities = np.zeros((len(folds), int(arrays["labels"].max()) + 1), np.float32)
    for fold in range(int(folds.max()) + 1):
        kept = Path(out).with_suffix(f".{fold}.npy")
        if not kept.is_file():
            made = train_fold(arrays, fold, float(seconds), torch.device(device))
            with kept.with_suffix(".partial").open("wb") as file:
                np.save(file, made)
            kept.with_suffix(".partial").rename(kept)
        probabilities[folds == fold] = np.load(kept)
    np.save(out, probabilities)
    print(json.dumps({"out": out}))


if __name__ == "__main__":
    main(*sys.argv[1:])
