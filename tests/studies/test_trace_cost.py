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

MakeRow = Callable[..., Row]
PARAMETERS = {"context_size": 1024, "state_size": 512, "head": 100, "iterations": 9, "carryover": "algorithm1"}
ARM = {"label": "chunks", "model": "tiny", "environment": "delethink", "environment_parameters": PARAMETERS}


def curve(make_row: MakeRow, per_token: float, watts: float, **changes: Any) -> list[dict[str, Any]]:
    """Rows of 4 traces each that cost so many device-seconds a thinking token, at so many watts a device."""
    return [
        asdict(
            make_row(
                mean_thinking_tokens=length,
                actual_thinking_tokens=float(length),
                device_seconds_per_trace=per_token * length,
                wall_seconds=4 * per_token * length,
                energy_joules=4 * per_token * length * watts,
                **changes,
            )
        )
        for length in (1024, 1536, 2048, 3072, 4096)
    ]


def test_seconds_joules_and_money_are_of_one_curve(make_row: MakeRow) -> None:
    frame = pd.DataFrame(curve(make_row, 1e-3, 50.0) + curve(make_row, 1e-3, 900.0, device="a GPU"))
    price = by_rows(frame, fit_frame(frame), hourly=3.6)(ARM, [1024, 4096], 2048)
    assert price.device_seconds == pytest.approx(1.536)
    assert price.energy_joules == pytest.approx(1.536 * 50)
    assert price.money == pytest.approx(1.536e-3)
    assert price.method.endswith("law of full rows of tiny on test CPU, one of 2 such curves")


def test_a_curve_of_the_arms_own_model_comes_first(make_row: MakeRow) -> None:
    frame = pd.DataFrame(curve(make_row, 5e-3, 50.0, model="larger") + curve(make_row, 1e-3, 80.0))
    price = by_rows(frame, fit_frame(frame))(ARM, [2048], 2048)
    assert price.device_seconds == pytest.approx(2.048)
    assert price.energy_joules == pytest.approx(2.048 * 80)
    assert "rows of tiny on test CPU" in price.method
    other = by_rows(frame, fit_frame(frame))({**ARM, "model": "mine"}, [2048], 2048)
    assert "rows of larger on test CPU, one of 2 such curves" in other.method


def test_an_environment_that_was_not_measured_has_no_price(make_row: MakeRow) -> None:
    frame = pd.DataFrame(curve(make_row, 1e-3, 50.0))
    with pytest.raises(FitError, match=r"no law for arm 'chunks' .* which have Delethink C=1k m=512; measure it too"):
        by_rows(frame, fit_frame(frame))(ARM | {"environment_parameters": PARAMETERS | {"state_size": 256}}, [9], 9)


def test_the_planner_prices_each_arm_for_its_own_model() -> None:
    models = ("r1-distill-qwen-1.5b", "r1-distill-qwen-7b")
    price = by_plan({model: ask(model, "h100", 1, price=2.0) for model in models})
    small, large = (price(ARM | {"model": model}, [4096] * 8, 4096) for model in models)
    assert large.device_seconds > 2 * small.device_seconds
    assert large.method.startswith("analytic: planner, r1-distill-qwen-7b on 1 × h100")
    assert large.money == pytest.approx(large.device_seconds / 3600 * 2.0)


def test_the_planner_counts_traces_that_ended_at_once() -> None:
    price = by_plan({"tiny": ask("r1-distill-qwen-1.5b", "h100", 1)})
    some, none = (price(ARM, [4096] * 4 + more, 4096).device_seconds for more in ([0] * 4, []))
    assert 0 < price(ARM, [0, 0], 4096).device_seconds < some < none
