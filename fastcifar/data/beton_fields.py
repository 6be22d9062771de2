"""The fields of a beton: which of them is the image and which the label, and where they lie in a record.

FFCV writes any number of fields in any order. One image and one whole number for its class are read, whatever they are
called; other numbers are passed over; what else there may be is not supported, which is not the same as damaged.
The layout is that of FFCV 1.0.2 (`ffcv/types.py`, `ffcv/fields/`).
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
_TYPES |= {6: "TorchTensorField", 255: "a field of its writer's own"}
_INLINE: dict[int, npt.DTypeLike] = {0: "<f8", INT_FIELD: "<i8", IMAGE_FIELD: IMAGE}
"""Fields that are stored in the records, apart from pixels."""
_INDEX_NAMES = ("idx", "index", "indices", "id", "ids")
_LABEL_NAMES = ("label", "labels", "target", "targets", "class", "y")


@dataclass(frozen=True)
class Fields:
    """Where the image and the label are."""

    image: str
    label: str
    unused: tuple[str, ...]
    record: np.dtype[np.void]
    """mode, width, height, data_ptr and label of an image."""
    padding: npt.NDArray[np.bool_]
    """(record.itemsize,): the bytes of a record that no field takes."""


def read_fields(path: Path, descriptors: npt.NDArray[np.void]) -> Fields:
    """What the descriptors of a beton say. Raises DataError if they are damaged, or say what is not supported."""
    names = [_name(path, field) for field in descriptors]
    types = [int(field["type_id"]) for field in descriptors]
    shown = ", ".join(f"{name!r}: {_TYPES.get(kind, f'type {kind}')}" for name, kind in zip(names, types, strict=True))

    def refuse(why: str) -> DataError:
        return DataError(
            f"{path}: not supported: has {len(names)} field{'s' * (len(names) != 1)} ({shown}): {why}; expected one "
            "RGBImageField and one IntField, and nothing else but numbers"
        )

    if len(set(names)) != len(names) or any(kind not in _TYPES for kind in types):
        raise DataError(f"{path}: damaged beton: has {len(names)} fields ({shown}); convert again")
    images = [name for name, kind in zip(names, types, strict=True) if kind == IMAGE_FIELD]
    numbers = [name for name, kind in zip(names, types, strict=True) if kind == INT_FIELD]
    if len(images) != 1:
        raise refuse("no image" if not images else "several images")
    label = next((name for name in _LABEL_NAMES if name in names), None)
    if label is None and len(numbers) == 1 and numbers[0] not in _INDEX_NAMES:
        label = numbers[0]
    if label is None:
        raise refuse("no label, or several whole numbers of which none is called 'label'")
    if label not in numbers:
        raise refuse(
            f"{label!r} is not a whole number; write the number of the class, such as the argmax of one-hot labels"
        )
    other = [kind for kind in types if kind not in _INLINE]
    if other:
        raise refuse(f"{_TYPES[other[0]]} cannot be read")
    if descriptors["arguments"].any():
        raise DataError(
            f"{path}: damaged beton: its descriptors hold arguments, which its fields have not; convert again"
        )
    stored = np.dtype([("", _INLINE[kind]) for kind in types], align=True)
    starts = [stored.fields[f"f{i}"][1] for i in range(len(types))] if stored.fields is not None else []
    padding = np.ones(stored.itemsize, dtype=bool)
    for start, kind in zip(starts, types, strict=True):
        padding[start : start + np.dtype(_INLINE[kind]).itemsize] = False
    image_at, label_at = starts[names.index(images[0])], starts[names.index(label)]
    assert IMAGE.fields is not None
    record = np.dtype(
        {
            "names": [*(IMAGE.names or ()), "label"],
            "formats": [*(IMAGE.fields[name][0] for name in IMAGE.names or ()), "<i8"],
            "offsets": [*(image_at + IMAGE.fields[name][1] for name in IMAGE.names or ()), label_at],
            "itemsize": stored.itemsize,
        }
    )
    unused = tuple(name for name in names if name not in (images[0], label))
    return Fields(images[0], label, unused, record, padding)


def _name(path: Path, field: np.void) -> str:
    name = bytes(field["name"]).rstrip(b"\0").decode("ascii", "backslashreplace")
    if not name.isprintable() or not name or "\\" in name:
        raise DataError(f"{path}: damaged beton: a field has the name {name!a}; convert again")
    return name
