"""Dashboards that a run is also logged to: TensorBoard, Weights & Biases, Trackio.

results.csv stays the source of truth. Each package is imported only in the module that wraps it, when a log is opened.
"""

from fastcifar.loggers.base import Loggers as Loggers
from fastcifar.loggers.base import RunInfo as RunInfo
from fastcifar.loggers.base import RunLogger as RunLogger
from fastcifar.loggers.open import open_loggers as open_loggers
from fastcifar.loggers.open import view_commands as view_commands
