"""The fields of a beton: which is the image, which the label, and where they are in a record.

FFCV writes any number of fields in any order. Read are: one image and one integer label, whatever their names; other
numbers are skipped. Any other field is not supported, which is not the same as damaged.
Layout: FFCV 1.0.2 (`ffcv/types.py`, `ffcv/fields/`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastcifar.errors import DataError

INT_FIELD, IMAGE_FIELD = 1, 2
MAX_FIELDS = 32
FIELD = np.dtype([("type_id", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)])
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_TYPES = {0: "FloatField", 1: "IntField", 2: "RGBImageField", 3: "BytesField", 4: "NDArrayField", 5: "JSONField"}
_TYPES |= {6: "TorchTensorField", 255: "a custom field"}
_INLINE: dict[int, npt.DTypeLike] = {0: "<f8", INT_FIELD: "<i8", IMAGE_FIELD: IMAGE}
"""Fields whose values are in the records (of images: all but the pixels)."""
_INDEX_NAMES = ("idx", "index", "indices", "id", "ids")
_LABEL_NAMES = ("label", "labels", "target", "targets", "class", "y")


@dataclass(frozen=True)
class Fields:
    """Where the image and the label are."""

    image: str
    label: str
    unused: tuple[str, ...]
    record: np.dtype[np.void]
    """A record of all fields by name: the image as `IMAGE`, the label as an integer."""


def damaged(path: Path, reason: str) -> DataError:
    """The error for a beton that no writer of betons could have written."""
    return DataError(f"{path}: damaged beton: {reason}; convert again")


def read_fields(path: Path, descriptors: npt.NDArray[np.void]) -> Fields:
    """Interpret the field descriptors of a beton. Raises DataError if they are damaged or not supported."""
    names = [_read_name(path, field) for field in descriptors]
    types = [int(field["type_id"]) for field in descriptors]
    shown = ", ".join(
        f"{name!r}: {_TYPES.get(type_, f'type {type_}')}" for name, type_ in zip(names, types, strict=True)
    )
    if len(set(names)) != len(names) or any(type_ not in _TYPES for type_ in types):
        raise damaged(path, f"has {len(names)} fields ({shown})")
    images = [name for name, type_ in zip(names, types, strict=True) if type_ == IMAGE_FIELD]
    integers = [name for name, type_ in zip(names, types, strict=True) if type_ == INT_FIELD]
    label = next((name for name in _LABEL_NAMES if name in names), "")
    if not label and len(integers) == 1 and integers[0] not in _INDEX_NAMES:
        label = integers[0]
    other = [_TYPES[type_] for type_ in types if type_ not in _INLINE]
    reason = None
    if len(images) != 1:
        reason = "no image" if not images else "several images"
    elif not label:
        reason = "no label, or several integers of which none is called 'label'"
    elif label not in integers:
        reason = f"{label!r} is not an integer; write the class index, e.g. the argmax of one-hot labels"
    elif other:
        reason = f"{other[0]} cannot be read"
    if reason is not None:
        raise DataError(
            f"{path}: not supported: has {len(names)} field{'s' * (len(names) != 1)} ({shown}): {reason}; expected one "
            "RGBImageField and one IntField, and nothing else but numbers"
        )
    record = np.dtype([(name, _INLINE[type_]) for name, type_ in zip(names, types, strict=True)], align=True)
    return Fields(images[0], label, tuple(name for name in names if name not in (images[0], label)), record)


def _read_name(path: Path, field: np.void) -> str:
    name = bytes(field["name"]).rstrip(b"\0").decode("ascii", "backslashreplace")
    if not name.isprintable() or not name or "\\" in name:
        raise damaged(path, f"a field has the name {name!a}")
    return name
