"""Keeps the warnings of other packages, which are for developers, from the user."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_package(name: str, level: int) -> Iterator[None]:
    """In the block, nothing warns, and the log of the package `name` shows only what is of at least `level`."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
