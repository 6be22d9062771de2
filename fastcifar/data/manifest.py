"""The manifest next to a beton (`train.beton.json`): class names, statistics, SHA-256 and origin."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastcifar.data.image_files import FITS
from fastcifar.errors import DataError
from fastcifar.io.paths import why_missing
from fastcifar.io.reading import read_bytes, reject_duplicate_keys

VERSION = 4
READABLE = (3, 4)
"""Version 3 lacks dropped, relabelled and edits_sha256 in its conversion."""
MAX_NAME = 255
"""Characters of a class name: a folder's name has no more."""
MAX_SIZES = 20
MAX_ELONGATED, MIN_ASPECT = 1_000, 2.5
MAX_BYTES = 64 * 2**20
SYNTHETIC = "synthetic, seed "
"""Begins the `source` of images that `fastcifar.converters.synthetic` drew."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What happened to the images of a split when they were converted."""

    size: tuple[int, int] | None = None
    """(height, width) to which images were resized; None if they were not."""
    fit: str = "crop"
    """See `fastcifar.data.image_files.Preprocessing`; as `background`."""
    background: tuple[int, int, int] = (255, 255, 255)
    sizes: dict[str, int] = field(default_factory=dict)
    """Number of images of each original size, 'HEIGHTxWIDTH': the MAX_SIZES most frequent, and 'others'."""
    elongated: tuple[tuple[int, int, int], ...] = ()
    """Index, original height and width of the first MAX_ELONGATED images that were cropped, padded or stretched to
    proportions of MIN_ASPECT times their own, or more."""
    changes: dict[str, int] = field(default_factory=dict)
    """Number of images with each change, keys of `fastcifar.data.image_files.CHANGES`."""
    skipped: tuple[str, ...] = ()
    """Origins of the broken images that were skipped."""
    num_ignored: int = 0
    """Files of operating systems and storage devices in the source."""
    num_duplicates: int = 0
    """Images equal to an earlier one of the split."""
    num_in_other_split: int = 0
    """Images equal to one of the other split."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Number of images that were left out, by kind of issue; see `fastcifar.converters.edits`."""
    relabelled: int = 0
    """Number of images that got another label."""
    edits_sha256: tuple[str, ...] = ()
    """SHA-256 of the files that listed those."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The facts about a beton that its own format does not hold."""

    num_samples: int
    """Images."""
    image_shape: tuple[int, int, int]
    """(H, W, 3)."""
    class_names: tuple[str, ...]
    """Of the labels 0, 1, …"""
    mean: tuple[float, float, float]
    """Per channel (red, green, blue), over all pixels, 0..255."""
    std: tuple[float, float, float]
    """Population standard deviation per channel, 0..255."""
    sha256: str
    """Of the beton."""
    source: str
    """What was converted."""
    versions: dict[str, str]
    """Of the packages that converted it, by name."""
    conversion: Conversion = field(default_factory=Conversion)
    """What happened to the images."""
    origins_sha256: str = ""
    """Of the file of origins, see `fastcifar.data.origins`; empty if there is none."""

    def to_json(self) -> str:
        """The text of the manifest file, with a checksum of its own."""
        facts = {"fastcifar_manifest": VERSION, **asdict(self)}
        return json.dumps({**facts, "checksum": _checksum(facts)}, indent=1, ensure_ascii=False) + "\n"


def manifest_path(path: str | os.PathLike[str]) -> Path:
    """The manifest of the beton at `path`: next to it, else next to the file that a link there leads to."""
    adjacent = Path(f"{os.fspath(path)}.json")
    if os.path.islink(path) and not os.path.lexists(adjacent):
        return Path(f"{os.path.realpath(path)}.json")
    return adjacent


def read_manifest(path: str | os.PathLike[str]) -> Manifest | None:
    """The manifest of the beton at `path`; None if there is none. Raises DataError if it is damaged."""
    file = manifest_path(path)
    if not os.path.lexists(file):
        return None
    try:
        text = read_bytes(file, MAX_BYTES).decode("utf-8")
        return _parse(json.loads(text, object_pairs_hook=reject_duplicate_keys))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
        reason = reason if file.exists() else why_missing(file)
        raise DataError(f"{file}: not a manifest of fastcifar ({reason}); convert again") from error


