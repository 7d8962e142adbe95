"""What a trace of some length costs in an arm: by the law of measured rows, or as the planner reckons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from scaling.errors import FitError

if TYPE_CHECKING:
    import pandas as pd

    from scaling.laws import Fit
    from scaling.planning import Question


@dataclass(frozen=True, slots=True)
class Price:
    """Of one trace, on the average of its arm. `energy_joules` and `money` are None where nothing tells them."""

    device_seconds: float
    energy_joules: float | None
    money: float | None
    method: str

    def record(self) -> dict[str, Any]:
        return asdict(self)


Pricer = Callable[[Mapping[str, Any], Sequence[int], int], Price]
"""From an arm (`environment` and `environment_parameters`), its traces' thinking tokens and a budget that cuts them."""

NOT_OF_THE_CURVE = ("iterations", "thinking_budget", "budget")
"""Parameters of an environment that say how far a trace may go, not what a token costs."""


def by_rows(frame: pd.DataFrame, fits: Sequence[Fit], hourly: float | None = None) -> Pricer:
    """Prices by the laws of measured rollouts (`scaling.laws.fit_frame` of the rows in `frame`).

    Of several curves of an arm's environment the first of its own model is taken, else the first; the method says so.
    Joules are a trace's seconds at the mean power of its curve's rows, where all of them have a counter's joules.
    `hourly`: money for a device-hour. The pricer raises `FitError` for an arm whose environment was not measured.
    """
    import numpy as np

    found = [fit for fit in fits if fit.curve["phase"] == "rollout"]

    def price(arm: Mapping[str, Any], lengths: Sequence[int], budget: int) -> Price:
        wanted = {k: v for k, v in arm["environment_parameters"].items() if k not in NOT_OF_THE_CURVE}
        fitting = [
            fit
            for fit in found
            if fit.curve["environment"] == arm["environment"]
            and all(fit.curve.get(k, v) == v for k, v in wanted.items())
        ]
        if not fitting:
            known = ", ".join(dict.fromkeys(fit.label for fit in found)) or "none"
            raise FitError(f"no law for arm {arm['label']!r} in the measured rows, which have {known}; measure it too")
        fit = next((fit for fit in fitting if fit.curve["model"] == arm.get("model")), fitting[0])
        curve = fit.curve
        cut = np.minimum(np.asarray(lengths, np.float64), budget)
        seconds = float(np.maximum(fit.at(cut), 0).mean())
        reach = "" if fit.smallest <= float(cut.mean()) <= fit.largest else ", beyond its measured lengths"
        watts = _watts(frame, fit)
        others = f", one of {len(fitting)} such curves" if len(fitting) > 1 else ""
        return Price(
            seconds,
            None if watts is None else seconds * watts,
            None if hourly is None else seconds / 3600 * hourly,
            f"fitted: {fit.law} law of {curve['method']} rows of {curve['model']} on {curve['device']}{others}{reach}",
        )

    return price


def _watts(frame: pd.DataFrame, fit: Fit) -> float | None:
    """Mean power of a device over the rows of a curve; None unless all of them have joules."""
    from scaling.laws import CURVE_COLUMNS

    rows = frame[frame["status"] == "ok"]
    for column in CURVE_COLUMNS:
        value = fit.curve[column]
        if column in rows.columns:
            rows = rows[rows[column].isna() if value is None else rows[column] == value]
    if not len(rows) or rows["energy_joules"].isna().any():
        return None
    return float(rows["energy_joules"].sum() / (rows["wall_seconds"] * rows["devices"]).sum())


def by_plan(questions: Mapping[str, Question]) -> Pricer:
    """Prices by the planner: the arm's own lengths, cut at the budget, sampled by its model on the question's GPUs.

    `questions` by the name of the model. Joules are the GPUs' power limit over the time, so an upper bound. The pricer
    raises `UsageError` for what does not fit the GPUs.
    """
    from scaling.predict.distribution import Distribution
    from scaling.predict.serving import serve
    from scaling.thinking import rebuilt

    def price(arm: Mapping[str, Any], lengths: Sequence[int], budget: int) -> Price:
        question = questions[arm["model"]]
        setup, prompt_tokens = question.setup, question.work.prompt_tokens
        # a trace that ended at once has read its prompt all the same, which gave its first token
        cut = sorted((max(1, min(length, budget)) for length in lengths), reverse=True)
        sampled = Distribution("as sampled", recorded=tuple(cut))
        environment = rebuilt(arm["environment"], arm["environment_parameters"])
        mean = sum(cut) / len(cut)
        served = serve(question.shape, setup, environment, prompt_tokens, sampled, mean, len(cut))
        hours = served.gpu_hours / len(cut)
        return Price(
            3600 * hours,
            None if setup.device.watts is None else 3600 * hours * setup.device.watts,
            None if setup.price is None else hours * setup.price,
            f"analytic: planner, {question.model} on {setup.gpus} × {setup.device.name}",
        )

    return price
