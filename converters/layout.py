"""The layout of a dataset, `train/<class>/*` and `test/<class>/*`, or `<class>/*`: the class of each file.

Errors name what is probably a mistake: class names that look alike, class folders without images, other layouts.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fastcifar.converters.names import SPLIT_NAMES, SPLIT_OF, assign_splits, check_class_names
from fastcifar.data.image_files import EXTENSIONS, FORMAT_NAMES
from fastcifar.errors import DataError, escape, join_names

log = logging.getLogger(__name__)
ARCHIVE_EXTENSIONS = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
MAX_DEPTH = 2
"""Folders around train/ and test/, e.g. in an archive that was packed twice."""
LAYOUT = f"expected train/<class>/* and test/<class>/*, or <class>/*: {FORMAT_NAMES}"
HEIC_REMEDY = "convert HEIC to JPEG first"
_SYSTEM_NAMES = {"__macosx", "__pycache__", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"}
_SYSTEM_NAMES |= {"$recycle.bin", "system volume information", "lost+found", "network trash folder", "temporary items"}
_SYSTEM_NAMES |= {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r"}


@dataclass
class Listing:
    """The files and folders in a folder or archive."""

    read: Callable[[str, int], bytes]
    """The content of the file of this name, of at most so many bytes; else ValueError."""
    files: list[str] = field(default_factory=list)
    """E.g. `train/cat/0001.jpg`; bytes that are not UTF-8 are surrogates, as in Python's own file names."""
    folders: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    """Files and folders of operating systems and storage devices."""

    def accepts(self, name: str) -> bool:
        """False for a file or folder of an operating system, which is added to `ignored`."""
        is_system = any(is_system_name(part) for part in PurePosixPath(name).parts)
        if is_system:
            self.ignored.append(name)
        return not is_system


def group_by_class(
    path: Path, listing: Listing, *, skip_empty: bool = False
) -> tuple[tuple[str, ...], dict[str, list[tuple[str, int]]]]:
    """The class names, sorted, and the (file name, label) pairs of each split, in the order of their paths.

    The splits are 'train' and, unless the files have no test images, 'test'. path: of the source, for messages.
    skip_empty: skip class folders without images; else they are an error, because the classes after them would get
    other labels. Raises DataError if the files are not a dataset.
    """
    for name in listing.files:
        _check_path(path, name)
    if inner := _archives(listing.files) if not path.is_dir() else []:
        raise DataError(
            f"{path}: holds another archive, {escape(inner[0])}; unpack {path.name}, and give that archive or the "
            "folder as the source"
        )
    root, folders = _find_root(path, listing)
    files_of: dict[str, dict[str, list[str]]] = {split: {} for split in folders.values() or ("train",)}
    not_images, too_deep = [], []
    unused: Counter[str] = Counter()
    for name in listing.files:
        location = _locate(name, root, folders)
        if location is None:
            if folders and _is_image(name) and _is_another_dataset(name, root):
                above = "/".join(root) or "."
                raise DataError(f"{path}: {escape(name)} is next to another dataset in {above}; {LAYOUT}")
            place = PurePosixPath(name).parts[:-1][: len(root) + 1]
            if _is_image(name) and place != root[: len(place)] and place[-1].lower() not in SPLIT_OF:
                unused["/".join(place)] += 1
            continue  # a README next to train/ and test/
        split, parts = location
        if not _is_image(name):
            not_images.append(name)
        elif len(parts) > 2:
            too_deep.append(name)
        elif len(parts) == 1:
            raise DataError(f"{path}: {escape(name)}: {LAYOUT}; found {_summarise(listing)}")
        else:
            files_of[split].setdefault(parts[0], []).append(name)
    _check_strays(path, not_images, too_deep)
    located = [
        location
        for name in listing.folders
        if (location := _locate(name, root, folders, is_folder=True)) and location[1]
    ]
    class_folders = sorted({(split, parts[0]) for split, parts in located})
    all_folders = [*((split, name) for split in files_of for name in sorted(files_of[split])), *class_folders]
    shown = "{}/{}" if folders else "{1}"
    check_class_names(path, ((shown.format(split, name), name) for split, name in all_folders))
    for folder, split in folders.items():
        if split == "test" and not files_of["test"]:
            raise DataError(f"{path}: no images in {folder}/; remove it, and divide the others by --test-share")
    empty = [shown.format(split, name) for split, name in class_folders if name not in files_of[split]]
    _check_empty(path, empty, skip_empty)
    class_names = tuple(sorted(files_of["train"]))
    if not class_names:
        raise DataError(f"{path}: no images in train/; {LAYOUT}; found {_summarise(listing)}")
    unknown = sorted(set(files_of.get("test", ())) - set(class_names))
    if unknown:
        raise DataError(
            f"{path}: test/{unknown[0]} is a class that train/ does not have; expected one of: "
            f"{join_names(class_names)}"
        )
    if listing.ignored:
        log.info("%s: %d system files ignored, e.g. %s", path, len(listing.ignored), escape(listing.ignored[0]))
    if unused:
        names = join_names(f"{escape(folder)}/ ({num:,})" for folder, num in sorted(unused.items()))
        log.warning("%s: images in folders next to train/ and test/ are not used: %s", path, names)
    _warn_of_odd_names(path, [name for classes in files_of.values() for names in classes.values() for name in names])
    splits = {
        split: [
            (name, label)
            for label, class_name in enumerate(class_names)
            for name in sorted(files_of[split].get(class_name, []))
        ]
        for split in files_of
    }
    return class_names, splits


