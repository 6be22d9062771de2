"""Calibrated probabilities by temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", 2017).

One number, fitted on the images held out from training, divides all logits: the predicted classes stay the same.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from fastcifar.data.statistics import HELD_OUT_SHARE
from fastcifar.inference.metrics import compute_metrics
from fastcifar.inference.predictions import Predictions
from fastcifar.io.atomic import write_text
from fastcifar.io.reading import read_mapping

if TYPE_CHECKING:
    from fastcifar.training.run_folder import RunFolder

log = logging.getLogger(__name__)
MAX_BYTES = 2**16
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Where every validation image is correctly classified, the likelihood rises until the temperature is 0."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A temperature, and what it changes on the validation images it was fitted on."""

    temperature: float
    num_images: int
    loss: float
    """Mean cross-entropy in nats without it."""
    calibrated_loss: float
    ece: float
    """Expected calibration error without it, 0..1."""
    calibrated_ece: float
    weights_sha256: str
    """Of the weights that it belongs to."""

    def save(self, run: RunFolder) -> None:
        """Write calibration.json into the folder of a run."""
        write_text(run.calibration, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")

    @staticmethod
    def load(run: RunFolder) -> Calibration:
        """Read calibration.json. Raises OSError if it cannot be opened, ValueError if it is damaged."""
        try:
            loaded = Calibration(**read_mapping(run.calibration, MAX_BYTES))
        except TypeError as error:
            raise ValueError("its keys are not those of a calibration") from error
        numbers = (loaded.temperature, loaded.loss, loaded.calibrated_loss, loaded.ece, loaded.calibrated_ece)
        if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
            raise ValueError("its values are not finite numbers")
        if not MIN_TEMPERATURE <= loaded.temperature <= MAX_TEMPERATURE:
            raise ValueError(f"its temperature is not {MIN_TEMPERATURE}..{MAX_TEMPERATURE:g}")
        if type(loaded.num_images) is not int or not isinstance(loaded.weights_sha256, str):
            raise ValueError("num_images or weights_sha256 has the wrong type")
        return loaded


def not_held_out(num_train_images: object, num_classes: int) -> str:
    """Why a run has no calibration: the message has a number of images to hold out, a tenth, or one of each class.

    num_train_images: as its metrics.json has it; anything but a number is unknown.
    """
    if type(num_train_images) is not int:
        return "no image was held out; train with --val-size N, a tenth of the training images"
    if num_train_images <= num_classes:
        return "no image was held out, which takes two training images of a class"
    return f"no image was held out; train with --val-size {max(num_train_images // HELD_OUT_SHARE, num_classes)}"


def calibrate(predictions: Predictions) -> Calibration:
    """Fit a temperature to the predictions of validation images. Warns if none of them is misclassified."""
    temperature = fit_temperature(predictions)
    if predictions.is_correct.all():
        log.warning(
            "all %s validation images are classified correctly, so that no temperature fits: with %.3g, calibrated "
            "probabilities are too high; hold out more images (--val-size)",
            *(f"{len(predictions):,}", temperature),
        )
    plain, calibrated = compute_metrics(predictions), compute_metrics(predictions.with_temperature(temperature))
    return Calibration(
        temperature=temperature,
        num_images=len(predictions),
        loss=plain.loss,
        calibrated_loss=calibrated.loss,
        ece=plain.ece,
        calibrated_ece=calibrated.ece,
        weights_sha256=predictions.weights_sha256,
    )


def fit_temperature(predictions: Predictions) -> float:
    """The temperature of the smallest cross-entropy, by L-BFGS in float64, within MIN_TEMPERATURE..MAX_TEMPERATURE."""
    labels = torch.from_numpy(predictions.labels)
    logits = torch.from_numpy(predictions.logits).double().clamp(min=-1e30)  # the gradient of -inf is NaN
    losses = logits.amax(dim=1) - logits.gather(1, labels[:, None])[:, 0]
    scale = max(1.0, losses.max().item() / 1e3)  # from a loss of about 3e4 on, the first step of L-BFGS gives NaN
    logits = logits / scale
    # the loss is convex in 1 / temperature, so the bounds can be applied afterwards; in the temperature it has plateaus
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [inverse], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits * inverse, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return 1 / min(max(inverse.item() / scale, 1 / MAX_TEMPERATURE), 1 / MIN_TEMPERATURE)
