"""Arms whose checkpoints differ in the seed of their training alone, taken together: the mean, lowest and highest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Record = dict[str, Any]

_SEEDED = re.compile(r"(?P<family>.+)-\d+/(?P<step>step-\d+)")
"""A checkpoint of a training run that is called after its seed: delethink-0/step-000100 is of the family delethink, of
which those of equal step differ in their seed alone."""


def over_seeds(found: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """`arms`, `accuracy`, `parallel` and `costs` once more, a family of checkpoints in an environment being one arm.

    Values are means over checkpoints; `low` and `high` are the lowest and the highest checkpoint, which is no interval:
    their `method` says so. Empty unless at least one family has two checkpoints.
    """
    families: dict[tuple[Any, ...], list[Record]] = {}
    for arm in found["arms"]:
        match = _SEEDED.fullmatch(arm["model"])
        name = match["family"] if match else arm["label"]
        step = match["step"] if match else None
        key = (name, arm["trained"], arm["environment"], str(arm["environment_parameters"]), step)
        families.setdefault(key, []).append(arm)
    if all(len(arms) == 1 for arms in families.values()):
        return {}
    labels = {
        arm["label"]: f"{key[0]}, in {key[2]}" if len(arms) > 1 else arm["label"]
        for key, arms in families.items()
        for arm in arms
    }
    if len(set(labels.values())) < len(families):  # one environment with several parameters, or several steps
        labels = {arm["label"]: arms[0]["label"] for arms in families.values() for arm in arms}
    return {
        "arms": [_arm(labels[arms[0]["label"]], key[0], arms) for key, arms in families.items()],
        "accuracy": _grouped(found["accuracy"], labels, "budget", _accuracy),
        "parallel": _grouped(found["parallel"], labels, "k", _parallel),
        "costs": _grouped(found["costs"], labels, "budget", _costs),
    }


def _grouped(
    points: Iterable[Record], labels: Mapping[str, str], at: str, pooled: Callable[[list[Record]], Record]
) -> list[Record]:
    groups: dict[tuple[str, Any], list[Record]] = {}
    for point in points:
        groups.setdefault((labels[point["arm"]], point[at]), []).append(point)
    return [{"arm": label, at: where, **pooled(group)} for (label, where), group in groups.items()]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _arm(label: str, family: str, arms: list[Record]) -> Record:
    return {
        **arms[0],
        "label": label,
        "model": family,
        "checkpoints": len(arms),
        "traces": sum(arm["traces"] for arm in arms),
        "failed": sum(arm["failed"] for arm in arms),
        "mean_thinking_tokens": _mean(arm["mean_thinking_tokens"] for arm in arms),
        "ended_share": _mean(arm["ended_share"] for arm in arms),
    }


def _estimate(points: list[Record]) -> Record:
    values = [point["value"] for point in points]
    if len(points) == 1:
        return {name: points[0][name] for name in ("value", "low", "high", "problems", "samples", "method")}
    return {
        "value": _mean(values),
        "low": min(values),
        "high": max(values),
        "problems": points[0]["problems"],
        "samples": sum(point["samples"] for point in points),
        "method": f"mean of {len(points)} checkpoints, from the lowest to the highest, which is no interval",
    }


def _accuracy(points: list[Record]) -> Record:
    return {"mean_tokens": _mean(point["mean_tokens"] for point in points), **_estimate(points)}


def _parallel(points: list[Record]) -> Record:
    both = {rule: _estimate([point[rule] for point in points]) for rule in ("pass", "majority")}
    return {"tokens": _mean(point["tokens"] for point in points), **both}


def _costs(points: list[Record]) -> Record:
    prices = [point["price"] for point in points]
    price = {name: _mean(price[name] for price in prices) for name in ("device_seconds", "energy_joules", "money")}
    return {**_accuracy(points), "price": {**price, "method": "; ".join(dict.fromkeys(p["method"] for p in prices))}}
