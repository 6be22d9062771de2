"""Build the site of the documentation: the pages, copied to build/pages, by Zensical into build/site.

README.md, SECURITY.md and other pages outside docs/ are pages of the site too; their links are made to fit.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ELSEWHERE = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Pages outside docs/, and their names on the site."""
ASSETS = (".png", ".svg", ".css")
DOWNLOADS = (ROOT / "CITATION.cff", *sorted((ROOT / "examples").iterdir()))
"""Files that pages link to, as they are."""
COMMANDS = (
    "fastcifar",
    "make",
    "pip",
    "apt-get",
    "torchrun",
    "tensorboard",
    "wandb",
    "trackio",
    "source",
    "python",
    "find",
)
"""An indented block that begins with one of these is highlighted as commands."""
MAX_WHOLE = 36
"""Characters of a word that fits on the screen of a phone."""


def sources() -> dict[Path, str]:
    """Each page in the repository, and its name on the site."""
    pages = {path: path.name for path in sorted((ROOT / "docs").glob("*.md"))}
    return pages | {ROOT / name: target for name, target in ELSEWHERE.items()}


def converted(page: Path, pages: dict[Path, str]) -> str:
    """The text of a page, with links to where files are on the site.

    Raises:
        SystemExit: for a link to a file that is not on the site.
    """
    text = page.read_text(encoding="utf-8")
    if not page.suffix:
        return f"# {page.name.capitalize()}\n\n{text}"

    def link(match: re.Match[str]) -> str:
        path, _, anchor = match[1].partition("#")
        if not path or path.startswith(("http:", "https:")):
            return match[0]
        file = (page.parent / path).resolve()
        is_copied = (file.parent == ROOT / "docs" and file.suffix in ASSETS) or file in DOWNLOADS
        name = pages.get(file) or (file.name if is_copied else None)
        if name is None or not file.exists():
            raise SystemExit(f"site: {page.relative_to(ROOT)} links to {match[1]}, which is not on the site")
        return f"]({name}{'#' + anchor if anchor else ''})"

    text = re.sub(r"\]\(([^)\s]+)\)", link, text)
    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)  # every second one is a block
    parts[::2] = [re.sub(r"(?:^    .*\n|^\n(?=    ))+", _highlighted, part, flags=re.MULTILINE) for part in parts[::2]]
    # in the code of a table GitHub wants a backslash before |, and Zensical shows it
    return re.sub(
        r"^\|.*$", lambda row: re.sub(r"`[^`]+`", _without_escapes, row[0]), "".join(parts), flags=re.MULTILINE
    )


def _without_escapes(code: re.Match[str]) -> str:
    return code[0].replace("\\|", "|")


def _highlighted(match: re.Match[str]) -> str:
    """An indented block as a fenced one, if it holds commands."""
    lines = [line[4:] for line in match[0].strip("\n").split("\n")]
    if lines[0].split(" ")[0] not in COMMANDS:
        return match[0]
    return "\n".join(["", "```bash", *lines, "```", ""])


def write_pages(folder: Path) -> None:
    """Write the pages, as they are on the site, and what they show to a new folder.

    Raises:
        SystemExit: for a page without an entry in the navigation, an entry without a page, and as `converted`.
    """
    folder.mkdir(parents=True)
    pages = sources()
    navigation = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1]
    entries = set(re.findall(r"[\w-]+\.md", navigation))
    for name in sorted(set(pages.values()) - entries):
        raise SystemExit(f"site: {name} is not in the navigation: add it to docs/mkdocs.yml")
    for name in sorted(entries - set(pages.values())):
        raise SystemExit(f"site: {name} is in the navigation of docs/mkdocs.yml, and not a page")
    for page, name in pages.items():
        (folder / name).write_text(converted(page, pages), encoding="utf-8")
    for file in (*(ROOT / "docs").iterdir(), *DOWNLOADS):
        if file.suffix in ASSETS or file in DOWNLOADS:
            shutil.copy(file, folder)


def keep_options_whole(html: str) -> str:
    """The text of a page of the site, whose code within text is not broken at hyphens, as in --/help-all."""

    def marked(code: re.Match[str]) -> str:
        return re.sub(r"[^\s<>]*-[^\s<>]*", _nowrap, code[1]).join(("<code>", "</code>"))

    return re.sub(r"(?<!<pre>)(?<!<pre><span></span>)<code>([^<]*)</code>", marked, html)


def _nowrap(word: re.Match[str]) -> str:
    return f'<span class="nowrap">{word[0]}</span>' if len(word[0]) <= MAX_WHOLE else word[0]


def build(folder: Path) -> int:
    """Write the site to `folder`/site; returns the exit code of Zensical, which is 1 after a warning."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in ("pages", "site"):
        shutil.rmtree(folder / old, ignore_errors=True)
    write_pages(folder / "pages")
    shutil.copy(ROOT / "docs" / "mkdocs.yml", folder)
    result = run_zensical(folder)
    for page in (folder / "site").glob("*.html"):
        page.write_text(keep_options_whole(page.read_text(encoding="utf-8")), encoding="utf-8")
    return result


def run_zensical(folder: Path) -> int:
    """Build the pages that are in `folder`."""
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(build(ROOT / "build"))
