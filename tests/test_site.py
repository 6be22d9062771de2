"""The site of the documentation: every page is on it, links are checked, and a reader's browser loads nothing else."""

from __future__ import annotations

import importlib.util
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
ALIASES = {"AugmentParams", "Bytes", "Floats", "Ints", "Size"}
FOREIGN = {"Any", "Figure", "Generator", "Module", "NDArray", "None", "Path", "Tensor"}
PASSED_ON = {"Images", "RunFolder"}
"""Types that are of no use but to be given to another function."""
PYTHON = "```python\nif 1:\n    find = 1\n```\n"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site() -> ModuleType:
    return script("site")


def test_every_picture_is_made_by_make_pictures_and_small() -> None:
    text = (ROOT / "scripts" / "pictures.py").read_text(encoding="utf-8")
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    for picture in (ROOT / "docs").glob("*.png"):
        made = re.sub("-(light|dark)$", "-{scheme}", picture.stem)
        assert f'{made}.png"' in text or f'"{made}"' in text, picture.name
        assert f"]({picture.name})" in pages, picture.name
        assert picture.stat().st_size <= script("pictures").MAX_BYTES, picture.name


def test_a_picture_of_too_many_bytes_is_rounded_and_then_refused(tmp_path: Path) -> None:
    pictures = script("pictures")
    (tmp_path / "to").mkdir()
    publish = pictures.Publisher(tmp_path / "to")
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    for name, pixels in {
        "large": noise,
        "huge": np.tile(noise, (3, 3, 1)) ^ np.arange(1200, dtype=np.uint8)[:, None],
    }.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    pictures.MAX_BYTES = 450_000  # the first has 480,000 as it is
    publish(tmp_path / "large.png", "small.png")
    written = np.asarray(Image.open(tmp_path / "to" / "small.png"))
    assert np.abs(written.astype(int) - noise).max() <= pictures.LEVEL // 2 + 1
    assert not (written % pictures.LEVEL).any()
    with pytest.raises(click.ClickException, match=r"huge\.png: .* bytes; expected at most 450,000"):
        publish(tmp_path / "huge.png")


def test_the_reference_of_the_python_api_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "api_page.py"))
    written = script["PAGE"].read_text(encoding="utf-8")
    assert written == script["page"](), "run 'make docs'"
    public = set(re.findall(r"^### (\w+)$", written, flags=re.MULTILINE))
    assert set().union(*script["documented"]().values()) == public
    assert set(script["fastcifar"].__all__) <= public


def test_the_reference_has_the_classes_that_functions_return_or_raise() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    names = set(re.findall(r"^### (\w+)$", page, flags=re.MULTILINE))
    calls = re.findall(r"^```py\n(?:.*\n)*?.*\) -> (.+)\n```$", page, flags=re.MULTILINE)
    properties = re.findall(r"^Property: `(.+)`\.$", page, flags=re.MULTILINE)
    returned = set(re.findall(r"[A-Z]\w+", " ".join(calls + properties)))
    assert {"Run", "Predictions", "Maps"} <= returned
    assert returned <= names | ALIASES | FOREIGN | PASSED_ON
    assert set(re.findall(r"\b[A-Z]\w+Error\b", page)) <= names


def test_docstrings_become_paragraphs_lists_and_examples() -> None:
    def documented(size: int, *, fit: str = "crop") -> None:
        """Do <it>.

        size: in pixels,
        of a side. fit: how. Returns nothing.

        Example:

            documented(1)

            documented(2)
        """

    lines = runpy.run_path(str(ROOT / "scripts" / "api_page.py"))["_text"](documented).split("\n\n")
    assert lines[:3] == ["Do &lt;it>.", "- `size`: in pixels, of a side.\n- `fit`: how.", "Returns nothing."]
    assert lines[3:] == ["Example:", "```python\ndocumented(1)", "documented(2)\n```"]


def test_links_between_pages_in_and_outside_docs_fit_the_site(site: ModuleType, tmp_path: Path) -> None:
    site.write_pages(tmp_path / "pages")
    index = (tmp_path / "pages" / "index.md").read_text(encoding="utf-8")
    assert "](explain.png)" in index
    assert "](environments.md)" in index
    assert "](benchmarks.md)" in index
    assert "](benchmarks.md#recipes)" in (tmp_path / "pages" / "recipes.md").read_text(encoding="utf-8")
    pages = {path.name for path in (tmp_path / "pages").glob("*.md")}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= pages


