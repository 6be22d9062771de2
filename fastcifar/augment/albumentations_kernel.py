"""The params applied one image at a time by Albumentations' own operations. The only importer of Albumentations."""

from __future__ import annotations

import json
import logging
import os
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment.params import AugmentParams, rotation_terms
from fastcifar.augment.torch_kernel import rotate
from fastcifar.config import AugmentConfig
from fastcifar.errors import MissingExtraError, UsageError, describe, one_line

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for a newer version
try:
    import albumentations
    import cv2
    from albumentations.augmentations.geometric.functional import warp_affine
except ImportError as error:
    raise MissingExtraError("the albumentations loader", "albumentations", str(error)) from error

log = logging.getLogger(__name__)
Image = npt.NDArray[np.uint8]
SHIFTS = {"hue": "hue", "sat": "saturation", "val": "value"}


class AlbumentationsAugment:
    """Crop, flip, rotation, colour and cutout, given from outside what each of them would draw.

    Where colours change too, our own operation rotates: OpenCV's is within one grey level of it, which HSV of 8 bits,
    being far from smooth, would make many.
    """

    def __init__(self, augment: AugmentConfig, fill: npt.NDArray[np.uint8]) -> None:
        cv2.setNumThreads(0)  # one image is no work to share, and threads do not survive the fork of a worker
        self._padding = augment.crop_padding
        self._cutout_size, self._shifts_colour = augment.cutout_size, augment.shifts_colour
        border = self._border = cv2.BORDER_REFLECT_101 if augment.padding_mode == "reflect" else cv2.BORDER_CONSTANT
        self._pad = albumentations.Pad(self._padding, border_mode=border, fill=0, p=1.0)
        self._crop = albumentations.RandomCrop(1, 1, p=1.0)  # the size comes with the coordinates
        self._flip = albumentations.HorizontalFlip(p=1.0)
        self._colour = albumentations.HueSaturationValue(p=1.0)
        self._cutout = albumentations.CoarseDropout(fill=tuple(int(v) for v in fill), p=1.0)

    def __call__(self, image: Image, choice: np.void) -> Image:
        """One image, (H, W, 3) uint8, changed as `choice`, a row of `AugmentParams`, says; a new array or `image`."""
        height, width, _ = image.shape
        if self._padding:
            pad = self._padding
            image = self._pad.apply(image, pad_top=pad, pad_bottom=pad, pad_left=pad, pad_right=pad)
            y, x = int(choice["crop_y"]), int(choice["crop_x"])
            image = self._crop.apply(image, crop_coords=(x, y, x + width, y + height))
        if choice["flip"]:
            image = self._flip.apply(image)
        if choice["rotation"] and self._shifts_colour:
            terms = torch.from_numpy(rotation_terms(np.array([choice["rotation"]])).astype(np.int64))
            one = torch.from_numpy(np.ascontiguousarray(image))[None]
            image = rotate(one, terms, reflect=self._border == cv2.BORDER_REFLECT_101)[0].numpy()
        elif choice["rotation"]:
            centre = ((width - 1) / 2, (height - 1) / 2)
            turn = cv2.getRotationMatrix2D(centre, float(choice["rotation"]), 1.0)
            turn = np.vstack([turn, (0, 0, 1)])  # (2, 3) -> (3, 3)
            image = warp_affine(image, turn, cv2.INTER_LINEAR, 0, self._border, (height, width))
        shifts = {f"{name}_shift": int(choice[short]) for name, short in SHIFTS.items()}
        if any(shifts.values()):
            image = self._colour.apply(image, **shifts)
        if self._cutout_size:
            y, x = choice["cutout_y"].astype(int), choice["cutout_x"].astype(int)
            ends_y = np.minimum(y + choice["cutout_height"], height)
            ends_x = np.minimum(x + choice["cutout_width"], width)
            holes = np.stack([np.maximum(x, 0), np.maximum(y, 0), ends_x, ends_y], axis=-1)
            seen = (ends_x > holes[:, 0]) & (ends_y > holes[:, 1])
            image = self._cutout.apply(image, holes=holes[seen], seed=0) if seen.any() else image
        return image


def augment_batch(images: Image, params: AugmentParams, operations: AlbumentationsAugment) -> Image:
    """(N, H, W, 3) uint8 -> (N, H, W, 3) uint8, a new array; row i of `params` is for image i."""
    out = np.empty_like(images)
    for i, (image, choice) in enumerate(zip(images, params, strict=True)):
        out[i] = operations(image, choice)
    return out


class Pipeline:
    """A pipeline of the user's, as `A.save` writes it; what it draws is a function of the seed that it is given."""

    def __init__(self, text: str) -> None:
        """Raises UsageError if Albumentations cannot make it, or would leave out some of what it says."""
        cv2.setNumThreads(0)
        try:
            saved = json.loads(text)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                self._pipeline: Any = albumentations.from_dict(saved)
            unknown = list(_unknown(saved["transform"], self._pipeline))
        except Exception as error:  # whatever its constructors raise for what they are given
            raise UsageError(f"--augment: Albumentations cannot make this pipeline ({describe(error)})") from error
        if unknown:
            raise UsageError(
                f"--augment: Albumentations {albumentations.__version__} does not know {', '.join(unknown)}; "
                "expected a pipeline as A.save of this version writes it"
            )
        for warning in told:
            if "are not valid for transform" not in str(warning.message):  # what those say was looked at above
                log.info("Albumentations on this pipeline: %s", one_line(warning.message))
        self._nodes = list(_nodes(self._pipeline))

    def __call__(self, image: Image, seed: int) -> Image:
        """One image, (H, W, 3) uint8; a new array or `image`. Raises UsageError if that is not what comes out."""
        for number, node in enumerate(self._nodes):
            # one by one: a pipeline gives all its parts the same seed, and they would draw alike
            own = (seed + number * 0x9E3779B1) % 2**32
            node.random_generator, node.py_random = np.random.default_rng(own), random.Random(own)
        try:
            out = self._pipeline(image=image)["image"]
        except Exception as error:
            raise UsageError(f"--augment: the pipeline fails on an image ({describe(error)})") from error
        if not isinstance(out, np.ndarray) or out.dtype != np.uint8 or out.shape != image.shape:
            found = f"{out.dtype} of shape {tuple(out.shape)}"
            raise UsageError(
                f"--augment: the pipeline makes {found} from an image of uint8 of shape {image.shape}; "
                f"expected the same kind: leave out Normalize and ToTensorV2 (fastcifar does both) and changes of size"
            )
        return out


def _parts(transform: Any) -> list[Any]:
    # not of ColorJitter, whose `transforms` are functions
    return transform.transforms if isinstance(transform, albumentations.BaseCompose) else []


def _nodes(transform: Any) -> Iterator[Any]:
    yield transform
    for part in _parts(transform):
        yield from _nodes(part)


def _unknown(saved: dict[str, Any], made: Any) -> Iterator[str]:
    """Arguments of a saved pipeline that Albumentations left out when it made it, for which it only warns.

    Some of its classes save arguments that they do not take (PadIfNeeded, SafeRotate, RGBShift, …): what they make of
    the others. Nothing is lost where what was made would save the same.
    """
    left_out = getattr(made, "invalid_args", ())
    saves = json.loads(json.dumps(made.to_dict_private())) if left_out else {}
    for name in left_out:
        if name not in saves or saves[name] != saved[name]:
            yield f"{name}={json.dumps(saved[name])} of {type(made).__name__}"
    for part, made_part in zip(saved.get("transforms", ()), _parts(made), strict=True):
        yield from _unknown(part, made_part)
