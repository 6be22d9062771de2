"""Settings as frozen dataclasses, checked when made. Nothing here imports torch: help texts are generated from them."""

from fastcifar.config.augment import NO_AUGMENT as NO_AUGMENT
from fastcifar.config.augment import AugmentConfig as AugmentConfig
from fastcifar.config.augment import read_pipeline as read_pipeline
from fastcifar.config.explain import CAM_METHODS as CAM_METHODS
from fastcifar.config.explain import ExplainConfig as ExplainConfig
from fastcifar.config.lr_range_test import AUTO_SUGGESTIONS as AUTO_SUGGESTIONS
from fastcifar.config.lr_range_test import LR_SUGGESTIONS as LR_SUGGESTIONS
from fastcifar.config.lr_range_test import LrRangeTestConfig as LrRangeTestConfig
from fastcifar.config.model import MODELS as MODELS
from fastcifar.config.model import NORMS as NORMS
from fastcifar.config.model import ModelConfig as ModelConfig
from fastcifar.config.optimizer import DEFAULT_LR as DEFAULT_LR
from fastcifar.config.optimizer import OPTIMIZERS as OPTIMIZERS
from fastcifar.config.optimizer import OptimizerConfig as OptimizerConfig
from fastcifar.config.schedule import ScheduleConfig as ScheduleConfig
from fastcifar.config.train import CHANGEABLE as CHANGEABLE
from fastcifar.config.train import LOADERS as LOADERS
from fastcifar.config.train import MAX_SEED as MAX_SEED
from fastcifar.config.train import SETTINGS as SETTINGS
from fastcifar.config.train import SHUFFLES as SHUFFLES
from fastcifar.config.train import SPLITS as SPLITS
from fastcifar.config.train import TTA_MODES as TTA_MODES
from fastcifar.config.train import DataConfig as DataConfig
from fastcifar.config.train import RuntimeConfig as RuntimeConfig
from fastcifar.config.train import TrainConfig as TrainConfig
from fastcifar.config.train import require_known as require_known
