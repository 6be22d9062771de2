"""Class activation maps of a run's images, and previews of augmentation."""

from __future__ import annotations

from fastcifar.explain.cam import Activations, CamMaps, best_layer
from fastcifar.explain.drawing import Maps
from fastcifar.explain.preview import preview
from fastcifar.explain.run import Explanation, explain_run

__all__ = [
    "Activations",
    "CamMaps",
    "Explanation",
    "Maps",
    "best_layer",
    "explain_run",
    "preview",
]
