"""The page: template, style and script in one text, under a content security policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib import resources

from fastcifar.report.explanations import MOST_SHOWN, Explained
from fastcifar.report.predictions import Scored
from fastcifar.report.training import Curves, Headline, Pairs, RangeTest, Settings


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a page tells; None where its source is not there."""

    name: str
    notes: tuple[str, ...]
    headline: Headline | None
    circumstances: Pairs | None
    settings: Settings | None
    curves: Curves | None
    scored: Scored | None
    range_test: RangeTest | None
    explained: Explained | None
    pictures: Explained | None


def render(contents: Contents) -> str:
    """The page as one text."""
    import jinja2
    from markupsafe import Markup

    style, script = _file("style.css"), _file("script.js")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda share: "–" if share is None else f"{share:.2%}"
    page = environment.from_string(_file("template.html")).render(
        report=contents,
        style=Markup(style),  # ours: the hash is of exactly these letters
        script=Markup(script),
        policy=_policy(style, script),
        most_shown=MOST_SHOWN,
    )
    return page.lstrip().encode("utf-8", "replace").decode("utf-8")  # a name may hold half a character


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _file(name: str) -> str:
    return resources.files("fastcifar.report").joinpath(name).read_text(encoding="utf-8")
