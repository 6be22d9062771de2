"""fastcifar: train image classifiers at CIFAR scale, fast, and see what they look at.

The names below are loaded when first used, so that `import fastcifar` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from fastcifar.api import Run as Run
    from fastcifar.api import train as train
    from fastcifar.config import AugmentConfig as AugmentConfig
    from fastcifar.config import TrainConfig as TrainConfig
    from fastcifar.converters import convert as convert
    from fastcifar.data.beton import Beton as Beton
    from fastcifar.data.beton import open_beton as open_beton
    from fastcifar.errors import FastcifarError as FastcifarError
    from fastcifar.explain import Activations as Activations
    from fastcifar.inference.export import export as export
    from fastcifar.inference.predict_files import predict as predict
    from fastcifar.loaders import Batch as Batch
    from fastcifar.loaders import make_loader as make_loader

_MODULES = {
    "Activations": "fastcifar.explain",
    "AugmentConfig": "fastcifar.config",
    "Batch": "fastcifar.loaders",
    "Beton": "fastcifar.data.beton",
    "FastcifarError": "fastcifar.errors",
    "Run": "fastcifar.api",
    "TrainConfig": "fastcifar.config",
    "convert": "fastcifar.converters",
    "export": "fastcifar.inference.export",
    "make_loader": "fastcifar.loaders",
    "open_beton": "fastcifar.data.beton",
    "predict": "fastcifar.inference.predict_files",
    "train": "fastcifar.api",
}
__all__ = [
    "Activations",
    "AugmentConfig",
    "Batch",
    "Beton",
    "FastcifarError",
    "Run",
    "TrainConfig",
    "convert",
    "export",
    "make_loader",
    "open_beton",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fastcifar' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
