"""What is published with the package: optional parts, lowest versions, how to cite, templates."""

from __future__ import annotations

import configparser
import re
import runpy
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import fastcifar

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
EXTRAS = {name: text.split() for name, text in SETUP["options.extras_require"].items()}
TOOLS = {"dev", "docs"}
"""Extras for those who change fastcifar."""


def names(requirement: str) -> set[str]:
    """The extras that a requirement `fastcifar[...]` names."""
    match = re.fullmatch(r"fastcifar\[(.+)\]", requirement)
    return set(match[1].split(",")) if match else set()


def test_all_is_every_optional_part_that_pip_can_install_alone() -> None:
    (requirement,) = EXTRAS["all"]
    assert names(requirement) == EXTRAS.keys() - TOOLS - {"all", "ffcv"}
    assert {"all"} <= set().union(*map(names, EXTRAS["dev"]))


def test_each_requirement_of_users_has_a_lowest_version() -> None:
    lowest = runpy.run_path(str(ROOT / "scripts" / "lowest.py"))["lowest_versions"]()
    required = SETUP["options"]["install_requires"].split()
    required += [line for name in EXTRAS.keys() - TOOLS - {"all", "ffcv"} for line in EXTRAS[name]]
    assert {re.split("[>=]=", line)[0] for line in required} == {line.partition("==")[0] for line in lowest}
    assert "torch==2.10" in lowest
    assert "albumentations==2.0.8" in lowest  # `>=2.0.8,<2.1`


def test_the_lowest_versions_are_tried_of_all_optional_parts_but_albumentations() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (installed,) = re.findall(r"-e '\.\[(.+)\]' \$\(LOWEST_TOOLS\)", makefile)
    (requirement,) = EXTRAS["all"]
    assert set(installed.split(",")) == names(requirement) - {"albumentations"}


def test_the_description_on_an_index_has_no_links_to_files_of_the_repository() -> None:
    """There they lead nowhere; `twine check` does not see it."""
    text = SETUP["metadata"]["long_description"]
    if text.startswith("file:"):
        text = (ROOT / text.removeprefix("file:").strip()).read_text(encoding="utf-8")
    assert "fastcifar train" in text
    assert [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")] == []


def test_the_documentation_names_each_optional_part_and_the_lowest_versions() -> None:
    page = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    assert not [name for name in EXTRAS.keys() - TOOLS if f"`{name}`" not in page]
    python = SETUP["options"]["python_requires"].removeprefix(">=")
    (torch,) = re.findall("^torch>=(.+)$", SETUP["options"]["install_requires"], re.MULTILINE)
    assert f"Python {python} or later and torch {torch} or later" in page


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("citation-file-format", "CITATION.cff"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/bug_report.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/feature_request.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("github-workflows", ".github/workflows/checks.yml"),
    ],
)
def test_files_of_the_repository_follow_their_schema(schema: str, path: str) -> None:
    check = pytest.importorskip("check_jsonschema").main
    result = CliRunner().invoke(check, ["--builtin-schema", f"vendor.{schema}", str(ROOT / path)])
    assert result.exit_code == 0, result.output


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == fastcifar.__version__
    (author,) = citation["authors"]
    assert f"Copyright (c) 2026 {author['name']}" in (ROOT / "LICENSE").read_text(encoding="utf-8")
