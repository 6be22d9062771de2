"""How long the rest of a run takes."""

from __future__ import annotations

import logging
import math
import time
from collections import deque

from fastcifar.config import TrainConfig
from fastcifar.training.progress import Progress, duration

log = logging.getLogger(__name__)


class Pace:
    """How long the rest of a run takes at the pace of the last half minute: a machine gets busy, and idle again.

    Work is counted in training steps on images of full size.
    """

    WINDOW_S = 30.0

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float]] = deque()  # seconds and work of each
        self._seconds = self._work = 0.0
        self.start()

    def start(self) -> None:
        """The next step begins now."""
        self._begin = time.monotonic()

    def step(self, work: float) -> None:
        """A step has ended, and the next begins."""
        now = time.monotonic()
        seconds = now - self._begin
        self._steps.append((seconds, work))
        self._seconds, self._work = self._seconds + seconds, self._work + work
        self._begin = now
        while self._seconds - self._steps[0][0] > self.WINDOW_S:
            seconds, work = self._steps.popleft()
            self._seconds, self._work = self._seconds - seconds, self._work - work

    def seconds_for(self, work: float) -> float:
        """How long that takes; 0 before the first step."""
        return work * self._seconds / self._work if self._steps else 0.0


class TimeLeft:
    """The time left of a run, from the pace of its last steps and the duration of its last validation."""

    def __init__(self, config: TrainConfig, num_steps: int, image_shape: tuple[int, int, int]) -> None:
        height, width, _ = image_shape
        # share of the work of a step on full images, and the step until which it is that
        self._stages = [
            (side**2 / (height * width), math.ceil(until * num_steps)) for side, until in config.progressive
        ]
        self._stages.append((1.0, num_steps))
        self._config, self._num_steps = config, num_steps
        self._pace = Pace()
        self.validation_s = 0.0
        """How long the last evaluation of the validation images took."""

    def start(self) -> None:
        """The next step begins now."""
        self._pace.start()

    def step(self, step: int) -> None:
        """Step `step`, from 0, has ended."""
        self._pace.step(self._work(step, step + 1))

    def seconds(self, progress: Progress) -> float:
        """Seconds that the rest of the run takes at the present pace."""
        validations = self._config.epochs - progress.epoch if self._config.max_steps is None else 1
        return self._pace.seconds_for(self._work(progress.step, self._num_steps)) + self.validation_s * validations

    def _work(self, begin: int, end: int) -> float:
        work = 0.0
        for share, until in self._stages:
            last = max(begin, min(end, until))
            work += share * (last - begin)
            begin = last
        return work

    def log(self, progress: Progress) -> None:
        """Log the time left."""
        if progress.step < self._num_steps:
            log.info("about %s left", duration(self.seconds(progress)))
