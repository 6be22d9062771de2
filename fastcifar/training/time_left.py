"""An estimate of the time that the rest of a run takes."""

from __future__ import annotations

import logging
import math
import time
from collections import deque

from fastcifar.config import TrainConfig
from fastcifar.training.progress import Progress, duration

log = logging.getLogger(__name__)
WINDOW_S = 30.0


class TimeLeft:
    """The time left, from the pace of the last half minute and the duration of the last validation.

    Work is counted in training steps on images of full size.
    """

    def __init__(self, config: TrainConfig, num_steps: int, image_shape: tuple[int, int, int]) -> None:
        height, width, _ = image_shape
        # (work of a step, until which step)
        self._stages = [
            (side**2 / (height * width), math.ceil(until * num_steps)) for side, until in config.progressive
        ]
        self._stages.append((1.0, num_steps))
        self._config, self._num_steps = config, num_steps
        self._steps: deque[tuple[float, float]] = deque()  # (seconds, work)
        self._seconds = self._work = 0.0  # their sums
        self.validation_s = 0.0
        """Duration of the last validation."""
        self.start()

    def start(self) -> None:
        """The next step begins now."""
        self._begin = time.monotonic()

    def step(self, step: int) -> None:
        """Step `step` (from 0) has ended; the next begins now."""
        seconds, work = time.monotonic() - self._begin, self._work_of(step, step + 1)
        self.start()
        self._steps.append((seconds, work))
        self._seconds, self._work = self._seconds + seconds, self._work + work
        while self._seconds - self._steps[0][0] > WINDOW_S:
            seconds, work = self._steps.popleft()
            self._seconds, self._work = self._seconds - seconds, self._work - work

    def seconds(self, progress: Progress) -> float:
        """Seconds that the rest of the run takes at the current pace; 0 before the first step."""
        if not self._steps:
            return 0.0
        training_s = self._work_of(progress.step, self._num_steps) * self._seconds / self._work
        validations = self._config.epochs - progress.epoch if self._config.max_steps is None else 1
        return training_s + self.validation_s * validations

    def log(self, progress: Progress) -> None:
        """Log the time left."""
        if progress.step < self._num_steps:
            log.info("about %s left", duration(self.seconds(progress)))

    def _work_of(self, begin: int, end: int) -> float:
        """The work of the steps from `begin` to before `end`."""
        work = 0.0
        for per_step, until in self._stages:
            last = max(begin, min(end, until))
            work += per_step * (last - begin)
            begin = last
        return work
