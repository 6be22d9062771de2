"""The layout of a dataset, `train/<class>/*` and `test/<class>/*`: which files are images, and of which class.

Errors name what is probably a mistake: class names that look alike, class folders without images, other layouts.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fastcifar.data.manifest import MAX_NAME
from fastcifar.errors import DataError, join_names

log = logging.getLogger(__name__)
SPLITS = ("train", "test")
EXTENSIONS = (".jpg", ".jpeg", ".png")
MAX_DEPTH = 2
"""Folders around train/ and test/, e.g. in an archive that was packed twice."""
LAYOUT = "expected train/<class>/* and test/<class>/*, JPEG or PNG"
_SYSTEM_NAMES = {"__macosx", "__pycache__", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"}
_SYSTEM_NAMES |= {"$recycle.bin", "system volume information", "lost+found", "network trash folder", "temporary items"}
_SYSTEM_NAMES |= {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r"}
_INVISIBLE = {"\u00ad", "\u034f", "\u115f", "\u1160", "\u2800", "\u3164", "\uffa0"}
"""Invisible characters that Unicode counts neither as spaces nor as format characters."""


@dataclass(frozen=True)
class ImageFile:
    """A file of a source."""

    name: str
    """E.g. `train/cat/0001.jpg`; bytes that are not UTF-8 are surrogates, as in Python's own file names."""
    read: Callable[[int], bytes]
    """The content, of at most so many bytes; else ValueError."""


@dataclass
class Listing:
    """The files and folders in a folder or archive."""

    files: list[ImageFile] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    """Files and folders of operating systems and storage devices."""

    def accepts(self, name: str) -> bool:
        """False for a file or folder of an operating system, which is added to `ignored`."""
        is_system = any(_is_system_name(part) for part in PurePosixPath(name).parts)
        if is_system:
            self.ignored.append(name)
        return not is_system


def group_by_class(
    path: Path, listing: Listing, *, skip_empty: bool = False
) -> tuple[tuple[str, ...], dict[str, list[tuple[ImageFile, int]]]]:
    """The class names, sorted, and the (file, label) pairs of each split, in the order of their paths.

    path: of the source, for messages. skip_empty: skip class folders without images; else they are an error, because
    the classes after them would get other labels. Raises DataError if the files are not a dataset.
    """
    root = _find_root(listing)
    files_of: dict[str, dict[str, dict[str, ImageFile]]] = {name: {} for name in SPLITS}
    spellings: dict[str, str] = {}
    for file in listing.files:
        _check_path(path, file.name)
        location = _locate(file.name, root)
        if location is None:
            if _is_image(file.name) and _find_depth(file.name) is not None:
                shown = "/".join(root) or "."
                raise DataError(f"{path}: {escape(file.name)} is next to another dataset in {shown}; {LAYOUT}")
            continue  # a README next to train/ and test/
        folder, parts = location
        split = folder.lower()
        if spellings.setdefault(split, folder) != folder:
            raise DataError(f"{path}: has {spellings[split]}/ and {folder}/; expected one of them: rename one")
        name = "/".join((split, *parts))
        if len(parts) != 2 or not _is_image(file.name):
            raise DataError(f"{path}: {escape(name)}: {LAYOUT}; found {_summarise(listing)}")
        images = files_of[split].setdefault(parts[0], {})
        if name in images:
            raise DataError(f"{path}: {escape(name)} is a duplicate; remove one of the two")
        images[name] = ImageFile(name, file.read)
    locations = [location for name in listing.folders if (location := _locate(name, root)) and location[1]]
    folders = sorted({(split.lower(), parts[0]) for split, parts in locations})
    _check_class_names(path, [*((split, name) for split in SPLITS for name in sorted(files_of[split])), *folders])
    _check_empty(path, [(split, name) for split, name in folders if name not in files_of[split]], skip_empty)
    class_names = tuple(sorted(files_of["train"]))
    for split in SPLITS:
        if not files_of[split]:
            raise DataError(f"{path}: no images in {split}/; {LAYOUT}; found {_summarise(listing)}")
    unknown = sorted(set(files_of["test"]) - set(class_names))
    if unknown:
        raise DataError(
            f"{path}: test/{unknown[0]} is a class that train/ does not have; expected one of: "
            f"{join_names(class_names)}"
        )
    if listing.ignored:
        log.info("%s: %d system files ignored, e.g. %s", path, len(listing.ignored), escape(listing.ignored[0]))
    _warn_of_odd_names(path, [name for classes in files_of.values() for images in classes.values() for name in images])
    splits = {
        split: [
            (file, label)
            for label, class_name in enumerate(class_names)
            for _, file in sorted(files_of[split].get(class_name, {}).items())
        ]
        for split in SPLITS
    }
    return class_names, splits


