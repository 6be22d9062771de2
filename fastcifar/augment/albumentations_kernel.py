"""Augmentation one image at a time by Albumentations' own operations. The only importer of Albumentations."""

from __future__ import annotations

import json
import os
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment.kernel import KernelConfig
from fastcifar.augment.params import AugmentParams, rotation_terms, tone_table
from fastcifar.augment.torch_kernel import rotate
from fastcifar.errors import MissingExtraError, UsageError, describe

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it looks for a newer version online
try:
    import albumentations
    import cv2
    from albumentations.augmentations.geometric.functional import warp_affine
except ImportError as error:
    raise MissingExtraError("the albumentations loader", "albumentations", str(error)) from error

Image = npt.NDArray[np.uint8]


class AlbumentationsAugment:
    """Crop, flip, rotation, colour and cutout, with our parameters instead of those that each would sample.

    If colours change too, our own operation rotates: OpenCV's differs by one grey level, and 8-bit HSV, which is not
    smooth, turns that into many. Brightness and contrast are our own look-up: Albumentations has another formula.
    """

    def __init__(self, config: KernelConfig) -> None:
        augment = config.augment
        cv2.setNumThreads(0)  # one image is too little work for threads, which do not survive the fork of a worker
        self._padding = augment.crop_padding
        self._cutout_size, self._changes_colour = augment.cutout_size, augment.shifts_colour or augment.adjusts_tone
        border = self._border = cv2.BORDER_REFLECT_101 if augment.padding_mode == "reflect" else cv2.BORDER_CONSTANT
        self._pad = albumentations.Pad(self._padding, border_mode=border, fill=0, p=1.0)
        self._crop = albumentations.RandomCrop(1, 1, p=1.0)  # the coordinates include the size
        self._flip = albumentations.HorizontalFlip(p=1.0)
        self._colour = albumentations.HueSaturationValue(p=1.0)
        self._cutout = albumentations.CoarseDropout(fill=tuple(int(v) for v in config.fill), p=1.0)

    def __call__(self, image: Image, row: np.void) -> Image:
        """One image, (H, W, 3) uint8, changed by `row`, a row of `AugmentParams`; a new array or `image`."""
        height, width, _ = image.shape
        if self._padding:
            pad = self._padding
            image = self._pad.apply(image, pad_top=pad, pad_bottom=pad, pad_left=pad, pad_right=pad)
            y, x = int(row["crop_y"]), int(row["crop_x"])
            image = self._crop.apply(image, crop_coords=(x, y, x + width, y + height))
        if row["flip"]:
            image = self._flip.apply(image)
        if row["rotation"] and self._changes_colour:
            terms = torch.from_numpy(rotation_terms(np.array([row["rotation"]])).astype(np.int64))
            batch = torch.from_numpy(np.ascontiguousarray(image))[None]
            image = rotate(batch, terms, reflect=self._border == cv2.BORDER_REFLECT_101)[0].numpy()
        elif row["rotation"]:
            centre = ((width - 1) / 2, (height - 1) / 2)
            matrix = cv2.getRotationMatrix2D(centre, float(row["rotation"]), 1.0)
            matrix = np.vstack([matrix, (0, 0, 1)])  # (2, 3) -> (3, 3)
            image = warp_affine(image, matrix, cv2.INTER_LINEAR, 0, self._border, (height, width))
        hue, saturation, value = (int(row[name]) for name in ("hue", "saturation", "value"))
        if hue or saturation or value:
            image = self._colour.apply(image, hue_shift=hue, sat_shift=saturation, val_shift=value)
        brightness, contrast = int(row["brightness"]), int(row["contrast"])
        if brightness or contrast:
            image = tone_table(brightness, contrast)[image]
        if self._cutout_size:
            y, x = row["cutout_y"].astype(int), row["cutout_x"].astype(int)
            ends_y = np.minimum(y + row["cutout_height"], height)
            ends_x = np.minimum(x + row["cutout_width"], width)
            holes = np.stack([np.maximum(x, 0), np.maximum(y, 0), ends_x, ends_y], axis=-1)
            visible = (ends_x > holes[:, 0]) & (ends_y > holes[:, 1])
            image = self._cutout.apply(image, holes=holes[visible], seed=0) if visible.any() else image
        return image


def augment_batch(images: Image, params: AugmentParams, operations: AlbumentationsAugment) -> Image:
    """(N, H, W, 3) uint8 -> (N, H, W, 3) uint8, a new array; row i of `params` is for image i."""
    out = np.empty_like(images)
    for i, (image, row) in enumerate(zip(images, params, strict=True)):
        out[i] = operations(image, row)
    return out


class Pipeline:
    """A pipeline of the user, as `A.save` writes it; its randomness is a function of the seed in each call."""

    def __init__(self, text: str) -> None:
        """Raises UsageError if Albumentations cannot build it, or would ignore some of its arguments."""
        cv2.setNumThreads(0)
        try:
            saved = json.loads(text)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those that its author saw; ignored arguments are errors here
                self._pipeline: Any = albumentations.from_dict(saved)
            unknown = list(_unknown(saved["transform"], self._pipeline))
        except Exception as error:  # its constructors may raise anything
            raise UsageError(f"--augment: Albumentations cannot build this pipeline ({describe(error)})") from error
        if unknown:
            raise UsageError(
                f"--augment: Albumentations {albumentations.__version__} does not know {', '.join(unknown)}; "
                "expected a pipeline as A.save of this version writes it"
            )
        self._nodes = list(_nodes(self._pipeline))

    def __call__(self, image: Image, seed: int) -> Image:
        """One image, (H, W, 3) uint8; a new array or `image`. Raises UsageError for another dtype or shape."""
        for number, node in enumerate(self._nodes):
            # one by one: a pipeline gives all its transforms the same seed, and their values would be equal
            node_seed = (seed + number * 0x9E3779B1) % 2**32
            node.random_generator, node.py_random = np.random.default_rng(node_seed), random.Random(node_seed)
        try:
            out = self._pipeline(image=image)["image"]
        except Exception as error:
            raise UsageError(f"--augment: the pipeline fails on an image ({describe(error)})") from error
        if not isinstance(out, np.ndarray) or out.dtype != np.uint8 or out.shape != image.shape:
            output = f"{out.dtype} of shape {tuple(out.shape)}"
            raise UsageError(
                f"--augment: the pipeline returns {output} for a uint8 image of shape {image.shape}; expected the same "
                "dtype and shape: remove Normalize and ToTensorV2 (fastcifar does both) and changes of size"
            )
        return out


def _children(transform: Any) -> list[Any]:
    # not those of ColorJitter, whose `transforms` are functions
    return transform.transforms if isinstance(transform, albumentations.BaseCompose) else []


def _nodes(transform: Any) -> Iterator[Any]:
    yield transform
    for child in _children(transform):
        yield from _nodes(child)


def _unknown(saved: dict[str, Any], built: Any) -> Iterator[str]:
    """Arguments of a saved pipeline that Albumentations ignored when it built it, for which it only warns.

    Some of its classes save arguments that they do not accept, computed from others (PadIfNeeded, SafeRotate, …).
    Nothing is lost if the pipeline that was built would save the same.
    """
    ignored = getattr(built, "invalid_args", ())
    saves = json.loads(json.dumps(built.to_dict_private())) if ignored else {}
    for name in ignored:
        if name not in saves or saves[name] != saved[name]:
            yield f"{name}={json.dumps(saved[name])} of {type(built).__name__}"
    for saved_child, child in zip(saved.get("transforms", ()), _children(built), strict=True):
        yield from _unknown(saved_child, child)
