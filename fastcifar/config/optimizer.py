"""How weights are updated: optimizer, learning rates, penalties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastcifar.config.model import MODELS, ModelConfig
from fastcifar.config.setting import Choice, Config, Integer, Number, RateOrAuto, Switch, setting
from fastcifar.errors import UsageError

OPTIMIZERS = ("sgd", "adam", "adamw", "muon")
CLASS_WEIGHTS = ("none", "balanced")
DEFAULT_LR = {
    "resnet18": {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3, "muon": 0.05},
    "resnet18 with layer or group norm": {"sgd": 0.03, "adam": 1e-3, "adamw": 1e-3, "muon": 0.05},
    "small": {"sgd": 0.02, "adam": 1e-3, "adamw": 1e-3, "muon": 0.05},
    "others": {"sgd": 0.01, "adam": 5e-4, "adamw": 5e-4, "muon": 0.02},
}
"""The default learning rate, by network and optimizer. Other networks may have no normalisation: a rate that is too
small learns slowly, one that is too large does not learn at all."""


def describe_rates(rates: Mapping[str, float]) -> str:
    """Rates by optimizer in words: '0.1 sgd, 0.001 adam and adamw'."""
    names: dict[float, list[str]] = {}
    for name, rate in rates.items():
        names.setdefault(rate, []).append(name)
    return ", ".join(f"{rate:g} {' and '.join(same)}" for rate, same in names.items())


def default_lr(model: ModelConfig, optimizer: str) -> float:
    """The learning rate of a run that sets none."""
    key = model.name if model.name in MODELS else "others"
    if model.name == "resnet18" and model.norm != "batch":
        key = "resnet18 with layer or group norm"
    return DEFAULT_LR[key][optimizer]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """How weights are updated."""

    name: str = setting(
        "sgd",
        Choice(OPTIMIZERS),
        "muon: for the weights of convolution and linear layers; --aux-optimizer updates the other parameters.",
        name="optimizer",
    )
    lr: float | str | None = setting(
        None,
        RateOrAuto(),
        "Peak learning rate; auto: from a range test.",
        default_text="; ".join(f"{network}: {describe_rates(rates)}" for network, rates in DEFAULT_LR.items()),
    )
    momentum: float = setting(
        0.9,
        Number(0, 1, below=True),
        "Momentum of sgd and muon, first beta of adam and adamw; onecycle varies it by 0.05, not that of muon.",
    )
    nesterov: bool = setting(True, Switch("--no-nesterov"), "sgd, muon: Nesterov momentum.")
    weight_decay: float = setting(
        5e-4, Number(0), "L2 penalty; part of the gradient in sgd and adam, decoupled in adamw and muon."
    )
    decay_all: bool = setting(
        True, Switch("--decay-weights-only"), "Weight decay and L1 also on biases and normalisation layers."
    )
    l1: float = setting(0.0, Number(0), "L1 penalty; the reported loss does not include it.")
    clip_norm: float = setting(0.0, Number(0), "Clip gradients to this norm, over all parameters; 0: off.")
    label_smoothing: float = setting(0.0, Number(0, 1, below=True), "Label smoothing (Szegedy et al. 2016).")
    class_weights: str = setting(
        "none",
        Choice(CLASS_WEIGHTS),
        "balanced: weight the loss of each image by images / (classes * images of its class).",
    )
    ema: float = setting(
        0.0,
        Number(0, 1, below=True),
        "Evaluate and keep an exponential moving average of the weights with this decay per step; 0: off.",
    )
    aux_optimizer: str = setting(
        "adamw", Choice(("adamw", "sgd")), "muon: for biases, normalisation, embeddings and the last layer."
    )
    aux_lr: float = setting(0.01, Number(0, above=True), "muon: peak learning rate of --aux-optimizer.")
    bias_lr: float | None = setting(
        None,
        Number(0, above=True),
        "muon: learning rate of biases and normalisation (sgd needs a larger one: Page 2018).",
        default_text="--aux-lr",
    )
    unit_filters: bool = setting(
        False,
        Switch("--free-filters"),
        "muon: scale each filter bank to the norm sqrt(filters) before a step; for networks that normalise after each.",
    )
    ns_steps: int = setting(
        5, Integer(1, 20), "muon: Newton-Schulz steps per update; 3 are enough in a short training."
    )

    def check(self) -> None:
        if self.lr == "auto" and self.name == "muon":
            raise UsageError(
                "lr is 'auto' with optimizer 'muon'; expected a number: 'fastcifar lr-find' finds all rates"
            )
