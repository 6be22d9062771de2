"""The files that a conversion replaces: a beton, its manifest and its origins, also behind links."""

from __future__ import annotations

import os
from pathlib import Path

from fastcifar.data.manifest import Manifest
from fastcifar.data.origins import origins_path
from fastcifar.errors import FastcifarError
from fastcifar.io.atomic import create_file, fsync, fsync_folder, replace
from fastcifar.io.paths import why_missing


def resolve_link(path: Path) -> Path:
    """The file to replace: the target of a link at `path`, not the link."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink() or not target.parent.is_dir():
        raise FastcifarError(f"{path}: {why_missing(path)}; remove the link, or create the folder of its target")
    return target


def manifest_files(path: Path, target: Path) -> list[Path]:
    """The manifests of the beton at `path`, a link to `target`: those next to either; the latter if there is none."""
    adjacent = [Path(f"{file}.json") for file in (path, target)]
    existing = dict.fromkeys(resolve_link(file) for file in adjacent if os.path.lexists(file))
    return list(existing) or adjacent[1:]


def sidecars(manifest_files: list[Path]) -> list[Path]:
    """The manifests, and the files of origins that belong to them."""
    return [file for manifest in manifest_files for file in (manifest, origins_path(manifest))]


def partial_origins(file: Path) -> Path:
    """Where the origins of a beton that is being written to `file` are collected."""
    return file.with_name(f"{file.name}.origins")


def replace_with_manifest(partial: Path, target: Path, manifest: Manifest, manifest_files: list[Path]) -> None:
    """Rename a complete beton to `target`. A manifest of another beton is never next to it."""
    contents: dict[Path, bytes] = {}
    for file in manifest_files:
        if manifest.origins_sha256:
            contents[origins_path(file)] = partial_origins(partial).read_bytes()
        contents[file] = manifest.to_json().encode("utf-8")
    temporary = {file: file.with_name(f".{file.name}.partial") for file in sidecars(manifest_files)}
    try:
        for file, content in contents.items():
            with create_file(temporary[file]) as out:
                out.write(content)
                fsync(out, file)
        for file in sidecars(manifest_files):
            file.unlink(missing_ok=True)
        replace(partial, target)
        for file in contents:  # the manifest last
            replace(temporary[file], file)
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)
    fsync_folder(target.parent)
