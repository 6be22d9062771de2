"""A recipe as a tutorial would write it: torchvision's ResNet-18 adapted to small images, Albumentations in a torch
DataLoader, optimiser and schedule of torch, a loop. Nothing of fastcifar's loaders, models or training is in it.

Only its arithmetic is ours (bf16 autocast, channels_last, an allocator that keeps freed memory): float32 would take
three times as long. Run as a program: plain_training CONFIG_JSON DATA_DIR DEVICE; prints a JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from benchmarks.peers.torchvision_transforms import Images
from fastcifar import open_beton
from fastcifar.config import AugmentConfig, TrainConfig
from fastcifar.training.device import autocast, choose_amp, keep_freed_memory

VAL_SHARE = 0.1


def pipeline_of(augment: AugmentConfig | None, side: int, mean: np.ndarray, std: np.ndarray) -> Any:
    """The augmentation of a recipe as operations of Albumentations, then normalisation; None: normalisation alone."""
    import albumentations
    import cv2
    from albumentations.pytorch import ToTensorV2

    cv2.setNumThreads(0)
    steps: list[Any] = []
    if augment is not None:
        if augment.crop_padding:
            steps += [albumentations.Pad(augment.crop_padding, fill=0, p=1.0), albumentations.RandomCrop(side, side)]
        if augment.flip:
            steps.append(albumentations.HorizontalFlip(p=0.5))
        if augment.rotate_degrees:
            steps.append(
                albumentations.Rotate(augment.rotate_degrees, border_mode=0, p=augment.rotate_p)  # 0: a constant
            )
        if augment.shifts_colour:
            shifts = augment.hue_shift, augment.saturation_shift, augment.value_shift
            steps.append(albumentations.HueSaturationValue(*shifts, p=augment.colour_p))
        if augment.cutout_size:
            sides = (augment.smallest_cutout, augment.cutout_size)
            fill = np.rint(mean).astype(int).tolist()
            steps.append(albumentations.CoarseDropout((1, 1), sides, sides, fill=fill, p=augment.cutout_p))
    pipeline = albumentations.Compose([*steps, albumentations.Normalize(mean / 255, std / 255), ToTensorV2()])
    return lambda image: pipeline(image=image)["image"]


def network_of(config: TrainConfig, num_classes: int) -> nn.Module:
    """torchvision's ResNet-18 with a 3x3 stem and no pooling before the first stage.

    Its convolutions begin as torch makes them, as in the networks of the origins and in ours: torchvision's own begin
    with six times the variance, which learns far slower at these rates.
    """
    from torchvision.models import resnet18

    norm = nn.BatchNorm2d if config.model.norm == "batch" else lambda width: nn.GroupNorm(1, width)
    network = resnet18(num_classes=num_classes, norm_layer=norm)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    if config.model.last_stride == 1:
        network.layer4[0].conv1.stride = (1, 1)
        network.layer4[0].downsample[0].stride = (1, 1)
    network.fc = nn.Sequential(nn.Dropout(config.model.dropout), network.fc)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return network


def optimizer_of(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW of torch."""
    lr = float(config.optimizer.lr)
    if config.optimizer.name == "sgd":
        more = {
            "momentum": config.optimizer.momentum,
            "nesterov": config.optimizer.nesterov,
            "weight_decay": config.optimizer.weight_decay,
        }
        return torch.optim.SGD(network.parameters(), lr=lr, **more)
    with_decay = [param for param in network.parameters() if param.ndim > 1 or config.optimizer.decay_all]
    without = [param for param in network.parameters() if param.ndim < 2 and not config.optimizer.decay_all]
    groups = [{"params": with_decay}, {"params": without, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=lr, weight_decay=config.optimizer.weight_decay
    )


def run(config: TrainConfig, data_dir: Path, device: torch.device) -> dict[str, Any]:
    """Train and score once."""
    from torch.optim import lr_scheduler

    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    torch.manual_seed(config.seed)
    if device.type == "cpu":
        keep_freed_memory()
    train, test = (open_beton(data_dir / f"{name}.beton", in_memory=True) for name in ("train", "test"))
    images, labels = train.images(range(len(train))), np.asarray(train.labels)
    order = np.random.default_rng(config.seed).permutation(len(train))
    num_val = 0 if config.data.val_size == 0 else round(VAL_SHARE * len(train))
    plain = pipeline_of(None, train.image_shape[0], train.mean, train.std)
    changed = pipeline_of(config.augment, train.image_shape[0], train.mean, train.std)
    workers = torch.get_num_threads()
    batches = DataLoader(
        Subset(Images(images, labels, changed), order[num_val:]), config.batch_size, shuffle=True, drop_last=True,
        num_workers=workers, persistent_workers=True,
    )  # fmt: skip
    test_images = test.images(range(len(test)))
    sets = {
        "val": Subset(Images(images, labels, plain), order[:num_val]),
        "test": Images(test_images, np.asarray(test.labels), plain),
    }
    network = network_of(config, len(train.class_names)).to(device=device, memory_format=torch.channels_last)
    optimizer = optimizer_of(config, network)
    steps = len(batches) * config.epochs
    per_step: list[Any] = []
    per_epoch: Any = None
    if config.schedule.name == "onecycle":
        per_step.append(lr_scheduler.OneCycleLR(optimizer, float(config.optimizer.lr), total_steps=steps))
    elif config.schedule.name == "step":
        per_epoch = lr_scheduler.StepLR(optimizer, config.schedule.step_size, config.schedule.factor)
    elif config.schedule.name == "plateau":
        per_epoch = lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=config.schedule.factor, patience=config.schedule.patience
        )
    if config.schedule.warmup_epochs:
        warm_up = round(config.schedule.warmup_epochs * len(batches))
        per_step.append(lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warm_up))
    amp = choose_amp(device, config.runtime.amp)
    criterion = nn.CrossEntropyLoss(label_smoothing=config.optimizer.label_smoothing)

    def scores(name: str) -> tuple[float, float]:
        network.eval()
        right, loss = 0, 0.0
        with torch.inference_mode():
            for x, y in DataLoader(sets[name], 500):
                with autocast(device, amp):
                    logits = network(x.to(device, memory_format=torch.channels_last)).float()
                right += int((logits.argmax(1) == y.to(device)).sum())
                loss += float(nn.functional.cross_entropy(logits, y.to(device), reduction="sum"))
        return right / len(sets[name]), loss / len(sets[name])

    best, best_weights, seconds, train_accuracy = -1.0, None, 0.0, 0.0
    for _ in range(config.epochs):
        network.train()
        began, right, seen, total = time.perf_counter(), 0, 0, 0.0
        for x, y in batches:
            x, y = x.to(device, memory_format=torch.channels_last), y.to(device)
            with autocast(device, amp):
                logits = network(x)
            loss = criterion(logits.float(), y)
            penalty = (
                config.optimizer.l1 * sum(param.abs().sum() for param in network.parameters())
                if config.optimizer.l1
                else 0.0
            )
            optimizer.zero_grad()
            (loss + penalty).backward()
            optimizer.step()
            for scheduler in per_step:
                scheduler.step()
            right += int((logits.argmax(1) == y).sum())
            seen += len(y)
            total += float(loss.detach()) * len(y)
        seconds += time.perf_counter() - began
        train_accuracy = right / seen
        val_accuracy, val_loss = scores("val") if num_val else (0.0, total / seen)
        if config.schedule.name == "plateau":
            per_epoch.step(val_loss)
        elif per_epoch is not None:
            per_epoch.step()
        if num_val and val_accuracy > best:
            best, best_weights = val_accuracy, {key: value.clone() for key, value in network.state_dict().items()}
        print(f"train {train_accuracy:.2%} validation {val_accuracy:.2%} {seconds:.0f} s", file=sys.stderr, flush=True)
    if best_weights is not None:
        network.load_state_dict(best_weights)
    return {"train_seconds": seconds, "train_accuracy": train_accuracy, "test_accuracy": scores("test")[0]}


if __name__ == "__main__":
    settings, data_dir, device = sys.argv[1:]
    values = json.loads(settings)
    print(json.dumps(run(TrainConfig.from_settings(**values), Path(data_dir), torch.device(device))))
