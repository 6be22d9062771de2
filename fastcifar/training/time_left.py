"""An estimate of the time that the rest of a run takes."""

from __future__ import annotations

import logging
import math
import time
from collections import deque

from fastcifar.config import TrainConfig
from fastcifar.training.progress import Progress, duration

log = logging.getLogger(__name__)


class Pace:
    """Seconds per unit of work, a training step on images of full size, in the last half minute."""

    WINDOW_S = 30.0

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float]] = deque()  # seconds and work of each
        self._seconds = self._work = 0.0
        self.start()

    def start(self) -> None:
        """The next step begins now."""
        self._begin = time.monotonic()

    def step(self, work: float) -> None:
        """A step of this much work has ended; the next begins now."""
        now = time.monotonic()
        seconds = now - self._begin
        self._steps.append((seconds, work))
        self._seconds, self._work = self._seconds + seconds, self._work + work
        self._begin = now
        while self._seconds - self._steps[0][0] > self.WINDOW_S:
            seconds, work = self._steps.popleft()
            self._seconds, self._work = self._seconds - seconds, self._work - work

    def seconds_for(self, work: float) -> float:
        """How long this much work takes; 0 before the first step."""
        return work * self._seconds / self._work if self._steps else 0.0


class TimeLeft:
    """The time left, from the pace of the last steps and the duration of the last validation."""

    def __init__(self, config: TrainConfig, num_steps: int, image_shape: tuple[int, int, int]) -> None:
        height, width, _ = image_shape
        # (work of a step, until which step)
        self._stages = [
            (side**2 / (height * width), math.ceil(until * num_steps)) for side, until in config.progressive
        ]
        self._stages.append((1.0, num_steps))
        self._config, self._num_steps = config, num_steps
        self._pace = Pace()
        self.validation_s = 0.0
        """Duration of the last validation."""

    def start(self) -> None:
        """The next step begins now."""
        self._pace.start()

    def step(self, step: int) -> None:
        """Step `step` (from 0) has ended."""
        self._pace.step(self._work(step, step + 1))

    def seconds(self, progress: Progress) -> float:
        """Seconds that the rest of the run takes at the current pace."""
        validations = self._config.epochs - progress.epoch if self._config.max_steps is None else 1
        return self._pace.seconds_for(self._work(progress.step, self._num_steps)) + self.validation_s * validations

    def _work(self, begin: int, end: int) -> float:
        work = 0.0
        for per_step, until in self._stages:
            last = max(begin, min(end, until))
            work += per_step * (last - begin)
            begin = last
        return work

    def log(self, progress: Progress) -> None:
        """Log the time left."""
        if progress.step < self._num_steps:
            log.info("about %s left", duration(self.seconds(progress)))
