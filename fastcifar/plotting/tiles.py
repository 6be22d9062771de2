"""Sheets of small pictures, pixel for pixel: a table of tiles, with a line of text above each and one beside each row.

Hundreds of matplotlib's axes would take seconds; here all tiles are one array, and matplotlib writes the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from fastcifar.plotting.style import DPI, HEAT
from fastcifar.plotting.text import LEFT_TO_RIGHT, families, printable

MARGIN, GAP, NEAR, LINE = 16, 20, 4, 17
CAPTION_POINTS, HEADING_POINTS = 8, 11
HEADING_LINE = 22
LEAST_WIDTH, LEAST_COLUMN = 560, 96
ARROW = " → "
MOST_BESIDE = 200
MAX_SIDE = 60_000  # what matplotlib can draw is a little more


class Tile(NamedTuple):
    """One picture and what stands above it."""

    pixels: npt.NDArray[np.float64]
    """(h, w, 3) in 0..1."""
    caption: str = ""
    suffix: str = ""
    """Ends the caption, and is never shortened."""
    colour: str = ""
    """Of the caption; matplotlib's text colour if empty."""


def table(
    rows: Sequence[Sequence[Tile]],
    heading: str,
    *,
    labels: Sequence[str] = (),
    near: int = 1,
    scale: tuple[str, str] | None = None,
) -> Figure:
    """Rows of tiles of one size.

    labels: a text for each row, at its left; may have several lines. near: so many tiles stand close together.
    scale: what the ends of the colour scale mean, if there is one.
    """
    height, width = rows[0][0].pixels.shape[:2]
    columns = max(map(len, rows))
    column = max(width, LEAST_COLUMN) if any(tile.caption for row in rows for tile in row) else width
    labels = [
        "\n".join(fitting(printable(x), MOST_BESIDE, CAPTION_POINTS) for x in text.split("\n")) for text in labels
    ]
    beside = round(max((text_width(line, CAPTION_POINTS) for label in labels for line in label.split("\n")), default=0))
    left = MARGIN + (beside + 10 if beside else 0)
    xs = [left + i * (column + NEAR) + i // near * (GAP - NEAR) for i in range(columns)]
    total_width = max(xs[-1] + column + MARGIN, LEAST_WIDTH)
    parts, room = map(printable, heading.split("\n")), total_width - 2 * MARGIN
    lines = [line for part in parts for line in wrapped(part, room, HEADING_POINTS)]
    top = MARGIN + HEADING_LINE * len(lines) + 4
    tops, bottom = [], top
    for row in rows:
        tops.append(bottom + (LINE if any(tile.caption for tile in row) else 0))
        bottom = tops[-1] + height + GAP // 2
    total_height = bottom + (LINE + 14 if scale else 6)
    canvas = np.zeros((total_height, total_width, 4), np.uint8)  # transparent: the figure's own colour shows
    figure = Figure(figsize=(total_width / DPI, total_height / DPI), dpi=DPI)

    def write(x: float, y: float, text: str, points: float, **style: str) -> None:
        own: dict[str, Any] = {"va": "center", "size": points, "family": families(text), "parse_math": False, **style}
        figure.text(x / total_width, 1 - y / total_height, text, **own)

    for i, line in enumerate(lines):
        write(MARGIN, MARGIN + HEADING_LINE * (i + 0.5), line, HEADING_POINTS)
    for i, (y, row) in enumerate(zip(tops, rows, strict=True)):
        if labels:
            write(MARGIN, y + height / 2, labels[i], CAPTION_POINTS)
        for x, tile in zip(xs, row, strict=False):
            canvas[y : y + height, x : x + width] = _opaque(tile.pixels)
            if tile.caption:
                colour = tile.colour or matplotlib.rcParams["text.color"]
                caption = captioned(tile, column)
                write(x, y - LINE / 2, caption, CAPTION_POINTS, color=colour)
    if scale:
        _draw_scale(canvas, bottom + 4, total_width, scale, write)
    figure.figimage(canvas, origin="upper")
    return figure


def _opaque(pixels: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """(h, w, 3) in 0..1 -> (h, w, 4) uint8."""
    return np.rint(np.dstack([pixels, np.ones(pixels.shape[:2])]) * 255).astype(np.uint8)


def captioned(tile: Tile, width: float) -> str:
    """The caption, shortened where it is wider than that: each part by itself, so that something is left of both."""
    room = max(width - text_width(tile.suffix, CAPTION_POINTS), 0)
    parts = tile.caption.split(ARROW) if tile.caption.count(ARROW) == 1 else [tile.caption]
    parts = list(map(printable, parts))
    if len(parts) == 2:
        first, second = (text_width(part, CAPTION_POINTS) for part in parts)
        room -= text_width(ARROW, CAPTION_POINTS)
        rooms = [max(room / 2, room - second), max(room / 2, room - first)]
    else:
        rooms = [room]
    return ARROW.join(fitting(p, r, CAPTION_POINTS) for p, r in zip(parts, rooms, strict=True)) + tile.suffix


def _draw_scale(
    canvas: npt.NDArray[np.uint8], y: int, total_width: int, ends: tuple[str, str], write: Callable[..., None]
) -> None:
    bar = 220
    x = (total_width - bar) // 2
    canvas[y : y + 10, x : x + bar] = colormaps[HEAT](np.linspace(0, 1, bar), bytes=True)
    write(x - 8, y + 5, ends[0], CAPTION_POINTS, ha="right")
    write(x + bar + 8, y + 5, ends[1], CAPTION_POINTS)


@lru_cache(maxsize=10_000)
def text_width(text: str, points: float) -> float:
    """Pixels that a line of text takes."""
    font = FontProperties(size=points, family=families(text))
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, False)
    return float(width) * DPI / 72 * 1.04  # hinting widens some letters


def fitting(text: str, width: float, points: float) -> str:
    """The text, shortened where it is wider than that."""
    if text_width(text, points) <= width:
        return text
    fits, beyond = 0, len(text)
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        if text_width(text[:middle] + "…", points) <= width:
            fits = middle
        else:
            beyond = middle
    return text[:fits] + "…" + LEFT_TO_RIGHT * text.endswith(LEFT_TO_RIGHT)


def wrapped(text: str, width: float, points: float) -> list[str]:
    """The text in lines that are no wider than that; a single word may be shortened."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and text_width(longer, points) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [fitting(line, width, points) for line in lines]
