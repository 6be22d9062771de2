"""Images as they stand in the page: data URLs. Figures are SVG, one for each colour scheme."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from fastcifar import plotting
from fastcifar.report.run_files import RunFiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUALITY = 90
"""Of WebP."""
LOSSLESS_SIDE = 48


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image and its size in CSS pixels."""

    url: str
    width: int
    height: int


def drawing(files: RunFiles, draw: Callable[[], Figure], alt: str) -> dict[str, Any] | None:
    """The figure that `draw` returns for both colour schemes, `light` and `dark`, and its `alt`; None, with a note, if
    it cannot be drawn."""

    def both() -> dict[str, Any]:
        light = _svg(draw())
        with plotting.dark():
            return {"light": light, "dark": _svg(draw()), "alt": alt}

    return files.drawn(both)


def _svg(figure: Figure) -> Picture:
    width, height = (round(inches * 96) for inches in figure.get_size_inches())
    return Picture(url=_data_url("image/svg+xml", plotting.svg(figure)), width=width, height=height)


def png(image: npt.NDArray[np.uint8], max_side: int) -> Picture:
    """(H, W, 3) uint8 as PNG, reduced to `max_side` pixels if it is larger."""
    return _encode(_reduced(image, max_side), "PNG")


def webp(image: npt.NDArray[np.uint8], max_side: int) -> Picture:
    """(H, W, 3) uint8 as WebP, reduced to `max_side` pixels if it is larger."""
    return _encode(_reduced(image, max_side), "WEBP", quality=QUALITY, method=1)


def _reduced(image: npt.NDArray[np.uint8], max_side: int) -> PIL.Image.Image:
    picture = PIL.Image.fromarray(image)
    picture.thumbnail((max_side, max_side), PIL.Image.Resampling.LANCZOS)
    return picture


def thumbnail(images: Sequence[npt.NDArray[np.uint8]], max_side: int) -> Picture:
    """Images of one size, (H, W, 3) uint8, side by side, each reduced to `max_side` pixels if it is larger: a small one
    as PNG, without loss, others as WebP."""
    height, width = images[0].shape[:2]
    scale = min(1, max_side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    parts = [PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.LANCZOS) for image in images]
    whole = PIL.Image.fromarray(np.concatenate([np.asarray(part) for part in parts], axis=1))
    if max(whole.size) <= LOSSLESS_SIDE:
        return _encode(whole, "PNG")
    return _encode(whole, "WEBP", quality=QUALITY, method=1)


def _encode(picture: PIL.Image.Image, form: str, **settings: int) -> Picture:
    file = io.BytesIO()
    picture.save(file, format=form, **settings)
    return Picture(url=_data_url(f"image/{form.lower()}", file.getvalue()), width=picture.width, height=picture.height)


def _data_url(mime_type: str, content: bytes) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"
