"""Weights & Biases: an offline run in the folder of the run, unless WANDB_MODE says otherwise."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import PIL.Image
import wandb

from fastcifar.loggers.base import RunInfo, Values


class WandbLogger:
    """The run as `step/…` by step, `epoch/…` by epoch, pictures, and the final scores in its summary."""

    def __init__(self) -> None:
        self._run: Any = None
        self._step = 0  # wandb drops what is logged for an earlier step; one that is resumed offline begins at 0

    def begin(self, run: RunInfo) -> None:
        folder = run.make_subfolder("wandb")
        earlier = sorted(folder.glob("*run-*-*")) if run.is_resumed else []
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fastcifar"),
            dir=str(run.path),
            name=run.name,
            group=run.group,
            id=earlier[-1].name.rpartition("-")[2] if earlier else None,
            resume="allow",
            mode=None if os.environ.get("WANDB_MODE") else "offline",
            config=dict(run.settings),
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                save_code=False,
                x_disable_stats=True,
                x_disable_meta=True,
            ),
        )
        self._step = run.step if run.is_resumed else 0
        for group in ("step", "epoch"):
            self._run.define_metric(group)
            self._run.define_metric(f"{group}/*", step_metric=group)

    def steps(self, rows: Sequence[tuple[int, Values]]) -> None:
        for step, values in rows:
            self._step = step
            self._log({"step": step, **{f"step/{key}": value for key, value in values.items()}})

    def epoch(self, row: Values) -> None:
        self._step = max(self._step, int(row["epoch"]))
        self._log({key if key == "epoch" else f"epoch/{key}": value for key, value in row.items()})

    def finish(self, epoch: int, scores: Values) -> None:
        self._run.summary.update({f"final/{key}": value for key, value in scores.items()})

    def image(self, name: str, png: bytes) -> None:
        self._log({f"final/{name}": wandb.Image(PIL.Image.open(io.BytesIO(png)))})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()

    def _log(self, values: dict[str, Any]) -> None:
        self._run.log(values, step=self._step)
