"""What longer thinking brings at test time, and what it costs: accuracy by budget, by environment, and by price.

Analysis alone: a frame of traces in (`studies.trace_frame.frame`), one JSON-able record out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scaling.errors import FitError
from studies.accuracy import by_budget, compare, majority, pass_at
from studies.seeds import over_seeds

if TYPE_CHECKING:
    import pandas as pd

    from studies.trace_cost import Pricer

SCHEMA_VERSION = "1.0"


def analyse(frame: pd.DataFrame, price: Pricer | None = None) -> dict[str, Any]:
    """Of each arm: accuracy by thinking budget, pass@k and maj@k; of all: trained × sampled, and cost with its front.

    A trace is right with a score of 1. Failed ones are left out and counted. Problems are told by task and id together,
    and each counts alike. Budgets are read by right-trimming (*The Markovian Thinker*, evaluation). With `price`, every
    arm and budget has what a trace costs when it is cut there, and the points that nothing is both cheaper and as right
    as are marked.
    `seeds` has the same again over arms whose checkpoints differ in their seed alone, empty where none do.
    Raises `FitError` where no trace can be judged, or an arm has no price.
    """
    if not len(frame):
        raise FitError("there are no traces yet; go on with the study (--resume)")
    judged = frame[frame["error"].isna()]
    if not len(judged):
        raise FitError("every trace failed, so there is nothing to judge; see the errors in the run's traces")
    found: dict[str, list[dict[str, Any]]] = {"arms": [], "accuracy": [], "parallel": [], "costs": []}
    for label in frame["arm"].unique():
        asked, rows = frame[frame["arm"] == label], judged[judged["arm"] == label]
        arm = _arm(label, asked, rows)
        found["arms"].append(arm)
        if not len(rows):
            continue
        lengths = [int(n) for n in rows["thinking_tokens"]]
        right = rows["scores"].map(lambda scores: {budget: float(score == 1) for budget, score in scores.items()})
        for budget, estimate in by_budget(_by_problem(rows.assign(right=right), "right")).items():
            point = {"arm": label, "budget": budget, "mean_tokens": _cut(lengths, budget), **estimate.record()}
            found["accuracy"].append(point)
            if price is not None:
                found["costs"].append({**point, "price": price(arm, lengths, budget).record()})
        found["parallel"] += _parallel(label, rows, arm["mean_thinking_tokens"])
    return {
        "format": "test-time",
        "schema_version": SCHEMA_VERSION,
        "tasks": sorted(frame["task"].unique()),
        **_completed(found),
        "comparisons": _comparisons(judged, found["arms"]),
        "seeds": _completed(pooled) if (pooled := over_seeds(found)) else {},
    }


def _completed(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    _mark_front(found["costs"])
    return {**found, "transfer": _transfer(found["arms"], found["accuracy"])}


def _arm(label: str, asked: pd.DataFrame, rows: pd.DataFrame) -> dict[str, Any]:
    first = asked.iloc[0]
    return {
        "label": label,
        "model": first["model"],
        "trained": first["trained"],
        "environment": first["environment"],
        "environment_parameters": json.loads(first["environment_parameters"]),
        "budget": int(first["budget"]),
        "traces": len(asked),
        "failed": len(asked) - len(rows),
        "problems": len(asked[["task", "problem"]].drop_duplicates()),
        "mean_thinking_tokens": float(rows["thinking_tokens"].mean()) if len(rows) else None,
        "ended_share": float(rows["ended"].mean()) if len(rows) else None,
    }


def _by_problem(rows: pd.DataFrame, column: str) -> list[list[Any]]:
    return [list(group) for _, group in rows.groupby(["task", "problem"], sort=True)[column]]


def _cut(lengths: Sequence[int], budget: int) -> float:
    """Mean thinking tokens of traces that are cut at the budget."""
    return sum(min(length, budget) for length in lengths) / len(lengths)


def _parallel(label: str, rows: pd.DataFrame, mean_tokens: float) -> list[dict[str, Any]]:
    """pass@k and maj@k for k = 1, 2, 4, … as far as every problem has samples; `tokens` are those of k traces."""
    scores, answers = _by_problem(rows.assign(right=rows["score"].eq(1.0)), "right"), _by_problem(rows, "answer")
    fewest = min(map(len, scores))
    ks = [1 << power for power in range(fewest.bit_length()) if 1 << power <= fewest]
    return [
        {
            "arm": label,
            "k": k,
            "tokens": k * mean_tokens,
            "pass": pass_at(scores, k).record(),
            "majority": majority(answers, scores, k).record(),
        }
        for k in ks
    ]


def _transfer(arms: Sequence[Mapping[str, Any]], accuracy: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Trained in × sampled in, at every budget that all these arms were judged at; empty unless some were trained."""
    named = {arm["label"]: arm for arm in arms if arm["trained"] is not None}
    if len({arm["trained"] for arm in named.values()}) < 2:
        return []
    return [
        {"trained": named[point["arm"]]["trained"], "environment": named[point["arm"]]["environment"], **point}
        for point in accuracy
        if point["arm"] in named
    ]


def _comparisons(judged: pd.DataFrame, arms: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each chunked arm against LongCoT of the same checkpoint, paired by problem, at the study's largest budget.

    Traces are cut there: a last chunk may reach beyond what LongCoT may think.
    """
    found = []
    budget = min(max(scores) for scores in judged["scores"])
    for arm in arms:
        if arm["environment"] == "longcot":
            continue
        base = next((a for a in arms if a["environment"] == "longcot" and _same(a, arm)), None)
        if base is None:
            continue
        ours, theirs = ({k: list(g) for k, g in _scores(judged, a["label"], budget)} for a in (arm, base))
        common = sorted(ours.keys() & theirs.keys())
        if common:
            made = compare([ours[key] for key in common], [theirs[key] for key in common])
            found.append({"arm": arm["label"], "against": base["label"], "budget": budget, **made.record()})
    return found


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return (one["model"], one["trained"]) == (other["model"], other["trained"])


def _scores(judged: pd.DataFrame, label: str, budget: int) -> Any:
    rows = judged[judged["arm"] == label]
    right = rows["scores"].map(lambda scores: float(scores[budget] == 1))
    return right.groupby([rows["task"], rows["problem"]], sort=True)


def _mark_front(costs: list[dict[str, Any]]) -> None:
    """Marks the Pareto front: points that no other is both at most as costly as and at least as accurate as."""
    for point in costs:
        seconds, value = point["price"]["device_seconds"], point["value"]
        point["on_front"] = not any(
            (other["price"]["device_seconds"] <= seconds and other["value"] >= value)
            and (other["price"]["device_seconds"] < seconds or other["value"] > value)
            for other in costs
        )
