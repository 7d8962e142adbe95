"""What traces look like: how long right and wrong ones are, where the sweet spot is, how much they repeat themselves.

After *DeepSeek-R1 Thoughtology* (arXiv 2504.07128). Traces in, one at a time, as `scaling.traces` writes them; one
JSON-able record out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaling.errors import FitError, StoreError
from scaling.text import show
from studies.rumination import NGRAM, normalised_entropy, repeated_rate, seen_before

SCHEMA_VERSION = "1.0"
BINS = 5
"""Of normalised length (Thoughtology §4.1)."""
WINDOW = 32
"""Most tokens before and after a boundary that are compared, never more than half of what a chunk thinks anew."""
RESAMPLES = 2000
FEWEST = 5
"""Problems from which there is an interval: of 2, a bootstrap of problems holds in half of simulated studies."""
GROUPS = 4
"""Most groups of difficulty, equally many traces each."""
WORDS_FROM = 0.1
"""Words a token from which texts are taken by words; below, by tokens, as where an alphabet has no spaces."""
NEEDED = ("model", "problem", "environment", "environment_parameters", "chunks", "thinking_tokens", "score", "error")

Floats = NDArray[np.float64]
Key = tuple[str, str]


@dataclass(slots=True)
class _Seen:
    """The little that is kept of a trace. `chunks`: repeated rate of each; `boundaries`: (before, after) by rule."""

    problem: Key
    difficulty: float | None
    right: bool
    tokens: int
    repeated: float | None
    entropy: float | None
    chunks: list[float | None]
    boundaries: dict[tuple[int, int], list[tuple[float, float]]]


@dataclass(slots=True)
class _Arm:
    label: str
    model: str
    environment: str
    parameters: Mapping[str, Any]
    failed: int = 0
    traces: list[_Seen] = field(default_factory=list)

    @property
    def sizes(self) -> tuple[int, int] | None:
        """(C, C − m) of a chunked environment that carries a state on."""
        context, state = self.parameters.get("context_size"), self.parameters.get("state_size")
        return (context, context - state) if context is not None and state is not None else None


def analyse(arms: Mapping[str, Callable[[], Iterable[Mapping[str, Any]]]]) -> dict[str, Any]:
    """Of each arm, by its label: lengths by outcome, the sweet spot, rumination, and what chunk boundaries do to it.

    `arms` gives the traces of each, anew whenever it is called. A trace is right with a score of 1; failed ones are
    left out and counted. Intervals, nominally of 95 %, are percentiles of a bootstrap over problems (`RESAMPLES`), null
    with fewer than `FEWEST` or where those do not differ. Raises `FitError` where no trace was judged, `StoreError` for
    what are no traces.
    """
    words = _has_words(arms)
    found = {label: _Arm(label, "", "", {}) for label in arms}
    for label, traces in arms.items():
        for record in traces():
            _place(found[label], record)
            break
    sizes = sorted({arm.sizes for arm in found.values() if arm.sizes is not None})
    for label, traces in arms.items():
        for record in traces():
            _take(found[label], record, words, sizes)
    if not any(arm.traces for arm in found.values()):
        raise FitError("no trace was judged, so there is nothing to compare; every one failed, or there are none")
    return {
        "format": "thoughts",
        "schema_version": SCHEMA_VERSION,
        "unit": "words" if words else "tokens",
        "ngram": NGRAM,
        "arms": [_describe(arm, found.values()) for arm in found.values()],
    }


def by_arm(records: Iterable[Mapping[str, Any]]) -> dict[str, Callable[[], Iterable[Mapping[str, Any]]]]:
    """Traces of one file that may hold several arms, ready for `analyse`; they are kept."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        _check(record)
        found.setdefault(show(str(record.get("arm") or record["environment"])), []).append(record)
    return {label: traces.__iter__ for label, traces in found.items()}


def _check(record: Mapping[str, Any]) -> None:
    expected = "expected traces as `scaling trace --out` writes them"
    if missing := [name for name in NEEDED if name not in record]:
        raise StoreError(f"a trace has no {missing[0]}; {expected}")
    problem, chunks = record["problem"], record["chunks"]
    fits = (
        all(isinstance(record[name], dict) for name in ("model", "problem", "environment_parameters"))
        and "name" in record["model"]
        and isinstance(problem.get("id"), str)
        and isinstance(problem.get("meta", {}), dict)
        and isinstance(record["thinking_tokens"], int)
        and isinstance(chunks, list)
        and all(isinstance(chunk, dict) for chunk in chunks)
        and all(isinstance(c.get("text"), str) and isinstance(c.get("response"), list) for c in chunks)
    )
    if not fits:
        raise StoreError(f"a trace has a part of the wrong kind; {expected}")


def _has_words(arms: Mapping[str, Callable[[], Iterable[Mapping[str, Any]]]]) -> bool:
    words = tokens = 0
    for traces in arms.values():
        for number, record in enumerate(traces()):
            _check(record)
            tokens += record["thinking_tokens"]
            words += sum(len(chunk["text"].split()) for chunk in record["chunks"])
            if number == 20:
                break
    return words > WORDS_FROM * tokens


