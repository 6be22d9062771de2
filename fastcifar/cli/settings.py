"""The settings of a run as options: for `train`, and in part for `lr-find`. A recipe gives their defaults."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from fastcifar import config
from fastcifar.cli import options
from fastcifar.config import AugmentConfig, TrainConfig, read_pipeline
from fastcifar.io.paths import user_path

Command = TypeVar("Command", bound=Callable[..., Any])
Option = Callable[[Command], Command]
AUGMENT = tuple(field.name for field in fields(AugmentConfig) if field.name != "pipeline")
SETTINGS = tuple(field.name for field in fields(TrainConfig) if field.name not in ("augment", "recipe"))


class Rate(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A learning rate, or 'auto'."""

    name = "float|auto"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float | str:
        return "auto" if value == "auto" else click.FLOAT.convert(value, param, context)


class Numbers(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Whole numbers, with commas between them."""

    name = "n,n,…"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, str):
            try:
                return tuple(int(part) for part in value.split(",") if part.strip())
            except ValueError:
                self.fail(f"{value!r} is no list of whole numbers; expected such as 15,25", param, context)
        return tuple(value)


class Sides(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Pairs of a side and a share, side:share, with commas between them."""

    name = "side:share,…"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if isinstance(value, str):
            try:
                pairs = [part.split(":") for part in value.split(",") if part.strip()]
                return tuple((int(side), float(until)) for side, until in pairs)
            except ValueError:
                self.fail(f"{value!r} is no list of pairs; expected such as 20:0.3,24:0.7", param, context)
        return tuple(map(tuple, value))


def _setting(flag: str, help_text: str, **kind: Any) -> Option[Any]:
    name = flag.split("/")[0].strip("-").replace("-", "_")
    default = getattr(AugmentConfig if name in AUGMENT else TrainConfig, name)
    shown = default not in (None, ())
    return click.option(flag, default=default, show_default=shown, help=help_text, **kind)


def _from_recipe(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """Let the recipe's settings be the defaults of the options, below flags and environment."""
    if value is not None and not context.resilient_parsing:
        from fastcifar import recipes

        recipe = recipes.load(value)
        context.default_map = {**(context.default_map or {}), **recipe.settings}
        # a file's path, which the next command needs too
        context.meta["recipe"] = value if value in recipes.names() else user_path(value)
        return recipe.name
    return value


_RATES = "; ".join(
    f"{network} " + ", ".join(f"{rate:g} {name}" for name, rate in rates.items())
    for network, rates in config.DEFAULT_LR.items()
)
RECIPE = [
    click.option(
        "--recipe",
        is_eager=True,
        callback=_from_recipe,
        metavar="NAME",
        help="Begin from these settings ('fastcifar recipes' shows them, or a .yaml file); any flag beats them.",
    )
]
NETWORK = [
    _setting("--model", "resnet18, small, a name of torchvision.models, or package.module:function of your own."),
    _setting("--norm", "Normalisation in resnet18.", type=click.Choice(config.NORMS)),
    _setting("--dropout", "Dropout before the last layer of resnet18 and small.", type=float),
    _setting("--last-stride", "Stride of resnet18's last stage; 1: maps of 8x8.", type=int),
]
OPTIMIZER = [
    _setting("--batch-size", "Images in one step, of all processes together.", type=int),
    _setting("--optimizer", "muon: for filters; see --rest-optimizer.", type=click.Choice(config.OPTIMIZERS)),
    _setting("--momentum", "Momentum of sgd and muon, first beta of adamw.", type=float),
    _setting("--nesterov/--no-nesterov", "Nesterov's momentum."),
    _setting(
        "--rest-optimizer",
        "muon: for biases, norms and the last layer.",
        type=click.Choice(config.REST_OPTIMIZERS),
    ),
    _setting("--rest-lr", "muon: learning rate of those.", type=float),
    _setting("--bias-lr", "muon: learning rate of biases and norms.  [default: --rest-lr]", type=float),
    _setting("--unit-filters/--free-filters", "muon: scale filters to a fixed norm before each step."),
    _setting("--muon-steps", "muon: Newton-Schulz steps of an update.", type=int),
    _setting("--weight-decay", "L2 penalty; decoupled in adamw and muon.", type=float),
    _setting("--decay-all/--decay-weights-only", "Weight decay and L1 on biases and normalisation too."),
    _setting("--l1", "L1 penalty.", type=float),
    _setting("--label-smoothing", "Share of each label that is spread over all classes.", type=float),
    _setting("--clip-norm", "Scale gradients down to this norm; 0: never.", type=float),
]
SCHEDULE = [
    _setting("--epochs", "Passes over the training images.", type=int),
    _setting("--lr", f"Learning rate at its highest; auto: from a range test.  [default: {_RATES}]", type=Rate()),
    _setting(
        "--sched",
        "plateau, step, multistep: by epoch; onecycle, cosine: step by step.",
        type=click.Choice(config.SCHEDULES),
    ),
    _setting("--factor", "plateau, step, multistep: the rate is multiplied by this.", type=float),
    _setting("--patience", "plateau: epochs without improvement before that.", type=int),
    _setting("--monitor", "plateau: what it watches, on the validation images.", type=click.Choice(config.MONITORS)),
    _setting("--min-lr", "plateau, cosine: the rate does not fall below this.", type=float),
    _setting("--step-size", "step: epochs between two falls.", type=int),
    _setting("--milestones", "multistep: the rate falls after these epochs.", type=Numbers()),
    _setting("--pct-start", "onecycle: share of the steps in which the rate rises.", type=float),
    _setting("--div-factor", "onecycle: the rate starts at lr / this.", type=float),
    _setting("--final-div-factor", "onecycle: and ends at that / this.", type=float),
    _setting("--anneal", "onecycle: the way down.", type=click.Choice(config.ANNEALS)),
    _setting("--warmup-epochs", "Epochs in which the rate rises in a line (not onecycle).", type=float),
    _setting("--ema", "Score the average of the weights, with this decay a step; 0: the weights.", type=float),
    _setting("--progressive", "Smaller images at first: side:share of the steps.", type=Sides()),
    _setting("--tta", "Test-time augmentation, scored beside the plain test.", type=click.Choice(config.TTAS)),
]
AUGMENTATION = [
    _setting("--crop-padding", "Pixels around the image before a random crop; 0: no crop.", type=int),
    _setting(
        "--crop-mode", "What lies outside the image, for crop and rotation.", type=click.Choice(config.CROP_MODES)
    ),
    _setting("--flip/--no-flip", "Mirror images left to right."),
    _setting("--flip-mode", "alternating: each image every second epoch.", type=click.Choice(config.FLIP_MODES)),
    _setting("--rotate-degrees", "Turn by up to so much, either way; 0: no rotation.", type=float),
    _setting("--rotate-p", "Probability of a rotation.", type=float),
    _setting("--hue-shift", "Change of the hue (0..179, as in OpenCV) by up to so much.", type=int),
    _setting("--saturation-shift", "Change of the saturation (0..255) by up to so much.", type=int),
    _setting("--value-shift", "Change of the value (0..255) by up to so much.", type=int),
    _setting("--colour-p", "Probability of a shift of hue, saturation and value.", type=float),
    _setting("--cutout-size", "Side of the blanked square; 0: none.", type=int),
    _setting("--cutout-min-size", "Draw height and width from this to --cutout-size.", type=int),
    _setting("--cutout-p", "Probability that an image is cut out.", type=float),
    _setting("--cutout-holes", "Holes in one image.", type=int),
    _setting("--cutout-fill", "What the holes hold.", type=click.Choice(config.CUTOUT_FILLS)),
    click.option(
        "--augment",
        "pipeline",
        type=options.PATH,
        help="A pipeline of Albumentations, saved by A.save (JSON or YAML), instead of all of these.",
    ),
]
_LOADER = _setting("--loader", "What delivers the batches; all deliver the same.", type=click.Choice(config.LOADERS))
_SEED = _setting("--seed", "Decides weights, order, augmentation and validation images.", type=int)
DATA = [
    _LOADER,
    _setting("--shuffle", "window: for betons larger than memory.", type=click.Choice(("full", "window"))),
    _setting(
        "--val-size",
        "Training images held out for validation, of each class its share; 0: none.  [default: a tenth]",
        type=int,
    ),
    _SEED,
    options.data_dir,
]
PREVIEWED = [_LOADER, _SEED, options.data_dir]
MACHINE = [
    options.device,
    options.threads,
    _setting("--amp", "Autocast; auto is bf16 where the device is fast at it.", type=click.Choice(config.AMP_MODES)),
]


RUN = [
    _setting("--deterministic/--no-deterministic", "The same result each time, bit for bit, on the same machine."),
    _setting("--compile/--no-compile", "torch.compile the network: pays in long runs on a GPU."),
    _setting("--sync-bn/--no-sync-bn", "With several processes: batch normalisation over all their images."),
    _setting("--max-steps", "End after this many steps, evaluation included.", type=int),
    _setting("--log-every", "Log the mean loss of every so many steps; 0: of epochs only.", type=int),
]


def add(*groups: list[Option[Any]]) -> Option[Any]:
    """A decorator that gives a command the options of `groups`, in that order."""

    def decorate(command: Any) -> Any:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorate


def train_config(context: click.Context, given: dict[str, Any]) -> TrainConfig:
    """The settings of a run from the values of these options; what a command does not ask is the default."""
    pipeline = given.pop("pipeline", None)
    choices = {key: given.pop(key) for key in AUGMENT if key in given}
    if pipeline is None:
        augment = AugmentConfig(**choices)
    else:
        augment = read_pipeline(pipeline)
        if also := typed(context, AUGMENT):
            raise click.UsageError(f"{flags(also)} cannot be given beside --augment, which stands for all of them")
    return TrainConfig(**given, augment=augment)


def as_flags(context: click.Context, keys: Iterable[str]) -> list[str | os.PathLike[str]]:
    """What the user gave for `keys`, as words for `command_line`."""
    words: list[str | os.PathLike[str]] = []
    for param in context.command.params:
        if param.name not in keys:
            continue
        value = context.meta["recipe"] if param.name == "recipe" else context.params[param.name]
        if isinstance(param, click.Option) and param.is_bool_flag:
            words.append(param.opts[0] if value else param.secondary_opts[0])
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            words += [param.opts[0], text if isinstance(text, os.PathLike) else str(text)]
    return words


def typed(context: click.Context, keys: Iterable[str]) -> list[str]:
    """Those of `keys` that were given on the command line."""
    return [key for key in keys if context.get_parameter_source(key) is ParameterSource.COMMANDLINE]


def flags(keys: Iterable[str]) -> str:
    """The flags of these settings, for a message."""
    return ", ".join("--" + {"pipeline": "augment"}.get(key, key).replace("_", "-") for key in keys)
