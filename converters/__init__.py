"""Converters from datasets of many kinds to betons. Installed as `fastcifar.converters`."""

from __future__ import annotations

from fastcifar.converters.api import convert
from fastcifar.converters.open_source import open_source
from fastcifar.converters.sources import Broken, Sample, Source, SourceOptions, Split
from fastcifar.converters.writer import write_betons

__all__ = ["Broken", "Sample", "Source", "SourceOptions", "Split", "convert", "open_source", "write_betons"]
