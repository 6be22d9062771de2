"""What images look like, as vectors: of all images one each, to find similar ones, and of a pair in detail."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from fastcifar.audit import pixels
from fastcifar.augment.numba_kernel import compiled
from fastcifar.data.beton import Beton
from fastcifar.system.cpus import available_cpus
from fastcifar.training.progress import Reporter, SilentReporter

Floats = npt.NDArray[np.float32]
SIDE = pixels.SIDE
NUM_FEATURES = 128
MIN_WHITENED = 1_000
"""Of fewer images the principal components are those of single images."""
MAX_SAMPLE = 5_000
PAIRS_AT_ONCE = 1_024
BATCH_BYTES = 32 * 2**20
LOCAL = 9
"""Side of the window whose mean is subtracted and by whose standard deviation a pixel is divided."""
NOISE = 6.0
"""Grey levels, added to that standard deviation: smooth areas stay smooth."""


@dataclass(frozen=True, kw_only=True)
class Thumbnails:
    """All images of all splits, in the order of the splits: small, grey, and a hash of their pixels."""

    greys: npt.NDArray[np.uint8]
    """(N, SIDE, SIDE) uint8."""
    hashes: list[bytes]


def batches(beton: Beton) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """The index of the first image, and the images (B, H, W, 3) uint8."""
    size = max(1, min(1_024, BATCH_BYTES // int(np.prod(beton.image_shape))))
    for begin in range(0, len(beton), size):
        yield begin, beton.images(np.arange(begin, min(begin + size, len(beton))))


def read_thumbnails(betons: list[Beton], reporter: Reporter) -> Thumbnails:
    """Reads every image once. Raises DataError if one is damaged."""
    reporter.begin("reading images", sum(map(len, betons)))
    greys = np.empty((sum(map(len, betons)), SIDE, SIDE), np.uint8)
    hashes: list[bytes] = []
    for beton in betons:
        for _, images in batches(beton):
            greys[len(hashes) : len(hashes) + len(images)] = to_greys(images)
            hashes += [hashlib.blake2b(image.data, digest_size=16).digest() for image in images]
            reporter.advance(len(images))
    return Thumbnails(greys=greys, hashes=hashes)


def to_greys(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(B, H, W, 3) uint8 -> (B, SIDE, SIDE) uint8: luminance (ITU-R BT.601), larger images by the mean of areas."""
    luminance = torch.from_numpy(images).float() @ torch.tensor([0.299, 0.587, 0.114])  # (B, H, W)
    if luminance.shape[1:] != (SIDE, SIDE):
        small = min(luminance.shape[1:]) < SIDE
        luminance = F.interpolate(luminance[:, None], (SIDE, SIDE), mode="bilinear" if small else "area")[:, 0]
    return luminance.round().to(torch.uint8).numpy()


