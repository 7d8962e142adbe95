"""What sampling an arm took is told of that arm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scaling.thinking import LongCoT
from studies.arm_costs import measured
from studies.asking import ask, begin


def test_arms_that_differ_in_their_budget_alone_have_their_own_seconds(
    walkers: Callable[..., Any], tmp_path: Path
) -> None:
    study = walkers()
    longer = study.arms[0]
    shorter = replace(longer, label="a shorter one", environment=LongCoT(3))
    study = replace(study, arms=[longer, shorter], budgets=[3])
    store = begin(tmp_path / "run", study)
    ask(store, study)
    rows = store.frame().set_index("thinking_budget")["device_seconds_per_trace"]
    found = {one["arm"]: one["device_seconds_per_trace"] for one in measured(store)}
    assert found == {longer.label: pytest.approx(rows[24]), shorter.label: pytest.approx(rows[3])}
    assert rows[24] != rows[3]
