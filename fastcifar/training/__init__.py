"""Training: the trainer and its collaborators, optimizers, schedules, checkpoints and the run folder."""

from __future__ import annotations

from fastcifar.training.run_folder import RunFolder, find_run
from fastcifar.training.start import train

__all__ = ["RunFolder", "find_run", "train"]
