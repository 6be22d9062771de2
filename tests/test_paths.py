"""Paths of users mean the same everywhere, and the commands in messages can be pasted."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

import fastcifar
import fastcifar.converters
from fastcifar import make_loader, open_beton
from fastcifar.cli import main
from fastcifar.cli.output import command_line
from fastcifar.config import LR_SUGGESTIONS, ModelConfig, TrainConfig, read_pipeline
from fastcifar.converters import convert, open_source
from fastcifar.errors import CheckpointError, DataError, FastcifarError, UsageError
from fastcifar.io.paths import data_folder, require_file_path, user_path, why_missing
from fastcifar.training import RunFolder, find_run, lr_finder
from fastcifar.training.distributed import Distributed
from fastcifar.training.run_folder import create_run, is_run
from tests.run_folders import whole_run
from tests.test_user_images import picture, read_user_image

ODD = [
    "plain",
    "two words",
    "it's",
    'a"b',
    "$HOME",
    "-x",
    "--name",
    "a\nb",
    "\x1b[31m",
    "größe ✓",
    "~other",
    "a;b",
    "*",
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, which is also the current one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words_of(line: str) -> list[str]:
    """The words that a shell makes of a command."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    return [os.fsdecode(word) for word in done.split(b"\0")[:-1]]


def parsed(line: str) -> dict[str, object]:
    """What Click makes of a command: its parameters. Nothing is run."""
    words = words_of(line)
    assert words.pop(0) == "fastcifar"
    with main.make_context("fastcifar", words, resilient_parsing=False) as context:
        name, command, rest = main.resolve_command(context, words)
        assert command is not None
        with command.make_context(name, rest, parent=context) as inner:
            return inner.params


