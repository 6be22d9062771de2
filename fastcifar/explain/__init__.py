"""Explain: which images a network gets wrong, and where it looked."""

from __future__ import annotations

from fastcifar.explain.cam import Activations, CamMaps, best_layer
from fastcifar.explain.preview import preview
from fastcifar.explain.run import Explanation, explain_run
from fastcifar.inference.evaluation import Evaluation, evaluate_run

__all__ = [
    "Activations",
    "CamMaps",
    "Evaluation",
    "Explanation",
    "best_layer",
    "evaluate_run",
    "explain_run",
    "preview",
]
