"""Which of the files of a folder or an archive are images, and of which class: `train/<class>/*` and `test/<class>/*`.

The names are other people's: two that a reader cannot tell apart, folders without images, and other layouts are named.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fastcifar.data.beton import MAX_NAME
from fastcifar.errors import DataError

log = logging.getLogger(__name__)
SPLITS = ("train", "test")
EXTENSIONS = (".jpg", ".jpeg", ".png")
MAX_DEPTH = 2
"""So many folders may lie around train/ and test/, as archives that were packed twice have them."""
LAYOUT = "expected train/<class>/* and test/<class>/*, JPEG or PNG"
_SYSTEM_NAMES = {
    "__macosx",
    "__pycache__",
    "@eadir",
    "@recycle",
    "@recently-snapshot",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "network trash folder",
    "temporary items",
    "thumbs.db",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "desktop.ini",
    "picasa.ini",
    "icon\r",
}
_BLANK = {"\u00ad", "\u034f", "\u115f", "\u1160", "\u2800", "\u3164", "\uffa0"}
"""Characters that show nothing and that Unicode does not count among its spaces or its format characters."""


@dataclass(frozen=True)
class ImageFile:
    """One image of a source: where it stands, and how to get its bytes."""

    name: str
    """`train/cat/0001.jpg`; a byte that is not UTF-8 is a surrogate, as in Python's own names of files."""
    read: Callable[[], bytes]


@dataclass
class Listing:
    """What a folder or an archive holds, as it is found."""

    files: list[ImageFile] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    """Files and folders of operating systems and storage devices."""

    def wants(self, name: str) -> bool:
        """False, and counted, for what operating systems leave among the user's files."""
        wanted = not any(_is_system_name(part) for part in PurePosixPath(name).parts)
        if not wanted:
            self.passed_over.append(name)
        return wanted


Arranged = dict[str, list[tuple[ImageFile, int]]]


def arrange(where: Path, listing: Listing, *, skip_empty: bool = False) -> tuple[tuple[str, ...], Arranged]:
    """The names of the classes, sorted, and the files of each split with their labels, in the order of their paths.

    Raises DataError if together they are not a dataset. A folder of a class that holds no image is an error too, since
    without it every class after it would get another label; `skip_empty` leaves it out.
    """
    root = _root(listing)
    found: dict[str, dict[str, dict[str, ImageFile]]] = {name: {} for name in SPLITS}
    spelled: dict[str, str] = {}
    for file in listing.files:
        _check_path(where, file.name)
        place = _place(file.name, root)
        if place is None:
            if _is_image(file.name) and _depth(file.name) is not None:
                shown = "/".join(root) or "."
                raise DataError(f"{where}: {escaped(file.name)} lies beside another dataset in {shown}; {LAYOUT}")
            continue  # a README next to train/ and test/
        folder, parts = place
        split = folder.lower()
        if spelled.setdefault(split, folder) != folder:
            raise DataError(f"{where}: has {spelled[split]}/ and {folder}/; expected one of them: rename one")
        shown = "/".join((split, *parts))
        if len(parts) != 2 or not _is_image(file.name):
            raise DataError(f"{where}: {escaped(shown)}: {LAYOUT}; found {_summary(listing)}")
        images = found[split].setdefault(parts[0], {})
        if shown in images:
            raise DataError(f"{where}: {escaped(shown)} stands there twice")
        images[shown] = ImageFile(shown, file.read)
    places = [place for name in listing.folders if (place := _place(name, root)) and place[1]]
    folders = sorted({(split.lower(), parts[0]) for split, parts in places})
    _check_names(where, [*((split, name) for split in SPLITS for name in sorted(found[split])), *folders])
    _check_empty(where, [(split, name) for split, name in folders if name not in found[split]], skip_empty)
    class_names = tuple(sorted(found["train"]))
    for name in SPLITS:
        if not found[name]:
            raise DataError(f"{where}: no images in {name}/; {LAYOUT}; found {_summary(listing)}")
    unknown = sorted(set(found["test"]) - set(class_names))
    if unknown:
        raise DataError(
            f"{where}: test/{unknown[0]} is a class that train/ does not have; expected one of: {listed(class_names)}"
        )
    if listing.passed_over:
        num, first = len(listing.passed_over), escaped(listing.passed_over[0])
        log.info("%s: system files passed over: %d, such as %s", where, num, first)
    _warn_of_bytes(where, [name for split in found.values() for images in split.values() for name in images])
    splits = {
        name: [
            (file, label)
            for label, class_name in enumerate(class_names)
            for _, file in sorted(found[name].get(class_name, {}).items())
        ]
        for name in SPLITS
    }
    return class_names, splits


