"""Settings as frozen dataclasses, checked when they are made. Nothing here needs torch: the help is built from them."""

from fastcifar.config.augment import CROP_MODES, CUTOUT_FILLS, FLIP_MODES, NO_AUGMENT, AugmentConfig, read_pipeline
from fastcifar.config.explain import CAM_METHODS, SELECTIONS, ExplainConfig
from fastcifar.config.lr_range_test import AUTO_SUGGESTIONS, LR_MODES, LR_RANGES, LR_SUGGESTIONS, RangeTest
from fastcifar.config.model import MODELS, NORMS, ModelConfig
from fastcifar.config.rates import DEFAULT_LR
from fastcifar.config.train import (
    AMP_MODES,
    ANNEALS,
    CHANGEABLE,
    LOADERS,
    MAX_SEED,
    MONITORS,
    OPTIMIZERS,
    REST_OPTIMIZERS,
    SCHEDULES,
    SHUFFLES,
    TTAS,
    TrainConfig,
)

__all__ = [
    "AMP_MODES",
    "ANNEALS",
    "AUTO_SUGGESTIONS",
    "CAM_METHODS",
    "CHANGEABLE",
    "CROP_MODES",
    "CUTOUT_FILLS",
    "DEFAULT_LR",
    "FLIP_MODES",
    "LOADERS",
    "LR_MODES",
    "LR_RANGES",
    "LR_SUGGESTIONS",
    "MAX_SEED",
    "MODELS",
    "MONITORS",
    "NORMS",
    "NO_AUGMENT",
    "OPTIMIZERS",
    "REST_OPTIMIZERS",
    "SCHEDULES",
    "SELECTIONS",
    "SHUFFLES",
    "TTAS",
    "AugmentConfig",
    "ExplainConfig",
    "ModelConfig",
    "RangeTest",
    "TrainConfig",
    "read_pipeline",
]
