"""The page: template, style and script in one text, under a Content-Security-Policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any


def render(report: dict[str, Any]) -> str:
    """The page as one text. report: the name of the run, `notes`, and the sections of the page, which are left out
    where they are None."""
    import jinja2
    from markupsafe import Markup

    style, script = _file("style.css"), _file("script.js")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda share: "–" if share is None else f"{share:.2%}"
    page = environment.from_string(_file("template.html")).render(
        report=report,
        style=Markup(style),  # its hash is in the policy
        script=Markup(script),
        policy=_policy(style, script),
    )
    return page.lstrip().encode("utf-8", "replace").decode("utf-8")  # a name may hold a lone surrogate


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _file(name: str) -> str:
    return resources.files("fastcifar.report").joinpath(name).read_text(encoding="utf-8")
