"""Converters from archives, folders and generators of images to betons. Installed as `fastcifar.converters`."""

from __future__ import annotations

from fastcifar.converters.sources import Source, Split, open_source
from fastcifar.converters.writer import convert

__all__ = ["Source", "Split", "convert", "open_source"]
