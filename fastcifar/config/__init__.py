"""Settings as frozen dataclasses, checked when made. Nothing here imports torch: the help is made from them."""

from fastcifar.config.augment import CUTOUT_FILLS, FLIP_MODES, NO_AUGMENT, PADDING_MODES, AugmentConfig, read_pipeline
from fastcifar.config.data import LOADERS, SHUFFLES, DataConfig
from fastcifar.config.explain import CAM_METHODS, SELECTIONS, ExplainConfig
from fastcifar.config.lr_range_test import AUTO_SUGGESTIONS, LR_MODES, LR_RANGES, LR_SUGGESTIONS, LrRangeTestConfig
from fastcifar.config.model import MODELS, NORMS, ModelConfig
from fastcifar.config.optimizer import DEFAULT_LR, OPTIMIZERS, OptimizerConfig
from fastcifar.config.runtime import AMP_MODES, MAX_THREADS, RuntimeConfig
from fastcifar.config.schedule import SCHEDULES, ScheduleConfig
from fastcifar.config.train import CHANGEABLE, MAX_SEED, SETTINGS, TTA_MODES, TrainConfig, require_known

__all__ = [
    "AMP_MODES",
    "AUTO_SUGGESTIONS",
    "CAM_METHODS",
    "CHANGEABLE",
    "CUTOUT_FILLS",
    "DEFAULT_LR",
    "FLIP_MODES",
    "LOADERS",
    "LR_MODES",
    "LR_RANGES",
    "LR_SUGGESTIONS",
    "MAX_SEED",
    "MAX_THREADS",
    "MODELS",
    "NORMS",
    "NO_AUGMENT",
    "OPTIMIZERS",
    "PADDING_MODES",
    "SCHEDULES",
    "SELECTIONS",
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
