"""The model card of an exported run, in Markdown: what it is, how to use it, how good it is, and on what."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import fastcifar
from fastcifar.config import TrainConfig
from fastcifar.data.manifest import Conversion, read_manifest
from fastcifar.errors import DataError, one_line
from fastcifar.inference.metrics import compute_metrics, wilson_interval
from fastcifar.inference.predictions import Predictions
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.io.reading import read_mapping
from fastcifar.models import count_parameters

if TYPE_CHECKING:
    from fastcifar.inference.export import Export

MAX_ENV_BYTES = 8 * 2**20
MAX_LENGTH = 300
HIDDEN = ("recipe", "data_dir")
"""Settings that are shown elsewhere, or are a path on this machine."""
_PUNCTUATION = re.compile(r"([!-+:-@\[-`{-~]|(?<=www)\.)", re.IGNORECASE)
"""All of ASCII but , - . and /, which mean nothing within a line; 'www.' begins a link."""

RESIZE = {
    "crop": "ImageOps.fit(image, size, Image.Resampling.LANCZOS)  # cropped at the centre",
    "pad": "ImageOps.pad(image, size, Image.Resampling.LANCZOS, color={background}, centering=(0.4999, 0.4999))",
    "stretch": "image.resize(size, Image.Resampling.LANCZOS)",
}
"""How Pillow does what `convert --fit` does; with a centre just below 0.5, an odd pixel of padding is at the right."""
USE_ONNX = """\
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession({file!a})
metadata = session.get_modelmeta().custom_metadata_map
class_names = json.loads(metadata["class_names"])
size = int(metadata["image_width"]), int(metadata["image_height"])

with Image.open("picture.png") as file:
    image = ImageOps.exif_transpose(file).convert("RGBA")
background = Image.new("RGBA", image.size, tuple(json.loads(metadata["background"])))
image = Image.alpha_composite(background, image).convert("RGB")
image = {resize}
images = np.asarray(image)[None]  # (1, H, W, 3) uint8: as it is, not normalised
(probabilities,) = session.run(None, {{"images": images}})  # (1, number of classes) float32
for index in probabilities[0].argsort()[::-1][:3]:
    print(f"{{class_names[index]}}: {{probabilities[0, index]:.1%}}")
"""
USE_TORCH = """\
import json

import numpy as np
import torch
from PIL import Image, ImageOps

extra_files = {{"metadata.json": ""}}
network = torch.export.load({file!a}, extra_files=extra_files).module()
metadata = json.loads(extra_files["metadata.json"])
class_names = json.loads(metadata["class_names"])
size = int(metadata["image_width"]), int(metadata["image_height"])

with Image.open("picture.png") as file:
    image = ImageOps.exif_transpose(file).convert("RGBA")
background = Image.new("RGBA", image.size, tuple(json.loads(metadata["background"])))
image = Image.alpha_composite(background, image).convert("RGB")
image = {resize}
images = torch.from_numpy(np.array(image))[None]  # (1, H, W, 3) uint8: as it is, not normalised
with torch.inference_mode():
    probabilities = network(images)[0]
for index in probabilities.argsort(descending=True)[:3]:
    print(f"{{class_names[index]}}: {{probabilities[index]:.1%}}")
