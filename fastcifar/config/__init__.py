"""Settings as frozen dataclasses, checked when made. Nothing here imports torch: the help is made from them."""

from fastcifar.config.augment import NO_AUGMENT, AugmentConfig, read_pipeline
from fastcifar.config.explain import CAM_METHODS, ExplainConfig
from fastcifar.config.lr_range_test import AUTO_SUGGESTIONS, LR_SUGGESTIONS, LrRangeTestConfig
from fastcifar.config.model import MODELS, NORMS, ModelConfig
from fastcifar.config.optimizer import DEFAULT_LR, OPTIMIZERS, OptimizerConfig
from fastcifar.config.schedule import ScheduleConfig
from fastcifar.config.train import (
    CHANGEABLE,
    LOADERS,
    MAX_SEED,
    SETTINGS,
    SHUFFLES,
    TTA_MODES,
    DataConfig,
    RuntimeConfig,
    TrainConfig,
    require_known,
)

__all__ = [
    "AUTO_SUGGESTIONS",
    "CAM_METHODS",
    "CHANGEABLE",
    "DEFAULT_LR",
    "LOADERS",
    "LR_SUGGESTIONS",
    "MAX_SEED",
    "MODELS",
    "NORMS",
    "NO_AUGMENT",
    "OPTIMIZERS",
    "SETTINGS",
    "SHUFFLES",
    "TTA_MODES",
    "AugmentConfig",
    "DataConfig",
    "ExplainConfig",
    "LrRangeTestConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RuntimeConfig",
    "ScheduleConfig",
    "TrainConfig",
    "read_pipeline",
    "require_known",
]
