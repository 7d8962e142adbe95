"""The probe's arms, and what it makes of traces: accuracy, verdicts, overlaps, ablations."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pytest

from scaling.errors import FitError, UsageError
from scaling.thinking import Environment
from studies.markovian_probe import UNCUT, analyse, default_budgets, environments
from studies.trace_frame import COLUMNS

ARMS = environments(1024, [256])
CHUNKED = "delethink C=256 m=128"

# arms


def test_the_arms_are_longcot_and_delethink_with_half_the_context_as_state() -> None:
    assert list(ARMS) == ["longcot", CHUNKED]
    assert ARMS["longcot"].budget == 1024
    assert ARMS[CHUNKED].parameters() == {
        "context_size": 256,
        "state_size": 128,
        "iterations": 7,
        "head": 32,  # a quarter of what a chunk thinks
        "carryover": "algorithm1",
    }
    assert environments(32768, [8192])["delethink C=8k m=4k"].parameters()["head"] == 100


def test_the_state_ablation_is_the_papers_at_its_sizes() -> None:
    """REFERENCES: m = 1k … 7k at C = 8k have I = 6, 7, 8, 10, 13, 19, 37 at 43 K."""
    made = environments(43 * 1024, [8192], ablations=["state"])
    sizes = {e.parameters()["state_size"]: e.parameters()["iterations"] for e in list(made.values())[1:]}
    assert sizes == {1024: 6, 2048: 7, 3072: 8, 4096: 10, 5120: 13, 6144: 19, 7168: 36}  # 36 chunks have 43 K exactly


def test_the_context_ablation_is_the_papers_at_its_sizes() -> None:
    made = environments(32768, [8192], ablations=["context"])
    assert list(made) == ["longcot", "delethink C=2k m=1k", "delethink C=4k m=2k", "delethink C=8k m=4k"]


def test_both_ablations_share_the_arms_that_they_have_in_common() -> None:
    made = environments(1024, [256], ablations=["state", "context"])
    assert len(made) == 1 + 7 + 2


def test_given_sizes_are_crossed() -> None:
    made = environments(1024, [256, 512], [64, 128])
    assert [(e.parameters()["context_size"], e.parameters()["state_size"]) for e in list(made.values())[1:]] == [
        (256, 64), (256, 128), (512, 64), (512, 128)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1024, [1024]), "holds all of 1024 thinking tokens"),
        ((1024, [256, 2048]), "holds all of 1024 thinking tokens"),
        ((1024, []), "no context size"),
        ((1024, [4]), "too small"),
        ((1024, [256], [256]), "state size 256 must be below context size 256"),
        ((1024, [256], [], 200), "head 200 must be"),
        ((1024, [256], [], None, ["length"]), "unknown ablation 'length'"),
        ((1024, [256, 512], [], None, ["state"]), "sweeps m at one context size"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        environments(*arguments)


def test_budgets_are_parts_of_the_thinking_budget() -> None:
    assert default_budgets(1024) == [128, 256, 512, 1024]
    assert default_budgets(3) == [1, 3]


# analysis

Frame = Callable[..., pd.DataFrame]


def traces(
    label: str,
    environment: Environment,
    right: Sequence[Sequence[int]],
    *,
    lengths: int = 300,
    answers: str | None = None,
    failed: int = 0,
    task: str = "sums",
) -> list[dict[str, Any]]:
    """`right[p][s]`: whether sample s of problem p is right, with half the budget too; `failed`: of the first ones."""
    parameters, rows = environment.parameters(), []
    for problem, row in enumerate(right):
        for sample, one in enumerate(row):
            dead = len(rows) < failed
            rows.append(
                {
                    "run": "r", "arm": label, "model": "tiny", "trained": None, "environment": environment.name,
                    "environment_parameters": json.dumps(parameters), "context_size": parameters.get("context_size"),
                    "state_size": parameters.get("state_size"), "budget": environment.budget, "task": task,
                    "problem": f"p{problem}", "difficulty": None, "sample": sample, "thinking_tokens": lengths,
                    "chunks": 1 + lengths // 256, "response_lengths": [lengths], "ended": bool(one),
                    "correct": None if dead else bool(one), "score": None if dead else float(one),
                    "answer": answers if answers and not one else f"{one}", "error": "server gone" if dead else None,
                    "seconds": 1.0, "scores": {} if dead else {512: 0.0, 1024: float(one)},
                }
            )  # fmt: skip
    return rows


def frame(*arms: list[dict[str, Any]]) -> pd.DataFrame:
    rows = [row for arm in arms for row in arm]
    return pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=kind) for name, kind in COLUMNS.items()})


def probe(
    longcot: Sequence[Sequence[int]], delethink: Sequence[Sequence[int]], *, chunked: dict[str, Any] | None = None
) -> dict[str, Any]:
    found = analyse(
        frame(traces("longcot", ARMS["longcot"], longcot), traces(CHUNKED, ARMS[CHUNKED], delethink, **(chunked or {})))
    )
    json.dumps(found, allow_nan=False)
    return found


def test_a_verdict_says_what_chunks_keep_of_longcot() -> None:
    found = probe([[1] * 16 + [0] * 16] * 10, [[1] * 14 + [0] * 18] * 10)
    [verdict] = found["verdicts"]
    assert verdict["ratio"]["value"] == pytest.approx(14 / 16)
    assert verdict["ratio"]["low"] < 14 / 16 < verdict["ratio"]["high"]
    low, high = (f"{100 * verdict['ratio'][end]:.3g}" for end in ("low", "high"))
    assert verdict["text"].startswith(
        f"Delethink C=256 m=128 keeps 87.5 % [{low}, {high}] of LongCoT at 1k thinking tokens; the difference is −6.25 "
    )


def test_accuracy_is_by_budget_and_each_share_has_its_interval() -> None:
    found = probe([[1, 0]] * 8, [[1, 1]] * 8)
    at = {(p["arm"], p["budget"]): p["value"] for p in found["accuracy"]}
    assert at == {("longcot", 512): 0, ("longcot", 1024): 0.5, (CHUNKED, 512): 0, (CHUNKED, 1024): 1}
    longcot, delethink = found["arms"]
    assert (longcot["ended"]["value"], delethink["ended"]["value"]) == (0.5, 1)
    assert delethink["chunked"]["value"] == 1
    assert delethink["chunked"]["low"] < 1
    assert (delethink["mean_thinking_tokens"], delethink["mean_chunks"]) == (300, 2)
    passes = {(p["arm"], p["k"]): p["value"] for p in found["pass"]}
    assert passes == {("longcot", 1): 0.5, ("longcot", 2): 1, (CHUNKED, 1): 1, (CHUNKED, 2): 1}


def test_zero_correct_everywhere_has_intervals_and_no_share() -> None:
    found = probe([[0, 0]] * 5, [[0, 0]] * 5)
    [verdict] = found["verdicts"]
    assert verdict["ratio"]["value"] is None
    assert "LongCoT solves nothing at 1k thinking tokens, so there is no share to keep" in verdict["text"]
    assert all(p["low"] == 0 < p["high"] for p in found["accuracy"])
    assert found["coverage"][0]["neither"] == [f"sums / p{n}" for n in range(5)]


def test_where_longcot_may_be_worth_nothing_the_share_has_no_upper_end() -> None:
    [verdict] = probe([[1, 0]] + [[0, 0]] * 5, [[1, 0]] + [[0, 0]] * 5)["verdicts"]
    if verdict["ratio"]["high"] is None:
        assert "no upper end] of LongCoT at 1k thinking tokens, as LongCoT's accuracy may be 0" in verdict["text"]
    else:
        assert verdict["ratio"]["high"] > 10


def test_one_problem_alone_is_judged_for_itself() -> None:
    found = probe([[1, 0, 1, 0]], [[1, 0, 0, 0]])
    assert found["accuracy"][1]["problems"] == 1
    assert found["verdicts"][0]["ratio"]["value"] == 0.5


def test_traces_that_never_met_a_boundary_say_nothing_of_chunks() -> None:
    assert UNCUT in probe([[1, 0]] * 4, [[1, 0]] * 4, chunked={"lengths": 100})["verdicts"][0]["text"]
    assert "second chunk" not in probe([[1, 0]] * 4, [[1, 0]] * 4)["verdicts"][0]["text"]


def test_a_verdict_on_few_traces_that_met_a_boundary_says_how_few() -> None:
    few = traces(CHUNKED, ARMS[CHUNKED], [[1, 0]] * 4, lengths=100)
    few[0] |= {"chunks": 2, "thinking_tokens": 300, "response_lengths": [300]}
    (verdict,) = analyse(frame(traces("longcot", ARMS["longcot"], [[1, 0]] * 4), few))["verdicts"]
    assert verdict["text"].endswith("points. Only 12.5 % of its traces came to a second chunk.")


def test_the_overlap_is_of_problems_that_a_majority_solves() -> None:
    longcot, delethink = [[1, 1, 0], [1, 1, 1], [0, 0, 1], [0, 0, 0]], [[1, 1, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]]
    [found] = probe(longcot, delethink)["coverage"]
    kinds = {kind: found[kind] for kind in ("both", "only_first", "only_second", "neither")}
    assert kinds == {
        "both": ["sums / p0"],
        "only_first": ["sums / p2"],
        "only_second": ["sums / p1"],
        "neither": ["sums / p3"],
    }


def test_part_of_a_score_is_not_right() -> None:
    rows = traces("longcot", ARMS["longcot"], [[1, 0]])
    rows[1] |= {"score": 0.5, "correct": False, "scores": {512: 0.5, 1024: 0.5}}
    assert [point["value"] for point in analyse(frame(rows))["accuracy"]] == [0, 0.5]


def test_failed_traces_are_counted_and_left_out_with_their_problems() -> None:
    found = probe([[1, 1], [1, 1], [0, 0]], [[1, 1], [1, 1], [1, 1]], chunked={"failed": 3})
    assert (found["arms"][1]["failed"], found["arms"][1]["traces"]) == (3, 6)
    assert found["accuracy"][-1]["samples"] == 3
    assert found["verdicts"][0]["unpaired"] == 1  # of problem 0 nothing is left
    assert found["verdicts"][0]["difference"]["problems"] == 2


def test_an_arm_that_failed_altogether_has_no_verdict() -> None:
    found = probe([[1, 1]], [[1, 1]], chunked={"failed": 2})
    assert found["verdicts"] == found["coverage"] == []
    assert found["arms"][1]["ended"] is None


def test_tasks_are_told_apart_though_their_problems_are_called_alike() -> None:
    arms = [traces("longcot", ARMS["longcot"], [[n, n]] * 3, task=f"t{n}") for n in (0, 1)]
    found = analyse(frame(*arms), asked=20)
    assert found["accuracy"][-1]["problems"] == 6
    assert [(p["task"], p["value"]) for p in found["by_task"]] == [("t0", 0), ("t1", 1)]
    assert found["arms"][0]["missing"] == 8


def test_ablations_have_a_point_an_arm() -> None:
    made = environments(1024, [256], ablations=["state", "context"])
    found = analyse(frame(*(traces(label, environment, [[1, 0]] * 3) for label, environment in made.items())))
    assert [p["state_size"] for p in found["state"]] == [32, 64, 96, 128, 160, 192, 224]
    assert [(p["context_size"], p["state_size"]) for p in found["context"]] == [(64, 32), (128, 64), (256, 128)]


def test_without_a_trace_that_can_be_judged_there_is_nothing_to_say() -> None:
    with pytest.raises(FitError, match="no traces yet"):
        analyse(frame())
    with pytest.raises(FitError, match="every trace failed"):
        analyse(frame(traces("longcot", ARMS["longcot"], [[1, 1]], failed=2)))
