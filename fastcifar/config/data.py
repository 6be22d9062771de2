"""Which images, and how they reach the network."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fastcifar.config.setting import Choice, Config, Integer, Text, setting
from fastcifar.io.checks import require_utf8
from fastcifar.io.paths import data_folder

LOADERS = ("auto", "resident", "ffcv", "albumentations")
SHUFFLES = ("full", "window", "none")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Which images, and how they reach the network."""

    data_dir: str | os.PathLike[str] = setting("data", Text(), "Folder with train.beton and test.beton.")
    loader: str = setting("auto", Choice(LOADERS), "What delivers the batches; all deliver the same.")
    shuffle: str = setting("full", Choice(SHUFFLES[:2]), "window: for datasets larger than memory.")
    val_size: int | None = setting(
        None,
        Integer(0),
        "Training images held out for validation, the same share of each class; 0: none.",
        default_text="a tenth",
    )

    def check(self) -> None:
        object.__setattr__(self, "data_dir", str(data_folder(self.data_dir)))
        require_utf8("data_dir", str(self.data_dir))
