"""Write docs/settings.md, the reference of all settings, from their declarations in `fastcifar.config`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fastcifar.config import SETTINGS, TrainConfig
from fastcifar.config.setting import Choice, Integer, Kind, Names, Number, Switch
from fastcifar.config.train import GROUPS

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
HEAD = """# Settings

Every setting has one name: `--batch-size` on the command line is `batch_size` in a recipe, in `config.yaml` and in
`TrainConfig.from_settings(batch_size=256)`. In Python the settings are grouped: `config.optimizer.lr`. This page is
written by `make docs`.
"""


def values_of(kind: Kind) -> str:
    """The values that are allowed, in words."""
    if isinstance(kind, Choice):
        return ", ".join(f"`{name}`" for name in kind.names)
    if isinstance(kind, Names) and kind.known:
        return "list of " + ", ".join(f"`{name}`" for name in kind.known)
    if isinstance(kind, Switch):
        return "`true`, `false`"
    if isinstance(kind, Integer):
        return f"integer, {kind.low} or more" if kind.high is None else f"integer, {kind.low}..{kind.high}"
    if isinstance(kind, Number):
        low = f"above {kind.low:g}" if kind.above else f"{kind.low:g} or more"
        high = "" if kind.high == math.inf else f", below {kind.high:g}" if kind.below else f", at most {kind.high:g}"
        return f"number, {low}{high}"
    return ""


def default_of(name: str, defaults: dict[str, Any]) -> str:
    """The default as it is written in a recipe."""
    declared, value = SETTINGS[name][2], defaults[name]
    if declared.default_text:
        return declared.default_text
    return "" if value in (None, []) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def page() -> str:
    """The text of docs/settings.md."""
    defaults, lines = TrainConfig().to_settings(), [HEAD]
    for group in (None, *GROUPS):
        lines += [f"## {'Run' if group is None else group.capitalize()}", ""]
        lines += ["| setting | default | values | description |", "| --- | --- | --- | --- |"]
        for name, (own, _, declared) in SETTINGS.items():
            if own == group and name != "recipe":
                cells = f"`{name}`", default_of(name, defaults), values_of(declared.kind), declared.description
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
