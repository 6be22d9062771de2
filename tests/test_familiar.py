"""What users of timm, fastai and Ultralytics type, and what each gets: as docs/coming-from.md says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from fastcifar.cli import main
from fastcifar.cli.command import Command, aliases_of, near, options_by_name
from fastcifar.cli.familiar import ALIASES, ANSWERS, COMMAND_ANSWERS, VALUES
from fastcifar.cli.familiar import COMMANDS as OTHER_COMMANDS
from fastcifar.cli.settings import as_flags, given_on_command_line
from fastcifar.config import SETTINGS
from tests.test_cli import refused, run

PAGE = Path(__file__).parents[1] / "docs" / "coming-from.md"
assert isinstance(main, click.Group)
COMMANDS = main.commands

ACCEPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "train --data-dir data --model resnet18 --opt adamw --lr 1e-3 --sched cosine --wd 0.05 -b 128 --warmup-epochs 5": (
        "train",
        {"optimizer": "adamw", "lr": 1e-3, "sched": "cosine", "weight_decay": 0.05, "batch_size": 128},
    ),
    "train --smoothing 0.1 --drop 0.1 --clip-grad 1 --model-ema-decay 0.999 --log-interval 50 --experiment first": (
        "train",
        {"label_smoothing": 0.1, "dropout": 0.1, "clip_norm": 1.0, "ema": 0.999, "log_every": 50, "name": "first"},
    ),
    "train --config fast --bs 256 --seed 1": ("train", {"model": "small", "epochs": 8, "batch_size": 256, "seed": 1}),
    "train -a resnet18 --lr-scheduler CosineAnnealingLR --lr-warmup-epochs 5 --print-freq 10": (
        "train",
        {"model": "resnet18", "sched": "cosine", "warmup_epochs": 5.0, "log_every": 10},
    ),
    "lr_find --bs 64": ("lr-find", {"batch_size": 64}),
    "train --sched one_cycle --lr_max 0.01 --pct_start 0.25 --wd 0.01 --n_epoch 5": (
        "train",
        {"sched": "onecycle", "lr": 0.01, "pct_start": 0.25, "weight_decay": 0.01, "epochs": 5},
    ),
    "train --epochs 50 --batch 64 --lr0 0.01 --optimizer AdamW --device cpu": (
        "train",
        {"epochs": 50, "batch_size": 64, "lr": 0.01, "optimizer": "adamw"},
    ),
    "train --device 0": ("train", {"device": "cuda:0"}),
    "val": ("eval", {"split": "val", "named_run": None}),
    "eval --run small --split test": ("eval", {"split": "test", "named_run": "small"}),
}
ANSWERED = {
    "train data --model resnet18": "Got unexpected extra argument (data): write --data-dir data",
    "train --model resnet18 -j 8": "No such option '-j': not needed: the resident loader has no workers",
    "train --pretrained": "write --init FILE or --model timm:hf-hub:NAME",
    "train --input-size 3 32 32": "images keep the size that they were converted to: 'fastcifar convert --size 64'",
    "train --num-classes 10": "not needed: the data has the classes",
    "train --model-ema": "write --ema with the decay per step, e.g. 0.999",
    "train --amp": "Expected one of: auto, bf16, fp16, off",
    "train --reprob 0.25": "write --cutout-size and --cutout-p",
    "train --color-jitter 0.4": "write --contrast with that number, --brightness in grey levels",
    "train --output runs --model small": "write --runs-dir FOLDER for the folder of all runs",
    "validate": "No such command 'validate': write 'fastcifar eval'",
    "fit_one_cycle 5": "No such command 'fit-one-cycle': write 'fastcifar train --sched onecycle'",
    "train --valid-pct 0.2": "write --val-size with a number of images",
    "show_batch": "write 'fastcifar preview'",
    "plot_top_losses": "write 'fastcifar explain'",
    "train epochs=50 batch=64 lr0=0.01 optimizer=AdamW": (
        "'epochs=50': options are written --name VALUE: write --epochs 50 --batch-size 64 --lr 0.01 --optimizer AdamW ("
    ),
    "train model=small cos_lr=True workers=8": "cos_lr: write --sched cosine; workers: not needed: the resident loader",
    "train --imgsz 32": "'fastcifar convert --size 64'",
    "train --device 0,1": "expected one device, e.g. cuda:0; several GPUs need a process each: torchrun",
    "train patience=10": "write --early-stop with a number of epochs; --patience is that of --sched plateau",
    "train project=runs name=first": "write --name first; project: write --runs-dir FOLDER",
    "classify train": "No such command 'classify': leave it out",
    "train --log-wandb": "write --log wandb",
    "tune": "No such command 'tune': write 'fastcifar sweep'",
    "predict source=cat.png model=runs/small": (
        "source: write only the path, e.g. 'fastcifar predict cat.png'; model: write --run with the run"
    ),
    "val model=runs/small": "model: write the run, its name, folder or a file in it",
}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)


def parsed(line: str) -> click.Context:
    """The context of the command that runs for this line."""
    program = click.Context(main, info_name="fastcifar", **main.context_settings)
    name, command, rest = main.resolve_command(program, shlex.split(line))  # type: ignore[attr-defined]
    assert command is not None
    return command.make_context(name, rest, parent=program)


@pytest.mark.parametrize("line", ACCEPTED)
def test_a_line_that_means_one_thing_is_accepted(line: str) -> None:
    name, values = ACCEPTED[line]
    context = parsed(line)
    assert context.command.name == name
    assert {key: context.params[key] for key in values} == values


@pytest.mark.parametrize("line", ANSWERED)
def test_another_line_is_answered_with_what_to_write(line: str) -> None:
    assert ANSWERED[line] in refused(2, *shlex.split(line))


def test_the_page_has_the_same_lines_and_answers() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", PAGE.read_text(encoding="utf-8").split("## FFCV")[0], re.MULTILINE)
    assert {line for line, _ in rows} == {*ACCEPTED, *ANSWERED}
    for line, text in rows:
        answer = refused(2, *shlex.split(line)) if line in ANSWERED else ""
        assert all(quoted in answer for quoted in re.findall(r'"([^"]+)"', text)), line
        assert line not in ACCEPTED or '"' not in text, line


def test_other_names_are_the_setting_itself() -> None:
    """For flags that beat a recipe, for the next command, and for what --resume allows."""
    context = parsed("train -c fast --bs 256 --opt SGD -b 300 --scheduler Cos")
    given = given_on_command_line(context, (*SETTINGS, "name"))
    assert set(given) == {"recipe", "batch_size", "optimizer", "sched"}
    flags = dict(zip(*[iter(as_flags(context, given))] * 2, strict=True))
    assert flags == {"--recipe": "fast", "--batch-size": "300", "--optimizer": "sgd", "--sched": "cosine"}
    assert context.params["lr"] == 0.24  # of the recipe


@pytest.mark.parametrize("name", COMMANDS)
def test_no_other_name_is_ambiguous(name: str) -> None:
    command = COMMANDS[name]
    own = [flag for param in command.params for flag in (*param.opts, *param.secondary_opts)]
    others = [flag for _, names in aliases_of(command) for flag in names]
    assert len({*own, *others}) == len(own) + len(others)
    shown = run(name, "--help").stdout
    assert not [flag for flag in others if re.search(rf"(?<![\w-]){flag}(?![\w-])", shown)]


def test_every_other_name_is_of_an_option() -> None:
    assert all(isinstance(command, (Command, click.Group)) for command in COMMANDS.values())
    named = {param.name for command in COMMANDS.values() for param in command.params}
    assert {alias.parameter for alias in ALIASES} <= named
    for parameter, values in VALUES.items():
        types = {param.type for command in COMMANDS.values() for param in command.params if param.name == parameter}
        assert all(set(values.values()) <= set(kind.choices) for kind in types if isinstance(kind, click.Choice))


@pytest.mark.parametrize("name", [*COMMANDS, "fastcifar"])
def test_answers_name_options_that_the_command_has(name: str) -> None:
    own = options_by_name(COMMANDS[name]) if name in COMMANDS else {"-V": main}
    for answer in (answer for answer in (*ANSWERS, *COMMAND_ANSWERS) if not answer.commands or name in answer.commands):
        outside = re.sub(r"'fastcifar (\S+)(.*?)'|torchrun .*$", check_quoted, answer.text)
        flags = re.findall(r"(?<![\w-])--?[a-z][\w-]*", outside)
        known = {*own, *(["--help", "--name"] if answer in COMMAND_ANSWERS else [])}
        assert [flag for flag in flags if flag not in known] == [], answer


@pytest.mark.parametrize("name", COMMANDS)
def test_no_answer_is_about_an_option_that_there_is(name: str) -> None:
    names = {each for answer in ANSWERS if name in answer.commands for each in answer.names}
    assert not names & options_by_name(COMMANDS[name]).keys()


def check_quoted(match: re.Match[str]) -> str:
    if match[1] and match[1] in COMMANDS:
        flags = re.findall(r"--[a-z][\w-]*", match[2])
        assert all(flag in options_by_name(COMMANDS[match[1]]) for flag in flags), match[0]
    else:
        assert match[1] in (None, "--help", "--version"), match[0]
    return ""


def test_no_answer_is_about_a_command_that_there_is() -> None:
    assert not {name for answer in COMMAND_ANSWERS for name in answer.names} & {*COMMANDS, *OTHER_COMMANDS}


def test_only_close_names_are_suggested() -> None:
    train = options_by_name(COMMANDS["train"])
    assert near("--epoch", train) == ["--epochs"]
    assert near("--optimiser", train) == ["--optimizer"]
    assert near("--warmup", train) == ["--warmup-epochs"]
    assert near("--xyz", train) == near("--w", train) == near("--dw", train) == []
    assert near("export", ["report", "explain"]) == []
    assert near("trian", COMMANDS) == ["train"]


def test_an_option_of_another_command_is_located() -> None:
    where = "it is an option of 'fastcifar train', 'fastcifar sweep'"
    assert refused(2, "eval", "--epochs", 3).startswith(f"No such option '--epochs': {where} (see")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train -lr 0.1", "No such option '-lr': write --lr, with two hyphens"),
        ("preview -output x.png", "No such option '-output': write --output, with two hyphens"),
        ("train –epochs 5", "write --epochs, with two hyphens"),
        ("train optimizer=auto", "--optimizer: 'auto' is not one of 'sgd'"),
        ("train resume=True deterministic=False flip=yes", "write --resume --no-deterministic --flip ("),
        ("train foo=1", "foo: no such option"),
        ("eval --model runs/small", "the network is that of the run: leave it out"),
        ("eval a --run b", "RUN is 'a', and --run 'b'; expected one of them"),
        ("val --split test", "val is eval --split val: write --split with eval only"),
        ("test --split=val", "test is eval --split test: write --split with eval only"),
        ("--workers 3 train", "No such option '--workers': not needed"),
        ("mode=train", "No such command 'mode=train': write the command first"),
        ("eval --device 0,1", "expected one device, e.g. cuda:0 ("),
        ("sweep --set lr=0.1 --imgsz 32", "'fastcifar convert --size 64'"),
        ("sweep --workers 8", "not needed: the resident loader has no workers"),
        ("predict --weights runs/small a.png", "write --run with the run"),
        ("predict --imgsz 32 a.png", "not needed: images of any size are resized"),
        ("runs list", "No such command 'list': write 'fastcifar runs'"),
        ("runs compre a b", "No such command 'compre'; did you mean compare?"),
        ("runs --quiet", "No such option '--quiet': not needed"),
        ("compare a b", "No such command 'compare': write 'fastcifar runs compare'"),
        ("inspect a.beton b.beton", "Got unexpected extra argument (b.beton)"),
        ("train --progressive 16:0.4 --progressive 24:0.8", "--progressive is given twice: write --progressive SIDE:"),
        ("explain --layer layer1 --layers=layer4", "--layers is given twice: write --layers NAME,… once ("),
        ("train --seeds 2 --recipe fast --seeds 3,4", "--seeds is given twice: write --seeds N|SEED,… once ("),
        ("convert --source a --source b", "--source is given twice: write --source PATH|NAME once ("),
        ("eval --on a --on b", "--on is given twice: write --on PATH once ("),
    ],
)
def test_what_is_nearly_right_is_corrected(line: str, message: str) -> None:
    assert message in refused(2, *shlex.split(line))


def test_of_an_option_with_one_value_the_last_counts(tmp_path: Path) -> None:
    assert "last" in refused(4, "train", "--epochs", "1", "--epochs", "2", "--data-dir", "first", "--data-dir", "last")


def test_a_file_or_run_with_an_equals_sign_is_no_setting(tmp_path: Path) -> None:
    (tmp_path / "runs" / "data=1").mkdir(parents=True)
    assert refused(6, "eval", "data=1").startswith("runs/data=1: has no checkpoint yet")


@pytest.mark.parametrize("command", ["eval", "explain", "report"])
def test_run_is_the_same_as_an_argument_or_an_option(command: str) -> None:
    assert refused(4, command, "--run", "nobody") == refused(4, command, "nobody")


def test_the_help_of_a_long_command_describes_the_common_options() -> None:
    for name, limit in (("train", 90), ("lr-find", 75)):
        short, full = run(name, "--help").stdout, run(name, "--help-all").stdout
        assert len(short.splitlines()) <= limit
        words, all_words = re.findall(r"[\w-]+", short), re.findall(r"[\w-]+", full)
        for flag, option in options_by_name(COMMANDS[name]).items():
            assert flag in all_words, flag
            assert flag not in option.opts or flag in words, flag
        described, more = short.split("More (--help-all describes them):")
        assert "  --batch-size INTEGER  " in described
        assert "--batch-size" not in more
        assert "Other names:" in full


def test_summaries_of_commands_fit_their_line() -> None:
    listed = CliRunner().invoke(main, ["--help"]).stdout.split("Commands:")[1]
    assert len(listed.splitlines()) == len(COMMANDS) + 1
    assert "..." not in listed
