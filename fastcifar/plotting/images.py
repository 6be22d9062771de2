"""Images and their class activation maps: grids, sheets, galleries, previews."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
from matplotlib import colormaps

from fastcifar.plotting.context import own_context
from fastcifar.plotting.style import CORRECT_TEXT, HEAT, LUMINANCE, WRONG_TEXT, Figure
from fastcifar.plotting.text import class_labels
from fastcifar.plotting.tiles import MAX_SIDE, Tile, table

if TYPE_CHECKING:
    from fastcifar.inference.predictions import Predictions

Images = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.float64]
TILE, SMALL_TILE = 176, 96
MAX_GRID_COLUMNS, MAX_GALLERY_COLUMNS = 6, 10
MAX_GRID_IMAGES = 400
MAX_NAME = 15
"""Characters of the name of an image in a gallery: about the width of a tile."""
SCALE = ("no evidence", "most evidence")


class Caption(NamedTuple):
    """What an image shows, and what it was predicted as."""

    true: str
    """Empty if unknown."""
    predicted: str
    is_correct: bool
    name: str
    """Of the image: its index in the beton, or the name of its file."""
    confidence: float
    """0..1."""


def captions(predictions: Predictions, names: Sequence[str], class_names: Sequence[str]) -> list[Caption]:
    """The caption of each image. names: of the images."""
    labels = class_labels(class_names)
    columns = predictions.labels, predictions.predicted, names, predictions.confidence
    return [
        Caption(labels[true] if true >= 0 else "", labels[predicted], bool(true == predicted), name, confidence)
        for true, predicted, name, confidence in zip(*columns, strict=True)
    ]


class SheetRow(NamedTuple):
    """One layer of a sheet."""

    label: str
    maps: Sequence[Maps]
    """By method, each (H, W) in 0..1."""
    has_evidence: Sequence[bool]


def enlarged(image: Images, tile: int) -> Pixels:
    """(H, W, 3) uint8 -> 0..1, at about `tile` pixels: each pixel becomes a square. An image of twice that size or
    more is reduced."""
    height, width = _drawn_size(image.shape, tile)
    return np.asarray(PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BOX)) / 255.0


def _drawn_size(shape: tuple[int, ...], tile: int) -> tuple[int, int]:
    """Height and width of an image in a figure."""
    height, width = shape[:2]
    side = max(height, width)
    if side >= 2 * tile:
        return max(1, round(height * tile / side)), max(1, round(width * tile / side))
    factor = max(1, round(tile / side))
    return height * factor, width * factor


def _enlarged_map(heat: Maps, tile: int) -> Pixels:
    height, width = _drawn_size(heat.shape, tile)
    # bilinear, as the map was enlarged to the size of the image
    large = PIL.Image.fromarray(heat.astype(np.float32)).resize((width, height), PIL.Image.Resampling.BILINEAR)
    return np.clip(np.asarray(large, dtype=np.float64), 0, 1)


def overlay(image: Images, heat: Maps, tile: int = TILE) -> Pixels:
    """A map over its image in grey, the more opaque the stronger: every colour is the map's.

    image: (H, W, 3) uint8. heat: (H, W) in 0..1. Both are enlarged to about `tile` pixels, in 0..1.
    """
    large = _enlarged_map(heat, tile)
    grey = (enlarged(image, tile) @ LUMINANCE)[..., None]
    opacity = (0.75 * large)[..., None]
    return (1 - opacity) * grey + opacity * colormaps[HEAT](large)[..., :3]


def mask(image: Images, heat: Maps, tile: int = TILE) -> Pixels:
    """The image in its colours where the map is strong, dark where it is weak."""
    return enlarged(image, tile) * _enlarged_map(heat, tile)[..., None]


@own_context()
def cam_grid(
    images: Images, maps: Maps, has_evidence: Sequence[bool], captions: Sequence[Caption], heading: str
) -> Figure:
    """Each image next to its map; at most the first 400.

    images: (N, H, W, 3) uint8. maps: (N, H, W) in 0..1. has_evidence: (N,).
    """
    if len(images) > MAX_GRID_IMAGES:
        heading += f"\nthe first {MAX_GRID_IMAGES} of {len(images):,}"
    tiles = []
    for image, heat, evidence, caption in zip(images[:MAX_GRID_IMAGES], maps, has_evidence, captions, strict=False):
        colour = "" if not caption.true else CORRECT_TEXT if caption.is_correct else WRONG_TEXT
        name = _end_of(caption.name)
        first = (
            Tile(enlarged(image, TILE), f"true: {caption.true}", detail=name)
            if caption.true
            else Tile(enlarged(image, TILE), name)
        )
        tiles.append(first)
        detail = "" if evidence else "no evidence"
        tiles.append(Tile(overlay(image, heat), caption.predicted, f" {caption.confidence:.0%}", colour, detail))
    columns = 2 * min(math.ceil((len(tiles) / 2) ** 0.5), MAX_GRID_COLUMNS)
    return table(_in_rows(tiles, columns), heading, group=2, scale=SCALE)


def _end_of(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"…{name[1 - MAX_NAME :]}"


def _in_rows(tiles: list[Tile], columns: int) -> list[list[Tile]]:
    return [tiles[i : i + columns] for i in range(0, len(tiles), columns)]


@own_context()
def cam_sheet(image: Images, rows: Sequence[SheetRow], methods: Sequence[str], heading: str) -> Figure:
    """One image at each layer: the image, a heatmap by method, a mask by method."""
    lines = []
    for i, row in enumerate(rows):
        heatmaps = [Tile(overlay(image, heat), f"{m} heatmap") for m, heat in zip(methods, row.maps, strict=True)]
        masks = [Tile(mask(image, heat), f"{m} mask") for m, heat in zip(methods, row.maps, strict=True)]
        tiles = [Tile(enlarged(image, TILE), "image"), *heatmaps, *masks]
        if i:  # the first row names the columns
            tiles = [Tile(tile.pixels) for tile in tiles]
        for j, has_evidence in enumerate(row.has_evidence):
            if not has_evidence:
                tiles[1 + j] = tiles[1 + j]._replace(caption=f"{methods[j]}: no evidence", colour=WRONG_TEXT)
        lines.append(tiles)
    return table(lines, heading, labels=[row.label for row in rows], scale=SCALE)


@own_context()
def gallery(images: Images, captions: Sequence[Caption], heading: str) -> Figure:
    """Images with their true and predicted class, and below that confidence and name, the end of a long one.

    images: (N, H, W, 3) uint8.
    """
    tiles = [
        Tile(
            enlarged(image, TILE),
            caption.predicted if caption.is_correct else f"{caption.true} → {caption.predicted}",
            detail=f"{caption.confidence:.0%} · {_end_of(caption.name)}",
        )
        for image, caption in zip(images, captions, strict=True)
    ]
    columns = min(math.ceil(len(tiles) ** 0.5), MAX_GALLERY_COLUMNS)
    return table(_in_rows(tiles, columns), heading, group=columns)


@own_context()
def preview(originals: Images, augmented: npt.NDArray[np.uint8], labels: Sequence[str], heading: str) -> Figure:
    """A row for each image: the original next to its augmented versions.

    originals: (N, H, W, 3) uint8. augmented: (N, versions, H, W, 3) uint8. labels: a name for each row.
    """
    max_rows = (MAX_SIDE - 200) // (2 * SMALL_TILE + 20)
    if len(originals) > max_rows:
        heading += f"\nthe first {max_rows} of {len(originals)}"
    lines = []
    for original, versions in zip(originals[:max_rows], augmented[:max_rows], strict=True):
        lines.append([Tile(enlarged(image, SMALL_TILE)) for image in (original, *versions)])
    captions = ["original", *(f"epoch {i}" for i in range(1, augmented.shape[1] + 1))]
    lines[0] = [tile._replace(caption=caption) for tile, caption in zip(lines[0], captions, strict=True)]
    return table(lines, heading, labels=labels[:max_rows])
