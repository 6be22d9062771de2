"""Write docs/settings.md, the reference of all settings, from their declarations in `fastcifar.config`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fastcifar import recipes
from fastcifar.cli.train import train
from fastcifar.config import SETTINGS, TrainConfig
from fastcifar.config.setting import (
    Choice,
    DeviceName,
    Integer,
    Integers,
    Kind,
    Names,
    Number,
    RateOrAuto,
    SizesUntil,
    Switch,
    Text,
)
from fastcifar.config.train import GROUPS

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
HEAD = """# Settings

Every setting has one name in recipes, in `config.yaml` and in `TrainConfig.from_settings(batch_size=256)`, and a flag.
In Python the settings are grouped: `config.optimizer.lr`. Lists are written here as in YAML and Python; their flags
take `15,25` or `24:0.5`. `pipeline` is the text of a pipeline, `--augment` takes its file.
A recipe cannot set {not_in_recipes}. This page is written by `make docs`.
"""
FLAGS = {param.name: [*param.opts, *param.secondary_opts] for param in train.params}


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
    if isinstance(kind, RateOrAuto):
        return "number, above 0, or `auto`"
    if isinstance(kind, Integers):
        return f"list of integers, {kind.low} or more, rising, e.g. `[15, 25]`"
    if isinstance(kind, SizesUntil):
        return "list of [side, share], the shares rising, e.g. `[[24, 0.5]]`"
    if isinstance(kind, DeviceName):
        return "device"
    assert isinstance(kind, Text), kind
    return "path" if kind.path else "text"


def default_of(name: str, defaults: dict[str, Any]) -> str:
    """The default as it is written in a recipe."""
    declared, value = SETTINGS[name][2], defaults[name]
    if declared.default_text:
        return declared.default_text
    return "" if value in (None, []) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def page() -> str:
    """The text of docs/settings.md."""
    not_in_recipes = sorted(recipes.NOT_IN_RECIPES.keys() - {"recipe"})
    names = f"{', '.join(f'`{name}`' for name in not_in_recipes[:-1])} or `{not_in_recipes[-1]}`"
    defaults, lines = TrainConfig().to_settings(), [HEAD.format(not_in_recipes=names)]
    for group in (None, *GROUPS):
        lines += [f"## {'Run' if group is None else group.capitalize()}", ""]
        lines += ["| setting | flag | default | values | description |", "| --- | --- | --- | --- | --- |"]
        for name, (own, _, declared) in SETTINGS.items():
            if own == group and name != "recipe":
                flags = ", ".join(f"`{flag}`" for flag in FLAGS[name])
                values, default = values_of(declared.kind), default_of(name, defaults)
                lines.append(f"| {' | '.join((f'`{name}`', flags, default, values, declared.description))} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