def is_system_name(name: str) -> bool:
    """Whether this is the name of what is hidden, or made by an operating system or storage device."""
    lowered = name.lower()
    is_hidden = name.startswith(".") and not name.startswith("..") and name != "."
    return is_hidden or lowered in _SYSTEM_NAMES or name.startswith("~$") or lowered.endswith(":zone.identifier")


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _archives(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.lower().endswith(ARCHIVE_EXTENSIONS)]


def _check_path(path: Path, name: str) -> None:
    parsed = PurePosixPath(name)
    if ".." in parsed.parts or parsed.is_absolute():
        raise DataError(f"{path}: {name!a} points outside the archive; remove it")
    if "\\" in name:  # a path separator to some programs
        raise DataError(f"{path}: {name!a} has a backslash in its name; rename it")


def _find_root(path: Path, listing: Listing) -> tuple[tuple[str, ...], dict[str, str]]:
    """The folders around the dataset, and the split of each of its folders train/, test/ or val/; none of class folders
    alone."""
    images = [PurePosixPath(name).parts for name in listing.files if _is_image(name)]
    others = [PurePosixPath(name).parts for name in (*listing.files, *listing.folders)]
    for paths, num_inside in ((images, 2), (others, 1)):
        roots = {
            parts[:depth]
            for parts in paths
            for depth, part in enumerate(parts[: MAX_DEPTH + 1])
            if part.lower() in SPLIT_OF and len(parts) > depth + num_inside
        }
        if not roots:
            continue
        root = min(roots, key=lambda root: (len(root), root))
        if paths is others and _are_class_folders(images, root):
            break
        names = {parts[len(root)] for parts in others if parts[: len(root)] == root and len(parts) > len(root)}
        return root, _split_folders(path, {name for name in names if name.lower() in SPLIT_OF}, listing)
    return _find_class_folders(path, images, listing), {}


def _are_class_folders(images: list[tuple[str, ...]], root: tuple[str, ...]) -> bool:
    """True for a class that is called train, or test, next to two others or more."""
    names = {parts[len(root)].lower() for parts in images if parts[: len(root)] == root and len(parts) == len(root) + 2}
    return len({SPLIT_OF[name] for name in names if name in SPLIT_OF}) == 1 and len(names - set(SPLIT_OF)) >= 2


def _split_folders(path: Path, names: set[str], listing: Listing) -> dict[str, str]:
    """The split of each of the folders `names`."""
    for all_kinds in SPLIT_NAMES.values():
        for kinds in all_kinds:
            found = sorted(name for name in names if name.lower() in kinds)
            if len(found) > 1:
                raise DataError(f"{path}: has {found[0]}/ and {found[1]}/; expected one of them: rename one")
    chosen = assign_splits(path, names, "{}/")
    if "train" not in chosen.values():
        raise DataError(f"{path}: no images in train/; {LAYOUT}; found {_summarise(listing)}")
    return chosen


def _find_class_folders(path: Path, images: list[tuple[str, ...]], listing: Listing) -> tuple[str, ...]:
    """The folders around class folders: those that all images share. Raises DataError if the images have no class."""
    if not images:
        raise DataError(f"{path}: no images; {LAYOUT}; found {_summarise(listing)}")
    root: tuple[str, ...] = ()
    while len(root) < MAX_DEPTH and len({parts[len(root)] for parts in images}) == 1 and len(images[0]) > len(root) + 2:
        root = images[0][: len(root) + 1]
    names = {parts[len(root)].lower() for parts in images if len(parts) > len(root) + 1}
    if len(names) < 2 or names <= set(SPLIT_OF) or min(map(len, images)) != len(root) + 2:
        raise DataError(f"{path}: {LAYOUT}; found {_summarise(listing)}")
    return root


def _locate(
    name: str, root: tuple[str, ...], folders: dict[str, str], *, is_folder: bool = False
) -> tuple[str, tuple[str, ...]] | None:
    """The split of a path, and its parts after the split folder; None if it is outside the dataset."""
    parts = PurePosixPath(name).parts
    inside = parts[len(root) :]
    if parts[: len(root)] != root or not inside:
        return None
    if not folders:  # class folders alone
        return ("train", inside) if len(inside) > 1 or is_folder or _is_image(name) else None
    return (folders[inside[0]], inside[1:]) if inside[0] in folders else None


def _is_another_dataset(name: str, root: tuple[str, ...]) -> bool:
    """True for an image in a split folder elsewhere, e.g. old/train/cat/1.png."""
    parts = PurePosixPath(name).parts
    split_depths = [depth for depth, part in enumerate(parts[: MAX_DEPTH + 1]) if part.lower() in SPLIT_OF]
    return bool(split_depths) and not (parts[: len(root)] == root and len(root) in split_depths)


def _check_strays(path: Path, not_images: list[str], too_deep: list[str]) -> None:
    for names, problem in (
        (_heic_images(not_images), f"not {FORMAT_NAMES}; {HEIC_REMEDY}"),
        (not_images, f"not an image; expected {FORMAT_NAMES}: remove it"),
        (too_deep, "in a folder within a class folder; expected <class>/*: move it to the class folder"),
    ):
        if names:
            others = f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""
            raise DataError(f"{path}: {escape(min(names))}{others}: {problem}")


def _heic_images(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.lower().endswith((".heic", ".heif"))]


def _check_empty(path: Path, empty: list[str], skip: bool) -> None:
    if not empty:
        return
    names = join_names(empty)
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
    names = [PurePosixPath(name).parts for name in listing.files]
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
    if inner := _archives("/".join(parts) for parts in names):
        text += f"; unpack {escape(inner[0])} first"
    if any(parts[-1].lower().endswith((".csv", ".tsv")) for parts in names if parts):
        text += "; give the table of labels as the source, and this folder as --images-root"
    if _heic_images(listing.files):
        text += f"; {HEIC_REMEDY}"
    return text
