"""Write docs/api.md, the reference of the Python API, from signatures and docstrings.

Public is what `fastcifar.__all__` names, what the examples of the documentation import, and the classes that those
return or raise.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

import fastcifar
from fastcifar.config import SETTINGS
from fastcifar.config.setting import Config, settings_of

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "api.md"
HEAD = """# Python API

Written by `make docs` from the docstrings. It has every name that `from fastcifar import *` brings; and below those, by
module, the other names that the examples of the documentation import, and the classes that all of them return or raise.
[From Python](python.md) shows how to use them. `Floats`, `Ints` and `Bytes` are NumPy arrays of float64, int64
and uint8, `AugmentParams` structured ones.
"""
RESULTS = {
    "fastcifar.audit.run": {"Audit"},
    "fastcifar.converters.edits": {"Edits"},
    "fastcifar.data.manifest": {"Manifest"},
    "fastcifar.errors": {
        "CheckpointError",
        "DataError",
        "DivergedError",
        "MissingExtraError",
        "Stopped",
        "UsageError",
    },
    "fastcifar.explain": {"CamMaps", "Maps"},
    "fastcifar.inference.calibration": {"Calibration"},
    "fastcifar.inference.corruption_scores": {"CorruptionEvaluation"},
    "fastcifar.inference.evaluation": {"Evaluation"},
    "fastcifar.inference.export": {"Export"},
    "fastcifar.inference.metrics": {"Metrics"},
    "fastcifar.inference.predict_files": {"ImagePredictions"},
    "fastcifar.inference.predictions": {"Predictions"},
    "fastcifar.loaders": {"Loader", "Mix", "MixedBatch"},
    "fastcifar.training.lr_curve": {"LrCurve"},
}
"""Classes that only fastcifar makes: they are shown without their constructor."""
ARGUMENTS = {"fastcifar.config": {"ExplainConfig", "LrRangeTestConfig"}}
"""Classes whose fields are arguments, e.g. of `Run.explain`."""
INTERNAL = {"Calibration": {"load", "save"}, "Loader": {"make_batch", "mixed", "plan"}, "Predictions": {"load", "save"}}
"""Members that other modules of fastcifar use."""

MAX_COLUMNS = 100
EXAMPLE = re.compile(r"(^```python\n(?:.*\n)*?```$|^ {4}.*(?:\n+ {4}.*)*|^>>> .*(?:\n.+)*)", re.MULTILINE)
"""An example in a docstring: a block, indented lines, or a session of the interpreter."""


def page() -> str:
    """The text of docs/api.md."""
    modules = documented()
    parts = [HEAD]
    for module in modules:
        parts.append(f"## {module}\n")
        for name in sorted(modules[module], key=lambda name: (name.lower(), name)):
            parts.append(_entry(module, name, getattr(import_module(module), name)))
    return "\n".join(parts)


def documented() -> dict[str, set[str]]:
    """The names in each module."""
    modules = {"fastcifar": set(fastcifar.__all__)}
    listed = {(module, name) for each in (RESULTS, ARGUMENTS) for module, names in each.items() for name in names}
    for module, name in sorted(imported() | listed):
        modules.setdefault(module, set()).add(name)
    return modules


def imported() -> set[tuple[str, str]]:
    """The modules and names that the examples of the pages import, but those of `fastcifar` itself."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in pages if path != PAGE)
    lines = re.findall(r"^from (fastcifar[\w.]*) import ([\w, ]+)$", text, flags=re.MULTILINE)
    pairs = {(module, name) for module, names in lines for name in re.findall(r"\w+", names)}
    return {(module, name) for module, name in pairs if module != "fastcifar" and name not in fastcifar.__all__}


def _entry(module: str, name: str, item: Any) -> str:
    if not inspect.isclass(item):
        return f"### {name}\n\n{_signature(name, item)}\n\n{_text(item)}\n"
    is_result = name in RESULTS.get(module, ())
    parts = [f"### {name}\n", *([] if is_result else [_signature(name, item), ""]), _text(item), ""]
    if issubclass(item, Config):
        parts += _settings(item)
    else:
        parts += _fields(item)
    for member, value in _members(item):
        what = _signature(member, value) if callable(value) else _annotation(value)
        parts.append(f"#### {name}.{member}\n\n{what}\n\n{_text(value)}\n")
    return "\n".join(parts)


def _settings(item: type) -> list[str]:
    """The fields of a configuration, or the page that has those of training runs."""
    declared = list(settings_of(item))
    if all(name in SETTINGS for name, _, _ in declared):
        return ["The fields are [settings](settings.md).\n"]
    return [*(f"- `{field}`: {_escaped(each.description)}" for _, field, each in declared), ""]


