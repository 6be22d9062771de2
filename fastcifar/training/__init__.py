"""Training: the loop, schedules, checkpoints and the run folder."""

from __future__ import annotations

from fastcifar.training.loop import train
from fastcifar.training.run_folder import RunFolder, find_run

__all__ = ["RunFolder", "find_run", "train"]