def test_every_kind_of_path_is_understood(home: Path) -> None:
    for given in ("~/a b/", home / "a b", str(home / "a b")):
        assert user_path(given) == home / "a b"
    assert user_path(b"x") == Path("x")
    (home / "~real").touch()
    (home / "s3:").mkdir()
    assert user_path("~real") == Path("~real")  # not a home folder, but a file
    assert user_path("s3://x") == Path("s3:/x")  # a folder of that name is there


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "expected a path"),
        ("  ", "expected a path"),
        (None, "data is None; expected a path"),
        (3, "expected a path"),
        ("a\0b", "expected a path"),
        ("file:///a/b%20c", "a URL; expected a path on this machine: /a/b c"),
        (Path("https://host/x.zip"), "a URL; expected a path on this machine; download"),
        ("~nobody-of-that-name/x", "no such user"),
    ],
)
def test_what_is_not_a_path_is_an_error(home: Path, given: object, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        user_path(given, "data")


def test_the_data_folder_may_be_given_by_its_betons(home: Path) -> None:
    (home / "test.beton").mkdir()
    assert data_folder("d/train.beton") == data_folder("d/train.beton.json") == data_folder("~/d/").relative_to(home)
    assert data_folder("test.beton") == Path("test.beton")  # a folder of that name
    assert TrainConfig.from_settings(data_dir=Path("~/d/test.beton")).data.data_dir == str(home / "d")
    with pytest.raises(UsageError, match="expected the folder of"):
        data_folder("d/mine.beton")


def test_broken_links_are_errors(home: Path) -> None:
    (home / "gone").symlink_to("nowhere")
    (home / "loop").symlink_to("loop")
    (home / "file").touch()
    assert why_missing(Path("gone")) == "a link to nowhere, which does not exist"
    assert why_missing(Path("gone/x")) == "gone is a link to nowhere, which does not exist"
    assert why_missing(Path("loop")) == "a loop of links"
    assert why_missing(Path("file/x")) == "inside a file, not a folder"
    assert why_missing(Path("x" * 300)) == "no such file"
    for name, why in (("gone", "a link to nowhere"), ("loop", "a loop of links")):
        for call in (open_beton, open_source, read_pipeline, make_loader, lambda path: find_run(path, ".")):
            with pytest.raises(FastcifarError, match=why):
                call(name)
        with pytest.raises(DataError, match=why):
            read_user_image(Path(name), (8, 8, 3))
        with pytest.raises(FastcifarError, match=why):
            create_run(name, "a")
    with pytest.raises(CheckpointError, match="a link to nowhere"):
        find_run(None, "gone")


def test_the_home_folder_is_found_by_every_option_and_function(home: Path, own_data_dir: Path) -> None:
    own_data_dir.rename(home / "d")
    assert len(open_beton("~/d/train.beton")) == len(make_loader("~/d/train.beton", batch_size=4).dataset) == 30
    with open_source("synthetic") as source, pytest.raises(FastcifarError, match=r"d/train\.beton/x: inside a file"):
        convert(source, "~/d/train.beton/x")
    whole_run(home / "runs" / "a", ("cat", "dog"))
    for run in ("~/runs/a", home / "runs" / "a", "a"):
        assert find_run(run, "~/runs").path in (home / "runs" / "a", Path("runs/a"))
    for name, command in main.commands.items():
        for param in command.params:
            if isinstance(param.type, click.Path) or (param.name or "").endswith(("_dir", "_path")):
                assert type(param.type).__name__ == "UserPath", (name, param.name)


@pytest.mark.parametrize("variable", ["FASTCIFAR_DATA_DIR", "FASTCIFAR_RUNS_DIR", "FASTCIFAR_SOURCE"])
def test_the_environment_gives_paths_too(home: Path, variable: str) -> None:
    command = {"FASTCIFAR_SOURCE": "convert"}.get(variable, "explain")
    done = CliRunner(env={variable: "~nobody-of-that-name"}).invoke(main, [command])
    assert done.exit_code == 2
    assert "no such user" in done.output


def test_a_file_is_put_only_where_there_is_none_or_a_file(home: Path) -> None:
    """As root, a rename would replace a device."""
    os.mkfifo("pipe")
    Path("zero").symlink_to("/dev/zero")
    for path in ("/dev/null", "/dev/stdout", "pipe", "zero"):
        with pytest.raises(UsageError, match=f"{path}: a device or pipe; expected the name of a CSV file, e.g. a.csv"):
            require_file_path(Path(path), "CSV", "a.csv")
    Path("old.csv").touch()
    Path("link.csv").symlink_to("old.csv")
    for path in ("old.csv", "link.csv", "new.csv", "/dev/shm/a.csv"):
        require_file_path(Path(path), "CSV", "a.csv")


@pytest.mark.parametrize(
    "given",
    [
        "a",
        "a/weights/last.pt",
        "runs/a/weights/best.safetensors",
        "runs/a/weights",
        "runs/a/report.html",
        "runs/a/explain/sheets/00000.png",
        "runs/./a/",
        "link/weights/last.pt",
        "mine.pt",
    ],
)
def test_a_path_inside_a_run_selects_it(home: Path, given: str) -> None:
    run = whole_run(home / "runs" / "a", ("cat", "dog"))
    run.report.touch()
    Path("link").symlink_to("runs/a")
    Path("mine.pt").symlink_to("runs/a/weights/last.pt")
    assert find_run(given, "runs", trained=True).path.resolve() == run.path


def test_a_run_is_found_from_inside(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = whole_run(home / "runs" / "a", ("cat", "dog"))
    for folder, given in ((run.path, "."), (run.last.parent, "last.pt"), (run.last.parent, "..")):
        monkeypatch.chdir(folder)
        assert find_run(given, "runs").path == run.path


def test_a_path_that_leaves_a_run_is_not_in_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = whole_run(home / "runs" / "a", ("cat", "dog"))
    (home / "runs" / "unfinished").mkdir()
    (home / "pics").mkdir()
    for folder, given in ((home, "runs/a/../unfinished"), (run.path, "../unfinished")):
        monkeypatch.chdir(folder)
        with pytest.raises(CheckpointError, match="unfinished: has no checkpoint yet"):
            find_run(given, "runs", trained=True)
    monkeypatch.chdir(run.path)
    assert not is_run(Path("../../pics"), Path("runs"))
    assert is_run(Path("../a/weights"), Path("runs"))


def test_a_file_outside_a_run_is_an_error(home: Path) -> None:
    Path("last.pt").touch()
    with pytest.raises(DataError, match=re.escape("last.pt: not a run, nor in one")):
        find_run("last.pt", "runs")
    whole_run(home / "a", ("cat", "dog"))
    with pytest.raises(CheckpointError, match="a run, not a folder of runs"):
        find_run(None, "a")


def test_the_latest_run_is_not_a_link_to_it(home: Path) -> None:
    run = whole_run(home / "runs" / "a", ("cat", "dog"))
    (home / "runs" / "latest").symlink_to("a")
    (home / "runs" / "old").symlink_to("nowhere")
    assert find_run(None, home / "runs") == run


def test_words_of_explain_are_runs_and_images(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run wins by its name, a file of images by being one, a folder of a run by its path."""
    from fastcifar import explain

    seen: list[object] = []

    def stop(run: RunFolder, config: object, *, images: list[Path] | None, **more: object) -> None:
        seen.append((run.path.name, [str(path) for path in images or ()]))
        raise DataError("seen")

    monkeypatch.setattr(explain, "explain_run", stop)
    for name in ("a", "b", "x.png"):
        whole_run(home / "runs" / name, ("cat", "dog"))
    os.utime(home / "runs" / "b" / "weights" / "last.pt", (2e9, 2e9))
    for name in ("y.png", "a/y.png", "cats/y.png", "x.png"):
        picture(home / name)
    invoke = CliRunner().invoke
    for words, expected in (
        (["--image", "y.png", "y.png", "a"], ("a", ["y.png", "y.png"])),  # a shell expands --image *.png
        (["runs/a", "--image", "y.png", "y.png"], ("a", ["y.png", "y.png"])),
        (["y.png"], ("b", ["y.png"])),
        (["cats", "none.png", "*.gif", "a"], ("a", ["cats", "none.png", "*.gif"])),
        (["a"], ("a", [])),
        (["./a/y.png", "runs/b"], ("b", ["a/y.png"])),
        (["--image", "a", "b"], ("b", ["a"])),
        (["x.png"], ("x.png", [])),
        (["runs/a/explain/sheets/00000.png", "runs/a/weights/last.pt"], ("a", ["runs/a/explain/sheets/00000.png"])),
    ):
        assert invoke(main, ["explain", *words]).output.endswith("Error: seen\n")
        assert seen.pop() == expected
    done = invoke(main, ["explain", "a", "b", "y.png"])
    assert (done.exit_code, "got 2 runs, 'a', 'b'" in done.output) == (2, True)
    done = invoke(main, ["explain", "nothing"])
    assert (done.exit_code, "nothing: no such run in runs" in done.output) == (4, True)


def test_a_run_that_is_given_to_predict_as_an_image_is_named(home: Path) -> None:
    whole_run(home / "runs" / "a b", ("cat", "dog"))
    for word in ("a b", "runs/a b"):
        done = CliRunner().invoke(main, ["predict", word, "x.png"])
        assert (done.exit_code, done.output) == (
            2,
            f"Error: {word} is a run; expected images; name the run with: --run '{word}'\n",
        )


@pytest.mark.parametrize("name", ODD)
def test_a_command_can_be_pasted(home: Path, name: str) -> None:
    line = command_line("fastcifar", "train", "--resume", Path(name), "--runs-dir", Path("runs") / name)
    assert line.isprintable()
    params = parsed(line)
    assert os.path.normpath(str(params["resume"])) == name
    assert params["runs_dir"] == Path("runs") / name
    if name.isprintable():
        assert shlex.split(line) == words_of(line)
    assert os.path.normpath(parsed(command_line("fastcifar", "explain", Path(name)))["words"][0]) == name  # type: ignore[index]


def test_the_commands_in_messages_can_be_pasted(home: Path) -> None:
    """Of a run that was stopped, and of one that was stopped early, in a folder with an odd name."""
    odd = home / "it's  $HOME; -x"
    early = whole_run(odd / "early run", ("cat", "dog"))
    early.best.unlink()
    with pytest.raises(CheckpointError) as caught:
        find_run(early.path, odd, trained=True)
    assert parsed(str(caught.value).partition("resume with: ")[2])["resume"] == str(early.path)
    done = CliRunner().invoke(main, ["explain", str(early.path)]).output
    assert parsed(done.partition("resume with: ")[2].rstrip("\n"))["resume"] == str(early.path)
    model, own = ModelConfig(name="small"), ModelConfig(name="mine:net")
    assert parsed(early.resume_command(model, Distributed()))["resume"] == str(early.path)
    words = words_of(RunFolder(Path("-x")).resume_command(own, Distributed(1, 2, 1)))
    assert words[:6] == ["torchrun", "--nproc-per-node", "2", "-m", "fastcifar", "train"]
    assert words[6:] == ["--resume", "./-x", "--model", "mine:net"]


@pytest.mark.parametrize("name", ODD)
def test_the_command_after_a_range_test_can_be_pasted(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    recipe = home / name / "my recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text("settings: {epochs: 3}")
    curve = SimpleNamespace(
        failure_reason=None, suggestions=dict.fromkeys(LR_SUGGESTIONS, 0.125), stop_reason="", rates=[1.0]
    )
    monkeypatch.setattr(lr_finder, "run_lr_find", lambda *arguments: (curve, ()))
    given = {"--data-dir": f"./{name}", "--runs-dir": f"runs/{name}", "--recipe": f"./{name}/{recipe.name}"}
    done = CliRunner().invoke(main, ["lr-find", *(word for pair in given.items() for word in pair)])
    assert done.exit_code == 0, done.output
    params = parsed(re.search("^next: (.*)$", done.output, re.MULTILINE)[1])  # type: ignore[index]
    assert (params["lr"], params["recipe"]) == (0.125, "my recipe")
    assert params["data_dir"] == Path(name)
    assert params["runs_dir"] == Path("runs") / name


def test_messages_show_commands_by_the_helper_only() -> None:
    """A path in a command that was put together by hand breaks with the first space."""
    roots = [Path(module.__file__).parent for module in (fastcifar, fastcifar.converters)]
    by_hand = re.compile(r"fastcifar [a-z-]+ [^\"']*\{|--(resume|runs-dir|data-dir|image) \{|shlex\.")
    found = [
        f"{file.name}: {line.strip()}"
        for root in roots
        for file in root.rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if by_hand.search(line) and file.name != "paths.py"
    ]
    assert not found


def test_an_empty_resume_is_an_error(home: Path) -> None:
    """A variable that was never set: --resume "$RUN"."""
    done = CliRunner().invoke(main, ["train", "--resume", ""])
    assert done.exit_code == 4
    assert "run is ''" in done.output
