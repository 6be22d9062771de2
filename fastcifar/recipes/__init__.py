"""Named settings: YAML files that load into `TrainConfig`. Only data: a recipe cannot name code to run."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcifar.config import SETTINGS, TrainConfig, require_known
from fastcifar.errors import UsageError, one_line
from fastcifar.io.paths import user_path
from fastcifar.io.reading import read_settings

FOLDER = Path(__file__).parent
ABOUT = ("title", "origin", "reported", "assumptions", "measured")
"""What a recipe says about itself, next to its settings."""
NOT_IN_RECIPES = {
    "recipe": "--recipe",
    "init": "--init",
    "data_dir": "--data-dir",
    "device": "--device",
    "pipeline": "--augment",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings with a name and a history."""

    name: str
    config: TrainConfig
    settings: dict[str, Any]
    """What the file sets, by name: see `TrainConfig.from_settings`."""
    about: dict[str, str]
    """title, origin, reported, assumptions, measured: as far as the file has them."""


def names() -> tuple[str, ...]:
    """The recipes that come with fastcifar, those of the original projects first."""
    known = ("cutout-plateau", "onecycle-l1", "crop-cutout", "step-l2", "lrfind-plateau", "layernorm")
    stems = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    return tuple(sorted(stems, key=lambda name: (known.index(name) if name in known else len(known), name)))


def load(name: str | os.PathLike[str]) -> Recipe:
    """The recipe `name`, or the one in the file of that path. Raises UsageError, with the reason, if it is unusable."""
    name = os.fspath(name)
    path = FOLDER / f"{name}.yaml"
    if name not in names():
        if not name.endswith((".yaml", ".yml")):
            near = difflib.get_close_matches(name, names(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"recipe is {name!r}; expected one of: {', '.join(names())}, or a .yaml file{hint}")
        path = user_path(name, "recipe")
        name = path.name if path.stem in names() else path.stem  # which is not that recipe
    raw = read_settings(path, "recipe", "YAML: see 'fastcifar recipes fast'", max_bytes=64 * 2**10)
    keys = map(str, raw.keys() - {*ABOUT, "settings"})
    unknown = sorted(key if key.isprintable() else repr(key) for key in keys)
    if unknown or not isinstance(raw.get("settings"), dict):
        what = f"unknown keys {', '.join(unknown)}" if unknown else "no settings"
        raise UsageError(f"{path}: {what}; expected settings, under 'settings:', and, optionally, {', '.join(ABOUT)}")
    about = {key: one_line(raw[key]) for key in ABOUT if raw.get(key) is not None}
    settings = raw["settings"]
    try:
        for key in settings:
            if key in NOT_IN_RECIPES:
                raise UsageError(f"{key} cannot be set in a recipe; give it with {NOT_IN_RECIPES[key]}")
        require_known(settings, SETTINGS.keys() - NOT_IN_RECIPES)
        config = TrainConfig.from_stored(recipe=name, **settings)
        if config.model.names_code:
            raise UsageError(
                f"model is {config.model.name!r}; a recipe cannot name code or a download: give it with --model"
            )
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from error
    return Recipe(name=name, config=config, settings=settings, about=about)


def dump(config: TrainConfig, title: str = "") -> str:
    """The settings as the text of a recipe; `load` gives the same. Those that no recipe holds are left out: data
    folder, device, a network of your own, a pipeline of Albumentations."""
    import yaml

    settings = {key: value for key, value in config.to_settings().items() if key not in NOT_IN_RECIPES}
    if config.model.names_code:
        del settings["model"]
    about = {"title": one_line(title)} if title else {}
    return yaml.safe_dump(
        {**about, "settings": settings}, sort_keys=False, allow_unicode=True, width=10**6, default_flow_style=None
    )