def escaped(text: str) -> str:
    """The text with an escape, such as \\x1b, for each character that cannot be shown."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def listed(names: Iterable[str], most: int = 12) -> str:
    """The first of the names, and how many there are if there are more."""
    names = list(names)
    return ", ".join(names[:most]) + (f", … ({len(names):,})" if len(names) > most else "")


def _is_system_name(name: str) -> bool:
    lowered = name.lower()
    hidden = name.startswith(".") and not name.startswith("..") and name != "."
    return hidden or lowered in _SYSTEM_NAMES or name.startswith("~$") or lowered.endswith(":zone.identifier")


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _check_path(where: Path, name: str) -> None:
    path = PurePosixPath(name)
    if ".." in path.parts or path.is_absolute():
        raise DataError(f"{where}: {name!a} points outside the archive; refused")
    if "\\" in name:  # which some programs take for a '/'
        raise DataError(f"{where}: {name!a} has a backslash in its name; rename it")


def _depth(name: str) -> int | None:
    """How many folders lie around the first train/ or test/ of a path; None if there is none."""
    parts = PurePosixPath(name).parts[: MAX_DEPTH + 1]
    return next((i for i, part in enumerate(parts) if part.lower() in SPLITS), None)


def _root(listing: Listing) -> tuple[str, ...]:
    """The folders around train/ and test/: of those of images the shallowest."""
    images = [file.name for file in listing.files if _is_image(file.name)]
    for names in (images, [file.name for file in listing.files], listing.folders):
        roots = {PurePosixPath(name).parts[:depth] for name in names if (depth := _depth(name)) is not None}
        if roots:
            return min(roots, key=lambda root: (len(root), root))
    return ()


def _place(name: str, root: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    """The folder of the split, as it is spelled, and what follows it; None if the path does not lead there."""
    parts = PurePosixPath(name).parts
    at = len(root)
    if parts[:at] != root or len(parts) <= at or parts[at].lower() not in SPLITS:
        return None
    return parts[at], parts[at + 1 :]


def _check_names(where: Path, folders: list[tuple[str, str]]) -> None:
    """Raise DataError unless each name of a class can be shown, and told from the others."""
    known: dict[str, str] = {}
    for split, name in folders:
        if not name.isprintable() or not _key(name):
            how = "has characters that cannot be shown"
            if any("\ud800" <= c <= "\udfff" for c in name):
                how = f"is not UTF-8 and {how}"
            raise DataError(f"{where}: the class folder {name!a} {how}; rename it")
        if len(name) > MAX_NAME:
            raise DataError(
                f"{where}: the class folder {name[:20]}… has {len(name):,} characters; expected at most {MAX_NAME}"
            )
        other = known.setdefault(_key(name), f"{split}/{name}")
        if other.partition("/")[2] != name:
            both = f"{other!a} and {f'{split}/{name}'!a}"
            raise DataError(
                f"{where}: the class folders {both} differ only in case, spaces or Unicode form; rename one of "
                "them, or put their images into one folder"
            )


def _key(name: str) -> str:
    """The same for names that a reader cannot tell apart, or that some file systems take for one."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    seen = (c for c in text if c not in _BLANK and not "\ufe00" <= c <= "\ufe0f" and unicodedata.category(c) != "Cf")
    return " ".join("".join(seen).split())


def _check_empty(where: Path, empty: list[tuple[str, str]], skip: bool) -> None:
    if not empty:
        return
    names = listed([f"{split}/{name}" for split, name in empty])
    if not skip:
        raise DataError(
            f"{where}: class folders without an image: {names}; add images, remove them, or leave them out with "
            "--skip-empty-classes (classes after them then have other label numbers)"
        )
    log.warning("%s: left out, as class folders without an image: %s", where, names)


def _warn_of_bytes(where: Path, names: list[str]) -> None:
    odd = sorted(name for name in names if not name.isprintable())
    if odd:
        log.warning(
            "%s: %d names of files are not UTF-8 or cannot be shown, such as %s; their images are taken",
            where,
            len(odd),
            escaped(odd[0]),
        )


def _summary(listing: Listing) -> str:
    """What lies at the top of the folder or archive, to be compared with what is expected there."""
    names = [PurePosixPath(file.name).parts for file in listing.files]
    folders = [PurePosixPath(name).parts for name in listing.folders]
    above: tuple[str, ...] = ()
    while len(tops := {parts[0] for parts in [*names, *folders] if parts}) == 1 and not any(
        len(parts) == 1 for parts in names
    ):
        above += tuple(tops)
        names, folders = [parts[1:] for parts in names], [parts[1:] for parts in folders]
    counts = Counter({parts[0]: 0 for parts in folders if parts})
    counts.update(parts[0] for parts in names if len(parts) > 1)
    shown = [f"{escaped(name)}/ ({count:,} files)" for name, count in sorted(counts.items())]
    shown += sorted(escaped(parts[0]) for parts in names if len(parts) == 1)
    text = f"{'in ' + escaped('/'.join(above)) + '/ ' if above else ''}{listed(shown, 6) or 'nothing'}"
    lowered = {name.lower() for name in counts}
    validation = sorted(lowered & {"val", "valid", "validation"})
    if validation and "train" in lowered and "test" not in lowered:
        text += f"; to test on {validation[0]}/, name it test/"
    if any(parts[-1].lower().endswith((".csv", ".tsv")) for parts in names if parts):
        text += "; labels in a table (CSV) are not read: sort the images into folders of their classes"
    return text