def _parse(raw: Any) -> Manifest:
    """The manifest that a JSON value holds. Raises ValueError, KeyError, TypeError or OverflowError."""
    if not isinstance(raw, dict) or raw.get("fastcifar_manifest") not in READABLE:
        raise ValueError(f"it does not begin with fastcifar_manifest: {VERSION}")
    names, shape = raw["class_names"], raw["image_shape"]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n and n.isprintable() for n in names):
        raise ValueError("class_names is not a list of names")
    if max(map(len, names)) > MAX_NAME:
        raise ValueError(f"class_names has a name of over {MAX_NAME} characters")
    if len(set(names)) != len(names):
        raise ValueError("class_names has a duplicate")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int for n in shape):
        raise ValueError("image_shape is not a list of three integers")
    if not isinstance(raw["sha256"], str) or type(raw["num_samples"]) is not int:
        raise ValueError("sha256 or num_samples has the wrong type")
    if not isinstance(raw["origins_sha256"], str):
        raise ValueError("origins_sha256 is not text")
    mean, std = (_parse_channels(key, raw[key]) for key in ("mean", "std"))
    if raw.pop("checksum", None) != _checksum(raw):
        raise ValueError("damaged: its checksum does not match its content")
    return Manifest(
        num_samples=raw["num_samples"],
        image_shape=(shape[0], shape[1], shape[2]),
        class_names=tuple(names),
        mean=mean,
        std=std,
        sha256=raw["sha256"],
        source=str(raw.get("source", "")),
        versions={str(k): str(v) for k, v in dict(raw.get("versions", {})).items()},
        conversion=_parse_conversion(raw["conversion"]),
        origins_sha256=raw["origins_sha256"],
    )


def _parse_conversion(raw: Any) -> Conversion:
    raw = {"dropped": {}, "relabelled": 0, "edits_sha256": [], "elongated": [], **raw}
    size, fit, background = raw["size"], raw["fit"], raw["background"]
    if size is not None and (not _are_counts(size) or len(size) != 2 or not all(size)):
        raise ValueError("conversion.size is not two positive integers")
    if fit not in FITS:
        raise ValueError(f"conversion.fit is none of {', '.join(FITS)}")
    if not _are_counts(background) or len(background) != 3 or max(background) > 255:
        raise ValueError("conversion.background is not three integers of 0..255")
    numbers = {name: raw[name] for name in ("num_ignored", "num_duplicates", "num_in_other_split", "relabelled")}
    for name in ("sizes", "changes", "dropped"):
        counts = raw[name]
        if not isinstance(counts, dict) or not _are_counts(list(counts.values())):
            raise ValueError(f"conversion.{name} is not a mapping of counts")
    if not _are_counts(list(numbers.values())):
        raise ValueError("conversion has a count that is not an integer")
    rows = raw["elongated"]
    if not isinstance(rows, list) or not all(_are_counts(row) and len(row) == 3 and row[1] and row[2] for row in rows):
        raise ValueError("conversion.elongated is not a list of indices, heights and widths")
    for name in ("skipped", "edits_sha256"):
        if not isinstance(raw[name], list) or not all(isinstance(text, str) for text in raw[name]):
            raise ValueError(f"conversion.{name} is not a list of names")
    return Conversion(
        size=(size[0], size[1]) if size else None,
        fit=fit,
        background=(background[0], background[1], background[2]),
        sizes=raw["sizes"],
        elongated=tuple((index, height, width) for index, height, width in rows),
        changes=raw["changes"],
        skipped=tuple(raw["skipped"]),
        dropped=raw["dropped"],
        edits_sha256=tuple(raw["edits_sha256"]),
        **numbers,
    )


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _parse_channels(key: str, values: Any) -> tuple[float, float, float]:
    if not isinstance(values, list) or len(values) != 3 or not all(type(v) in (int, float) for v in values):
        raise ValueError(f"{key} is not a list of three numbers")
    if not all(0 <= v <= 255 for v in values):
        raise ValueError(f"{key} is outside 0..255")
    return float(values[0]), float(values[1]), float(values[2])


def _checksum(facts: dict[str, Any]) -> str:
    """SHA-256 of the content of a manifest, whatever its white space and order of keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
