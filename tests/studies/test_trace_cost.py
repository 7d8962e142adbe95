"""What a trace costs: by the law of rows of its own kind alone, or by the planner for its own model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pandas as pd
import pytest

from scaling.errors import FitError
from scaling.laws import fit_frame
from scaling.planning import ask
from scaling.results import Row
from studies.trace_cost import by_plan, by_rows

PARAMETERS = {"context_size": 1024, "state_size": 512, "head": 100, "iterations": 9, "carryover": "algorithm1"}


@pytest.fixture
def frame(make_row: Callable[..., Row]) -> pd.DataFrame:
    """Two models, a microsecond and ten microseconds a token, at 100 and at 300 watts."""
    rows = [
        make_row(
            cell_id=f"{model}{tokens}",
            repeat=repeat,
            model=model,
            mean_thinking_tokens=tokens,
            actual_thinking_tokens=float(tokens),
            device_seconds_per_trace=each * tokens,
            wall_seconds=4 * each * tokens,
            energy_joules=watts * 4 * each * tokens,
        )
        for model, each, watts in (("small", 1e-6, 100), ("large", 1e-5, 300))
        for tokens in (1024, 1536, 2048, 4096)
        for repeat in range(2)
    ]
    return pd.DataFrame(map(asdict, rows))


def arm(model: str, **changed: Any) -> dict[str, Any]:
    return {
        "label": f"{model}, in delethink",
        "model": model,
        "environment": "delethink",
        "environment_parameters": PARAMETERS | changed,
    }


def test_joules_are_at_the_power_of_the_law_s_own_rows(frame: pd.DataFrame) -> None:
    price = by_rows(frame, fit_frame(frame), hourly=3600.0)
    for model, each, watts in (("small", 1e-6, 100), ("large", 1e-5, 300)):
        made = price(arm(model), [1024, 3072], 2048)  # cut to 1024 and 2048
        assert made.device_seconds == pytest.approx(each * 1536, rel=0.01)
        assert made.energy_joules == pytest.approx(watts * made.device_seconds)
        assert made.money == pytest.approx(made.device_seconds)
        assert f"rows of {model} on" in made.method


def test_a_model_that_was_not_measured_is_priced_by_one_that_was_which_is_named(frame: pd.DataFrame) -> None:
    assert "rows of small on" in by_rows(frame, fit_frame(frame))(arm("other"), [2048], 2048).method


def test_an_environment_that_was_not_measured_has_no_price(frame: pd.DataFrame) -> None:
    with pytest.raises(FitError, match="no law for arm 'small, in delethink'"):
        by_rows(frame, fit_frame(frame))(arm("small", state_size=256), [2048], 2048)


def test_the_planner_prices_each_arm_for_its_own_model() -> None:
    models = ("r1-distill-qwen-1.5b", "r1-distill-qwen-7b")
    price = by_plan({model: ask(model, "h100", 1, price=2.0) for model in models})
    small, large = (price(arm(model), [4096] * 8, 4096) for model in models)
    assert large.device_seconds > 2 * small.device_seconds
    assert large.method.startswith("analytic: planner, r1-distill-qwen-7b on 1 × h100")
    assert large.money == pytest.approx(large.device_seconds / 3600 * 2.0)
