"""The learning rate that a run has if none is given: it belongs to the pair of network and optimiser."""

from __future__ import annotations

from fastcifar.config.model import MODELS

DEFAULT_LR = {
    "resnet18": {"sgd": 0.1, "adamw": 1e-3, "muon": 0.05},
    "resnet18, layer or group norm": {"sgd": 0.03, "adamw": 1e-3, "muon": 0.05},
    "small": {"sgd": 0.02, "adamw": 1e-3, "muon": 0.05},
    "others": {"sgd": 0.01, "adamw": 5e-4, "muon": 0.02},
}
"""By network, by optimiser. The others are those of torchvision and one's own: they may have no normalisation, and a
rate that is too small learns slowly where one that is too large does not learn at all."""


def network_kind(model: str, norm: str) -> str:
    """The row of DEFAULT_LR for a network."""
    if model == "resnet18" and norm != "batch":
        return "resnet18, layer or group norm"
    return model if model in MODELS else "others"
