"""Stages and cycles of a thought, told by rules that the user gives: where each begins, and how long it is.

The stages of *DeepSeek-R1 Thoughtology* (arXiv 2504.07128, §3): problem definition, bloom (the first cycle),
reconstruction cycles (re-bloom, rumination, abandonment) and the final decision. The paper had them annotated by a
language model; rules of cue words are a cheaper stand-in, which is as good as its words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from scaling.errors import FitError, UsageError
from scaling.tasks.worker import Worker, WorkerDiedError
from scaling.text import show
from studies.thoughts import FEWEST

SCHEMA_VERSION = "1.0"
SECONDS = 5.0
"""That the rules may take for one text, or to be compiled."""
OPENING = 200
"""Characters of a sentence that a rule sees."""
RESAMPLES = 1000
MAX_BYTES = 1 << 20

_BREAK = re.compile(r"(?<=[.!?])\s+|\n+")
EXAMPLE = '{"first": "definition", "rules": [{"stage": "bloom", "opens": ["first,", "let me"], "cycle": true}]}'


@dataclass(frozen=True, slots=True)
class Rule:
    """A sentence that begins as one of the regular expressions `opens` does begins the stage.

    `cycle`: the stage is a cycle of thought, and every one that opens is the next in number. `once`: only the first
    sentence of a text that begins so opens it, and later ones are left to the rules below.
    """

    stage: str
    opens: tuple[str, ...]
    cycle: bool = False
    once: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules in order, of which the first that fits holds. `first`: the stage that a text begins in."""

    first: str
    rules: tuple[Rule, ...]

    @property
    def stages(self) -> list[str]:
        """The names of all stages, in order."""
        return list(dict.fromkeys([self.first, *(rule.stage for rule in self.rules)]))


@dataclass(frozen=True, slots=True)
class Stage:
    """Characters `start` to `end` of a text. `cycle`: its number among the cycles, from 1; None for no cycle."""

    stage: str
    cycle: int | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Labelled:
    """The lengths of a trace's stages, with what they are told apart by; `correct` is None where it was not judged."""

    arm: str
    problem: str
    correct: bool | None
    stages: Sequence[Stage]
    lengths: Sequence[int]


