"""Images that are odd in themselves: blank, almost constant, very dark or bright, stretched, unlike their class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fastcifar.audit.appearance import SIDE, Floats, batches, features, to_greys
from fastcifar.audit.issues import Image, Issue
from fastcifar.data.beton import Beton
from fastcifar.training.progress import Reporter, SilentReporter

MAX_BLANK, MAX_CONSTANT = 1.0, 4.0
"""Standard deviation of a pixel within an image, in grey levels, up to which it is blank, and constant."""
DARK, BRIGHT = 12.0, 243.0
"""Mean of an image, in grey levels, up to which it is dark, and from which on it is bright."""
OUTLIER_DEVIATIONS = 6.0
"""Robust standard deviations from the median of the distances of a class, from which on an image is an outlier."""
MIN_CLASS = 20
"""Images of a class, other than those with many copies, without which its outliers are not known."""
MIN_DISTANCE = 0.01
"""Mean distance to its neighbours up to which an image has as many copies: rounding gives up to 0.001."""
NUM_NEIGHBOURS = 10
CHUNK = 256


def check_images(splits: Mapping[str, Beton], reporter: Reporter | None = None) -> list[Issue]:
    """The images with something odd, by kind (of `issues.IMAGES`) and the worst first.

    An outlier is far from its nearest neighbours of its class: the mean distance to NUM_NEIGHBOURS of them, of gradient
    histograms and mean colours, is OUTLIER_DEVIATIONS robust standard deviations over the median of its class in the
    split. The aspect of an original is known if the images were cropped, padded or stretched. An image has one
    issue, the first of these kinds. Raises DataError if an image is damaged.
    """
    reporter = reporter or SilentReporter()
    reporter.begin("checking images", sum(map(len, splits.values())))
    issues: list[Issue] = []
    for split, beton in splits.items():
        issues += _check_split(split, beton, reporter)
    return sorted(issues, key=lambda issue: (issue.kind, -issue.score))


def _check_split(split: str, beton: Beton, reporter: Reporter) -> list[Issue]:
    means, deviations, aspects = np.empty(len(beton)), np.empty(len(beton)), _aspects(beton)
    greys = np.empty((len(beton), SIDE, SIDE), np.uint8)
    colours = np.empty((len(beton), 3), np.float32)
    for begin, images in batches(beton):
        part = slice(begin, begin + len(images))
        greys[part] = to_greys(images)
        pixels = images.reshape(len(images), -1, 3)
        colours[part] = pixels.mean(1)  # NumPy sums integers in float64
        means[part] = colours[part].mean(1)
        deviations[part] = pixels.std(1).max(1)
        reporter.advance(len(images))
    first_of: dict[int, tuple[str, float]] = {}  # by index, kind and score
    kinds = (
        ("blank", deviations <= MAX_BLANK, 1 - deviations / 255),
        ("constant", deviations <= MAX_CONSTANT, 1 - deviations / 255),
        ("dark", means <= DARK, 1 - means / 255),
        ("bright", means >= BRIGHT, means / 255),
        ("aspect", aspects > 1, 1 - 1 / aspects),
    )
    for kind, selected, scores in kinds:
        for index in np.flatnonzero(selected).tolist():
            first_of.setdefault(index, (kind, float(scores[index])))
    for index, score in _outliers(np.concatenate([features(greys)[0], colours / 255], 1), beton.labels):
        first_of.setdefault(index, ("outlier", score))
    return [
        Issue(
            kind=kind, image=Image(split=split, index=index), label=beton.class_names[beton.labels[index]], score=score
        )
        for index, (kind, score) in first_of.items()
    ]


def _aspects(beton: Beton) -> npt.NDArray[np.float64]:
    """How much longer, (N,), or shorter than its original an image is in proportion, where the manifest says so; 1 of
    the others."""
    aspects = np.ones(len(beton))
    for index, height, width in beton.manifest.conversion.elongated if beton.manifest else ():
        if index < len(beton):
            changed = height * beton.image_shape[1] / (width * beton.image_shape[0])
            aspects[index] = max(changed, 1 / changed)
    return aspects


def _outliers(vectors: Floats, labels: npt.NDArray[np.int64]) -> list[tuple[int, float]]:
    """Indices and scores, 0..1: the share of the distance that is over the limit of the class."""
    outliers: list[tuple[int, float]] = []
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        distances = _neighbour_distances(vectors[members])
        usual = distances[distances > MIN_DISTANCE]  # many copies of one image do not make the others outliers
        if len(usual) < MIN_CLASS:
            continue
        median = float(np.median(usual))
        limit = median + OUTLIER_DEVIATIONS * 1.4826 * float(np.median(np.abs(usual - median)))
        far = distances > limit
        outliers += zip(members[far].tolist(), (1 - limit / distances[far]).tolist(), strict=True)
    return outliers


def _neighbour_distances(vectors: Floats) -> npt.NDArray[np.float64]:
    """The mean distance of each to its nearest neighbours, (N,)."""
    count = min(NUM_NEIGHBOURS, len(vectors) - 1)
    if not count:
        return np.zeros(len(vectors))
    squares = (vectors**2).sum(1)
    means = np.empty(len(vectors))
    for begin in range(0, len(vectors), CHUNK):
        part = slice(begin, begin + CHUNK)
        distances = squares[part, None] + squares - 2.0 * (vectors[part] @ vectors.T)
        rows = np.arange(len(distances))
        distances[rows, begin + rows] = np.inf
        means[part] = np.sqrt(np.maximum(np.partition(distances, count - 1, 1)[:, :count], 0)).mean(1)
    return means
