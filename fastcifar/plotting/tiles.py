"""Tables of small images, pixel for pixel: tiles with a caption above each and a label to the left of each row.

Hundreds of matplotlib axes would take seconds; here all tiles are one array, and matplotlib only writes the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from fastcifar.plotting.style import DPI, HEAT, MUTED_TEXT, Figure
from fastcifar.plotting.text import LEFT_TO_RIGHT, families, printable

MARGIN, GAP, GROUP_GAP, LINE = 16, 20, 4, 17  # pixels
CAPTION_POINTS, HEADING_POINTS = 8, 11
HEADING_LINE = 22
MIN_WIDTH, MIN_COLUMN = 560, 96
ARROW = " → "
MAX_LABEL_WIDTH = 200
MAX_SIDE = 60_000  # matplotlib draws slightly more


class Tile(NamedTuple):
    """An image with its caption."""

    pixels: npt.NDArray[np.float64]
    """(h, w, 3) in 0..1."""
    caption: str = ""
    suffix: str = ""
    """Ends the caption; never shortened."""
    colour: str = ""
    """Of the caption; matplotlib's text colour if empty."""
    detail: str = ""
    """A second, grey line below the caption."""


def table(
    rows: Sequence[Sequence[Tile]],
    heading: str,
    *,
    labels: Sequence[str] = (),
    group: int = 1,
    scale: tuple[str, str] | None = None,
) -> Figure:
    """Rows of tiles of one size.

    labels: a text for each row, to its left; may have several lines. group: every `group` tiles stand close together.
    scale: the meaning of both ends of the colour scale, if there is one.
    """
    height, width = rows[0][0].pixels.shape[:2]
    has_captions = any(tile.caption for row in rows for tile in row)
    column = max(width, MIN_COLUMN) if has_captions else width
    labels = [
        "\n".join(fitting(printable(x), MAX_LABEL_WIDTH, CAPTION_POINTS) for x in text.split("\n")) for text in labels
    ]
    label_lines = [line for label in labels for line in label.split("\n")]
    label_width = round(max((text_width(line, CAPTION_POINTS) for line in label_lines), default=0))
    left = MARGIN + (label_width + 10 if label_width else 0)
    xs = [left + i * (column + GROUP_GAP) + i // group * (GAP - GROUP_GAP) for i in range(max(map(len, rows)))]
    total_width = max(xs[-1] + column + MARGIN, MIN_WIDTH)
    paragraphs, heading_width = map(printable, heading.split("\n")), total_width - 2 * MARGIN
    heading_lines = [line for text in paragraphs for line in wrapped(text, heading_width, HEADING_POINTS)]
    tops, bottom = [], MARGIN + HEADING_LINE * len(heading_lines) + 8
    num_lines = [any(tile.caption for tile in row) + any(tile.detail for tile in row) for row in rows]
    for num, _ in zip(num_lines, rows, strict=True):
        tops.append(bottom + LINE * num)
        bottom = tops[-1] + height + GAP // 2
    total_height = bottom + (LINE + 14 if scale else 6)
    canvas = np.zeros((total_height, total_width, 4), np.uint8)  # transparent: the figure's own colour shows
    figure = Figure(figsize=(total_width / DPI, total_height / DPI), dpi=DPI)

    def write(x: float, y: float, text: str, points: float, **style: str) -> None:
        defaults: dict[str, Any] = {"va": "center", "size": points, "family": families(text), "parse_math": False}
        figure.text(x / total_width, 1 - y / total_height, text, **{**defaults, **style})

    for i, line in enumerate(heading_lines):
        write(MARGIN, MARGIN + HEADING_LINE * (i + 0.5), line, HEADING_POINTS)
    for i, (y, num, row) in enumerate(zip(tops, num_lines, rows, strict=True)):
        if labels:
            write(MARGIN, y + height / 2, labels[i], CAPTION_POINTS)
        for x, tile in zip(xs, row, strict=False):
            canvas[y : y + height, x : x + width] = 255  # opaque
            canvas[y : y + height, x : x + width, :3] = np.rint(tile.pixels * 255)
            if tile.caption:
                colour = tile.colour or matplotlib.rcParams["text.color"]
                caption_y = y - LINE * (num - 0.5)
                write(x, caption_y, captioned(tile, column), CAPTION_POINTS, color=colour)
            if tile.detail:
                detail = fitting(printable(tile.detail), column, CAPTION_POINTS)
                write(x, y - LINE / 2, detail, CAPTION_POINTS, color=MUTED_TEXT)
    if scale:
        y, bar = bottom + 4, 220
        x = (total_width - bar) // 2
        canvas[y : y + 10, x : x + bar] = colormaps[HEAT](np.linspace(0, 1, bar), bytes=True)
        write(x - 8, y + 5, scale[0], CAPTION_POINTS, ha="right")
        write(x + bar + 8, y + 5, scale[1], CAPTION_POINTS)
    figure.figimage(canvas, origin="upper")
    return figure


def captioned(tile: Tile, width: float) -> str:
    """The caption, shortened to `width` pixels; in 'true → predicted' each class is shortened by itself."""
    available = max(width - text_width(tile.suffix, CAPTION_POINTS), 0)
    parts = tile.caption.split(ARROW) if tile.caption.count(ARROW) == 1 else [tile.caption]
    parts = list(map(printable, parts))
    widths = [available]
    if len(parts) == 2:
        first, second = (text_width(part, CAPTION_POINTS) for part in parts)
        available -= text_width(ARROW, CAPTION_POINTS)
        widths = [max(available / 2, available - second), max(available / 2, available - first)]
    return ARROW.join(fitting(p, w, CAPTION_POINTS) for p, w in zip(parts, widths, strict=True)) + tile.suffix


@lru_cache(maxsize=10_000)
def text_width(text: str, points: float) -> float:
    """Width of a line of text in pixels."""
    font = FontProperties(size=points, family=families(text))
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, False)
    return float(width) * DPI / 72 * 1.04  # hinting widens some letters


def fitting(text: str, width: float, points: float) -> str:
    """The text, shortened if it is wider than `width` pixels."""
    if text_width(text, points) <= width:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if text_width(text[:middle] + "…", points) <= width:
            fits = middle
        else:
            too_long = middle
    return text[:fits] + "…" + LEFT_TO_RIGHT * text.endswith(LEFT_TO_RIGHT)


def wrapped(text: str, width: float, points: float) -> list[str]:
    """The text in lines of at most `width` pixels; a word that is wider is shortened."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and text_width(longer, points) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [fitting(line, width, points) for line in lines]
