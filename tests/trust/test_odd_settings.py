"""Any content of a settings file is read, or refused in one line; nothing else is raised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcifar import recipes
from fastcifar.config import TrainConfig
from fastcifar.config.augment import read_pipeline
from fastcifar.data.manifest import manifest_path, read_manifest
from fastcifar.errors import DataError, FastcifarError, UsageError
from fastcifar.report import write_report
from fastcifar.training import RunFolder
from tests.trust.cases import count, error_line, run_cli


def as_yaml(value: object) -> str:
    return str(yaml.dump(value, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), allow_unicode=True))


KEYS = st.one_of(st.sampled_from([*TrainConfig.__dataclass_fields__, "settings", "title"]), st.text(max_size=8))
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from([10**400, "1e-3", "é"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=6)),
    max_leaves=12,
)
TEXTS = st.one_of(
    VALUES.map(lambda value: as_yaml(value)),
    VALUES.map(json.dumps),
    st.text(max_size=60),
    st.text(alphabet="{}[]:,-&*!|>'\"#%@ \n\ta1", max_size=40),
)
FUZZED: dict[str, Any] = {
    "max_examples": count(60, 3_000),
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


def in_one_line(read: Callable[[], object]) -> None:
    try:
        read()
    except FastcifarError as error:
        if not str(error) or "\n" in str(error):
            raise


@settings(**FUZZED)
@given(text=TEXTS, inner=VALUES)
def test_recipes(tmp_path: Path, text: str, inner: Any) -> None:
    file = tmp_path / "r.yaml"
    for content in (text, as_yaml({"settings": inner})):
        file.write_bytes(content.encode("utf-8", "surrogatepass"))
        in_one_line(lambda: recipes.load(str(file)))


@settings(**FUZZED)
@given(text=TEXTS, changed=st.dictionaries(KEYS, LEAVES, min_size=1, max_size=3))
def test_settings_of_a_run(tmp_path: Path, text: str, changed: dict[str, Any]) -> None:
    run = RunFolder(tmp_path)
    run.write_config(TrainConfig())
    honest = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    for content in (text, as_yaml({**honest, **changed})):
        run.config.write_bytes(content.encode("utf-8", "surrogatepass"))
        in_one_line(run.read_config)


@pytest.mark.parametrize("data_dir", ["a\0b", "", [1], 7, "a\udcffb"])
def test_a_folder_that_cannot_be(tmp_path: Path, data_dir: Any) -> None:
    run = RunFolder(tmp_path)
    run.write_config(TrainConfig())
    honest = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    run.config.write_text(json.dumps({**honest, "data_dir": data_dir}))
    with pytest.raises(DataError, match="data_dir is .*expected a path|data_dir is .*not UTF-8"):
        run.read_config()


@settings(**FUZZED)
@given(text=TEXTS, changed=st.dictionaries(st.sampled_from(["mean", "std", "class_names", "sha256"]), VALUES))
def test_manifests(own_data_dir: Path, text: str, changed: dict[str, Any]) -> None:
    path = own_data_dir / "train.beton"
    file = manifest_path(path)
    honest = file.read_text(encoding="utf-8")
    for content in (text, json.dumps({**json.loads(honest), **changed})):
        file.write_bytes(content.encode("utf-8", "surrogatepass"))
        in_one_line(lambda: read_manifest(path))
    file.write_text(honest, encoding="utf-8")


@settings(**{**FUZZED, "max_examples": count(10, 300)})
@given(texts=st.tuples(*[TEXTS] * 4))
def test_facts_in_a_report(tmp_path: Path, texts: tuple[str, ...]) -> None:
    run = RunFolder(tmp_path)
    for file, text in zip((run.config, run.metrics, run.results, run.path / "env.json"), texts, strict=True):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
    page = write_report(run).read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")


HOSTILE = [
    "[" * 100_000,
    "{" * 100_000,
    "a: " * 50_000,
    "- " * 100_000,
    "&a [*a]",
    'lr: !!int ""',
    'lr: !!float ""',
    "flip: !!bool x",
    "lr: !!timestamp x",
    "lr: 1" + ":0" * 200 + ":0.5",
    "epochs: 0x" + "f" * 60_000,
    "? !!set {a, b}\n: 1",
    "data_dir: 2026-01-01",
    "started: 2026-01-01",
    "data_dir: !!binary aGVsbG8=",
    "data_dir: !!set {a, b}",
]


@pytest.mark.parametrize("content", HOSTILE, ids=[content[:16] for content in HOSTILE])
def test_deep_circular_and_mistagged_files(tmp_path: Path, content: str) -> None:
    run, file = RunFolder(tmp_path), tmp_path / "r.yaml"
    for path in (file, run.config, run.metrics, run.path / "env.json"):
        path.write_text(content)
    with pytest.raises(UsageError) as refusal:
        recipes.load(str(file))
    assert "\n" not in str(refusal.value)
    with pytest.raises(UsageError):
        read_pipeline(file)
    with pytest.raises(DataError, match="not the settings of a run"):
        run.read_config()
    assert run.tested_on() is None
    write_report(run)
    run.write_config(TrainConfig())
    assert "resumed" not in json.loads((run.path / "env.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("content", HOSTILE[::4])
def test_a_program_refuses_them_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.yaml").write_text(content)
    code, _, errors = run_cli("train", "--recipe", "r.yaml", cwd=tmp_path)
    assert code == 2, errors
    error_line(errors)
