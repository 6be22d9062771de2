"""A page as one self-contained file: template, style and script."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any


def render(template: str, report: dict[str, Any], script: str = "script.js") -> str:
    """The page of a template, style and script in one text, under a policy that allows nothing else. A section that is
    None is left out. script: name of the script's file."""
    import jinja2
    from markupsafe import Markup

    style, script = _file("style.css"), _file(script)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = lambda path: Markup("/<wbr>").join(str(path).split("/"))
    environment.filters["percent"] = lambda share: "–" if share is None else f"{share:.2%}"
    page = environment.get_template(template).render(
        report=report,
        style=Markup(style),  # its hash is in the policy
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
    )
    return page.lstrip().encode("utf-8", "replace").decode("utf-8")  # a name may hold a lone surrogate


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _file(name: str) -> str:
    return resources.files("fastcifar.report").joinpath(name).read_text(encoding="utf-8")
