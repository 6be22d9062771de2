"""`fastcifar train`: a network from betons, in a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from fastcifar.cli import options
from fastcifar.config import (
    AMP_MODES,
    CROP_MODES,
    CUTOUT_FILLS,
    FLIP_MODES,
    LOADERS,
    MODELS,
    SCHEDULES,
    AugmentConfig,
    TrainConfig,
    read_pipeline,
)

Command = TypeVar("Command", bound=Callable[..., Any])
AUGMENT = tuple(field.name for field in fields(AugmentConfig) if field.name != "pipeline")
CHANGEABLE = ("epochs", "max_steps", "data_dir", "device", "loader", "amp")
"""What may differ when a run is resumed; everything else is the run's own."""


def _setting(flag: str, help_text: str, **kind: Any) -> Callable[[Command], Command]:
    name = flag.strip("-").replace("-", "_")
    default = getattr(AugmentConfig if name in AUGMENT else TrainConfig, name)
    return click.option(flag, default=default, show_default=default is not None, help=help_text, **kind)


@click.command()
@_setting("--model", "Network.", type=click.Choice(MODELS))
@_setting("--epochs", "Passes over the training images.", type=int)
@_setting("--batch-size", "Images in one step.", type=int)
@_setting("--lr", "Learning rate to start from.", type=float)
@_setting("--momentum", "Momentum of SGD, Nesterov's.", type=float)
@_setting("--weight-decay", "L2 penalty on the weights.", type=float)
@_setting(
    "--sched",
    "plateau: x 0.2 when the validation loss has not improved for 3 epochs; cosine: to 0, step by step; none.",
    type=click.Choice(SCHEDULES),
)
@_setting("--crop-padding", "Pixels around the image before a random crop; 0: no crop.", type=int)
@_setting("--crop-mode", "What lies outside the image, for crop and rotation.", type=click.Choice(CROP_MODES))
@click.option("--flip/--no-flip", default=AugmentConfig.flip, show_default=True, help="Mirror images left to right.")
@_setting("--flip-mode", "alternating: each image every second epoch.", type=click.Choice(FLIP_MODES))
@_setting("--rotate-degrees", "Turn by up to so much, either way; 0: no rotation.", type=float)
@_setting("--rotate-p", "Probability of a rotation.", type=float)
@_setting("--hue-shift", "Change of the hue (0..179, as in OpenCV) by up to so much.", type=int)
@_setting("--saturation-shift", "Change of the saturation (0..255) by up to so much.", type=int)
@_setting("--value-shift", "Change of the value (0..255) by up to so much.", type=int)
@_setting("--colour-p", "Probability of a shift of hue, saturation and value.", type=float)
@_setting("--cutout-size", "Side of the blanked square; 0: none.", type=int)
@_setting("--cutout-min-size", "Draw height and width from this to --cutout-size.", type=int)
@_setting("--cutout-p", "Probability that an image is cut out.", type=float)
@_setting("--cutout-holes", "Holes in one image.", type=int)
@_setting("--cutout-fill", "What the holes hold.", type=click.Choice(CUTOUT_FILLS))
@click.option(
    "--augment",
    "pipeline",
    type=click.Path(),
    help="A pipeline of Albumentations, saved by A.save (JSON or YAML), instead of all of these.",
)
@_setting("--loader", "What delivers the batches; all deliver the same.", type=click.Choice(LOADERS))
@_setting("--shuffle", "window: for betons larger than memory.", type=click.Choice(("full", "window")))
@options.device
@_setting("--amp", "Autocast; auto is bf16 where the device is fast at it.", type=click.Choice(AMP_MODES))
@_setting(
    "--val-size",
    "Training images held out for validation, as many of each class; 0: none.  [default: a tenth]",
    type=int,
)
@_setting("--seed", "Decides weights, order, augmentation and validation images.", type=int)
@click.option("--deterministic", is_flag=True, help="The same result each time, bit for bit, on the same machine.")
@_setting("--max-steps", "End after this many steps, evaluation included.", type=int)
@click.option("--name", help="Name of the run folder.  [default: the network's]")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    metavar="[RUN]",
    help="Go on with a run (a name or path; the latest if not given) with its own settings.",
)
@options.data_dir
@options.runs_dir
@options.as_json
@click.pass_context
def train(
    context: click.Context,
    /,
    name: str | None,
    resume: str | None,
    runs_dir: str,
    as_json: bool,
    pipeline: str | None,
    **given: Any,
) -> None:
    """Train a network on the betons of the data folder.

    A tenth of the training images is held out: schedule and best weights look at those, and the test images are
    scored once, at the end. Ctrl-C saves; --resume goes on.
    """
    choices = {key: given.pop(key) for key in AUGMENT}
    if pipeline is None:
        augment = AugmentConfig(**choices)
    else:
        augment = read_pipeline(pipeline)
        if typed := _typed(context, AUGMENT):
            raise click.UsageError(f"{_flags(typed)} cannot be given beside --augment, which stands for all of them")
    config = TrainConfig(augment=augment, **given)

    import json

    from fastcifar.cli.output import Bars, table
    from fastcifar.training import find_run
    from fastcifar.training import train as run_training

    run = None
    if resume is not None:
        run = find_run(resume or None, runs_dir)
        config = _resumed(context, run.read_config(), {**given, "name": name, "pipeline": augment})
    with Bars() as bars:
        run, metrics = run_training(config, runs_dir=runs_dir, name=name, resume=run, reporter=bars)
    if as_json:
        click.echo(json.dumps({"run": str(run.path), **metrics}))
        return
    rows = [
        ("test accuracy", f"{metrics['test_accuracy']:.2%}"),
        ("test loss", f"{metrics['test_loss']:.4f}"),
        ("run folder", run.path),
    ]
    click.echo(table(rows))


def _flags(keys: Iterable[str]) -> str:
    return ", ".join("--" + {"pipeline": "augment"}.get(key, key).replace("_", "-") for key in keys)


def _typed(context: click.Context, keys: Iterable[str]) -> list[str]:
    return [key for key in keys if context.get_parameter_source(key) is ParameterSource.COMMANDLINE]


def _resumed(context: click.Context, config: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """The settings of the run, with what the user changed, where it may be changed."""
    typed = _typed(context, (*given, *AUGMENT))
    fixed = [key for key in typed if key not in CHANGEABLE]
    if fixed:
        raise click.UsageError(
            f"{_flags(fixed)} cannot be changed when a run is resumed; only {_flags(CHANGEABLE)} can", context
        )
    return replace(config, **{key: given[key] for key in typed})
