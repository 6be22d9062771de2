"""Settings that change nothing, given the others."""

from __future__ import annotations

from fastcifar.config.setting import Choice
from fastcifar.config.train import SETTINGS, TrainConfig

CHOICES = ("sched", "optimizer")
"""The descriptions of their settings begin with the schedules or optimizers that use them, e.g. 'step: '."""
COLOURS = ("hue_shift", "saturation_shift", "value_shift", "brightness", "contrast")
NEEDED = {
    "flip_mode": ("flip",),
    "rotate_p": ("rotate_degrees",),
    "colour_p": COLOURS,
    **dict.fromkeys(("cutout_min_size", "cutout_p", "cutout_holes", "cutout_fill"), ("cutout_size",)),
}
"""Settings of an augmentation, and those of which one switches it on."""


def without_effect(config: TrainConfig) -> dict[str, str]:
    """The settings that change nothing, whatever their values, and why: e.g. "sched is 'plateau'"."""
    values, found = config.to_settings(), {}
    for choice in CHOICES:
        kind = SETTINGS[choice][2].kind
        assert isinstance(kind, Choice)
        for name, (_, _, declared) in SETTINGS.items():
            users = set(declared.description.partition(":")[0].split(", "))
            if name != choice and users <= {*kind.names} and values[choice] not in users:
                found[name] = f"{choice} is {values[choice]!r}"
    for name, needed in NEEDED.items():
        if not any(values[each] for each in needed):
            found[name] = f"no {' or '.join(needed)}"
    return found
