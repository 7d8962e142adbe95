"""The zero-shot Markovian probe: does a model that was never trained in chunks already think well in them?

Which arms to ask, and the analysis alone: a frame of traces in (`studies.trace_frame.frame`), one JSON-able record out.
After *The Markovian Thinker* (arXiv 2510.06557): the probe and its ablations of state and context, §7.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scaling.errors import FitError, UsageError, unknown
from scaling.lengths import format_tokens
from scaling.thinking import Delethink, Environment, LongCoT
from studies.accuracy import average, by_budget, compare, coverage, pass_at, solved

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = "1.0"

ABLATIONS = ("state", "context")

EIGHTHS = range(1, 8)
"""Of C: the states of the paper's ablation, 1k to 7k at C=8k."""

LEAST = 8
"""Tokens of the smallest context: an eighth of it is a state."""


def environments(
    thinking_tokens: int,
    context_sizes: Sequence[int],
    state_sizes: Sequence[int] = (),
    head: int | None = None,
    ablations: Sequence[str] = (),
) -> dict[str, Environment]:
    """LongCoT and the Delethink arms of a probe, by label, all with room for so many thinking tokens.

    Every context size with every state size, by default C/2. Ablation `state`: m = C/8 … 7C/8 beside it, unless state
    sizes are given; `context`: C/4, C/2 and C with m = C/2, unless several context sizes are given. `head`: None for
    100 tokens, as the paper keeps, or a quarter of C − m where that is less.

    Raises `UsageError` for sizes that make no sense, such as a context that holds all thinking and is never reset.
    """
    for name in ablations:
        if name not in ABLATIONS:
            raise unknown("ablation", name, ABLATIONS)
    if not context_sizes:
        raise UsageError("no context size; give at least one, as in --context-size 1k")
    if min(context_sizes) < LEAST:
        raise UsageError(f"context size {min(context_sizes)} is too small; give at least {LEAST} tokens")
    if "state" in ablations and len(context_sizes) > 1:
        raise UsageError(
            f"ablation 'state' sweeps m at one context size, and {len(context_sizes)} are given; give one of them"
        )
    pairs = [(context, state) for context in context_sizes for state in state_sizes or [context // 2]]
    if "context" in ablations:
        contexts = context_sizes if len(context_sizes) > 1 else [context_sizes[0] // n for n in (4, 2, 1)]
        pairs += [(context, context // 2) for context in contexts]
    if "state" in ablations and not state_sizes:
        pairs += [(context_sizes[0], context_sizes[0] * eighths // 8) for eighths in EIGHTHS]
    found: dict[str, Environment] = {"longcot": LongCoT(thinking_tokens)}
    for context, state in sorted(set(pairs)):
        if context >= thinking_tokens:
            raise UsageError(
                f"context size {context} holds all of {thinking_tokens} thinking tokens, so nothing would ever be cut "
                "into chunks; give more --thinking-tokens, or a smaller --context-size"
            )
        kept = min(100, max(context - state, 0) // 4) if head is None else head
        label = f"delethink C={format_tokens(context)} m={format_tokens(state)}"
        found[label] = Delethink.for_length(thinking_tokens, context, state, kept)
    return found


def default_budgets(thinking_tokens: int) -> list[int]:
    """An eighth, a quarter, a half and all of the thinking budget."""
    return sorted({max(1, thinking_tokens // parts) for parts in (8, 4, 2, 1)})


def analyse(
    frame: pd.DataFrame, *, asked: int | None = None, published: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any]:
    """Of each arm: accuracy by thinking budget, ends, lengths, chunks, pass@k; of Delethink against LongCoT: what it
    keeps, and which problems either solves; of the ablations: accuracy by state and by context size.

    A trace is right with a score of 1; part of a score counts for nothing. Failed traces are left out and counted.
    Problems are told by task and id together, count alike, and are paired between arms. Accuracies are
    read off right-trimmed traces; comparisons are at the largest budget that all arms have. Votes, ends and lengths
    are of whole traces. `asked`: traces that every arm is to have, None where unknown.
    `published`: what others found, to be shown beside it.

    Raises `FitError` where no trace can be judged.
    """
    if not len(frame):
        raise FitError("there are no traces yet; go on with the probe (--resume)")
    judged = _right_or_wrong(frame[frame["error"].isna()])
    if not len(judged):
        raise FitError("every trace failed, so there is nothing to judge; see the errors in the run's traces")
    budget = min(max(scores) for scores in judged["scores"])
    arms, accuracy, passes, by_task = [], [], [], []
    for label in frame["arm"].unique():
        every, rows = frame[frame["arm"] == label], judged[judged["arm"] == label]
        arms.append(_arm(label, every, rows, asked))
        if not len(rows):
            continue
        for at, estimate in by_budget(_grouped(rows, "scores")).items():
            accuracy.append({"arm": label, "budget": at, **estimate.record()})
        passes += _passes(label, rows, budget)
        by_task += _by_task(label, rows, budget)
    return {
        "format": "probe",
        "schema_version": SCHEMA_VERSION,
        "model": str(frame["model"].iloc[0]),
        "tasks": sorted(frame["task"].unique()),
        "budget": budget,
        "arms": arms,
        "accuracy": accuracy,
        "by_task": by_task,
        "pass": passes,
        **_against_longcot(judged, arms, budget),
        "state": _state(arms, accuracy, budget),
        "context": _context(arms, accuracy, budget),
        "published": [dict(one) for one in published],
    }


def _right_or_wrong(rows: pd.DataFrame) -> pd.DataFrame:
    """The traces with scores of 1 and 0 alone: tasks may give part of a score to what is not right."""
    scores = rows["scores"].map(lambda row: {budget: float(score == 1) for budget, score in row.items()})
    return rows.assign(score=(rows["score"] == 1).astype(float), scores=scores)


def _arm(label: str, every: pd.DataFrame, rows: pd.DataFrame, asked: int | None) -> dict[str, Any]:
    first = every.iloc[0]
    sizes = {name: None if name not in (p := _parameters(first)) else int(p[name]) for name in _SIZES}
    ended = chunked = None
    if len(rows):
        flags = rows.assign(ended=rows["ended"].astype(float), chunked=(rows["chunks"] > 1).astype(float))
        ended = average(_grouped(flags, "ended")).record()
        chunked = average(_grouped(flags, "chunked")).record()
    return {
        "label": label,
        "environment": first["environment"],
        "environment_parameters": _parameters(first),
        **sizes,
        "budget": int(first["budget"]),
        "traces": len(every),
        "missing": None if asked is None else asked - len(every),
        "failed": len(every) - len(rows),
        "problems": len(every[["task", "problem"]].drop_duplicates()),
        "ended": ended,
        "chunked": chunked,
        "mean_thinking_tokens": float(rows["thinking_tokens"].mean()) if len(rows) else None,
        "mean_chunks": float(rows["chunks"].mean()) if len(rows) else None,
    }


_SIZES = ("context_size", "state_size", "iterations")


def _parameters(row: Any) -> dict[str, Any]:
    parameters: dict[str, Any] = json.loads(row["environment_parameters"])
    return parameters


def _grouped(rows: pd.DataFrame, column: str) -> list[list[Any]]:
    """The column's values, one list a problem."""
    return list(_by_problem(rows, column).values())


def _by_problem(rows: pd.DataFrame, column: str) -> dict[tuple[str, str], list[Any]]:
    return {(str(key[0]), str(key[1])): list(group) for key, group in rows.groupby(["task", "problem"])[column]}


def _scores(rows: pd.DataFrame, budget: int) -> dict[tuple[str, str], list[float]]:
    return {key: [scores[budget] for scores in row] for key, row in _by_problem(rows, "scores").items()}


def _passes(label: str, rows: pd.DataFrame, budget: int) -> list[dict[str, Any]]:
    """pass@k for k = 1, 2, 4, … as far as every problem has samples."""
    scores = list(_scores(rows, budget).values())
    fewest = min(map(len, scores))
    ks = [1 << power for power in range(fewest.bit_length())]
    return [{"arm": label, "k": k, "budget": budget, **pass_at(scores, k).record()} for k in ks]


def _by_task(label: str, rows: pd.DataFrame, budget: int) -> list[dict[str, Any]]:
    return [
        {"arm": label, "task": task, "budget": budget, **average(list(_scores(some, budget).values())).record()}
        for task, some in rows.groupby("task")
    ]


def _against_longcot(judged: pd.DataFrame, arms: Sequence[Mapping[str, Any]], budget: int) -> dict[str, Any]:
    """What every chunked arm keeps of LongCoT, and the overlap of what they solve by majority vote."""
    base = next((arm["label"] for arm in arms if arm["environment"] == "longcot"), None)
    verdicts, overlaps = [], []
    theirs = judged[judged["arm"] == base]
    for arm in arms:
        label, ours = arm["label"], judged[judged["arm"] == arm["label"]]
        if base is None or label == base or not len(theirs):
            continue
        first, second = _scores(ours, budget), _scores(theirs, budget)
        common = sorted(first.keys() & second.keys())
        if not common:
            continue
        cut = arm["chunked"]["value"] if arm["chunked"] is not None else 0.0
        few = f" Only {_percent(cut)} % of its traces came to a second chunk." if cut else UNCUT
        made = compare([first[key] for key in common], [second[key] for key in common]).record()
        verdicts.append(
            {
                "arm": label,
                "against": base,
                "budget": budget,
                "unpaired": len(first.keys() ^ second.keys()),
                "text": verdict(label, base, budget, made) + ("" if cut >= MANY else few),
                **made,
            }
        )
        names = [" / ".join(key) for key in common]
        found = coverage(names, *(_solved(rows, common) for rows in (ours, theirs))).record()
        overlaps.append({"arm": label, "against": base, "problems": len(common), **found})
    return {"verdicts": verdicts, "coverage": overlaps}


def _solved(rows: pd.DataFrame, problems: Sequence[tuple[str, str]]) -> list[bool]:
    answers, scores = _by_problem(rows, "answer"), _by_problem(rows, "score")
    return solved([answers[key] for key in problems], [scores[key] for key in problems])


MANY = 0.5
"""Share of traces in several chunks below which a verdict says how few they are: the rest think as in LongCoT."""

UNCUT = " None of its traces came to a second chunk, so this says nothing of thinking in chunks."


def verdict(arm: str, against: str, budget: int, made: Mapping[str, Any]) -> str:
    """What a comparison says, in a sentence; honest where there is nothing to keep."""
    where, ratio, apart = f"at {format_tokens(budget)} thinking tokens", made["ratio"], made["difference"]
    name = "LongCoT" if against == "longcot" else against
    shown = arm[:1].upper() + arm[1:]
    points = f"{_points(apart['value'])} [{_points(apart['low'])}, {_points(apart['high'])}] points"
    if ratio["value"] is None:
        return f"{shown}: {name} solves nothing {where}, so there is no share to keep; the difference is {points}."
    open_end = ratio["high"] is None
    high = "no upper end" if open_end else _percent(ratio["high"])
    why = f", as {name}'s accuracy may be 0" if open_end else ""
    kept = f"keeps {_percent(ratio['value'])} % [{_percent(ratio['low'])}, {high}] of {name}"
    return f"{shown} {kept} {where}{why}; the difference is {points}."


def _percent(value: float) -> str:
    return f"{100 * value:.3g}" if value < 10 else f"{100 * value:,.0f}"


def _points(value: float) -> str:
    return f"{100 * value:+.3g}".replace("-", "−") if value else "0"


def _state(
    arms: Sequence[Mapping[str, Any]], accuracy: Sequence[Mapping[str, Any]], budget: int
) -> list[dict[str, Any]]:
    """Accuracy by m for every context size that has several."""
    sizes = [arm["context_size"] for arm in arms if arm["environment"] == "delethink"]
    swept = {context for context in sizes if sizes.count(context) > 1}
    return _points_of([arm for arm in arms if arm["context_size"] in swept], accuracy, budget)


def _context(
    arms: Sequence[Mapping[str, Any]], accuracy: Sequence[Mapping[str, Any]], budget: int
) -> list[dict[str, Any]]:
    """Accuracy by C with m = C/2, where there are several."""
    halves = [a for a in arms if a["environment"] == "delethink" and a["state_size"] == a["context_size"] // 2]
    return _points_of(halves, accuracy, budget) if len(halves) > 1 else []


def _points_of(
    arms: Sequence[Mapping[str, Any]], accuracy: Sequence[Mapping[str, Any]], budget: int
) -> list[dict[str, Any]]:
    at = {point["arm"]: point for point in accuracy if point["budget"] == budget}
    return [
        {name: arm[name] for name in _SIZES} | {"ended": arm["ended"], **at[arm["label"]]}
        for arm in arms
        if arm["label"] in at
    ]
