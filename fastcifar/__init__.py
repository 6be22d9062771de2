"""fastcifar: train image classifiers at CIFAR scale, fast, and see what they look at.

The names below are loaded when first used, so that `import fastcifar` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastcifar.config import AugmentConfig as AugmentConfig
    from fastcifar.converters import convert as convert
    from fastcifar.data.beton import Beton as Beton
    from fastcifar.data.beton import open_beton as open_beton
    from fastcifar.errors import FastcifarError as FastcifarError
    from fastcifar.inference.export import export as export
    from fastcifar.inference.predict_files import predict as predict
    from fastcifar.loaders import Batch as Batch
    from fastcifar.loaders import make_loader as make_loader

_MODULES = {
    "AugmentConfig": "fastcifar.config",
    "Batch": "fastcifar.loaders",
    "Beton": "fastcifar.data.beton",
    "convert": "fastcifar.converters",
    "export": "fastcifar.inference.export",
    "FastcifarError": "fastcifar.errors",
    "make_loader": "fastcifar.loaders",
    "open_beton": "fastcifar.data.beton",
    "predict": "fastcifar.inference.predict_files",
}
__all__ = [
    "AugmentConfig",
    "Batch",
    "Beton",
    "FastcifarError",
    "__version__",
    "convert",
    "export",
    "make_loader",
    "open_beton",
    "predict",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fastcifar' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
