"""What was counted stands at the end of the report of `make soak`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.trust.cases import FULL

COUNTED: list[str] = []


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Call it with what was counted."""
    return lambda text: COUNTED.append(f"{request.node.path.stem.removeprefix('test_').replace('_', ' ')}: {text}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if COUNTED and FULL:
        terminalreporter.section("counted")
        for line in COUNTED:
            terminalreporter.line(line)
