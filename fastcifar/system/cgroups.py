"""The control groups (cgroups) of this process, which hold the limits of a container or a scheduler."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def control_groups(controller: str, root: Path = ROOT) -> Iterator[tuple[Path, bool]]:
    """The folders of the control groups of this process for `controller` ('memory', 'cpu'), up to the mount point, and
    whether each has version 2. root: folder of /proc and /sys."""
    own = dict.fromkeys((controller, ""), "/")
    for line in read_lines(root / "proc/self/cgroup"):  # number:controllers:path; version 2 has no controllers
        controllers, _, path = line.partition(":")[2].partition(":")
        if path.startswith("/"):
            own |= {name: path for name in controllers.split(",") if name in own}
    mounts = [("", "/", "/sys/fs/cgroup"), (controller, "/", f"/sys/fs/cgroup/{controller}")]  # the usual places
    for line in read_lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, options = after.split(" ")[0], after.split(" ")[-1].split(",")
        if kind == "cgroup2" or (kind == "cgroup" and controller in options):
            mounted, where = map(_unescaped, before.split()[3:5])
            mounts.append(("" if kind == "cgroup2" else controller, mounted, where))
    for name, mounted, where in dict.fromkeys(mounts):
        top = root / where.lstrip("/")
        inside = os.path.relpath(own[name], mounted)  # a container sees a part of the tree
        group = top if inside.startswith("..") else top / inside
        for folder in (group, *group.parents):
            yield folder, not name
            if folder == top:
                break


def _unescaped(text: str) -> str:
    """Replace escapes: a space is \\040 in mountinfo."""
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), text)


def read_lines(path: Path) -> list[str]:
    """The lines of a file in /proc or /sys; empty if it cannot be read."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