def features(greys: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Of each image and of its mirror image: two arrays (N, D) float32 of rows of length 1, or 0 of a constant image.

    Histograms of oriented gradients, reduced to principal components whose variances are brought closer to each other:
    what many images have in common, e.g. a frame or a horizon, counts less.
    """
    if len(greys) < MIN_WHITENED:
        plain = _histograms(greys)
        return _unit(plain), _unit(_mirrored(plain))
    sample = _histograms(greys[:: -(-len(greys) // MAX_SAMPLE)])
    sample = np.concatenate([sample, _mirrored(sample)])  # so the components of a mirror image have the same variances
    mean = sample.mean(0)
    variances, vectors = np.linalg.eigh(np.cov(sample, rowvar=False))
    variances, vectors = variances[: -NUM_FEATURES - 1 : -1], vectors[:, : -NUM_FEATURES - 1 : -1]
    weights = (vectors / np.maximum(variances / max(variances[0], 1e-12), 1e-4) ** 0.25).astype(np.float32)
    own, mirrored = (np.empty((len(greys), NUM_FEATURES), np.float32) for _ in range(2))
    for begin in range(0, len(greys), MAX_SAMPLE):
        part = slice(begin, begin + MAX_SAMPLE)
        histograms = _histograms(greys[part])
        blank = ~histograms.any(1, keepdims=True)
        for array, values in ((own, histograms), (mirrored, _mirrored(histograms))):
            array[part] = _unit(np.where(blank, 0, (values - mean) @ weights))
    return own, mirrored


def _histograms(greys: npt.NDArray[np.uint8]) -> Floats:
    cells = SIDE // pixels.CELL
    histograms = np.empty((len(greys), cells, cells, pixels.NUM_BINS), np.float32)
    in_threads(_gradient_histograms(), (greys, histograms))
    return histograms.reshape(len(greys), -1)


def _mirrored(histograms: Floats) -> Floats:
    """The histograms of the mirror images."""
    cells, bins = SIDE // pixels.CELL, pixels.NUM_BINS
    directions = (bins // 2 - np.arange(bins)) % bins
    shape = (len(histograms), cells, cells, bins)
    return histograms.reshape(shape)[:, :, ::-1][..., directions].reshape(len(histograms), -1)


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-6)).astype(np.float32)


def alignment_scores(
    greys: npt.NDArray[np.uint8],
    pairs: npt.NDArray[np.int64],
    refined_from: float = -1.0,
    reporter: Reporter | None = None,
) -> Floats:
    """How well the images of each pair match, at the best scale and shift: (P,) float32, at most 1.

    pairs: (P, 3) int64: the positions of two images in `greys`, and whether the second is mirrored. The score is the
    correlation of their local contrast (luminance minus the local mean, over the local standard deviation). Pairs whose
    score is less than `refined_from` on a coarse grid keep that.
    """
    reporter = reporter or SilentReporter()
    reporter.begin("aligning images", len(pairs))
    scores = np.empty(len(pairs), np.float32)
    align = _align()
    for begin in range(0, len(pairs), PAIRS_AT_ONCE):
        part = pairs[begin : begin + PAIRS_AT_ONCE]
        firsts, seconds = greys[part[:, 0]], greys[part[:, 1]]
        seconds = np.where(part[:, 2, None, None] == 1, seconds[:, :, ::-1], seconds)
        arrays = [array for greys_of in (firsts, seconds) for array in _local_contrast(greys_of)]
        in_threads(align, (*arrays, scores[begin : begin + PAIRS_AT_ONCE]), refined_from)
        reporter.advance(len(part))
    return scores


def _local_contrast(greys: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """(B, SIDE, SIDE) uint8 -> the same float32, of about unit variance; and of half the side."""

    def local_mean(values: torch.Tensor) -> torch.Tensor:
        for size, padding in (((LOCAL, 1), (LOCAL // 2, 0)), ((1, LOCAL), (0, LOCAL // 2))):
            values = F.avg_pool2d(values, size, 1, padding, count_include_pad=False)
        return values

    luminance = torch.from_numpy(greys).float()[:, None]
    difference = luminance - local_mean(luminance)
    contrast = difference / (local_mean(difference**2).sqrt() + NOISE)
    return contrast[:, 0].numpy(), F.avg_pool2d(contrast, 2)[:, 0].numpy()


def in_threads(kernel: Callable[..., None], arrays: tuple[npt.NDArray[Any], ...], *constants: float) -> None:
    """Call a kernel that holds no lock on slices of `arrays`, which have the same length."""
    count, threads = len(arrays[0]), available_cpus()
    size = max(1, -(-count // threads))
    with ThreadPoolExecutor(threads) as pool:
        parts = [slice(begin, begin + size) for begin in range(0, count, size)]
        list(pool.map(lambda part: kernel(*(array[part] for array in arrays), *constants), parts))


@functools.cache
def _gradient_histograms() -> Callable[..., None]:
    def compile(kernel: Callable[..., None]) -> None:
        kernel(np.zeros((1, SIDE, SIDE), np.uint8), np.zeros((1, SIDE // 4, SIDE // 4, 8), np.float32))

    return compiled(pixels.gradient_histograms, compile)


@functools.cache
def _align() -> Callable[..., None]:
    def compile(kernel: Callable[..., None]) -> None:
        whole, half = np.zeros((1, SIDE, SIDE), np.float32), np.zeros((1, SIDE // 2, SIDE // 2), np.float32)
        kernel(whole, half, whole, half, np.zeros(1, np.float32), 0.0)

    return compiled(pixels.align, compile)