def escape(text: str) -> str:
    """The text with an escape, e.g. \\x1b, for each character that is not printable."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _is_system_name(name: str) -> bool:
    lowered = name.lower()
    is_hidden = name.startswith(".") and not name.startswith("..") and name != "."
    return is_hidden or lowered in _SYSTEM_NAMES or name.startswith("~$") or lowered.endswith(":zone.identifier")


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _check_path(path: Path, name: str) -> None:
    parsed = PurePosixPath(name)
    if ".." in parsed.parts or parsed.is_absolute():
        raise DataError(f"{path}: {name!a} points outside the archive; remove it")
    if "\\" in name:  # a path separator to some programs
        raise DataError(f"{path}: {name!a} has a backslash in its name; rename it")


def _find_depth(name: str) -> int | None:
    """The number of folders around the first train/ or test/ of a path; None without one."""
    parts = PurePosixPath(name).parts[: MAX_DEPTH + 1]
    return next((i for i, part in enumerate(parts) if part.lower() in SPLITS), None)


def _find_root(listing: Listing) -> tuple[str, ...]:
    """The folders around train/ and test/: the shallowest of those with images."""
    images = [file.name for file in listing.files if _is_image(file.name)]
    for names in (images, [file.name for file in listing.files], listing.folders):
        roots = {PurePosixPath(name).parts[:depth] for name in names if (depth := _find_depth(name)) is not None}
        if roots:
            return min(roots, key=lambda root: (len(root), root))
    return ()


def _locate(name: str, root: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    """The split folder, as spelled, and the parts after it; None if the path is not inside one."""
    parts = PurePosixPath(name).parts
    depth = len(root)
    if parts[:depth] != root or len(parts) <= depth or parts[depth].lower() not in SPLITS:
        return None
    return parts[depth], parts[depth + 1 :]


def _check_class_names(path: Path, folders: list[tuple[str, str]]) -> None:
    """Raise DataError unless each class name is printable, and distinguishable from the others."""
    known: dict[str, str] = {}
    for split, name in folders:
        key = _comparison_key(name)
        if not name.isprintable() or not key:
            problem = "has characters that are not printable"
            if any("\ud800" <= c <= "\udfff" for c in name):
                problem = f"is not UTF-8 and {problem}"
            raise DataError(f"{path}: the class folder {name!a} {problem}; rename it")
        if len(name) > MAX_NAME:
            raise DataError(
                f"{path}: the class folder {name[:20]}… has {len(name):,} characters; expected at most {MAX_NAME}"
            )
        other = known.setdefault(key, f"{split}/{name}")
        if other.partition("/")[2] != name:
            both = f"{other!a} and {f'{split}/{name}'!a}"
            raise DataError(
                f"{path}: the class folders {both} differ only in case, spaces or Unicode form; rename or merge them"
            )


def _comparison_key(name: str) -> str:
    """Equal for names that look alike, or that some file systems treat as one."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    visible = (
        c for c in text if c not in _INVISIBLE and not "\ufe00" <= c <= "\ufe0f" and unicodedata.category(c) != "Cf"
    )
    return " ".join("".join(visible).split())


def _check_empty(path: Path, empty: list[tuple[str, str]], skip: bool) -> None:
    if not empty:
        return
    names = join_names(f"{split}/{name}" for split, name in empty)
    if not skip:
        raise DataError(
            f"{path}: class folders without images: {names}; add images, remove the folders, or skip them with "
            "--skip-empty-classes (the classes after them then get other labels)"
        )
    log.warning("%s: skipped class folders without images: %s", path, names)


def _warn_of_odd_names(path: Path, names: list[str]) -> None:
    odd = sorted(name for name in names if not name.isprintable())
    if odd:
        log.warning("%s: %d file names are not printable UTF-8, e.g. %s; images used", path, len(odd), escape(odd[0]))


def _summarise(listing: Listing) -> str:
    """The top level of the folder or archive, for comparison with the expected layout."""
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
    shown = [f"{escape(name)}/ ({count:,} files)" for name, count in sorted(counts.items())]
    shown += sorted(escape(parts[0]) for parts in names if len(parts) == 1)
    text = f"{'in ' + escape('/'.join(above)) + '/ ' if above else ''}{join_names(shown, 6) or 'nothing'}"
    lowered = {name.lower() for name in counts}
    validation = sorted(lowered & {"val", "valid", "validation"})
    if validation and "train" in lowered and "test" not in lowered:
        text += f"; to test on {validation[0]}/, rename it to test/"
    if any(parts[-1].lower().endswith((".csv", ".tsv")) for parts in names if parts):
        text += "; labels in a table (CSV) are not supported: sort the images into class folders"
    return text