def read_rules(path: Path) -> Rules:
    """The rules in a JSON file; raises `UsageError` for what is none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} has more than {MAX_BYTES} bytes; expected rules such as {EXAMPLE}")
        loaded = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is not JSON; expected rules such as {EXAMPLE}") from None
    return parse_rules(loaded, str(path))


def parse_rules(loaded: Any, where: str = "the rules") -> Rules:
    """Rules from JSON, as in `EXAMPLE`; raises `UsageError`, naming what is wrong of `where`."""

    def wrong(what: str) -> UsageError:
        return UsageError(f"{where}: {what}; expected rules such as {EXAMPLE}")

    if not isinstance(loaded, dict) or not set(loaded) <= {"first", "rules", "about"}:
        raise wrong("not an object with `first`, `rules` and, at will, `about`")
    first, given = loaded.get("first"), loaded.get("rules")
    if not isinstance(first, str) or not first:
        raise wrong("`first` is not the name of a stage")
    if not isinstance(given, list) or not given:
        raise wrong("`rules` is not a list of at least one rule")
    rules = []
    for number, rule in enumerate(given, 1):
        if not isinstance(rule, dict) or not set(rule) <= {"stage", "opens", "cycle", "once"}:
            raise wrong(f"rule {number} is not an object of `stage`, `opens`, `cycle` and `once`")
        stage, opens = rule.get("stage"), rule.get("opens")
        if not isinstance(stage, str) or not stage:
            raise wrong(f"rule {number} has no `stage`")
        if not isinstance(opens, list) or not opens or not all(isinstance(each, str) and each for each in opens):
            raise wrong(f"`opens` of rule {number} is not a list of regular expressions")
        flags = {name: rule.get(name, False) for name in ("cycle", "once")}
        if not all(isinstance(flag, bool) for flag in flags.values()):
            raise wrong(f"`cycle` or `once` of rule {number} is neither true nor false")
        rules.append(Rule(stage, tuple(opens), **flags))
    return Rules(first, tuple(rules))


class Labeller:
    """Labels texts by rules, in a process of its own: a regular expression that never ends is stopped."""

    def __init__(self, rules: Rules, seconds: float = SECONDS) -> None:
        """Raises `UsageError` for an expression that is none, or takes more than `seconds` to compile."""
        self.rules, self._seconds = rules, seconds
        self._worker = Worker("studies.stage_worker", "the rules of stages", {})
        self._worker.start()
        reply = self._ask({"do": "compile", "rules": [rule.opens for rule in rules.rules]}, "to be compiled")
        if "refused" in reply:
            self.close()
            raise UsageError(f"{show(reply['refused'])!r} is no regular expression: {reply['why']}")

    def __enter__(self) -> Labeller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._worker.close()

    def label(self, text: str) -> list[Stage]:
        """The stages of a text in order, which cover it; raises `UsageError` where its rules take too long.

        Sentences end at `.`, `!` or `?` before white space, and at line ends. A sentence that no rule fits, or that
        opens the stage that it is in, goes on with it; a cycle is opened anew each time.
        """
        starts = [0, *(found.end() for found in _BREAK.finditer(text) if found.end() < len(text))]
        openings = [text[start : start + OPENING].lstrip() for start in starts]
        found = self._ask({"do": "match", "openings": openings, "seconds": self._seconds}, "for one text")["found"]
        opened: list[tuple[str, int | None, int]] = [(self.rules.first, None, 0)]
        cycles, seen = 0, set[int]()
        for start, numbers in zip(starts, found, strict=True):
            number = next((n for n in numbers if not (self.rules.rules[n].once and n in seen)), None)
            if number is None:
                continue
            rule = self.rules.rules[number]
            seen.add(number)
            if rule.cycle:
                cycles += 1
            elif opened[-1][0] == rule.stage:
                continue
            opened.append((rule.stage, cycles if rule.cycle else None, start))
        ends = [*(start for _, _, start in opened[1:]), len(text)]
        return [Stage(*each, end) for each, end in zip(opened, ends, strict=True) if end > each[2]]

    def _ask(self, request: Mapping[str, Any], what: str) -> dict[str, Any]:
        try:
            return self._worker.ask(request, self._seconds)
        except WorkerDiedError:
            raise UsageError(
                f"the rules of stages took more than {self._seconds:g} s or too much memory {what}; look for an "
                "expression that repeats a repetition, such as (a+)+"
            ) from None


def label(text: str, rules: Rules) -> list[Stage]:
    """The stages of one text; as `Labeller.label`."""
    with Labeller(rules) as labeller:
        return labeller.label(text)


def words(text: str) -> int:
    """Words of a text: what white space parts."""
    return len(text.split())


def label_records(
    records: Iterable[Mapping[str, Any]], rules: Rules, length: Callable[[str], int] = words
) -> Iterable[Labelled]:
    """The stages of stored traces (`studies.trace_frame.records`), the text of all chunks read as one; failed ones are
    left out. `length`: of a text, such as its words or its tokens."""
    with Labeller(rules) as labeller:
        for record in records:
            if record["error"] is None:
                text = "".join(chunk["text"] for chunk in record["chunks"])
                stages = labeller.label(text)
                lengths = [length(text[stage.start : stage.end]) for stage in stages]
                problem = f"{record['task_label']}/{record['problem']['id']}"
                correct = None if record["score"] is None else record["score"] == 1
                yield Labelled(record["arm"], problem, correct, stages, lengths)


def summarise(traces: Iterable[Labelled], rules: Rules, unit: str = "words") -> dict[str, Any]:
    """Length of each stage by outcome, and of each cycle by its number, for every arm.

    A stage's length is that of all its parts in a trace, over the traces that have it; `share` of traces have it. A
    cycle's length is over traces that come so far. Means with an interval of nominally 95 %: problems are resampled;
    null with fewer than `FEWEST`. Raises `FitError` without traces.
    """
    found = list(traces)
    if not found:
        raise FitError("there is no trace to label; every one failed, or none was sampled")
    arms, stages, cycles = [], [], []
    for arm in dict.fromkeys(trace.arm for trace in found):
        every = [trace for trace in found if trace.arm == arm]
        unlabelled = sum(len(trace.stages) <= 1 for trace in every)
        arms.append({"arm": arm, "traces": len(every), "one_stage_alone": unlabelled})
        for outcome in ("all", "right", "wrong"):
            mine = [t for t in every if outcome == "all" or t.correct is (outcome == "right")]
            for name in rules.stages:
                had = [(t.problem, _of(t, stage=name)) for t in mine]
                point = _mean([(problem, sum(parts)) for problem, parts in had if parts])
                if point is not None:
                    parts = sum(len(parts) for _, parts in had) / point["traces"]
                    share = point["traces"] / len(mine)
                    stages.append(
                        {"arm": arm, "outcome": outcome, "stage": name, "share": share, "parts": parts, **point}
                    )
            for number in range(1, 1 + max((s.cycle or 0 for t in mine for s in t.stages), default=0)):
                at = [(t.problem, _of(t, cycle=number)) for t in mine]
                point = _mean([(problem, sum(parts)) for problem, parts in at if parts])
                if point is not None:
                    cycles.append({"arm": arm, "outcome": outcome, "cycle": number, **point})
    return {
        "format": "stages",
        "schema_version": SCHEMA_VERSION,
        "unit": unit,
        "rules": [{"stage": r.stage, "opens": list(r.opens), "cycle": r.cycle, "once": r.once} for r in rules.rules],
        "first": rules.first,
        "method": f"means over traces, problems resampled {RESAMPLES} times, nominally 95 %",
        "arms": arms,
        "stages": stages,
        "cycles": cycles,
    }


def _of(trace: Labelled, *, stage: str | None = None, cycle: int | None = None) -> list[int]:
    """Lengths of the trace's parts that are the stage, or the cycle."""
    parts = zip(trace.stages, trace.lengths, strict=True)
    return [length for part, length in parts if (part.stage == stage if cycle is None else part.cycle == cycle)]


def _mean(lengths: Sequence[tuple[str, int]]) -> dict[str, Any] | None:
    """The mean of (problem, length) and its interval; None of nothing."""
    if not lengths:
        return None
    problems: dict[str, list[int]] = {}
    for problem, length in lengths:
        problems.setdefault(problem, []).append(length)
    sums = np.array([sum(each) for each in problems.values()], dtype=float)
    counts = np.array([len(each) for each in problems.values()], dtype=float)
    low: float | None = None
    high: float | None = None
    if len(problems) >= FEWEST:
        drawn = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
        means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        low, high = (float(q) for q in np.quantile(means, [0.025, 0.975]))
    value = float(sums.sum() / counts.sum())
    return {"traces": len(lengths), "problems": len(problems), "value": value, "low": low, "high": high}