def _members(item: type) -> Iterator[tuple[str, Any]]:
    """Methods and properties with a docstring, inherited ones of this package too, in the order of the code."""
    seen = set()
    for cls in (each for each in item.__mro__ if each.__module__.startswith("fastcifar")):
        for name, value in vars(cls).items():
            if name.startswith("_") or name in seen or name in INTERNAL.get(item.__name__, ()):
                continue
            seen.add(name)
            found = getattr(item, name) if isinstance(value, classmethod | staticmethod) else value
            is_documented = (
                isinstance(found, property | cached_property) or inspect.isfunction(found) or inspect.ismethod(found)
            )
            if is_documented and inspect.getdoc(found):
                yield name, found


def _fields(item: type) -> list[str]:
    """The public fields of a class, each with the docstring below it, if there is one."""
    lines = []
    for cls in reversed([each for each in item.__mro__ if each.__module__.startswith("fastcifar")]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip_longest(body.body, body.body[1:]):
            if not isinstance(field, ast.AnnAssign) or ast.unparse(field.target).startswith("_"):
                continue
            line = f"- `{ast.unparse(field.target)}: {ast.unparse(field.annotation)}`"
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                line += f": {_escaped(' '.join(inspect.cleandoc(str(below.value.value)).split()))}"
            lines.append(line)
    return [*lines, ""] if lines else []


def _annotation(value: Any) -> str:
    function = value.fget if isinstance(value, property) else value.func
    return f"Property: `{str(function.__annotations__.get('return', '')).strip(chr(39))}`."


def _signature(name: str, item: Any) -> str:
    """A call with types and defaults, on several lines if it is long; as `py`, for tests run blocks of `python`."""
    try:
        signature = inspect.signature(item)
    except ValueError:
        return f"```py\n{name}\n```"
    parameters = [each for each in signature.parameters.values() if each.name not in ("self", "unknown")]
    words, marked = [], False
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and not marked:
            words, marked = [*words, "*"], True
        words.append(_plain(str(each)))
    returned = signature.return_annotation
    after = (
        "" if returned is signature.empty or inspect.isclass(item) else f" -> {_plain(str(returned)).strip(chr(39))}"
    )
    line = f"{name}({', '.join(words)}){after}"
    if len(line) > MAX_COLUMNS:
        line = f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){after}"
    return f"```py\n{line}\n```"


def _plain(annotation: str) -> str:
    """Without the quotes of annotations that are strings; a default that is made or called as `...`."""
    text = re.sub(r"^(\W*\w+: )'([^']*)'", r"\1\2", annotation)
    text = re.sub(r"ForwardRef\('([^']*)'\)", r"\1", text)
    return re.sub(r"<factory>|<function .*>", "...", text)


def _text(item: Any) -> str:
    """A docstring as Markdown: a list item for each argument that it names, as in 'size: (height, width)'."""
    try:
        arguments = "|".join(inspect.signature(item).parameters)
    except (TypeError, ValueError):
        arguments = ""
    names = re.compile(rf"(?:^|(?<=\. ))((?:{arguments})(?:, (?:{arguments}))*(?:=\w+)?):\s", re.MULTILINE)
    paragraphs = []
    for number, block in enumerate(EXAMPLE.split(inspect.getdoc(item) or "")):
        if number % 2:
            code = textwrap.dedent(block).strip().removeprefix("```python").removesuffix("```").strip()
            language = "pycon" if code.startswith(">>>") else "python"  # tests/test_api.py runs the sessions
            paragraphs.append(f"```{language}\n{code}\n```")
        else:
            paragraphs += _prose(block.strip(), names if arguments else None)
    return "\n\n".join(paragraphs)


def _prose(block: str, names: re.Pattern[str] | None) -> list[str]:
    """Paragraphs and lists."""
    paragraphs = []
    for paragraph in block.split("\n\n"):
        paragraph = re.sub(r"(?<=\.)\s(?=Raises |Returns |For the other arguments )", "\n\n", paragraph)
        for part in paragraph.split("\n\n"):
            pieces = names.split(part) if names else [part]
            first, rest = pieces[0].strip(), zip(pieces[1::2], pieces[2::2], strict=True)
            items = [_wrapped(f"- `{name}`: {_escaped(text)}", "  ") for name, text in rest]
            paragraphs += [_wrapped(_escaped(first))] if first else []
            paragraphs += ["\n".join(items)] if items else []
    return paragraphs


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()), 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _escaped(text: str) -> str:
    """Without characters that Markdown or HTML would take for markup, outside of code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;").replace("*", r"\*") for part in parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
