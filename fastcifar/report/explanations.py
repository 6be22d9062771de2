"""The explained images: a card for each, with its map and its whole sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from fastcifar.errors import DataError
from fastcifar.explain.cam import best_layer
from fastcifar.explain.files import COLUMNS, METHOD_NAMES, target_name
from fastcifar.report.figures import Picture, pixels, sheet
from fastcifar.report.run_files import MIB, RunFiles, clean, parsed

MOST_SHOWN = 200
MOST_SHEET = 16 * MIB
TILE, MOST_TILE = 128, 192
ARRAYS = (
    "weights_sha256",
    "selection",
    "index",
    "images",
    "targets",
    "methods",
    "layers",
    "sizes",
    "maps",
    "has_evidence",
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One image."""

    title: str
    true: str
    """Empty where nobody knows."""
    predicted: str
    right: bool
    confidence: float
    loss: float | None
    image: Picture | None
    overlay: Picture | None
    has_evidence: bool
    sheet: Picture | None


@dataclass(frozen=True, kw_only=True)
class Explained:
    """index.csv, maps.npz and sheets/ of a folder."""

    cards: tuple[Card, ...]
    num_images: int
    """In index.csv; the cards are the first of them."""
    selection: str
    """Which images these are, as `explain` was asked; empty without maps.npz."""
    map_name: str
    """What the overlays show; empty without them."""
    true_names: tuple[str, ...]
    predicted_names: tuple[str, ...]

    @property
    def num_right(self) -> int:
        return sum(card.right for card in self.cards)


@dataclass(frozen=True, kw_only=True)
class _Maps:
    """The maps that the grid shows, too: of the first target and method, at the layer to look at first."""

    weights_sha256: str
    selection: str
    name: str
    images: npt.NDArray[np.uint8]
    maps: npt.NDArray[np.float32]
    has_evidence: npt.NDArray[np.bool_]


def explained(files: RunFiles, folder: str = "explain") -> Explained | None:
    """The first 200 images of a folder's index.csv. Without maps.npz the cards have no pictures, without a sheet
    nothing to open."""
    name = f"{folder}/index.csv"
    rows = files.rows(name, COLUMNS)
    if not rows:
        return None
    shown = [_facts(name, row) for row in rows[:MOST_SHOWN]]
    found = files.attempt(lambda files: _maps(files, f"{folder}/maps.npz", rows))
    weights = files.attempt(lambda files: files.weights_sha256)
    if found is not None and weights is not None and found.weights_sha256 != weights:
        files.note(f"{folder}/: made with other weights than those of the run; 'fastcifar explain' makes it anew")
    cards = tuple(_card(files, folder, facts, found, i) for i, facts in enumerate(shown))
    return Explained(
        cards=cards,
        num_images=len(rows),
        selection=found.selection if found else "",
        map_name=found.name if found else "",
        true_names=tuple(sorted({card.true for card in cards if card.true})),
        predicted_names=tuple(sorted({card.predicted for card in cards})),
    )


def _facts(name: str, row: dict[str, str]) -> dict[str, Any]:
    known, index = row["true"] != "", clean(row["index"])
    return {
        "title": f"Test image {index}" if known else index,
        "true": clean(row["true"]),
        "predicted": clean(row["predicted"]),
        "right": row["true"] == row["predicted"],
        "confidence": parsed(name, row, "confidence", 0, 1),
        "loss": parsed(name, row, "loss", 0) if known else None,
        "file": row["file"],
    }


def _card(files: RunFiles, folder: str, facts: dict[str, Any], found: _Maps | None, i: int) -> Card:
    file = facts.pop("file")
    image, laid = files.drawn(lambda: _pair(found, i)) or (None, None) if found is not None else (None, None)
    return Card(
        **facts,
        image=image,
        overlay=laid,
        has_evidence=found is None or bool(found.has_evidence[i]),
        sheet=files.attempt(lambda files: _sheet(files, folder, file)),
    )


def _pair(found: _Maps, i: int) -> tuple[Picture, Picture]:
    """The image, and its map over it."""
    from fastcifar.plotting.images import overlay

    tile = TILE if max(found.images.shape[1:3]) < TILE else MOST_TILE
    laid = np.rint(overlay(found.images[i], found.maps[i], tile) * 255).astype(np.uint8)
    return pixels(found.images[i], MOST_TILE), pixels(laid, MOST_TILE)


def _sheet(files: RunFiles, folder: str, file: str) -> Picture | None:
    path = PurePosixPath(file)
    if len(path.parts) != 2 or path.parts[0] != "sheets" or path.suffix != ".png" or "\0" in file:
        raise DataError(f"{folder}/index.csv: names the sheet {clean(file, 80)!r}; expected such as sheets/00012.png")
    name = f"{folder}/sheets/{path.name}"
    content = files.read(name, MOST_SHEET)
    return None if content is None else sheet(name, content)


def _maps(files: RunFiles, name: str, rows: list[dict[str, str]]) -> _Maps | None:
    found = files.arrays(name, ARRAYS)
    if found is None:
        return None
    images, maps, layers, sizes = (found[key] for key in ("images", "maps", "layers", "sizes"))
    num = len(rows)
    named = all(found[key].ndim == 1 and found[key].dtype.kind == "U" for key in ("targets", "methods", "layers"))
    fits = (
        named
        and images.dtype == np.uint8
        and images.ndim == 4
        and images.shape[0] == num
        and images.shape[3] == 3
        and min(images.shape) > 0
        and maps.dtype == np.float32
        and maps.shape == (*(len(found[key]) for key in ("targets", "methods")), num, len(layers), *images.shape[1:3])
        and maps.size > 0
        and found["has_evidence"].dtype == np.bool_
        and found["has_evidence"].shape == maps.shape[:4]
        and sizes.dtype.kind in "iu"
        and sizes.shape == (len(layers), 2)
    )
    if not fits:
        raise DataError(f"{name}: damaged: its arrays do not fit together, or not the {num} images of index.csv")
    if rows[0]["true"] and [row["index"] for row in rows] != [str(i) for i in found["index"].ravel().tolist()]:
        raise DataError(f"{name}: damaged: its images are not those of index.csv")
    best = best_layer([(int(h), int(w)) for h, w in sizes])
    chosen = maps[0, 0, :, best]
    if not ((chosen >= 0) & (chosen <= 1)).all():
        raise DataError(f"{name}: damaged: its maps are not within 0..1")
    method, target = clean(found["methods"][0], 40), clean(found["targets"][0])
    size = "x".join(str(side) for side in sizes[best])
    return _Maps(
        weights_sha256=str(found["weights_sha256"]),
        selection=clean(found["selection"]),
        name=f"{METHOD_NAMES.get(method, method)} for {target_name(target)} at {clean(layers[best], 80)} ({size})",
        images=images,
        maps=chosen,
        has_evidence=found["has_evidence"][0, 0, :, best],
    )