def _place(arm: _Arm, record: Mapping[str, Any]) -> None:
    arm.model, arm.environment = record["model"]["name"], record["environment"]
    arm.parameters = record["environment_parameters"]


def _take(arm: _Arm, record: Mapping[str, Any], words: bool, sizes: Sequence[tuple[int, int]]) -> None:
    if record["error"] is not None or record["score"] is None:
        arm.failed += 1
        return
    responses = [chunk["response"] for chunk in record["chunks"]]
    pieces = [chunk["text"].split() for chunk in record["chunks"]] if words else responses
    whole = [unit for piece in pieces for unit in piece]
    tokens = [token for response in responses for token in response]
    ends = list(accumulate(map(len, responses)))
    difficulty = record["problem"].get("meta", {}).get("difficulty")
    # its own chunks' ends, or where a chunked arm's would be
    wanted = {arm.sizes: ends[:-1]} if arm.sizes is not None else {size: _ends(size, len(tokens)) for size in sizes}
    seen = seen_before(tokens)
    arm.traces.append(
        _Seen(
            problem=(str(record.get("task_label", "")), record["problem"]["id"]),
            difficulty=float(difficulty) if isinstance(difficulty, int | float) else None,
            right=record["score"] == 1,
            tokens=record["thinking_tokens"],
            repeated=repeated_rate(whole),
            entropy=normalised_entropy(whole),
            chunks=[repeated_rate(piece) for piece in pieces],
            boundaries={size: _around(seen, at, size) for size, at in wanted.items()},
        )
    )


def _ends(size: tuple[int, int], tokens: int) -> list[int]:
    return list(range(size[0], tokens, size[1]))