"""
USE = {"onnx": USE_ONNX, "torch": USE_TORCH}


def card(exported: Export, trained: TrainedRun, predictions: Predictions) -> str:
    """The text of the card. predictions: on the test images, of the network in float32, without calibration."""
    info, config = trained.info, trained.config
    height, width, _ = info.image_shape
    resize = RESIZE[info.fit].format(background=info.background)
    about = (
        f"An image classifier: {_text(config.model.name)}, {count_parameters(trained.model):,} trainable parameters, "
        f"{len(info.class_names):,} classes, RGB images of {height}x{width} pixels (height x width). Trained and "
        f"exported by fastcifar {fastcifar.__version__}."
    )
    takes = (
        "The file takes uint8 images (N, height, width, 3), any number of them, and returns probabilities: "
        "normalisation, calibration and softmax are inside. Of grey images of 16 bits, which Pillow cuts off at 255, "
        "give the high 8."
    )
    sections = [
        f"# {_text(trained.run.path.resolve().name)}",
        about,
        "## Use",
        f"```python\n{USE[exported.format].format(file=exported.path.name, resize=resize)}```",
        takes,
        "## Scores",
        *_scores(exported, trained, predictions),
        "## Data",
        _data(trained),
        "## Training",
        *_training(trained),
        "## Limits",
        _limits(trained),
    ]
    return "\n\n".join(sections) + "\n"


def _scores(exported: Export, trained: TrainedRun, predictions: Predictions) -> list[str]:
    calibration, num_images = trained.calibration, len(predictions)
    plain = compute_metrics(predictions)
    loss, ece = f"{plain.loss:.4f}", f"{plain.ece:.2%}"
    if calibration is not None:
        scaled = compute_metrics(predictions.with_temperature(calibration.temperature))
        loss, ece = f"{scaled.loss:.4f}; {loss} without calibration", f"{scaled.ece:.2%}; {ece} without calibration"
    rows = [
        ("accuracy", f"{plain.accuracy:.2%}, 95% interval {_interval(int(predictions.is_correct.sum()), num_images)}"),
        ("loss (cross-entropy)", loss),
        ("calibration error (ECE)", ece),
        ("same class as in float32 torch", f"{exported.num_agreeing:,} of {num_images:,} images"),
        ("largest difference of a probability to it", f"{exported.largest_difference:.1e}"),
    ]
    correct = np.bincount(predictions.labels[predictions.is_correct], minlength=len(plain.num_images)).tolist()
    classes = [
        (_text(name), f"{num / total:.2%}", _interval(num, total), f"{total:,}")
        if total
        else (_text(name), "", "", "0")
        for name, num, total in zip(trained.info.class_names, correct, plain.num_images.tolist(), strict=True)
    ]
    return [
        f"Of this file, on the {num_images:,} images of test.beton; intervals after Wilson (1927).",
        _table(("score", "value"), rows),
        _table(("class", "recall", "95% interval", "images"), classes),
    ]


def _interval(num_correct: int, num_images: int) -> str:
    low, high = wilson_interval(num_correct, num_images)
    return f"{low:.2%} to {high:.2%}"


def _data(trained: TrainedRun) -> str:
    test = trained.beton("test")
    rows = [("test images", f"{len(test):,}"), ("SHA-256 of test.beton", test.sha256)]
    with suppress(DataError):
        train = read_manifest(test.path.with_name("train.beton"))
        if train is not None and train.sha256 == trained.info.sha256:
            rows.insert(0, ("training images, with those held out for validation", f"{train.num_samples:,}"))
    rows.append(("SHA-256 of train.beton", _text(trained.info.sha256)))
    if test.manifest is not None:
        rows.insert(0, ("source", _text(test.manifest.source)))
        rows.append(("images", _in_words(test.manifest.conversion)))
    return _table(("data", ""), rows)


def _in_words(rule: Conversion) -> str:
    if rule.size is None:
        return "of this size in the source"
    on_colour = f" on the colour {rule.background}" if rule.fit == "pad" else ""
    return f"resized with a Lanczos filter, {rule.fit}{on_colour}"


def _training(trained: TrainedRun) -> list[str]:
    config = trained.config
    settings, defaults = config.to_settings(), TrainConfig().to_settings()
    changed = [
        (f"`{name}`", _text(value))
        for name, value in settings.items()
        if value != defaults[name] and name not in HIDDEN
    ]
    recipe = f"The recipe {_text(config.recipe)}." if config.recipe else "No recipe."
    env: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        env = read_mapping(trained.run.path / "env.json", MAX_ENV_BYTES)
    versions = [f"{name} {_text(env[name])}" for name in ("fastcifar", "torch", "python") if name in env]
    trained_with = f"Trained with {', '.join(versions) or 'unknown versions'}; "
    return [
        f"{recipe} Settings that differ from the defaults of `fastcifar train`:",
        _table(("setting", "value"), changed),
        f"{trained_with}exported with fastcifar {fastcifar.__version__}, torch {torch.__version__}.",
        f"SHA-256 of the weights: {trained.weights_sha256}",
    ]


def _limits(trained: TrainedRun) -> str:
    height, width, _ = trained.info.image_shape
    calibration = trained.calibration
    if calibration is None:
        probabilities = "The probabilities are not calibrated: they can be much too high or too low."
    else:
        probabilities = (
            f"The probabilities are calibrated (temperature {calibration.temperature:.3f}) on "
            f"{calibration.num_images:,} images held out from training: for images like those."
        )
    size = f"- The network knows images of {height}x{width} pixels, and resized ones as above. "
    size += "Every image gets one of the classes, also one that shows none of them."
    scores = "- The scores are of one training run, on the test images above. "
    scores += "They say nothing about other data: other sources, cameras, crops or a later time."
    return "\n".join([size, f"- {probabilities}", scores])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; the cells are Markdown already."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _text(value: object) -> str:
    """As Markdown that shows this text, on one line: names come from files of unknown origin."""
    text = one_line(value)
    return _PUNCTUATION.sub(r"\\\1", text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}…")
