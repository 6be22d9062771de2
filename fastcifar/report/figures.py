"""Pictures as they stand in the page: data addresses. Figures are SVG, once light and once dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import PIL.Image

from fastcifar.errors import DataError, Stopped, one_line
from fastcifar.report.run_files import RunFiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PIXELS = 30_000_000
SHEET_QUALITY = 90
"""Of WebP: a sheet of 330 KiB becomes one of 70, in 0.1 s; lossless it is 200 and takes 0.5 s."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image and its size in CSS pixels."""

    address: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure for both colour schemes."""

    light: Picture
    dark: Picture
    alt: str


def drawing(files: RunFiles, draw: Callable[[], Figure], alt: str) -> Drawing | None:
    """What `draw` draws, light and dark; None, with a note, if that fails."""

    def both() -> Drawing:
        from fastcifar import plotting

        light = _svg(draw())
        with plotting.dark():
            dark = _svg(draw())
        return Drawing(light=light, dark=dark, alt=alt)

    return files.drawn(both)


def _svg(figure: Figure) -> Picture:
    from fastcifar import plotting

    width, height = (round(inches * 96) for inches in figure.get_size_inches())
    return Picture(address=_address("image/svg+xml", plotting.svg(figure)), width=width, height=height)


def pixels(image: npt.NDArray[np.uint8], most: int) -> Picture:
    """(H, W, 3) uint8 as it is, as PNG; reduced to `most` pixels where it is larger."""
    picture = PIL.Image.fromarray(image)
    picture.thumbnail((most, most), PIL.Image.Resampling.LANCZOS)
    return _picture(picture, "PNG")


def sheet(name: str, content: bytes) -> Picture:
    """A sheet, stored as WebP. Raises DataError if `content` is no PNG, or has more than 30 million pixels."""
    try:
        width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))  # of its header
        if not content.startswith(b"\x89PNG\r\n\x1a\n") or not 0 < width * height <= MOST_PIXELS:
            raise ValueError(f"not a PNG of at most {MOST_PIXELS:,} pixels")
        with PIL.Image.open(io.BytesIO(content), formats=("PNG",)) as found:
            return _picture(found.convert("RGB"), "WEBP", quality=SHEET_QUALITY, method=1)
    except Stopped:
        raise
    except Exception as error:  # Pillow raises what its decoders raise
        raise DataError(f"{name}: damaged: {one_line(error)}") from error


def _picture(picture: PIL.Image.Image, form: str, **settings: int) -> Picture:
    file = io.BytesIO()
    picture.save(file, format=form, **settings)
    return Picture(
        address=_address(f"image/{form.lower()}", file.getvalue()), width=picture.width, height=picture.height
    )


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
