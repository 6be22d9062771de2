"""Images and their class activation maps: sheets, galleries, previews."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
from matplotlib import colormaps
from matplotlib.figure import Figure

from fastcifar.plotting.context import own_context
from fastcifar.plotting.style import HEAT, TRAIN_COLOUR, VAL_COLOUR
from fastcifar.plotting.tiles import MAX_SIDE, Tile, table

Images = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.float64]
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # ITU-R BT.709
TILE, SMALL_TILE = 176, 96
MAX_COLUMNS = 6
MOST_IN_GRID = 400
SCALE = ("no evidence", "most evidence")


class Named(NamedTuple):
    """What an image is, and what it was taken for."""

    true: str
    """Empty if nobody knows."""
    guess: str
    right: bool
    name: str
    """Of the image: its number in the beton, or that of its file."""
    confidence: str = ""
    """' 87%', or nothing."""


class SheetRow(NamedTuple):
    """One layer of a sheet."""

    label: str
    maps: Sequence[Maps]
    """By method, each (H, W) in 0..1."""
    has_evidence: Sequence[bool]


def enlarged(image: Images, tile: int) -> Pixels:
    """(H, W, 3) uint8 -> 0..1, each pixel a square: without blur, to about `tile` pixels. Twice as large, or larger,
    it is reduced to that."""
    height, width = _drawn_size(image.shape, tile)
    if max(image.shape[:2]) > max(height, width):
        return np.asarray(PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BOX)) / 255.0
    factor = height // image.shape[0]
    return (image / 255.0).repeat(factor, axis=0).repeat(factor, axis=1)


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
    # the map is smooth by nature: enlarged bilinearly, as it was to the size of the image
    large = PIL.Image.fromarray(heat.astype(np.float32)).resize((width, height), PIL.Image.Resampling.BILINEAR)
    return np.clip(np.asarray(large, dtype=np.float64), 0, 1)


def overlay(image: Images, heat: Maps, tile: int = TILE) -> Pixels:
    """A map laid over its image, the more opaque the stronger; the image in grey, so that every colour is the map's.

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
def cam_grid(images: Images, maps: Maps, has_evidence: Sequence[bool], names: Sequence[Named], heading: str) -> Figure:
    """Each image beside itself with its map; at most the first 400.

    images: (N, H, W, 3) uint8. maps: (N, H, W) in 0..1. has_evidence: (N,); where not, it is said.
    """
    if len(images) > MOST_IN_GRID:
        heading += f"\nthe first {MOST_IN_GRID} of {len(images):,}"
        images, maps, names = images[:MOST_IN_GRID], maps[:MOST_IN_GRID], names[:MOST_IN_GRID]
    pairs = [
        (
            _named(image, name),
            _guessed(overlay(image, heat), name, f),
        )
        for image, heat, f, name in zip(images, maps, has_evidence, names, strict=False)
    ]
    columns = min(math.ceil(len(pairs) ** 0.5), MAX_COLUMNS)
    rows = [[tile for pair in pairs[i : i + columns] for tile in pair] for i in range(0, len(pairs), columns)]
    return table(rows, heading, near=2, scale=SCALE)


def _named(image: Images, name: Named) -> Tile:
    large = enlarged(image, TILE)
    return Tile(large, f"true: {name.true}", f" · {name.name}") if name.true else Tile(large, name.name)


def _guessed(pixels: Pixels, name: Named, has_evidence: bool) -> Tile:
    suffix = name.confidence if has_evidence else f"{name.confidence}: no evidence"
    colour = TRAIN_COLOUR if name.right else VAL_COLOUR
    return Tile(pixels, name.guess, suffix, colour if name.true else "")


@own_context()
def cam_sheet(image: Images, rows: Sequence[SheetRow], methods: Sequence[str], heading: str) -> Figure:
    """One image at each layer: the image, a heatmap by method, a mask by method."""
    lines = []
    for i, row in enumerate(rows):
        heats = [Tile(overlay(image, heat), f"{m} heatmap") for m, heat in zip(methods, row.maps, strict=True)]
        masks = [Tile(mask(image, heat), f"{m} mask") for m, heat in zip(methods, row.maps, strict=True)]
        tiles = [Tile(enlarged(image, TILE), "image"), *heats, *masks]
        if i:  # the first row names the columns
            tiles = [Tile(tile.pixels) for tile in tiles]
        for j, found in enumerate(row.has_evidence):
            if not found:
                tiles[1 + j] = tiles[1 + j]._replace(caption=f"{methods[j]}: no evidence", colour=VAL_COLOUR)
        lines.append(tiles)
    return table(lines, heading, labels=[row.label for row in rows], scale=SCALE)


@own_context()
def gallery(images: Images, names: Sequence[Named], heading: str) -> Figure:
    """Images, each with what it is and what it was taken for. images: (N, H, W, 3) uint8."""
    tiles = [
        Tile(enlarged(image, TILE), name.guess if name.right else f"{name.true} → {name.guess}", f" · {name.name}")
        for image, name in zip(images, names, strict=True)
    ]
    columns = min(math.ceil(len(tiles) ** 0.5), 10)
    return table([tiles[i : i + columns] for i in range(0, len(tiles), columns)], heading, near=columns)


@own_context()
def preview(originals: Images, augmented: npt.NDArray[np.uint8], labels: Sequence[str], heading: str) -> Figure:
    """A row for each image: the original, and beside it its augmented versions.

    originals: (N, H, W, 3) uint8. augmented: (N, versions, H, W, 3) uint8. labels: a name for each row.
    """
    most = (MAX_SIDE - 200) // (2 * SMALL_TILE + 20)
    if len(originals) > most:
        heading += f"\nthe first {most} of {len(originals)}"
    lines = []
    for original, versions in zip(originals[:most], augmented[:most], strict=True):
        lines.append([Tile(enlarged(image, SMALL_TILE)) for image in (original, *versions)])
    lines[0] = [tile._replace(caption=text) for tile, text in zip(lines[0], _captions(augmented.shape[1]), strict=True)]
    return table(lines, heading, labels=labels[:most], near=1)


def _captions(num_versions: int) -> list[str]:
    return ["original", *(f"epoch {i}" for i in range(1, num_versions + 1))]
