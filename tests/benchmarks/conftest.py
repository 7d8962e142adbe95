"""Timings run only when asked for: `pytest --benchmark-only`."""

from __future__ import annotations

import pytest


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Ignores this folder in an ordinary test run; None leaves the decision to others."""
    return None if config.getoption("benchmark_only", default=False) else True