def test_indented_commands_are_highlighted_and_nothing_else(site: ModuleType, tmp_path: Path) -> None:
    blocks = ["# One", "    fastcifar convert", "    make", "More:", "    runs/  a folder", "| `a\\|b` \\| c |", PYTHON]
    (tmp_path / "one.md").write_text("\n\n".join(blocks))
    converted = site.converted(tmp_path / "one.md", {})
    assert converted.count("```bash\n") == 1
    assert "```bash\nfastcifar convert\n\nmake\n```\n" in converted
    assert "\n    runs/  a folder\n" in converted
    assert "\n| `a|b` \\| c |\n" in converted
    assert PYTHON in converted


def test_options_within_text_are_not_broken_at_their_hyphens(site: ModuleType) -> None:
    block = "<pre><span></span><code>make --x-y\n</code></pre>"
    html = f"<code>train --help-all</code> <code>{'a-' * 40}</code> {block}"
    whole = '<code>train <span class="nowrap">--help-all</span></code>'
    assert site.keep_options_whole(html) == html.replace("<code>train --help-all</code>", whole)


@pytest.fixture
def repository(site: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository of two pages, which `site` builds."""
    folder = tmp_path / "repository"
    (folder / "docs").mkdir(parents=True)
    config = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[0]
    (folder / "docs" / "mkdocs.yml").write_text(f"{config}\nnav: [index.md, one.md]\n", encoding="utf-8")
    (folder / "docs" / "site.css").touch()
    (folder / "README.md").write_text("# Title\n\n[One](docs/one.md#a-heading)\n")
    (folder / "docs" / "one.md").write_text("# One\n\n## A heading\n\n[Back](../README.md)\n")
    monkeypatch.setattr(site, "ROOT", folder)
    monkeypatch.setattr(site, "ELSEWHERE", {"README.md": "index.md"})
    return folder


def test_a_page_that_the_navigation_lacks_is_an_error(site: ModuleType, repository: Path) -> None:
    (repository / "docs" / "two.md").write_text("# Two\n")
    with pytest.raises(SystemExit, match=r"two\.md is not in the navigation"):
        site.write_pages(repository / "build")


def test_an_entry_of_the_navigation_without_a_page_is_an_error(site: ModuleType, repository: Path) -> None:
    (repository / "docs" / "one.md").unlink()
    (repository / "README.md").write_text("# Title\n")
    with pytest.raises(SystemExit, match=r"one\.md is in the navigation of docs/mkdocs\.yml, and not a page"):
        site.write_pages(repository / "build")


@pytest.mark.parametrize("target", ["missing.md", "../LICENSE", "../fastcifar/cli/main.py"])
def test_a_link_to_what_is_not_on_the_site_is_an_error(site: ModuleType, repository: Path, target: str) -> None:
    (repository / "LICENSE").touch()
    (repository / "docs" / "one.md").write_text(f"# One\n\n[x]({target})\n")
    with pytest.raises(SystemExit, match=re.escape(f"docs/one.md links to {target}, which is not on the site")):
        site.write_pages(repository / "build")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["", "#no-such-heading", "../README.md#no-such-heading"])
def test_a_link_to_a_heading_that_is_not_there_is_an_error(
    site: ModuleType, repository: Path, target: str, capfd: pytest.CaptureFixture[str]
) -> None:
    link = f"[x]({target})" if target else "x"
    (repository / "docs" / "one.md").write_text(f"# One\n\n## A heading\n\n{link}\n")
    code = site.build(repository / "build")
    assert code == (1 if target else 0)
    assert ("anchor does not exist" in capfd.readouterr().err) == bool(target)
    assert target or (repository / "build" / "site" / "one.html").is_file()


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(site: ModuleType, tmp_path: Path) -> None:
    assert site.build(tmp_path) == 0
    pages = list((tmp_path / "site").glob("*.html"))
    assert {f"{Path(name).stem}.html" for name in site.sources().values()} <= {page.name for page in pages}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]*)", text)
        loaded += re.findall(r"<link\b[^>]*\brel=\"?(?:stylesheet|icon|preconnect|preload)[^>]*\bhref=\"([^\"]*)", text)
        assert loaded
        assert not [url for url in loaded if "//" in url], page.name
