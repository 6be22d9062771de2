"""A trained run, and the counts that stand at the end of the report of `make soak`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastcifar.config import TrainConfig
from fastcifar.training import train
from tests.trust.cases import FULL


@pytest.fixture
def tally(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Call it with what was counted."""
    subject = request.node.path.stem.removeprefix("test_").replace("_", " ")
    return lambda text: record_property("counted", f"{subject}: {text}")


@pytest.fixture(scope="session")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one, `a`. Not to be written to."""
    runs = tmp_path_factory.mktemp("runs")
    config = TrainConfig.from_settings(data_dir=str(data_dir), model="small", epochs=1, batch_size=200, val_size=0)
    train(config, runs_dir=runs, name="a")
    return runs


def pytest_terminal_summary(terminalreporter: Any) -> None:
    passed = terminalreporter.stats.get("passed", [])
    counted = [value for report in passed for name, value in report.user_properties if name == "counted"]
    if counted and FULL:
        terminalreporter.section("counted")
        for line in sorted(counted):
            terminalreporter.line(line)
