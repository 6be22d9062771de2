"""The documentation: its Python runs, its commands and links exist, and every option of every command is in it."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import zipfile
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fastcifar import recipes
from fastcifar.cli import main, settings
from fastcifar.cli.command import aliases_of
from fastcifar.cli.familiar import ANSWERS
from fastcifar.cli.familiar import COMMANDS as OTHER_COMMANDS
from fastcifar.config import CAM_METHODS, CHANGEABLE

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")])
OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
README_LINES = 120
assert isinstance(main, click.Group)
COMMANDS = main.commands
FOREIGN = {name for names, _, _ in ANSWERS for name in names if name.startswith("--")}
"""Options that no command has, on the page about those."""
TORCHRUN = {"--nproc-per-node", "--node-rank", "--rdzv-endpoint"}
SLURM = {"--signal"}
BENCHMARKS = {
    "--networks",
    "--airbench",
    "--hiverge",
    "--trainings",
    "--labels",
    "--pairs",
    "--shorten",
    "--recipes",
    "--without",
    "--no-reference",
}


def fenced(page: Path, language: str) -> list[str]:
    """The code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def flags_of(command: click.Command) -> set[str]:
    """The options of a command, and of those of a group."""
    options = [param for param in command.params if isinstance(param, click.Option)]
    parts = command.commands.values() if isinstance(command, click.Group) else ()
    own = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
    names = (name for _, names in aliases_of(command) for name in names)
    return own.union({"--help"}, names, *(flags_of(part) for part in parts if part.name not in COMMANDS))


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if fenced(page, "python")], ids=lambda page: page.name)
def test_python_examples_run(
    page: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ordinary_algorithms: None
) -> None:
    (tmp_path / "data").symlink_to(data_dir)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    threads = torch.get_num_threads()
    try:
        for number, example in enumerate(fenced(page, "python")):  # later examples of a page continue the earlier ones
            if "import albumentations" in example:
                pytest.importorskip("albumentations")
            exec(compile(example, f"{page.name}, example {number}", "exec"), names)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_examples_have_the_options_that_they_use(page: Path) -> None:
    lines = re.findall(r"^    .*?\bfastcifar ([\w-]+)(.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for name, rest in lines:
        name, *_ = OTHER_COMMANDS.get(name, (name,))
        assert name in COMMANDS, f"{page.name}: fastcifar {name}"
        words = shlex.split(rest.partition("&&")[0], comments=True)
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= flags_of(COMMANDS[name]), f"{page.name}: fastcifar {name}{rest}"


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_options_exist_wherever_they_are_named(page: Path) -> None:
    known = set().union(*map(flags_of, COMMANDS.values()), flags_of(main), TORCHRUN, SLURM, BENCHMARKS)
    spans = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    named = {
        flag
        for span in spans
        if span.startswith(("--", "fastcifar", "python -m benchmarks", "torchrun"))
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)
    }
    known |= FOREIGN if page.name == "coming-from.md" else set()
    assert named <= known, f"{page.name}: {sorted(named - known)}"
    for span in spans if page.name != "coming-from.md" else ():  # `train --epochs 3`, with or without fastcifar
        name, _, rest = span.removeprefix("fastcifar ").partition(" ")
        name, *_ = OTHER_COMMANDS.get(name, (name,))
        if name in COMMANDS:
            flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", rest.partition("&&")[0]))
            assert flags <= flags_of(COMMANDS[name]), f"{page.name}: {span}"


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def test_the_page_of_commands_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "commands_page.py"))
    written = script["PAGE"].read_text(encoding="utf-8")
    assert written == script["page"](), "run 'make docs'"
    for name, command in COMMANDS.items():
        section = written.split(f"## fastcifar {name}\n")[1].split("\n## ")[0]
        assert all(flag in section for flag in flags_of(command) - {"--help"}), name
        # an option that its help hides would be on the page alone
        assert not any(option.hidden for option in command.params if isinstance(option, click.Option)), name