def _around(seen: Sequence[bool], boundaries: Sequence[int], size: tuple[int, int]) -> list[tuple[float, float]]:
    """Repeated rate of the n-grams that end before each boundary, and of those that begin after it.

    Windows of equally many n-grams, none of which stands astride a boundary; boundaries without room are left out.
    """
    window = min(WINDOW, size[1] // 2)
    found = []
    for at in boundaries:
        before, after = seen[max(at - NGRAM + 1 - window, 0) : max(at - NGRAM + 1, 0)], seen[at : at + window]
        if window and len(before) == window == len(after):
            found.append((sum(before) / window, sum(after) / window))
    return found


def _describe(arm: _Arm, arms: Iterable[_Arm]) -> dict[str, Any]:
    right, wrong = ([t for t in arm.traces if t.right is outcome] for outcome in (True, False))
    difficulties = sorted({t.difficulty for t in arm.traces if t.difficulty is not None})
    return {
        "label": arm.label,
        "model": arm.model,
        "environment": arm.environment,
        "traces": len(arm.traces) + arm.failed,
        "failed": arm.failed,
        "problems": len({trace.problem for trace in arm.traces}),
        "lengths": {"right": _lengths(right), "wrong": _lengths(wrong)},
        "difference": _difference(arm.traces),
        "sweet_spot": _sweet_spot(arm.traces),
        "by_outcome": [_rumination("right", right), _rumination("wrong", wrong)],
        "by_difficulty": [_rumination(label, group) for label, group in _groups(arm.traces, difficulties)],
        "by_chunk": _by_chunk(arm.traces),
        "boundary": _boundary(arm, arms),
    }


def _lengths(traces: Sequence[_Seen]) -> dict[str, Any] | None:
    if not traces:
        return None
    tokens = [trace.tokens for trace in traces]
    low, middle, high = (float(q) for q in np.quantile(tokens, [0.1, 0.5, 0.9]))
    return {"traces": len(tokens), "mean": float(np.mean(tokens)), "p10": low, "median": middle, "p90": high}


def _grouped(traces: Iterable[_Seen]) -> list[list[_Seen]]:
    problems: dict[Key, list[_Seen]] = {}
    for trace in traces:
        problems.setdefault(trace.problem, []).append(trace)
    return list(problems.values())


def _ratio(parts: Floats) -> dict[str, Any] | None:
    """Σ parts[:, 0] ÷ Σ parts[:, 1] over problems, with its interval; None where there is nothing to divide by.

    No interval either of fewer than `FEWEST` problems, or where all have the same: resampling would feign certainty.
    """
    total = parts.sum(0)
    if not total[1]:
        return None
    low = high = None
    kept = parts[parts[:, 1] > 0]
    if len(kept) >= FEWEST and len(np.unique(kept[:, 0] / kept[:, 1])) > 1:
        rng = np.random.default_rng(0)
        drawn = parts[rng.integers(len(parts), size=(RESAMPLES, len(parts)))].sum(1)
        shares = drawn[drawn[:, 1] > 0]
        low, high = (float(q) for q in np.quantile(shares[:, 0] / shares[:, 1], [0.025, 0.975]))
    return {"value": float(total[0] / total[1]), "low": low, "high": high, "problems": int((parts[:, 1] > 0).sum())}


def _mean(problems: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    """Mean over all values of all problems, the problems resampled."""
    kept = [(sum(values), len(values)) for values in problems if len(values)]
    return _ratio(np.array(kept, np.float64)) if kept else None


def _difference(traces: Sequence[_Seen]) -> dict[str, Any] | None:
    """Mean tokens of right traces less those of wrong ones, within problems that have both; each problem counts alike.

    Within a problem, so that hard problems, which take longer and go wrong, do not make the difference.
    """
    apart = []
    for problem in _grouped(traces):
        right, wrong = ([t.tokens for t in problem if t.right is outcome] for outcome in (True, False))
        if right and wrong:
            apart.append([float(np.mean(right) - np.mean(wrong))])
    return _mean(apart)


def _sweet_spot(traces: Sequence[_Seen]) -> dict[str, Any]:
    """Accuracy by length, min–max normalised within each problem, in `BINS` bins (Thoughtology §4.1).

    A problem has a bin's accuracy where it has a trace in it; a bin is the mean over its problems. Problems whose
    traces are all of one length have no such scale: `equal` counts them.
    """
    bins: list[list[list[float]]] = [[] for _ in range(BINS)]
    problems = equal = 0
    for problem in _grouped(traces):
        tokens = [trace.tokens for trace in problem]
        low, high = min(tokens), max(tokens)
        if low == high:
            equal += 1
            continue
        problems += 1
        inside: list[list[float]] = [[] for _ in range(BINS)]
        for trace in problem:
            inside[min(int(BINS * (trace.tokens - low) / (high - low)), BINS - 1)].append(float(trace.right))
        for place, values in enumerate(inside):
            if values:
                bins[place].append([float(np.mean(values))])
    return {"problems": problems, "equal": equal, "bins": [_mean(values) for values in bins]}


def _rumination(label: str, traces: Sequence[_Seen]) -> dict[str, Any]:
    problems = _grouped(traces)
    return {
        "group": label,
        "traces": len(traces),
        "repeated": _mean([[t.repeated for t in p if t.repeated is not None] for p in problems]),
        "entropy": _mean([[t.entropy for t in p if t.entropy is not None] for p in problems]),
    }


def _groups(traces: Sequence[_Seen], difficulties: Sequence[float]) -> list[tuple[str, list[_Seen]]]:
    """Traces by difficulty: one group a value where there are few, else groups of about as many values each."""
    found = []
    for values in np.array_split(difficulties, min(GROUPS, len(difficulties))) if len(difficulties) else ():
        low, high = float(values[0]), float(values[-1])
        label = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        found.append((label, [t for t in traces if t.difficulty is not None and low <= t.difficulty <= high]))
    return found


def _by_chunk(traces: Sequence[_Seen]) -> list[dict[str, Any]]:
    """Repetition within each chunk, by its index from 1; what stood in earlier chunks does not count."""
    found = []
    for place in range(max((len(trace.chunks) for trace in traces), default=0)):
        problems = [
            [rate for t in p if place < len(t.chunks) and (rate := t.chunks[place]) is not None]
            for p in _grouped(traces)
        ]
        if (repeated := _mean(problems)) is not None:
            found.append({"chunk": place + 1, "traces": sum(map(len, problems)), "repeated": repeated})
    return found


def _boundary(arm: _Arm, arms: Iterable[_Arm]) -> dict[str, Any] | None:
    """Whether chunk boundaries make an arm repeat itself: n-grams of response tokens seen earlier in the trace.

    Just after a boundary less just before it; `longcot` has the same at the same depths of the traces of LongCoT
    with the same model, where there is no boundary, and `excess` what an arm's difference has beyond that.
    """
    if arm.sizes is None:
        return None
    own = _pairs(arm.traces, arm.sizes)
    if not any(own.values()):
        return None
    plain = next((a for a in arms if a.environment == "longcot" and a.model == arm.model), None)
    control = _pairs(plain.traces, arm.sizes) if plain is not None else {}
    return {
        "window": min(WINDOW, arm.sizes[1] // 2),
        "boundaries": sum(map(len, own.values())),
        **_sides(own),
        "longcot": _sides(control) if any(control.values()) else None,
        "excess": _excess(own, control),
    }


def _pairs(traces: Sequence[_Seen], size: tuple[int, int]) -> dict[Key, list[tuple[float, float]]]:
    found: dict[Key, list[tuple[float, float]]] = {}
    for trace in traces:
        found.setdefault(trace.problem, []).extend(trace.boundaries.get(size, ()))
    return found


def _sides(pairs: Mapping[Key, Sequence[tuple[float, float]]]) -> dict[str, Any]:
    return {
        "before": _mean([[before for before, _ in p] for p in pairs.values()]),
        "after": _mean([[after for _, after in p] for p in pairs.values()]),
        "difference": _mean([[after - before for before, after in p] for p in pairs.values()]),
    }


def _excess(
    own: Mapping[Key, Sequence[tuple[float, float]]], control: Mapping[Key, Sequence[tuple[float, float]]]
) -> dict[str, Any] | None:
    """Mean over the problems that both have boundaries in of one difference less the other."""
    apart = [
        [float(np.mean([b - a for a, b in own[key]]) - np.mean([b - a for a, b in control[key]]))]
        for key in own
        if own[key] and control.get(key)
    ]
    return _mean(apart)
