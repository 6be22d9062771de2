"""What an audit finds, and `issues.csv`: a line for each, which a person may edit."""

from __future__ import annotations

from dataclasses import dataclass

LEAKS = ("exact-leak", "near-leak")
"""A training image that is also among the test images: the same pixels, or the same shot."""
DUPLICATES = ("exact-duplicate", "near-duplicate")
"""Two images of one split."""
IMAGES = ("blank", "constant", "dark", "bright", "aspect", "outlier")
KINDS = (*LEAKS, *DUPLICATES, "label", *IMAGES)
ACTIONS = ("", "drop", "relabel")


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image of a beton."""

    split: str
    """'train' or 'test'."""
    index: int
    """In its beton."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two images that show the same shot."""

    first: Image
    """Of two splits, the training image; else that of the smaller index."""
    second: Image
    score: float
    """0..1; 1: the same pixels."""
    exact: bool
    certain: bool = False
    """Whether the audit proposes to drop one of them if they are of two splits."""


@dataclass(frozen=True, kw_only=True)
class Issue:
    """A line of `issues.csv`: an image, and what may be wrong with it."""

    kind: str
    """One of KINDS."""
    image: Image
    """Of a pair, the one that would be dropped: the training image of a leak, the later one of a duplicate."""
    label: str
    """Name of its class."""
    score: float
    """0..1; of one kind, the larger the more certain."""
    suggested: str = ""
    """Name of the class that the images of its kind suggest; empty if there is none."""
    other: Image | None = None
    """The other image of a pair."""
    action: str = ""
    """What `convert --drop` and `convert --relabel` do: drop the image, give it the suggested label, or nothing."""