def test_the_readme_is_short_and_names_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    assert len(fenced(ROOT / "README.md", "python")[0].splitlines()) <= 10
    listed = text.split("## Commands")[1].split("\n## ")[0]
    assert set(COMMANDS) <= set(re.findall(r"[\w-]+", listed))


@pytest.mark.slow
def test_the_readme_trains_on_a_hundred_photos_with_the_settings_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ordinary_algorithms: None
) -> None:
    random = np.random.default_rng(0)

    def photo() -> Image.Image:
        height, width = random.integers(50, 100, 2)
        return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))

    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for number in range(105):
            with archive.open(f"{('cat', 'dog', 'owl')[number % 3]}/{number}.jpg", "w") as file:
                photo().save(file, "JPEG")
    photo().save(tmp_path / "my-cat.jpg")
    train_config = settings.train_config
    monkeypatch.setattr(settings, "train_config", lambda *given: train_config(*given).with_settings(epochs=1))
    monkeypatch.chdir(tmp_path)
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own images\n")[1].split("\n## ")[0]
    lines = re.findall(r"^    fastcifar (.*)$", section, flags=re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["convert", "train", "predict", "export"]
    for line in lines:
        result = CliRunner().invoke(main, shlex.split(line, comments=True))
        assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
        if line.startswith("predict"):
            assert "not calibrated" not in result.output
    assert list(tmp_path.glob("runs/*/export/model.onnx"))


def test_the_recipe_of_the_documentation_loads(tmp_path: Path) -> None:
    (example,) = fenced(ROOT / "docs" / "recipes.md", "yaml")
    (tmp_path / "mine.yaml").write_text(example)
    assert recipes.load(tmp_path / "mine.yaml").about["title"]


def choices(command: str, flag: str) -> tuple[str, ...]:
    (option,) = [param for param in COMMANDS[command].params if flag in param.opts]
    assert isinstance(option.type, click.Choice)
    return tuple(map(str, option.type.choices))


def test_pages_name_every_choice_and_recipe() -> None:
    def text(name: str) -> str:
        return (ROOT / "docs" / name).read_text(encoding="utf-8")

    for flag in ("--sched", "--optimizer", "--aux-optimizer", "--norm", "--anneal-strategy", "--monitor"):
        assert all(choice in text("training.md") for choice in choices("train", flag)), flag
    for flag in ("--padding-mode", "--flip-mode", "--cutout-fill"):
        assert all(choice in text("augmentation.md") for choice in choices("train", flag)), flag
    assert all(f"`{name}`" in text("recipes.md") for name in recipes.names())
    assert all(f"`--{name.replace('_', '-')}`" in text("training.md") for name in CHANGEABLE)
    assert all(f"| `{name}` |" in text("lr-find.md") for name in choices("lr-find", "--suggest") if name != "auto")
    assert all(f"| `{name}` |" in text("explain.md") for name in CAM_METHODS)


def test_every_promise_has_a_test_in_each_tier() -> None:
    """CONTRIBUTING.md has a line for each promise of SECURITY.md, and the tests that it names, in the file of the
    promise or in the one in parentheses, are in those tiers."""
    is_slow: dict[tuple[str, str], bool] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        statements = ast.parse(path.read_text(encoding="utf-8")).body
        of_file = any(re.match(r"pytestmark = .*mark\.slow\b", ast.unparse(each)) for each in statements)
        for node in statements:
            if isinstance(node, ast.FunctionDef):
                marks = map(ast.unparse, node.decorator_list)
                is_slow[path.name, node.name] = of_file or "pytest.mark.slow" in marks
    promises = re.findall(r"`(test_\w+\.py)` \|$", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.M)
    assert all((ROOT / "tests" / "trust" / name).is_file() for name in promises)
    lines = re.findall(
        r"^\|.*\| (`test_.*) \| (`test_.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M
    )
    assert len(lines) == len(promises) > 10
    for file, (fast, slow) in zip(promises, lines, strict=True):
        for cell, expected in ((fast, False), (slow, True)):
            for name, other in re.findall(r"`(test_\w+)`(?: \(`(\w+\.py)`\))?", cell):
                assert is_slow[other or file, name] is expected, name
